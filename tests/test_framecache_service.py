"""The framecache service: a real one, over HTTP, with real slots."""

import asyncio
import http.client
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
from harness import Service, Worker, eventually, in_namespace

from cuframes import AlreadyExists, Disconnected, NotFound, OutOfSharedMemory
from cuframes.framecache import Client, SlotReader, SlotWriter, create_slot, find_slot, remove_slot
from cuframes.framecache.parameters import SlotParameters
from cuframes.framecache.slots import semaphore_name
from cuframes.host.files import lock

pytest.importorskip("fastapi")

BODY = {
    "slot_id": "cam",
    "width": 64,
    "height": 48,
    "fps_num": 25,
    "fps_den": 1,
    "pixel_format": "uyvy422",
    "source_type": "test",
    "ring_depth": 4,
}


@pytest.fixture
def service(slots):
    with Service() as running:
        yield running


@pytest.fixture
def client(service):
    return Client(service.url)


def test_the_list_in_a_file_follows_others(service, slots, slot_id):
    """Slots that are made and removed without the service, and without a request to it."""
    listed = slots / "registry.json"
    create_slot(slot_id, 64, 48, ring_depth=4)
    eventually(lambda: slot_id in listed.read_text())
    remove_slot(slot_id)
    eventually(lambda: slot_id not in listed.read_text())


