"""``cuframes demo``: a publisher and its subscribers, each in its own process, on real decoded video.

The demo only starts other commands and shows their reports. ``cuframes publish --stamp`` writes each frame's timestamp
into its pixels, ``cuframes watch --verify`` checks the timestamp in every row of every frame, and ``cuframes snapshot``
saves one frame as a picture.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cuframes.cli import EXIT_ERROR, EXIT_SIGNAL, Stopped, fail, stop_on_signals

__all__ = ["demo"]

COLUMNS = ("name", "mode", "fps", "received", "lost", "skipped", "torn", "latency_p50_us", "latency_p99_us")


class Reporter:
    """A child process that prints JSON lines; ``last`` is the newest of them."""

    def __init__(self, *arguments: str) -> None:
        self.last: dict[str, Any] = {}
        # -P: this installation, not a source tree that happens to be the working directory.
        command = [sys.executable, "-P", "-m", "cuframes", *arguments]
        # In a session of its own: Ctrl-C is for us, and we tell the others.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._told = False
        self._errors: list[str] = []
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last = json.loads(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)

    @property
    def failed(self) -> bool:
        """Whether the process ended with an error."""
        told = (EXIT_SIGNAL + signal.SIGTERM, -signal.SIGTERM) if self._told else ()
        return self.process.poll() not in (None, 0, *told)

    @property
    def reported(self) -> bool:
        """Whether it has made its last report."""
        return "final" in self.last or self.last.get("event") == "ended"

    def terminate(self) -> None:
        """Tell the process to end."""
        self._told = True
        self.process.terminate()

    def end(self, timeout: float) -> None:
        """Wait for the process to end; terminate it after `timeout` seconds, and kill it if that does not help."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    @property
    def complaint(self) -> str:
        """The process's last line on standard error."""
        return self._errors[-1].strip().removeprefix("cuframes: ") if self._errors else "no reason given"


def demo(
    source: Annotated[str, typer.Option(help="File, URL or camera that FFmpeg can open, or testsrc.")] = "testsrc",
    subscribers: Annotated[int, typer.Option(min=1, max=30, help="Number of subscriber processes.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="How many seconds to run.")] = 10.0,
    memory: Annotated[
        Literal["auto", "host", "cuda", "cuda-ipc"],
        typer.Option(help="Memory of the frames; auto: a GPU's if there is one."),
    ] = "auto",
    picture: Annotated[Path, typer.Option(help="File for a picture of what a subscriber saw.")] = Path("demo.png"),
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of a table.")] = False,
) -> None:
    """Share real decoded video between processes, and check every frame in each subscriber process."""
    stop_on_signals()
    key = f"demo-{os.getpid()}"
    # A short clip is repeated until the time is up.
    commands = [[
        "publish", key, "--source", source, "--loop", "--stamp", "--json", "--memory", memory,
        "--seconds", str(seconds), "--wait-for", str(subscribers),
    ]]  # fmt: skip
    # Every other subscriber process takes all frames in order, the rest always the newest frame.
    commands += [
        [
            "watch", key, "--verify", "--json", "--interval", "0.25", "--name", f"subscriber-{i}",
            "--mode", "newest" if i % 2 else "ordered",
        ]
        for i in range(subscribers)
    ]  # fmt: skip
    children: list[Reporter] = []
    camera = None
    stopped = False
    try:
        for command in commands:
            children.append(Reporter(*command))
        publisher, *watchers = children
        with (
            contextlib.nullcontext() if json_ else Live(console=Console(), refresh_per_second=4, transient=True) as live
        ):
            while publisher.process.poll() is None and not any(child.failed for child in children):
                if camera is None and all(watcher.last.get("received", 0) > 10 for watcher in watchers):
                    camera = Reporter("snapshot", key, str(picture), "--json")
                if live is not None:
                    live.update(_table(watchers))
                time.sleep(0.1)
    except Stopped:
        stopped = True
    finally:
        if stopped or any(child.failed for child in children):
            for child in children:
                child.terminate()
        for child in [*children, *([camera] if camera else [])]:
            child.end(timeout=10)
    for child in children:
        if child.failed:
            fail(EXIT_ERROR, child.complaint)
    if len(children) < len(commands) or not all(child.reported for child in children):
        fail(EXIT_ERROR, "stopped before anything was measured")
    _summary(source, publisher, watchers, picture if camera and not camera.failed else None, json_)


def _table(watchers: list[Reporter]) -> Table:
    headings = (column.removeprefix("latency_").replace("_us", " µs") for column in COLUMNS)
    table = Table(*headings, box=None, pad_edge=False)
    for watcher in watchers:
        cells = [watcher.last.get(column) for column in COLUMNS]
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table


def _summary(source: str, publisher: Reporter, watchers: list[Reporter], picture: Path | None, json_: bool) -> None:
    reports = [watcher.last for watcher in watchers]
    torn = sum(report["torn"] for report in reports)
    summary = {
        "source": source,
        "published": publisher.last["published"],
        "dropped": publisher.last["dropped"],
        "memory": publisher.last["memory"],
        "decoder": publisher.last["decoder"],
        "received": sum(report["received"] for report in reports),
        "lost": sum(report["lost"] for report in reports),
        "skipped": sum(report["skipped"] for report in reports),
        "torn": torn,
        "latency_p50_us": max(report["latency_p50_us"] or 0 for report in reports),
        "latency_p99_us": max(report["latency_p99_us"] or 0 for report in reports),
        "picture": None if picture is None else str(picture),
        "subscribers": [{column: report[column] for column in COLUMNS} for report in reports],
    }
    if json_:
        print(json.dumps(summary))
    else:
        console = Console()
        console.print(_table(watchers))
        console.print(
            f"{summary['published']} frames of {source} published, {summary['received']} received by {len(watchers)} "
            f"processes in place: {summary['lost']} lost, {torn} torn; slowest latency p50 "
            f"{summary['latency_p50_us']} µs, p99 {summary['latency_p99_us']} µs.",
            soft_wrap=True,
        )
        if picture is not None:
            console.print(f"What a subscriber saw: {picture}")
    if torn:
        fail(EXIT_ERROR, f"{torn} frames were torn; please report this")
