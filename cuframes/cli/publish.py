"""``cuframes publish``: decode and publish."""

import contextlib
import logging
import os
import re
import sys
import time
from fractions import Fraction
from typing import Annotated, Literal

import typer

from cuframes.cli import Stopped, ready, slots, stop_on_signals
from cuframes.cli.outputs import Output, Sharing
from cuframes.cli.shapes import DEFAULT_FORMAT, Fit, Rotate, Shaper, Size, parse_size
from cuframes.cli.stdout import print_json
from cuframes.cli.units import parse_options
from cuframes.errors import DeviceError, Disconnected, SourceError, Timeout
from cuframes.formats import pixel_format
from cuframes.host.names import check_key
from cuframes.media.sources import Acceleration, EncodedPacket, Picture, Source, SourceState
from cuframes.media.sources.urls import hide_password
from cuframes.memory.driver import gpu, has_gpu
from cuframes.packets import DATA_SIZE
from cuframes.rates import rate
from cuframes.session.status import SourceStatus, StatusFile

__all__ = ["publish"]

log = logging.getLogger("cuframes")

LOOK_SECONDS = 0.5  # while nothing comes, look this often whether the time is up
HELP_ALSO = (
    "Publish a further size, rate or format, as KEY:SIZE@FPS:FORMAT, of which only KEY must be there: "
    "cam0-small:640x-2@5:bgr24. Can be repeated."
)


def publish(
    key: Annotated[str, typer.Argument(help="Key to publish under, or with --slot the name of a framecache slot.")],
    source: Annotated[
        str, typer.Option(help="File, URL or camera that FFmpeg can open, - for standard input, or testsrc.")
    ],
    slot: Annotated[
        bool,
        typer.Option("--slot", help="Write to a framecache slot instead of publishing; create the slot if necessary."),
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="Scale to WIDTHxHEIGHT; 640x-2 keeps the shape, in multiples of 2.")
    ] = None,
    fit: Annotated[
        Fit, typer.Option(help="A picture of another shape gets black bars, loses its edges, or is distorted.")
    ] = "letterbox",
    rotate: Annotated[
        Rotate, typer.Option(help="auto: turn pictures that say that they lie on their side; keep: do not.")
    ] = "auto",
    fps: Annotated[
        str | None,
        typer.Option(help="Live: take only this many frames per second. File: play at this rate; 0: at full speed."),
    ] = None,
    realtime: Annotated[
        bool | None,
        typer.Option(
            "--realtime/--no-realtime", help="Play a file at its own pace, or at full speed.", show_default="realtime"
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Pixel format, by its FFmpeg, GStreamer or V4L2 name; default: the decoder's, for a new slot uyvy422."
        ),
    ] = None,
    also: Annotated[list[str] | None, typer.Option(help=HELP_ALSO)] = None,
    packets: Annotated[
        bool, typer.Option("--packets", help="Also publish the encoded packets, with the frames' timestamps.")
    ] = False,
    packet_bytes: Annotated[
        int, typer.Option(min=1, help="Number of bytes of packets that late readers can start with.")
    ] = DATA_SIZE,
    loop: Annotated[bool, typer.Option(help="Repeat a file; its timestamps keep increasing.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    reconnect: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Open the source again when it fails or ends; auto: if it is live."),
    ] = "auto",
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that opening may take, and that the source may be silent.")
    ] = 10.0,
    rtsp_transport: Annotated[
        Literal["udp", "tcp", "http", "https", "udp_multicast"] | None,
        typer.Option(help="How an RTSP server sends; default: UDP, or TCP where UDP does not come through."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="FFmpeg's own option, as NAME=VALUE; can be repeated.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option(help="FFmpeg's demuxer, if it cannot be found out: v4l2, mjpeg, h264, …")
    ] = None,
    video_stream: Annotated[int, typer.Option(min=0, help="Which of several video streams.")] = 0,
    via: Annotated[
        Literal["ffmpeg"] | None,
        typer.Option(help="Read the source with the ffmpeg command; default: where PyAV cannot (srt, rist)."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, max=64, help="Threads of the decoder; 0: all cores.")] = 0,
    hwaccel: Annotated[
        Literal["auto", "none", "cuda"],
        typer.Option(help="Decode on the GPU; auto: if the frames stay there as they are; cuda: or fail."),
    ] = "auto",
    memory: Annotated[
        Literal["auto", "host", "cuda", "cuda-ipc"],
        typer.Option(help="Memory of the frames; auto: a GPU's if there is one."),
    ] = "auto",
    policy: Annotated[
        Literal["drop_oldest", "strict_wait"],
        typer.Option(help="If subscribers hold the slots: drop_oldest never waits, strict_wait waits for them."),
    ] = "drop_oldest",
    ring_size: Annotated[int, typer.Option(help="Number of slots in the ring, 2 to 16.")] = 8,
    ring_depth: Annotated[
        int | None, typer.Option(help="Number of frames that a new framecache slot holds; default: 120.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Members of this group may subscribe too.")] = None,
    stamp: Annotated[bool, typer.Option(help="Write each frame's pts into its pixels, for watch --verify.")] = False,
    wait_for: Annotated[int, typer.Option(min=0, help="Wait until this many subscribers have joined.")] = 0,
    json_: Annotated[
        bool, typer.Option("--json", help="Report as JSON: a line when it is ready, and one at the end.")
    ] = False,
) -> None:
    """Decode a source with FFmpeg and publish its frames until it ends or SIGTERM arrives.

    A live source that fails is opened again. Example: cuframes publish cam0 --source rtsp://camera/stream --packets
    """
    stop_on_signals()
    wanted = parse_size(size, relative=True)
    there: Size | None = None
    speed, realtime = _pace(fps, realtime)
    if slot:
        if packets or wait_for or also or (memory, policy, ring_size) != ("auto", "drop_oldest", 8):
            raise ValueError(
                "--packets, --also, --wait-for, --memory, --policy and --ring-size cannot be used with --slot; "
                "leave them out"
            )
        there, format = slots.geometry(key, format)
    else:
        check_key(key)
    if format is not None:
        pixel_format(format)
    others = [_parse_also(text, fit, rotate) for text in also or ()]
    if len({key, *(name for name, *_ in others)}) <= len(others):
        raise ValueError("each --also needs a key of its own")
    acceleration = None if slot else _acceleration(hwaccel, source, memory, format, bool(wanted or others))
    options = parse_options(option or ())
    if rtsp_transport is not None:
        options["rtsp_transport"] = rtsp_transport
    video = Source(
        source,
        packets=packets,
        timeout=timeout,
        reconnect=reconnect,
        fps=speed,
        realtime=realtime,
        loop=loop,
        threads=threads,
        format=format_name,
        options=options,
        video_stream=video_stream,
        acceleration=acceleration,
        via=via,
        size=wanted if wanted and min(wanted) > 0 else there or (1280, 720),
    )
    shaper = Shaper(format, wanted, fit, rotate, key)
    if there and not wanted:
        shaper.fix(*there)
    outputs: list[Output | slots.SlotOutput]
    if slot:
        outputs = [slots.SlotOutput(key, shaper, source=source, ring_depth=ring_depth, group=group, stamp=stamp)]
    else:
        sharing = Sharing(memory, policy, ring_size, group, stamp)
        share = packet_bytes if packets else None
        outputs = [Output(key, shaper, sharing, packet_bytes=share, wait_for=wait_for)]
        outputs += [Output(name, other, sharing._replace(stamp=False), fps=fps) for name, other, fps in others]
    run = Run(video, outputs, seconds, json_, checked=bool(packets and speed))
    problem = None
    with contextlib.suppress(Stopped):
        try:
            with contextlib.closing(run):
                run.play()
        except (Disconnected, SourceError) as ended:
            problem = ended if isinstance(ended, SourceError) else None
    run.report()
    if problem is not None:
        raise problem


