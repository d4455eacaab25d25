"""``cuframes push``: packets to a server, without encoding."""

import os
import sys
from typing import Annotated, Any

import typer

from cuframes.cli import stop_on_signals
from cuframes.cli.packets import open_reader
from cuframes.cli.stdout import print_json
from cuframes.cli.units import parse_options
from cuframes.media.destinations import destination, shown
from cuframes.media.pushing import Pusher, Repeats

__all__ = ["push"]


def push(
    key: Annotated[str, typer.Argument(help="Key of the publisher.")],
    url: Annotated[
        str,
        typer.Argument(
            help="rtsp://, rtsps://, rtmp://, rtmps://, http://, https://, udp://, tcp://; http://…/whip is WebRTC."
        ),
    ],
    format_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="FFmpeg's name of the format.", show_default="the usual one for the URL"),
    ] = None,
    rtsp_transport: Annotated[str, typer.Option(metavar="tcp|udp", help="How to send to rtsp://.")] = "tcp",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of FFmpeg; may be repeated.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which the server must answer, and take what is sent.")
    ] = 10.0,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    reconnect: Annotated[
        float, typer.Option(min=0, help="When the publisher ends, wait this many seconds for it to come back.")
    ] = 5.0,
    connect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the publisher.")] = 5.0,
    json_: Annotated[
        bool, typer.Option("--json", help="Report as JSON: a line when it begins, for each change, and at the end.")
    ] = False,
) -> None:
    """Push a publisher's encoded packets to a server without encoding them again, until the publisher ends or a signal
    arrives. When the server fails, connect again, after 0.5 s to 30 s. Every connection begins with a keyframe.

    cuframes push cam0 rtsp://server:8554/cam0
    """
    options = parse_options(option or ())
    if rtsp_transport not in ("tcp", "udp"):
        raise ValueError(f"--rtsp-transport must be tcp or udp, not {rtsp_transport!r}")
    to = destination(url, format_name, options)
    if to.format == "rtsp":
        to = to._replace(options={"rtsp_transport": rtsp_transport} | options)
    stop_on_signals()
    with open_reader(key, "keyframe", connect_timeout) as reader:
        codec = reader.codec
    told = _Told(key, shown(url), json_)
    told.begin(codec)
    pusher = Pusher(key, to, timeout=timeout, connect_timeout=connect_timeout, reconnect=reconnect, told=told)
    try:
        with pusher:
            pusher.run(seconds)
    finally:
        told.end(pusher)


class _Told:
    """What is printed."""

    def __init__(self, key: str, url: str, json_: bool) -> None:
        self._key, self._url, self._json = key, url, json_
        self._log = Repeats(lambda text: print(f"cuframes: {text}", file=sys.stderr, flush=True))

    def begin(self, codec: str | None) -> None:
        """Say what is to be pushed."""
        if self._json:
            self._print(event="ready", pid=os.getpid(), key=self._key, codec=codec, url=self._url)
        else:
            print(f"pushing {codec} of {self._key} to {self._url}", file=sys.stderr, flush=True)

    def __call__(self, event: dict[str, Any]) -> None:
        if self._json:
            self._print(**event)
        match event["event"]:
            case "failed":
                self._log(f"{self._url}: {event['error']}; trying again")
            case "connected" if not self._json:
                self._log(f"{self._url}: connected")

    def end(self, pusher: Pusher) -> None:
        """Say what was pushed."""
        counts = pusher.counts
        if self._json:
            self._print(event="end", key=self._key, url=self._url, connections=pusher.connections, **counts)
        else:
            print(
                f"{self._url}: {counts['packets']} packets, {counts['bytes']} bytes, {counts['lost']} lost, "
                f"{pusher.connections} connections",
                file=sys.stderr,
            )

    def _print(self, **report: Any) -> None:
        print_json(report)
