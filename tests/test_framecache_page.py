"""The service's page, in a real browser without a screen."""

import shutil
import time

import numpy
import pytest
from harness import Service, Worker, eventually

from cuframes.framecache import Client, SlotWriter, create_slot, remove_slot

pytest.importorskip("fastapi")
webdriver = pytest.importorskip("selenium.webdriver")

BROWSER = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium here (Debian: apt install chromium chromium-driver)"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


def text(browser, selector):
    """What an element shows, or None; the page changes while we look."""
    return browser.execute_script(
        "const e = document.querySelector(arguments[0]); return e && e.offsetParent ? e.textContent : null", selector
    )


def picture(browser, slot_id):
    """The mean colour of a slot's picture, or None while there is none."""
    return browser.execute_script(
        """
        const image = document.querySelector(`[data-slot="${arguments[0]}"] img`);
        if (!image || image.hidden || !image.complete || !image.naturalWidth) return null;
        const canvas = new OffscreenCanvas(1, 1);
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        """,
        slot_id,
    )


def test_the_page_shows_every_slot_and_follows_them(slots, slot_id, browser, tmp_path):
    other = f"{slot_id}.b"
    with Service() as service, Worker("slot_writer.py", slot_id, "--size", "320x180", "--depth", 60, "--delay", 0.02):
        create_slot(other, 64, 48, "rgb24", ring_depth=3, source_type="<img src=x onerror=a>")
        with SlotWriter(other) as writer:
            browser.set_window_size(1200, 800)
            browser.get(service.url)
            eventually(lambda: text(browser, f'[data-slot="{slot_id}"] .state') == "live", 20)
            card = f'[data-slot="{slot_id}"]'
            assert text(browser, f"{card} .video") == "uyvy422 320\N{MULTIPLICATION SIGN}180, 25 fps"
            assert text(browser, f"{card} .fps").endswith(" fps")
            assert text(browser, f"{card} .age").endswith(" ago")
            assert text(browser, f"{card} .dropped") == "0"
            assert text(browser, f"{card} .writer").startswith("pid ")
            assert "<img src=x onerror=a>" in text(browser, f'[data-slot="{other}"] .video')
            assert "2 slots" in text(browser, "#summary")

            # By itself: counts grow, pictures change, slots come and go.
            before = text(browser, f"{card} .frames")
            eventually(lambda: text(browser, f"{card} .frames") != before, 20)
            eventually(lambda: picture(browser, slot_id) is not None, 20)
            writer.write(numpy.full((48, 64, 3), (250, 10, 10), numpy.uint8))
            eventually(lambda: (c := picture(browser, other)) and c[0] > 200 and c[1] < 60, 20)
            writer.drop(7)
            writer.write(numpy.full((48, 64, 3), (10, 10, 250), numpy.uint8))
            eventually(lambda: (c := picture(browser, other)) and c[2] > 200 and c[0] < 60, 20)
            assert text(browser, f'[data-slot="{other}"] .dropped') == "7"
            assert browser.save_screenshot(str(tmp_path / "page.png"))
            Client(service.url).create(f"{slot_id}.c", 16, 16, "gray8", ring_depth=2)
            eventually(lambda: text(browser, f'[data-slot="{slot_id}.c"] .state') == "never written", 20)
            for name in (other, f"{slot_id}.c"):
                remove_slot(name)
            eventually(lambda: "1 slot," in text(browser, "#summary"), 20)
            assert text(browser, f'[data-slot="{other}"] .state') is None

        # From a phone: one column, and nothing to scroll sideways.
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.execute_script("return getComputedStyle(slots).gridTemplateColumns.split(' ').length") == 1
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert loaded
        assert all(address.startswith((service.url, "blob:", "data:")) for address in loaded)
        # A slot that is removed while its picture is asked for is a 404, which the browser logs.
        log = [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
        assert not [entry for entry in log if "thumbnail.jpg" not in entry["message"]]
        service.stop()
        eventually(lambda: "does not answer" in text(browser, "#summary"), 20)
    browser.get("about:blank")
    browser.get_log("browser")


@pytest.mark.parametrize("size", [(640, 480), (720, 1280), (64, 64)])
def test_pictures_of_other_shapes_stay_in_their_card(slots, slot_id, browser, size):
    wide = f"{slot_id}.w"
    with Service() as service:
        for name, (width, height) in ((slot_id, size), (wide, (1280, 720))):
            create_slot(name, width, height, "gray8", ring_depth=2)
            with SlotWriter(name) as writer:
                writer.write(numpy.full((height, width), 200, numpy.uint8))
        browser.set_window_size(1200, 800)
        browser.get(service.url)
        for name in (slot_id, wide):
            eventually(lambda name=name: picture(browser, name) is not None, 20)
        boxes = browser.execute_script(
            "return arguments[0].map((name) => ['.picture', 'img'].map((part) => {"
            '  const box = document.querySelector(`[data-slot="${name}"] ${part}`).getBoundingClientRect();'
            "  return [box.left, box.top, box.width, box.height].map(Math.round); }))",
            [slot_id, wide],
        )
        for card, image in boxes:
            assert image == card
        (narrow, _), (other, _) = boxes
        assert narrow[2:] == other[2:]
        assert abs(narrow[2] / narrow[3] - 16 / 9) < 0.02
        browser.get("about:blank")


def test_nobody_looks_and_nothing_is_asked(slots, slot_id, browser):
    """A page in the background asks for nothing."""
    create_slot(slot_id, 64, 48, ring_depth=2)
    with Service("--log-level", "debug") as service:
        browser.get(service.url)
        page = browser.current_window_handle
        eventually(lambda: text(browser, f'[data-slot="{slot_id}"] .state'), 20)
        browser.switch_to.new_window("tab")
        hidden = browser.execute_script("return document.hidden")
        assert not hidden  # the new one is in front now
        for _ in range(10):  # what was under way
            before = len(service.events("request"))
            time.sleep(1.5)
            if len(service.events("request")) == before:
                break
        time.sleep(3)
        assert len(service.events("request")) == before
        browser.close()
        browser.switch_to.window(page)
        eventually(lambda: len(service.events("request")) > before, 20)
        browser.get("about:blank")


def test_the_page_asks_for_the_token(slots, slot_id, browser):
    create_slot(slot_id, 64, 48, ring_depth=2)
    with Service(CUFRAMES_FRAMECACHE_TOKEN="s3cret") as service:
        browser.get(service.url)
        eventually(lambda: text(browser, "#ask label"), 20)
        field = browser.find_element("id", "token")
        field.send_keys("wrong\n")
        eventually(lambda: text(browser, "#summary") == "the token was refused", 20)
        field.clear()
        field.send_keys("s3cret\n")
        eventually(lambda: text(browser, f'[data-slot="{slot_id}"] .state') == "never written", 20)
        assert text(browser, "#ask label") is None
        browser.get("about:blank")
