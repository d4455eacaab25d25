"""Sources that PyAV's FFmpeg cannot open: the command ``ffmpeg`` reads them, and its output is read here."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque

from cuframes.errors import SourceError
from cuframes.media.sources.urls import Place, hide_password

__all__ = ["Remuxer"]

# Runs a command that is killed together with the thread that started it. (In a process of its own, since nothing but
# system calls may run between fork and exec of a process with threads.)
BOUND = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(); os.execvp(sys.argv[2], sys.argv[2:])"
)
END_SECONDS = 1.0
WORDS = 500  # characters of what it says that are shown


class Remuxer:
    """The command ``ffmpeg``, which reads a source and writes its packets as NUT to a pipe.

    ``url`` is the pipe, for FFmpeg. The child dies with the thread that made this object, and when it is closed.
    """

    def __init__(self, place: Place, options: dict[str, str], video_stream: int) -> None:
        given = [word for name, value in options.items() for word in (f"-{name}", value)]
        format = ["-f", place.format] if place.format else []
        command = ["ffmpeg", "-nostdin", "-v", "error", *given, *format, "-i", place.url]
        command += ["-map", f"0:v:{video_stream}", "-c", "copy", "-flush_packets", "1", "-f", "nut", "-"]
        bound = [sys.executable, "-I", "-S", "-c", BOUND, str(os.getpid()), *command]
        self._shown = place.shown
        self._said: deque[bytes] = deque(maxlen=1)
        self._child = subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._child.stdout is not None
        self.url = f"pipe:{self._child.stdout.fileno()}"
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            self._said.extend(line for line in lines if line.strip())

    def explain(self, problem: Exception | None) -> Exception | None:
        """Why its output has ended: what the child said last if it has failed, else `problem`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._child.wait(END_SECONDS) > 0:
                self._listener.join(END_SECONDS)
                said = hide_password(b"".join(self._said).decode(errors="replace").strip()[-WORDS:])
                return SourceError(f"{self._shown}: {said or f'ffmpeg ended with status {self._child.returncode}'}")
        return problem

    def kill(self) -> None:
        """End the child, from any thread; what reads its output is at the end."""
        self._child.kill()

    def close(self) -> None:
        """End the child and wait for it."""
        self._child.kill()
        self._child.wait()
        self._listener.join(END_SECONDS)
        assert self._child.stdout is not None
        self._child.stdout.close()
