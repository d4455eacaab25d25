"""Cameras for tests: real servers on loopback, that fail as cameras do."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import eventually, has_stopped

FFMPEG = shutil.which("ffmpeg")
GARBAGE = bytes(range(256)) * 64


def needs_ffmpeg():
    if FFMPEG is None:
        pytest.skip("the command ffmpeg is not installed (apt install ffmpeg)")


def make(path, *options, source="testsrc2=size=320x240:rate=25", seconds=4.0):
    """Encode FFmpeg's test picture into a file, once."""
    needs_ffmpeg()
    path = Path(path)
    if not path.exists():
        command = [FFMPEG, "-nostdin", "-v", "error", "-f", "lavfi", "-i", f"{source}:duration={seconds}"]
        codec = [] if "-c:v" in options else ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "25"]
        subprocess.run([*command, *codec, *options, str(path)], check=True, timeout=60)
    return path


@functools.cache
def stream(folder, size="320x240", rate=25, seconds=4.0):
    """The bytes of a transport stream."""
    return make(
        folder / f"{size}-{rate}-{seconds}.ts", source=f"testsrc2=size={size}:rate={rate}", seconds=seconds
    ).read_bytes()


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class TcpCamera:
    """Sends to each connection what `acts` says, one after the other; the last one again and again.

    An act is a function that gets the connection. :func:`play`, :func:`reset`, :func:`silence` and :func:`garbage` make
    some.
    """

    def __init__(self, *acts, port=0):
        self._acts = list(acts)
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.connections = 0
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            if self.over.is_set():
                sock.close()
                return
            act = self._acts[min(self.connections, len(self._acts) - 1)]
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(act, sock)))
            self._threads[-1].start()

    def _serve(self, act, sock):
        with sock:
            with contextlib.suppress(OSError):  # the other side has gone
                act(sock, self.over)

    def close(self):
        self.over.set()
        with socket.socket() as sock:  # wakes accept()
            sock.connect_ex(("127.0.0.1", self.port))
        self._server.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class LossyRelay:
    """Passes UDP datagrams on, and loses one in five."""

    def __init__(self, target):
        self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.bind(("127.0.0.1", 0))
        self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._target = ("127.0.0.1", target)
        self.port = self._in.getsockname()[1]
        self.lost = 0
        self._thread = threading.Thread(target=self._relay)
        self._thread.start()

    def _relay(self):
        chance = random.Random(1)
        while data := self._in.recv(65_536):
            if chance.random() < 0.2:
                self.lost += 1
            else:
                with contextlib.suppress(ConnectionError):
                    self._out.sendto(data, self._target)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._out.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._in.close()
        self._out.close()


def play(data, seconds, then=None):
    """Send bytes in the time that they play, then do something else, or hang up."""

    def act(sock, over):
        pieces = 25
        for number in range(pieces):
            sock.sendall(data[len(data) * number // pieces : len(data) * (number + 1) // pieces])
            if over.wait(seconds / pieces):
                return
        if then is not None:
            then(sock, over)

    return act


def reset(sock, over):
    """Hang up as a camera that loses its power does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(sock, over):
    """Keep the connection, and say nothing."""
    over.wait()


def garbage(sock, over):
    """Send bytes that mean nothing, without an end."""
    while not over.wait(0.02):
        sock.sendall(GARBAGE)


class Publish:
    """``cuframes publish`` in a process of its own."""

    def __init__(self, key, source, *options, stdin=subprocess.DEVNULL, env=None):
        self.key = key
        command = [
            sys.executable,
            "-m",
            "cuframes",
            "publish",
            key,
            "--source",
            str(source),
            "--memory",
            "host",
            "--json",
        ]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=None if env is None else os.environ | env,
        )  # fmt: skip
        self.lines, self.errors = [], []
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, json.loads)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors, str.strip)),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(pipe, into, parse):
        for line in pipe:
            into.append(parse(line))

    def ready(self, timeout=30):
        """Its first line."""

        def said():
            assert self.process.poll() is None or self.lines, self.errors
            return self.lines

        return eventually(said, timeout)[0]

    def source(self):
        """What ``cuframes info`` says of its source, asked as the command does."""
        from cuframes.session.status import find_status

        return find_status(self.key)

    def becomes(self, *states, timeout=30):
        """Wait for a state of the source."""
        return eventually(lambda: (now := self.source()) is not None and now.state in states and now, timeout)

    def end(self, timeout=30):
        """Wait for its end: the exit status and the report."""
        status = self.process.wait(timeout)
        for thread in self._threads:
            thread.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return status, self.lines[-1] if self.lines and self.lines[-1]["event"] == "ended" else None

    def stop(self, number=signal.SIGTERM, timeout=20):
        self.process.send_signal(number)
        return self.end(timeout)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if not self.process.stdout.closed:
            self.end()


class Server:
    """A program that serves, in a process group of its own."""

    def __init__(self, *command, **options):
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, start_new_session=True, **options
        )

    def freeze(self):
        os.killpg(self.process.pid, signal.SIGSTOP)
        eventually(lambda: has_stopped(self.process.pid))

    def thaw(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def ffmpeg(*arguments):
    """The command ffmpeg, as a server or sender."""
    needs_ffmpeg()
    return Server(FFMPEG, "-nostdin", "-v", "error", "-re", *arguments)


RTSP = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( videotestsrc is-live=true ! video/x-raw,width={sys.argv[2]},height={sys.argv[3]},framerate=25/1 "
    "! x264enc tune=zerolatency key-int-max=25 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print("serving", flush=True)
GLib.MainLoop().run()
"""


def rtsp_camera(port, width=320, height=240):
    """GStreamer's RTSP server, if it is here."""
    probe = subprocess.run(
        ["/usr/bin/python3", "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"], capture_output=True
    )
    if probe.returncode:
        pytest.skip("GStreamer's RTSP server is not here (apt install gir1.2-gst-rtsp-server-1.0 python3-gi)")
    command = ("/usr/bin/python3", "-c", RTSP, port, width, height)
    server = Server(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.process.stdout.readline() == b"serving\n"
    return server