class Run:
    """A source and its outputs, from the start to the report.

    Parameters
    ----------
    video : Source
    outputs : list
    seconds : float, optional
        Stop this many seconds after the first picture, or after the start if none comes.
    json_ : bool
    checked : bool
        Refuse a file, whose frames would get other timestamps than its packets.
    """

    def __init__(
        self,
        video: Source,
        outputs: "list[Output | slots.SlotOutput]",
        seconds: float | None,
        json_: bool,
        *,
        checked: bool,
    ) -> None:
        self._video = video
        self._outputs = outputs
        self._seconds = seconds
        self._json = json_
        self._checked = checked
        self._end: float | None = None
        self._statuses: dict[str, StatusFile] = {}
        for output in outputs:
            output.on_ready = self._ready

    def play(self) -> None:
        """Publish what comes, until the source ends or the time is up."""
        self._set_end()
        for output in self._outputs:
            if isinstance(output, Output):
                self._statuses[output.key] = StatusFile(output.key, output.group)
        self._video.on_state = self._tell
        self._tell(self._video.state)
        next_look = 0.0
        while (left := LOOK_SECONDS if self._end is None else self._end - time.monotonic()) > 0:
            try:
                item = self._video.next(min(left, LOOK_SECONDS))
            except Timeout:
                self._restore()
                continue
            if (now := time.monotonic()) >= next_look:
                next_look = now + LOOK_SECONDS
                self._restore()
            if self._checked and not item.stream.live:
                raise ValueError(
                    "with --fps, frames of a file get other timestamps than their packets; leave it out, or use 0 for "
                    "full speed"
                )
            self._take(item)

    def _take(self, item: Picture | EncodedPacket) -> None:
        for output in self._outputs:
            output.take(item)

    def _tell(self, state: SourceState) -> None:
        """Where the source stands, for ls, info and systemd."""
        for key, file in self._statuses.items():
            with contextlib.suppress(OSError):  # a full disk, say; frames are more important
                file.write(SourceStatus(key, os.getpid(), self._video.url, *state))
        why = "" if state.error is None else f", last error: {state.error}"
        ready.notify(f"STATUS={self._video.url}: {state.name}{why}")

    def _restore(self) -> None:
        """Make status files again that somebody has removed, as the publisher does with its own files."""
        for file in self._statuses.values():
            with contextlib.suppress(OSError):
                file.restore()

    def _set_end(self) -> None:
        self._end = None if self._seconds is None else time.monotonic() + self._seconds

    def _ready(self, output: "Output | slots.SlotOutput", picture: Picture) -> None:
        """An output has opened for the first time: say so."""
        stream = picture.stream
        where = "the GPU" if stream.decoder == "nvdec" else "the CPU"
        if self._json:
            about = {"event": "ready", "pid": os.getpid(), "source": self._video.url, "decoder": stream.decoder}
            print_json(about | output.describe())
        else:
            decoded = f", {stream.codec} decoded on {where}" if stream.encoded else ""
            print(f"{output} from {self._video.url}{decoded}", file=sys.stderr, flush=True)
        if output is self._outputs[0]:
            ready.notify("READY=1")
            output.wait()
            self._set_end()

    def close(self) -> None:
        """Close the source and the outputs, whatever another one's closing raises."""
        ready.notify("STOPPING=1")
        with contextlib.ExitStack() as closing:
            for file in self._statuses.values():
                closing.callback(file.close)
            for output in self._outputs:
                closing.callback(output.close)
            closing.callback(self._video.close)

    def report(self) -> None:
        """Print the figures."""
        main = self._outputs[0]
        stream = self._video.stream
        found = main.report()
        more = [output.report() for output in self._outputs[1:]]
        if self._json:
            about = {"event": "ended", "decoder": stream.decoder if stream else "cpu"}
            counts = {"damaged": self._video.damaged, "not_taken": self._video.dropped, "also": more}
            print_json(found | about | counts)
            return
        for report in [found, *more]:
            name = f"{report['key']}: " if more else ""
            print(f"{name}{slots.words(report)}", file=sys.stderr)
        if self._video.damaged:
            print(f"{self._video.damaged} damaged packets were left out", file=sys.stderr)
        if self._video.dropped:
            print(f"{self._video.dropped} pictures came faster than they were published", file=sys.stderr)