def request(service, method, path, body=None, **headers):
    """Status, content type and parsed body of one request, exactly as it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, dict):
        body = json.dumps(body)
        headers.setdefault("Content-Type", "application/json")
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    kind = answer.headers.get("Content-Type", "")
    connection.close()
    return answer.status, kind, json.loads(content) if "json" in kind else content


def semaphore(slot_id):
    return Path(f"/dev/shm/sem.{semaphore_name(slot_id)[1:]}")


def there(slots):
    return sorted(path.name for path in slots.iterdir())


# ---- the calls


def test_the_life_of_a_slot(service, client, slots, slot_id):
    made = client.create(slot_id, 64, 48, fps=(60000, 1001), source_type="sdi", ring_depth=4)
    assert made == find_slot(slot_id) == client.get(slot_id)
    assert client.list() == [made]
    assert (made.fps_num, made.fps_den, made.source_type, made.ring_depth) == (60000, 1001, "sdi", 4)
    assert semaphore(slot_id).exists()
    registry = json.loads((slots / "registry.json").read_text())
    assert registry["slots"] == [made.parameters._asdict()]

    with SlotWriter(slot_id) as writer, SlotReader(slot_id) as reader:
        for _ in range(5):
            writer.write(numpy.zeros((48, 64, 2), numpy.uint8))
        writer.drop(2)
        now = client.get(slot_id)
        assert (now.write_cursor, now.writer_pid, now.dropped_frames) == (5, os.getpid(), 2)
        assert now.last_frame_age_s is not None
        client.remove(slot_id)
        assert not semaphore(slot_id).exists()
        assert reader.read(5).seq == 2
        with pytest.raises(Disconnected):
            writer.write(b"")
        assert [frame.seq for frame in reader] == [3, 4]
    assert there(slots) == ["registry.json"]
    assert json.loads((slots / "registry.json").read_text())["slots"] == []
    with pytest.raises(NotFound):
        client.remove(slot_id)
    with pytest.raises(NotFound):
        client.get(slot_id)
    assert [entry["slot_id"] for entry in service.events("slot created")] == [slot_id]
    eventually(lambda: [entry["slot_id"] for entry in service.events("slot removed")] == [slot_id])


def test_creating_twice(service, client, slot_id):
    body = BODY | {"slot_id": slot_id}
    assert request(service, "POST", "/slots", body)[0] == 201
    status, _, again = request(service, "POST", "/slots", body)
    assert (status, again["slot_id"]) == (200, slot_id)
    status, kind, problem = request(service, "POST", "/slots", body | {"height": 50})
    assert (status, kind, problem["status"]) == (409, "application/problem+json", 409)
    assert "height is 48, not 50" in problem["detail"]
    with SlotWriter(slot_id):
        status, _, problem = request(service, "POST", "/slots", body)
        assert status == 409
        assert f"pid {os.getpid()}" in problem["detail"]
        with pytest.raises(AlreadyExists):
            client.create(slot_id, 64, 48, ring_depth=4, source_type="test")
    assert request(service, "POST", "/slots", body)[0] == 200


def test_a_lock_that_a_killed_writer_has_just_left_is_no_conflict(slots, slot_id, monkeypatch):
    from cuframes.framecache.service import Registry

    monkeypatch.setattr("cuframes.host.files.INHERITED_SECONDS", 30)
    registry, wanted = Registry(), SlotParameters(slot_id, 64, 48, 25, 1, "uyvy422", "", 2)
    registry.create(wanted)
    heir = os.open(slots / slot_id, os.O_RDWR | os.O_CLOEXEC)
    assert lock(heir)
    timer = threading.Timer(0.05, os.close, (heir,))
    timer.start()
    found, is_new = registry.create(wanted)
    timer.join()
    assert (found.writer_pid, is_new) == (None, False)


def test_pixel_formats_go_by_name_or_number(service, slot_id):
    body = BODY | {"slot_id": slot_id, "pixel_format": 0}
    assert request(service, "POST", "/slots", body)[2]["pixel_format"] == "uyvy422"
    assert request(service, "POST", "/slots", body | {"pixel_format": "uyvy422"})[0] == 200
    assert request(service, "POST", "/slots", body | {"pixel_format": "UYVY"})[0] == 200


def test_what_happens_behind_its_back_is_seen(service, client, slots, slot_id):
    create_slot(slot_id, 64, 48, ring_depth=4)
    assert client.get(slot_id).slot_id == slot_id
    assert slot_id in (slots / "registry.json").read_text()
    remove_slot(slot_id)
    assert client.list() == []
    create_slot(slot_id, 32, 32, "gray8", ring_depth=4)
    assert client.get(slot_id).pixel_format == "gray8"


def test_health_and_metrics(service, client, slot_id):
    from prometheus_client.parser import text_string_to_metric_families

    client.create(slot_id, 64, 48, ring_depth=10)
    with SlotWriter(slot_id) as writer:
        for _ in range(5):
            writer.write(numpy.zeros((48, 64, 2), numpy.uint8))
        health = client.health()
        assert (health["status"], health["slots"]) == ("ok", 1)
        assert health["bytes_used"] == find_slot(slot_id).size
        assert health["bytes_free"] > 0
        status, kind, text = request(service, "GET", "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        samples = {
            (sample.name, sample.labels.get("slot_id")): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }
    assert samples["cuframes_framecache_slots", None] == 1
    assert samples["cuframes_framecache_frames_total", slot_id] == 5
    assert samples["cuframes_framecache_writer", slot_id] == 1
    assert samples["cuframes_framecache_fps", slot_id] > 0
    assert samples["cuframes_framecache_used_bytes", None] == health["bytes_used"]


def test_thumbnails_are_made_from_the_newest_frame_and_not_more_often_than_once_a_second(service, client, slot_id):
    av = pytest.importorskip("av")
    client.create(slot_id, 640, 360, "rgb24", ring_depth=3)
    path = f"/slots/{slot_id}/thumbnail.jpg"
    status, kind, problem = request(service, "GET", path)
    assert (status, kind) == (404, "application/problem+json")
    assert "no frame yet" in problem["detail"]
    with SlotWriter(slot_id) as writer:
        writer.write(numpy.full((360, 640, 3), (200, 30, 30), numpy.uint8))
        status, kind, first = request(service, "GET", path)
        assert (status, kind) == (200, "image/jpeg")
        decoder = av.CodecContext.create("mjpeg", "r")
        pixels = decoder.decode(av.Packet(first))[0].to_ndarray(format="rgb24")
        assert pixels.shape == (180, 320, 3)
        assert abs(pixels.astype(int) - (200, 30, 30)).max() < 12
        # A picture would be another one each time; on a machine so slow that each takes a second, they are.
        answers = []
        for number in range(8):
            writer.write(numpy.full((360, 640, 3), 20 * number, numpy.uint8))
            answers.append(request(service, "GET", path)[2])
        assert len({first, *answers}) < 9
        eventually(lambda: request(service, "GET", path)[2] != first)
        writer.write(b"not a picture")
        eventually(lambda: request(service, "GET", path)[0] == 404)


# ---- what must not be


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"slot_id": "../x"}, 422),
        ({"slot_id": ".hidden"}, 422),
        ({"slot_id": "a/b"}, 422),
        ({"slot_id": "a" * 64}, 422),
        ({"slot_id": ""}, 422),
        ({"slot_id": "x\n"}, 422),
        ({"slot_id": "registry.json"}, 422),
        ({"slot_id": 5}, 422),
        ({"width": 0}, 422),
        ({"width": -2}, 422),
        ({"width": 10**30}, 422),
        ({"width": 1.5}, 422),
        ({"width": "64"}, 422),
        ({"width": True}, 422),
        ({"width": 63}, 422),
        ({"width": 32768, "height": 32768, "pixel_format": "rgba"}, 422),
        ({"width": 32766, "height": 32768, "pixel_format": "rgba", "ring_depth": 4096}, 507),
        ({"fps_den": 0}, 422),
        ({"pixel_format": "yv12"}, 422),
        ({"pixel_format": 99}, 422),
        ({"pixel_format": None}, 422),
        ({"ring_depth": 1}, 422),
        ({"source_type": "ü" * 16}, 422),
        ({"source_type": "a\0b"}, 422),
        ({"color": "red"}, 422),
    ],
)
def test_bodies_that_make_no_slot(service, slots, change, status):
    before = there(slots)
    answer, kind, problem = request(service, "POST", "/slots", BODY | change)
    assert (answer, kind) == (status, "application/problem+json")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    if status == 507:
        assert problem["bytes_needed"] > problem["bytes_free"] > 0
    assert there(slots) == before
    assert not list(Path("/dev/shm").glob("sem.framecache-cam-write"))


def test_requests_that_are_refused(service, slots):
    def refused(status, method, path, body=None, **headers):
        answer, kind, problem = request(service, method, path, body, **headers)
        assert (answer, kind) == (status, "application/problem+json"), problem
        assert problem["status"] == status

    whole = json.dumps(BODY)
    refused(415, "POST", "/slots", whole, Content_Type="text/plain")
    refused(415, "POST", "/slots", whole, Content_Type="application/x-www-form-urlencoded")
    refused(415, "POST", "/slots", whole)
    refused(422, "POST", "/slots", "{", Content_Type="application/json")
    refused(422, "POST", "/slots", "[]", Content_Type="application/json")
    refused(422, "POST", "/slots", '{"slot_id": "cam"}', Content_Type="application/json")
    refused(422, "POST", "/slots", b"\xff\xfe", Content_Type="application/json")
    refused(413, "POST", "/slots", whole + " " * 70_000, Content_Type="application/json")
    refused(413, "POST", "/slots", (b" " * 1000 for _ in range(100)), Content_Type="application/json")
    refused(421, "GET", "/slots", Host="evil.example")
    refused(421, "POST", "/slots", BODY, Host="evil.example:7435")
    refused(421, "GET", "/", Host="127.0.0.1.evil.example")
    refused(404, "GET", "/nothing")
    refused(404, "GET", "/slots/registry.json")
    refused(404, "GET", "/slots/registry.json/thumbnail.jpg")
    refused(404, "DELETE", "/slots/registry.json")
    refused(404, "DELETE", "/slots/nothing")
    (slots / "folder").mkdir()
    refused(404, "DELETE", "/slots/folder")
    (slots / "folder").rmdir()
    (slots / "notes").write_text("hello")
    refused(404, "DELETE", "/slots/notes")
    (slots / "notes").unlink()
    refused(404, "GET", "/slots/..%2fregistry.json")
    refused(422, "GET", "/slots/..")
    refused(422, "DELETE", "/slots/.registry.json.1")
    refused(405, "PUT", "/slots", BODY)
    refused(405, "POST", "/health", "no JSON")
    refused(405, "PATCH", "/health", BODY)
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.request("PUT", "/slots")
    assert connection.getresponse().headers["Allow"] == "GET, HEAD, POST"
    connection.close()
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:7435"):
        assert request(service, "GET", "/health", Host=host)[0] == 200
    assert there(slots) == ["registry.json"]


def test_a_token_is_wanted_where_one_is_set(slots, slot_id):
    with Service(CUFRAMES_FRAMECACHE_TOKEN="s3cret") as service:
        for method, path, body in (
            ("GET", "/slots", None),
            ("POST", "/slots", BODY | {"slot_id": slot_id}),
            ("DELETE", f"/slots/{slot_id}", None),
            ("GET", "/metrics", None),
            ("GET", "/openapi.json", None),
            ("GET", "/nothing", None),
        ):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
                status, kind, _ = request(service, method, path, body, **headers)
                assert (status, kind) == (401, "application/problem+json")
        assert request(service, "GET", "/health")[0] == 200
        assert request(service, "GET", "/")[0] == 200
        with pytest.raises(PermissionError, match="token"):
            Client(service.url).list()
        Client(service.url, token="s3cret").create(slot_id, 64, 48, ring_depth=2)
        assert there(slots) == ["registry.json", slot_id]


def test_beyond_loopback_a_token_must_be_set(slots, tmp_path):
    command = [sys.executable, "-m", "cuframes", "framecache", "serve", "--port", "0", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "set a token" in done.stderr
    assert not slots.exists()
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with Service("--host", "0.0.0.0", "--token-file", token, "--allow-host", "capture.local") as service:
        authorized = {"Authorization": "Bearer s3cret"}
        assert request(service, "GET", "/slots", Host="capture.local:7435", **authorized)[0] == 200
        assert request(service, "GET", "/slots", Host="other.local", **authorized)[0] == 421


def test_it_keeps_to_its_share_of_memory(slots, slot_id):
    with Service("--max-gb", 0.0001) as service:  # 100 000 bytes
        client = Client(service.url)
        client.create(slot_id, 64, 48, ring_depth=4)  # 4096 + 4 * (24 + 6144)
        with pytest.raises(OutOfSharedMemory) as caught:
            client.create(f"{slot_id}b", 64, 48, ring_depth=20)
        assert (caught.value.needed, caught.value.free) == (4096 + 20 * 6168, 100_000 - 4096 - 4 * 6168)
        assert there(slots) == ["registry.json", slot_id]


def test_a_full_file_system_is_told():
    done = in_namespace(
        """
        from cuframes import OutOfSharedMemory
        from cuframes.framecache.parameters import SlotParameters
        from cuframes.framecache.service import Registry
        registry = Registry()
        try:
            registry.create(SlotParameters("big", 1920, 1080, 25, 1, "uyvy422"))
        except OutOfSharedMemory as error:
            print(error.needed, error.free, len(registry.slots()))
        """,
        16 << 20,
    )
    needed, free, count = map(int, done.stdout.split())
    assert (needed, count) == (4096 + 120 * (24 + 1920 * 1080 * 2), 0)
    assert free <= 16 << 20


# ---- crashes, restarts, crowds


def test_a_thousand_requests_at_once(service, slots, slot_id):
    def open_files():
        return len(os.listdir(f"/proc/{service.process.pid}/fd"))

    async def one(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        body = json.dumps(BODY | {"slot_id": slot_id}).encode()
        head = "GET /slots HTTP/1.1\r\n" if number % 2 else "POST /slots HTTP/1.1\r\n"
        head += "Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + (b"\r\n" if number % 2 else b"Content-Length: %d\r\n\r\n" % len(body) + body))
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])

    async def all_of_them():
        return await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(1000))), 100)

    assert request(service, "GET", "/health")[0] == 200  # so that it has begun
    before = open_files()
    statuses = asyncio.run(all_of_them())
    assert statuses.count(201) == 1
    assert statuses.count(200) == 999
    assert there(slots) == ["registry.json", slot_id]
    eventually(lambda: open_files() <= before + 2)  # the slot's own file


def test_connections_that_send_nothing_or_half_hold_nobody_up(service, client):
    idle = [socket.create_connection(("127.0.0.1", service.port), 10) for _ in range(50)]
    for number, connection in enumerate(idle):
        if number % 2:
            connection.sendall(b"POST /slots HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n")
    assert client.health()["status"] == "ok"
    for connection in idle:
        connection.close()
    assert service.stop() == 0


def test_sigterm_ends_it_cleanly_and_leaves_the_slots(service, client, slots, slot_id):
    made = client.create(slot_id, 64, 48, ring_depth=4)
    assert service.stop() == 0
    assert there(slots) == ["registry.json", slot_id]
    assert find_slot(slot_id) == made
    with pytest.raises(ConnectionError, match="cuframes framecache serve"):
        client.list()


def test_who_connects_in_the_moment_of_the_end_leaves_no_traceback():
    """The loop finds the connection in the round in which the accepting task is cancelled."""
    import uvicorn

    from cuframes.framecache.service.server import Connection, Server

    async def answer(scope, receive, send):
        raise AssertionError

    async def scene():
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        config = uvicorn.Config(answer, http=Connection, lifespan="off", log_config=None)
        config.load()
        server = Server(config, lambda: None)
        server.lifespan = config.lifespan_class(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await server.startup(sockets=[listening])
            await asyncio.sleep(0.01)  # the task is waiting now
            with socket.create_connection(listening.getsockname()):
                # It is cancelled first thing in the next round, before the loop gets to what it finds on its sockets.
                await asyncio.create_task(server.shutdown())
        return faults

    assert asyncio.run(scene()) == []


def test_killed_and_started_again_under_load_nobody_notices(slots, slot_id):
    """The writer writes and the readers read on; the next service adopts the slot, and mends what is missing."""
    frames = 400
    with Service() as first:
        Client(first.url).create(slot_id, 64, 48, ring_depth=120)
        readers = [Worker("slot_reader.py", slot_id, "--until", frames - 1) for _ in range(2)]
        with Worker("slot_writer.py", slot_id, "--count", frames, "--delay", 0.01, "--wait") as writer:
            writer.tell()
            eventually(lambda: find_slot(slot_id).write_cursor > 20)
            first.stop(signal.SIGKILL)
            (slots / "registry.json").write_text("half a reg")
            semaphore(slot_id).unlink()
            with Service() as second:
                assert [entry["slot_id"] for entry in second.events("slot adopted")] == [slot_id]
                now = Client(second.url).get(slot_id)
                assert now.writer_pid == writer.process.pid
                assert json.loads((slots / "registry.json").read_text())["slots"][0]["slot_id"] == slot_id
                assert semaphore(slot_id).exists()
                for _ in range(20):
                    Client(second.url).list()
                second.stop(signal.SIGKILL)
            assert writer.read() == frames
            for reader in readers:
                result = reader.result()
                assert (result["read"], result["dropped"], result["torn"]) == (frames, 0, 0)
    for reader in readers:
        reader.__exit__()


def test_killed_while_creating_it_leaves_whole_slots_or_none(slots, slot_id):
    for delay in (0.0, 0.01, 0.03, 0.06):
        with Service() as service:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
            body = json.dumps(BODY | {"slot_id": slot_id, "width": 1920, "height": 1080, "ring_depth": 40})
            connection.request("POST", "/slots", body, {"Content-Type": "application/json"})
            time.sleep(delay)
            service.stop(signal.SIGKILL)
            connection.close()
        names = [name for name in there(slots) if name != "registry.json"]
        assert names in ([], [slot_id])
        with Service() as service:
            client = Client(service.url)
            assert [slot.slot_id for slot in client.list()] == names
            made = client.create(slot_id, 1920, 1080, source_type="test", ring_depth=40)
            assert (slots / slot_id).stat().st_size == made.size
            assert semaphore(slot_id).exists()
            client.remove(slot_id)
            service.stop()


def test_foreign_files_are_logged_once_and_left_alone(slots, slot_id):
    slots.mkdir()
    (slots / "stranger").write_bytes(b"not a slot" * 1000)
    create_slot(slot_id, 64, 48, ring_depth=4)
    with Service() as service:
        client = Client(service.url)
        for _ in range(5):
            assert [slot.slot_id for slot in client.list()] == [slot_id]
        service.stop()
    assert [entry["slot_id"] for entry in service.events("not a slot of ours")] == ["stranger"]
    assert (slots / "stranger").exists()


# ---- neighbours


def test_head_is_answered_wherever_get_is(service, client, slot_id):
    pytest.importorskip("av")
    client.create(slot_id, 64, 48, ring_depth=4)
    with SlotWriter(slot_id) as writer:
        writer.write(numpy.zeros((48, 64, 2), numpy.uint8))
        for path in (
            "/",
            "/page.js",
            "/slots",
            f"/slots/{slot_id}",
            f"/slots/{slot_id}/thumbnail.jpg",
            "/openapi.json",
        ):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
            answers = []
            for method in ("GET", "HEAD"):  # on one connection: a body after HEAD would be the next answer
                connection.request(method, path)
                answer = connection.getresponse()
                answers.append((answer.status, answer.headers["Content-Type"], answer.read()))
            connection.close()
            assert answers[0][:2] == answers[1][:2] == (200, answers[0][1])
            assert answers[1][2] == b""
    for path, status in (("/health", 200), ("/metrics", 200), ("/nothing", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        connection.request("HEAD", path)
        assert connection.getresponse().status == status
        connection.close()


def test_who_sends_slowly_or_takes_nothing_is_cut_off(service, client, slot_id):
    """Headers and bodies that drip, silence, and answers that nobody reads: none lasts for ever."""
    client.create(slot_id, 64, 48, ring_depth=2)
    heads = (b"", b"GET /slots HTTP/1.1\r\nHost: localhost\r\n", b"POST /slots HTTP/1.1\r\nHost: localhost\r\n")
    heads = (*heads, heads[2] + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{")
    connections = [socket.create_connection(("127.0.0.1", service.port), 60) for _ in range(5)]
    for connection, head in zip(connections, heads, strict=False):
        connection.sendall(head)
    greedy = connections[-1]
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.setblocking(False)
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
    while asked:
        try:
            asked = asked[greedy.send(asked) :]
        except BlockingIOError:
            break
    drip = dict.fromkeys(connections[1:4], b"x")
    end = time.monotonic() + 60
    while drip and time.monotonic() < end:
        for connection in list(drip):
            try:
                connection.sendall(drip[connection])
            except OSError:
                del drip[connection]
        time.sleep(0.2)
    assert not drip
    assert connections[0].recv(100) == b""
    ours = len(os.listdir(f"/proc/{service.process.pid}/fd"))
    for connection in connections:
        connection.close()
    time.sleep(0.5)
    assert len(os.listdir(f"/proc/{service.process.pid}/fd")) >= ours - 1  # the last one was gone as well
    assert client.health()["status"] == "ok"


def test_idle_connections_keep_nobody_out(service, client, slot_id):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2500
    if hard < wanted + 200:
        pytest.skip("not enough descriptors here")
    idle = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 200), hard))
    try:
        for _ in range(wanted):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", service.port))
            idle.append(connection)
        assert Client(service.url, timeout=60).health()["status"] == "ok"
        assert client.create(slot_id, 64, 48, ring_depth=2).slot_id == slot_id
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(service.log) < 20


def test_without_descriptors_it_says_so_once_and_goes_on(service, client):
    assert client.health()["status"] == "ok"
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    few = len(os.listdir(f"/proc/{service.process.pid}/fd")) + 3
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (few, limits[1]))
    idle = [socket.create_connection(("127.0.0.1", service.port), 20) for _ in range(50)]
    eventually(lambda: service.events("connections cannot be accepted"), 20)
    time.sleep(2)
    for connection in idle:
        connection.close()
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
    assert Client(service.url, timeout=60).health()["status"] == "ok"
    assert len(service.events("connections cannot be accepted")) == 1
    assert len(service.log) < 20


def test_a_full_file_system_leaves_it_answering():
    done = in_namespace(
        """
        import json, logging, os
        from pathlib import Path
        from cuframes import OutOfSharedMemory
        from cuframes.framecache.parameters import SlotParameters
        from cuframes.framecache.service import Registry
        from cuframes.framecache.service.metrics import Metrics

        class Lines(logging.Handler):
            def emit(self, record): lines.append(record.getMessage())

        lines = []
        logging.getLogger("cuframes.framecache").addHandler(Lines())
        logging.getLogger("cuframes.framecache").setLevel("INFO")
        def small(name): return SlotParameters(name, 64, 48, 25, 1, "gray8", "", 2)
        def fill():
            with open("/dev/shm/ballast", "ab", buffering=0) as ballast:
                for size in (1 << 20, 4096):
                    try:
                        while ballast.write(bytes(size)) == size: pass
                    except OSError: pass
        registry = Registry()
        registry.create(small("first"))
        before = sorted(os.listdir("/dev/shm") + os.listdir("/dev/shm/framecache"))
        # A slot that takes all there is, and leaves nothing for its semaphore.
        free = registry.summary()["bytes_free"]
        whole = SlotParameters("whole", 4096, (free - 8192) // 2 // 4096, 25, 1, "gray8", "", 2)
        rest = free - (whole.size + 4095) // 4096 * 4096
        os.posix_fallocate(os.open("/dev/shm/rest", os.O_RDWR | os.O_CREAT), 0, rest)
        try: registry.create(whole)
        except OutOfSharedMemory as full: print(full.needed > whole.size, full.free is not None)
        os.unlink("/dev/shm/rest")
        print(sorted(os.listdir("/dev/shm") + os.listdir("/dev/shm/framecache")) == before)
        fill()
        os.unlink("/dev/shm/framecache/first")
        fill()
        for _ in range(5):
            health = registry.health()
            print(registry.slots(), health["slots"], "cannot be written" in health["problem"])
        print("frames" in Metrics(registry).text().decode(), os.listdir("/dev/shm/framecache"))
        print(lines.count("list not written"))
        os.unlink("/dev/shm/ballast")
        print(registry.health()["problem"], json.loads(Path("/dev/shm/framecache/registry.json").read_text())["slots"])
        print(lines.count("list written again"))
        """,
        2 << 20,
    )
    assert done.stdout.splitlines() == [
        "True True",
        "True",
        *["[] 0 True"] * 5,
        "True ['registry.json']",
        "1",
        "None []",
        "1",
    ], done.stderr


def test_a_list_that_cannot_be_written_is_said_in_health_and_once_in_the_log(slots, slot_id):
    (slots / "registry.json").mkdir(parents=True)
    with Service() as service:
        client = Client(service.url)
        for _ in range(3):
            health = client.health()
            assert health["status"] == "degraded"
            assert "registry.json cannot be written" in health["problem"]
        assert client.create(slot_id, 64, 48, ring_depth=2).slot_id == slot_id
        assert [slot.slot_id for slot in client.list()] == [slot_id]
        assert len(service.events("list not written")) == 1
        (slots / "registry.json").rmdir()
        assert client.health()["problem"] is None
        assert slot_id in (slots / "registry.json").read_text()
        # Never what somebody put there for it to open.
        os.mkfifo(slots / ".registry.json.new")
        client.remove(slot_id)
        assert client.health()["status"] == "ok"
        assert json.loads((slots / "registry.json").read_text())["slots"] == []
    assert not service.events("request failed")


def test_a_name_that_something_else_has_is_a_conflict(slots, slot_id):
    slots.mkdir()
    (slots / slot_id).write_bytes(b"not a slot" * 1000)
    with Service() as service:
        status, _, problem = request(service, "POST", "/slots", BODY | {"slot_id": slot_id})
        assert status == 409
        assert "something else" in problem["detail"]
        assert request(service, "GET", "/health")[0] == 200
        assert (slots / slot_id).exists()


def test_thumbnails_of_odd_slots_are_no_server_errors(service, client, slots, slot_id):
    pytest.importorskip("av")

    def damaged(name, at, values, size=(64, 48), format="gray8"):
        with SlotWriter(f"{slot_id}{name}", *size, format, ring_depth=2) as writer:
            writer.write(numpy.zeros((size[1], size[0]), numpy.uint8))
        with open(slots / f"{slot_id}{name}", "r+b") as file:
            file.seek(at)
            file.write(b"".join(value.to_bytes(4, "little") for value in values))

    damaged("entry", 4096 + 16, [2**32 - 1])
    damaged("large", 8, [32768, 32768])
    damaged("format", 24, [99])
    damaged("side", 8, [0, 2**31])
    damaged("depth", 28, [2**32 - 1, 2**32 - 1])
    damaged("wide", 0, [0x46524D43], (32768, 1))
    damaged("high", 0, [0x46524D43], (1, 32768))
    (slots / f"{slot_id}none").write_bytes(bytes(10000))
    os.mkfifo(slots / f"{slot_id}pipe")
    statuses = {
        name: request(service, "GET", f"/slots/{slot_id}{name}/thumbnail.jpg")[0]
        for name in ["entry", "large", "format", "side", "depth", "wide", "high", "none", "pipe"]
    }
    assert statuses.pop("wide") == statuses.pop("high") == 200
    assert set(statuses.values()) == {404}
    assert request(service, "GET", "/slots")[0] == request(service, "GET", "/metrics")[0] == 200
    assert not service.events("request failed")


def test_nobody_writes_the_log_for_us(slots, slot_id):
    """Whatever a path, a header or a slot's name holds: a line begins with a time, and a value is one."""
    forged = (
        "/slots/x%0a2026-01-01 00:00:00,000 INFO slot removed slot_id=prod%1b[2J%c2%9b%e2%80%ae status=200".replace(
            " ", "%20"
        )
    )
    command = [sys.executable, "-m", "cuframes", "framecache", "serve", "--port", "0", "--log-format", "text"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        port = int(first.split("port=")[1].split()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", forged, headers={"X-Forwarded-For": "6.6.6.6", "Host": "localhost"})
        assert connection.getresponse().status in (404, 422)
        connection.close()
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 0
    (line,) = [line for line in lines if "slot removed" in line]
    assert line.isprintable()
    assert ' INFO request method=GET path="/slots/x' in line
    assert line.count(" status=") == 2  # one of them inside the quotes
    assert line.endswith("client=127.0.0.1")
    with Service() as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        connection.request("GET", forged, headers={"X-Forwarded-For": "6.6.6.6"})
        connection.getresponse().read()
        connection.close()
        eventually(lambda: service.events("request"))
        assert service.events("request")[-1]["client"] == "127.0.0.1"
        service.stop()


def test_a_traceback_in_the_log_cannot_be_taken_for_a_line():
    from cuframes.framecache.service.run import TextFormatter

    try:
        raise ValueError("x\n2026-01-01 00:00:00,000 INFO slot removed\x1b[2J")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "", 0, "oh\nno", (), sys.exc_info())
    first, *more = TextFormatter().format(record).split("\n")
    assert first.endswith(r"ERROR oh\nno")
    assert more
    assert all(line.startswith("  ") and line.isprintable() for line in more)


# ---- the description


def test_the_description_is_kept_under_fuzzing(slots, slot_id, tmp_path):
    """Schemathesis sends what the description allows and forbids; answers must be as described."""
    program = Path(sys.executable).parent / "schemathesis"
    if not program.exists():
        program = shutil.which("schemathesis")
    assert program, "schemathesis is not installed"
    # 507 says that there is no room, as it should. What is allowed in one field depends on others (odd widths).
    (tmp_path / "schemathesis.toml").write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "507"]\n'
        "[checks.positive_data_acceptance]\nenabled = false\n"
    )
    # uvicorn's own answer to what is not HTTP is no problem document.
    with Service("--max-gb", 0.05) as service:
        Client(service.url).create(slot_id, 64, 48, ring_depth=4)
        command = [
            program,
            "run",
            f"{service.url}/openapi.json",
            "--max-examples",
            "40",
            "--workers",
            "2",
            "--seed",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        for name in there(slots):
            if name != "registry.json":
                remove_slot(name)
        assert Client(service.url).health()["status"] == "ok"
        assert service.stop() == 0
    assert not service.events("request failed")


def test_slots_can_be_created_again_after_the_directory_was_removed(slots, client):
    """It used to say that there is no room, until it was started again."""
    client.create("cam", 64, 48, ring_depth=4)
    remove_slot("cam")
    shutil.rmtree(slots)
    assert client.health()["bytes_free"] > 0
    shutil.rmtree(slots, ignore_errors=True)
    assert client.create("cam", 64, 48, ring_depth=4).slot_id == "cam"
    client.remove("cam")


def test_requests_that_do_not_come_to_an_end_do_not_make_its_end_an_error(service):
    """Each of them was logged with a traceback, after the service had waited for them."""
    head = b"POST /slots HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    clients = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(3)]
    for client in clients:
        client.sendall(head)
    assert request(service, "GET", "/health")[0] == 200  # by now they are being waited for
    assert service.stop() == 0
    for client in clients:
        client.close()
    assert not [entry for entry in service.log if entry["level"] == "ERROR"]
