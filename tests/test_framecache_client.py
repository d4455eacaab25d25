"""The service's client, and the commands that use it, against what is no service."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import numpy
import pytest

from cuframes import NotFound, OutOfSharedMemory, ProtocolError
from cuframes.framecache import Client

SLOT = {
    "slot_id": "cam",
    "width": 64,
    "height": 48,
    "fps_num": 25,
    "fps_den": 1,
    "pixel_format": "uyvy422",
    "source_type": "",
    "ring_depth": 4,
    "frame_size": 6144,
    "size": 28672,
    "write_cursor": 0,
    "fps": None,
    "last_frame_age_s": None,
    "writer_pid": None,
    "dropped_frames": 0,
    "color_range": "tv",
    "color_matrix": "bt709",
    "color_primaries": None,
    "color_transfer": None,
    "sample_aspect_ratio": "64:45",
    "field_order": None,
    "rotation": 90,
}


@contextlib.contextmanager
def answering(*parts, pause=0.0, hang=False):
    """The address of something that answers every connection with these bytes, one part after the other."""
    over = threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            if not hang:
                connection.recv(65536)
            for part in parts:
                connection.sendall(part)
                if over.wait(pause):
                    return
            if hang:
                over.wait(60)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(20)


def http(body=b"", status=b"200 OK", length=None):
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body) if length is None else length, body)


def slots(**changes):
    return http(json.dumps([SLOT | changes]).encode())


def test_an_older_service_does_not_say_what_pictures_look_like():
    entry = {name: value for name, value in SLOT.items() if not name.startswith(("color", "sample", "field", "rotat"))}
    with answering(http(json.dumps([entry]).encode())) as url:
        (found,) = Client(url).list()
    assert (found.color_range, found.sample_aspect_ratio, found.rotation) == (None, None, None)


def test_a_list_as_the_service_sends_it():
    with answering(slots()) as url:
        assert [slot._asdict() for slot in Client(url).list()] == [SLOT]
    with answering(slots(), pause=0) as url:
        assert Client(f"{url}/").list()


def test_numpy_numbers_are_numbers():
    """JSON knows Python's only."""
    n = numpy.int64
    with answering(http(json.dumps(SLOT).encode())) as url:
        client = Client(url, timeout=numpy.float32(10))
        for fps in (n(25), (n(25), n(1)), numpy.float32(25), 25.0, "25"):
            found = client.create("cam", n(64), numpy.uint16(48), fps=fps, ring_depth=n(4))
            assert found.slot_id == "cam"
        for wrong in ({"width": 64.0}, {"height": True}, {"ring_depth": "4"}):
            with pytest.raises(TypeError, match="must be an int"):
                client.create("cam", **({"width": 64, "height": 48} | wrong))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"RTSP/1.0 400 Bad Request\r\n\r\n", id="RTSP"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"\0" * 10, id="zeros"),
        pytest.param(http(b"[]", length=1000), id="cut"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[", id="cut chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[", id="no chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-", id="cut headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", id="headers without end"),
        pytest.param(http(b"<html>"), id="HTML"),
        pytest.param(http(b"\xff\xfe"), id="no UTF-8"),
        pytest.param(http(b"[{}, 1]"), id="other JSON"),
        pytest.param(http(b"{}"), id="object"),
        pytest.param(http(b"5"), id="number"),
        pytest.param(http(b"null"), id="null"),
        pytest.param(http(b"[" * 100_000), id="deep"),
        pytest.param(http(), id="empty"),
        pytest.param(http(b"<html>", b"404 Not Found"), id="404"),
        pytest.param(http(b"[]", b"201 Created"), id="201"),
        pytest.param(http(b"", b"302 Found"), id="redirected"),
        pytest.param(slots(slot_id="[/red]"), id="markup"),
        pytest.param(slots(slot_id=5), id="no name"),
        pytest.param(slots(pixel_format="\x1b[2J"), id="escapes"),
        pytest.param(slots(size=10**400), id="huge"),
        pytest.param(slots(fps="x"), id="text for a number"),
        pytest.param(slots(width=True), id="true"),
    ],
)
def test_what_is_no_service_is_told_from_one(answer):
    with answering(answer) as url, pytest.raises(ProtocolError, match=f"{url} is not a framecache service"):
        Client(url).list()


def test_a_server_error_without_an_explanation():
    from cuframes import CuframesError

    with answering(http(b"Internal Server Error", b"500 Internal Server Error")) as url:
        with pytest.raises(CuframesError, match="status 500"):
            Client(url).list()


def test_nothing_is_removed_by_something_that_only_says_ok():
    with answering(http()) as url, pytest.raises(ProtocolError, match="not a framecache service"):
        Client(url).remove("cam")


def test_what_an_answer_says_is_for_a_terminal():
    detail = json.dumps({"detail": "gone\x1b[2J\n" + "x" * 100_000}).encode()
    with answering(http(detail, b"404 Not Found")) as url, pytest.raises(NotFound) as caught:
        Client(url).get("cam")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    with answering(http(b'{"detail": "full", "bytes_needed": "x"}', b"507 Full")) as url:
        with pytest.raises(OutOfSharedMemory) as caught:
            Client(url).get("cam")
    assert caught.value.needed is None


@pytest.mark.parametrize(
    ("parts", "pause"),
    [
        pytest.param([], 0, id="silent"),
        pytest.param([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 80], 0.2, id="headers drip"),
        pytest.param([http(length=1000), *[b" "] * 900], 0.2, id="body drips"),
        pytest.param([b"HTTP/1.1 200 OK\r\n\r\n[", *[b" "] * 900], 0.2, id="body without a length drips"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n"] * 900, 0.2, id="continues"),
    ],
)
def test_the_timeout_is_for_the_whole_call(parts, pause):
    with answering(*parts, pause=pause, hang=True) as url:
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"within 0\.7 s"):
            Client(url, timeout=0.7).list()
        assert time.monotonic() - began < 10


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ConnectionError, match="cuframes framecache serve"):
        Client(f"http://127.0.0.1:{port}").list()
    with answering() as url, pytest.raises(ConnectionError, match="cuframes framecache serve"):
        Client(url).list()
    with answering() as url, pytest.raises(ConnectionError):
        Client(url.replace("http", "https")).list()


BAD_URLS = (
    "",
    "127.0.0.1:7435",
    "ftp://localhost",
    "http://",
    "http://local host:1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:abc",
    "http://[::1",
    "http://localhost/\n",
    "http://user:word@localhost",
    "http://localhost/?x=1",
)


@pytest.mark.parametrize("url", BAD_URLS)
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="not the address of a service"):
        Client(url)


def test_tokens_and_timeouts_that_are_none():
    for token in ("", "a b", "a\r\nX: y", "ü"):
        with pytest.raises(ValueError, match="token"):
            Client(token=token)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout"):
            Client(timeout=timeout)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"RTSP/1.0 400 Bad Request\r\n\r\n", 1),
        (http(b"null"), 1),
        (http(b"[]", length=9), 1),
        (slots(pixel_format="[/x]"), 0),
    ],
)
def test_a_command_says_it_in_one_line(answer, status):
    pytest.importorskip("typer")
    with answering(answer) as url:
        command = [sys.executable, "-m", "cuframes", "framecache", "ls", "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == (status != 0)
    assert "Traceback" not in done.stderr


def test_a_bad_address_is_a_mistake_in_use():
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "cuframes", "framecache", "ls", "--url", "http://127.0.0.1:abc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