def _pace(fps: str | None, realtime: bool | None) -> tuple[Fraction | None, bool | None]:
    """--fps and --realtime; a rate of 0 means full speed."""
    if fps is None:
        return None, realtime
    try:
        if float(fps) == 0:
            return None, False
    except ValueError:
        pass
    return rate(fps), realtime


def _parse_also(text: str, fit: Fit, rotate: Rotate) -> tuple[str, Shaper, Fraction | None]:
    """``KEY:640x-2@5:bgr24``, of which only the key has to be there."""
    key, *parts = text.split(":")
    key, _, fps = key.partition("@")
    size: Size | None = None
    format: str | None = None
    for part in parts:
        what, at, speed = part.partition("@")
        fps = speed if at else fps
        if re.fullmatch(r"-?\d+x-?\d+", what, re.IGNORECASE):
            size = parse_size(what, "the size of --also", relative=True)
        elif what:
            format = what
    if format is not None:
        pixel_format(format)
    return check_key(key), Shaper(format, size, fit, rotate, key), rate(fps) if fps else None


def _acceleration(wish: str, source: str, memory: str, format: str | None, converts: bool) -> Acceleration | None:
    """The GPU to decode on: that of the published frames. None: decode on the CPU."""
    if wish == "none" or source == "testsrc":
        return None
    format = format or DEFAULT_FORMAT  # what NVDEC gives
    on_gpu = memory in ("cuda", "cuda-ipc") or (memory == "auto" and has_gpu())
    stays = on_gpu and not converts and pixel_format(format).name in ("nv12", "p010")
    if wish == "cuda":
        if not has_gpu():
            raise DeviceError("--hwaccel cuda needs an NVIDIA GPU, and there is none; use auto or none")
        return Acceleration(gpu().ordinal, format if stays else None, required=True)
    if on_gpu and not stays:
        shown = hide_password(source)
        log.warning("%s: decoding on the CPU, because it converts the frames to %s", shown, format)
    return Acceleration(gpu().ordinal, format) if stays else None
