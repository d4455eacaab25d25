"""Packets to a server: one connection after the other, each in a process that can be ended at any time."""

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cuframes.errors import CuframesError
from cuframes.media.destinations import Destination, shown

__all__ = ["PushRefused", "Pusher", "Repeats"]

BACKOFF_SECONDS = (0.5, 30.0)
HEALTHY_SECONDS = 60.0  # a connection that lasted this long begins the back-off anew
START_SECONDS = 60.0  # for a process to begin, on a busy machine
FAREWELL_SECONDS = 0.3  # for a connection to be closed in an orderly way
REPEAT_SECONDS = 60.0
REMEDY = (
    "PyAV's FFmpeg cannot do {scheme}; if the system's can, use: "
    "cuframes record KEY - | ffmpeg -i - -c copy -f mpegts URL"
)


class PushRefused(CuframesError):
    """FFmpeg will never be able to push this stream there; the message says why."""


class Repeats:
    """Lines of a log, of which the same one comes at most once a minute, with the number of those left out."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        since, left_out = self._seen.get(text, (-REPEAT_SECONDS, 0))
        if now - since < REPEAT_SECONDS:
            self._seen[text] = since, left_out + 1
            return
        if len(self._seen) > 100:  # texts with changing numbers
            self._seen.clear()
        self._seen[text] = now, 0
        self._write(f"{text} ({left_out} more times in {now - since:.0f} s)" if left_out else text)


class Pusher:
    """Sends the packets of a key to a URL, without encoding them, until the publisher ends.

    Parameters
    ----------
    key : str
    to : Destination
    timeout : float
        Seconds in which a connection must be opened, and in which the peer must take a packet.
    connect_timeout, reconnect : float
        Seconds to wait for the publisher: at first, and when it has ended.
    told : callable
        Called with a dict for everything that happens: its ``event`` is ``connected``, ``failed`` (with ``error`` and
        ``retry_s``) or ``changed``.

    Notes
    -----
    When a connection fails, another one is tried after 0.5 s, and after twice as long every time, up to 30 s, with some
    jitter. Every connection begins with the newest keyframe.
    """

    def __init__(
        self,
        key: str,
        to: Destination,
        *,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        reconnect: float = 5.0,
        told: Callable[[dict[str, Any]], object] = lambda event: None,
    ) -> None:
        self._request = {
            "key": key, "url": to.url, "format": to.format, "options": to.options,
            "connect_timeout": connect_timeout, "reconnect": reconnect,
        }  # fmt: skip
        self._url = to.url
        self._timeout = timeout
        self._told = told
        self._process: _Process | None = None
        self._past = {"packets": 0, "bytes": 0, "lost": 0}
        self._now: dict[str, int] = {}
        self.connections = 0

    def run(self, seconds: float | None = None) -> None:
        """Push until the publisher ends, or `seconds` are over. Blocks; a signal handler may raise.

        Raises
        ------
        PushRefused
            It will never work.
        ConnectionError
            The publisher ended, and no connection ever came about.
        """
        end = None if seconds is None else time.monotonic() + seconds
        wait_s, error = BACKOFF_SECONDS[0], ""
        while True:
            begun = time.monotonic()
            outcome, text = self._connect(end)
            if outcome == "changed":
                self._told({"event": "changed"})
                continue
            if outcome != "failed":
                break
            error = text
            if time.monotonic() - begun > HEALTHY_SECONDS + self._timeout:
                wait_s = BACKOFF_SECONDS[0]
            pause = min(wait_s * random.uniform(1.0, 1.5), BACKOFF_SECONDS[1])
            self._told({"event": "failed", "error": error, "retry_s": round(pause, 2)})
            if end is not None and time.monotonic() + pause >= end:
                time.sleep(max(0.0, end - time.monotonic()))
                break
            time.sleep(pause)
            wait_s = min(2 * wait_s, BACKOFF_SECONDS[1])
        if not self.connections and error:
            raise ConnectionError(f"{shown(self._url)} was never reached: {error}")

    @property
    def counts(self) -> dict[str, int]:
        """``packets`` and ``bytes`` that were sent; ``lost`` packets were overwritten before they could be."""
        return {name: count + self._now.get(name, 0) for name, count in self._past.items()}

    def close(self) -> None:
        """End the connection. It may be called twice; it takes 0.3 s at most, in which to say good-bye."""
        process, self._process = self._process, None
        if process is not None:
            for state in process.end():
                self._count(state)
            self._past, self._now = self.counts, {}

    def _connect(self, end: float | None) -> tuple[str, str]:
        """One connection, from its beginning to its end: how it ended, and why."""
        try:
            self._process = _Process(self._request)
        except OSError as problem:  # the machine, or the container, has no room for another process now
            return "failed", f"its process could not be started: {problem}"
        try:
            return self._watch(self._process, end)
        finally:
            self.close()

    def _watch(self, process: "_Process", end: float | None) -> tuple[str, str]:
        limit, state = START_SECONDS, "starting"
        while True:
            left = limit if end is None else min(limit, end - time.monotonic())
            if left <= 0:
                return "time is up", ""
            told = process.next(left)
            if told is None:
                if end is not None and time.monotonic() >= end:
                    return "time is up", ""
                what = {"opening": "was not opened", "starting": "was not begun"}.get(state, "took nothing")
                return "failed", f"the connection {what} for {limit:g} s"
            self._count(told)
            state = told["state"]
            limit = START_SECONDS if state == "waiting" else self._timeout  # before that it is not about the peer
            match state:
                case "open":
                    self.connections += 1
                    self._told({"event": "connected"})
                case "changed" | "ended":
                    return state, told.get("error", "")
                case "failed":
                    return state, told["error"]
                case "refused":
                    why = self._why(told["kind"], told["error"])
                    if self.connections:  # it has worked, so it may again: a keyframe was damaged, say
                        return "failed", why
                    raise PushRefused(why)
                case "dead":
                    return "failed", told["error"]

    def _why(self, kind: str, error: str) -> str:
        where = shown(self._url)
        if kind == "ProtocolNotFoundError":
            return REMEDY.format(scheme=where.partition(":")[0])
        return f"{where} cannot be pushed to as {self._request['format']}: {error}"

    def _count(self, told: dict[str, Any]) -> None:
        if "packets" in told:
            self._now = {name: told[name] for name in self._past}

    def __enter__(self) -> "Pusher":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Process:
    """The process of one connection, and what it says."""

    def __init__(self, request: dict[str, Any]) -> None:
        # -P: this installation, not a source tree that happens to be the working directory.
        command = [sys.executable, "-P", "-m", "cuframes.media.push_process"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._input, self._output = self._child.stdin, self._child.stdout
        self._text = b""
        self._open = False  # there is a connection, to which to say good-bye
        with contextlib.suppress(BrokenPipeError):  # its death is seen below
            self._input.write(json.dumps(request).encode() + b"\n")
            self._input.flush()

    def next(self, timeout: float) -> dict[str, Any] | None:
        """What it says next; None if it says nothing in time. State ``dead``: it has ended."""
        end = time.monotonic() + timeout
        while b"\n" not in self._text:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._output], [], [], left)[0]:
                return None
            data = os.read(self._output.fileno(), 1 << 16)
            if not data:
                return {"state": "dead", "error": f"its process ended with status {self._child.wait()}"}
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        self._open = self._open or told["state"] == "open"
        return told

    def end(self) -> Iterator[dict[str, Any]]:
        """End it, and yield what it had still to say."""
        with contextlib.suppress(OSError):
            self._input.close()
        end = time.monotonic() + (FAREWELL_SECONDS if self._open else 0.0)
        try:
            while (told := self.next(max(0.0, end - time.monotonic()))) is not None and told["state"] != "dead":
                yield told
        finally:
            self._child.kill()
            self._child.wait()
            self._output.close()
