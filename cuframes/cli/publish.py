"""``cuframes publish``: decode and publish."""

import contextlib
import json
import logging
import sys
import time
from typing import Annotated, Any, Literal

import av
import typer

from cuframes.cli import Stopped, pixels, slots, stop_on_signals
from cuframes.cli.source import Source
from cuframes.codecs import nanoseconds, parameter_sets_filter
from cuframes.errors import FrameDropped, PacketOversized
from cuframes.media.pictures import presentation_of
from cuframes.memory.driver import gpu, has_gpu
from cuframes.packets import DATA_SIZE, PacketFlags
from cuframes.publisher import Publisher

__all__ = ["parse_size", "publish"]

log = logging.getLogger("cuframes")

MAX_SLOTS = 1024  # of the packet ring; the slots are small


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"1280x720"`` as (1280, 720)."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size must be WIDTHxHEIGHT, not {text!r}")
    return int(width), int(height)


def publish(
    key: Annotated[str, typer.Argument(help="Key to publish under, or with --slot the name of a framecache slot.")],
    source: Annotated[str, typer.Option(help="File, URL or camera that FFmpeg can open, or testsrc.")],
    slot: Annotated[
        bool,
        typer.Option("--slot", help="Write to a framecache slot instead of publishing; create the slot if necessary."),
    ] = False,
    size: Annotated[str | None, typer.Option(help="Scale to WIDTHxHEIGHT.")] = None,
    fps: Annotated[
        float | None, typer.Option(min=0, help="Play at this rate; 0: as fast as the source can be decoded.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Pixel format, by its FFmpeg, GStreamer or V4L2 name; default: nv12, or uyvy422 for a slot."),
    ] = None,
    packets: Annotated[
        bool, typer.Option("--packets", help="Also publish the encoded packets, with the frames' timestamps.")
    ] = False,
    packet_bytes: Annotated[int, typer.Option(min=1, help="Number of bytes of packets to keep.")] = DATA_SIZE,
    loop: Annotated[bool, typer.Option(help="Repeat a file; its timestamps keep increasing.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
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
    json_: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Decode a source with FFmpeg and publish its frames until the source ends or SIGTERM arrives."""
    stop_on_signals()
    if slot:
        if packets or wait_for or (memory, policy, ring_size) != ("auto", "drop_oldest", 8):
            raise ValueError(
                "--packets, --wait-for, --memory, --policy and --ring-size cannot be used with --slot; leave them out"
            )
        wanted, format = slots.geometry(key, parse_size(size), format)
        with contextlib.closing(Source(source, size=wanted, fps=fps, format=format, loop=loop)) as video:
            written = slots.publish(key, video, ring_depth=ring_depth, group=group, seconds=seconds, stamp=stamp)
        print(json.dumps(written)) if json_ else print(f"{written['written']} frames written", file=sys.stderr)
        return
    format = format or "nv12"
    if packets and fps:
        raise ValueError(
            "with --fps, frames get other timestamps than their packets; leave it out, or use 0 for full speed"
        )
    wanted = parse_size(size)
    video = Source(source, size=wanted, fps=fps, format=format, loop=loop, gpu=_decoder_gpu(memory))
    with contextlib.closing(video):
        if stamp:
            pixels.check_stampable(format, video.width, video.height)
        publisher = Publisher(
            key, video.width, video.height, format, memory=memory, policy=policy, ring_size=ring_size, group=group,
            **presentation_of(video.stream, format=format, size=(video.width, video.height)),
        )  # fmt: skip
        with publisher:
            if packets:
                PacketRelay(publisher, video, packet_bytes)
            if not json_:
                where = "the GPU" if video.decoder == "nvdec" else "the CPU"
                print(f"publishing {publisher} from {source}, decoded on {where}", file=sys.stderr)
            with contextlib.suppress(Stopped):
                while len(publisher.subscribers) < wait_for:
                    time.sleep(0.01)
                end = None if seconds is None else time.monotonic() + seconds
                for frame, pts_ns in video.frames():
                    if end is not None and time.monotonic() >= end:
                        break
                    with contextlib.suppress(FrameDropped):  # counted by the publisher
                        _publish(publisher, frame, pts_ns, stamp)
            stats = publisher.stats()
            passed_on = publisher.packets.packets_published if publisher.packets else 0
    if json_:
        report = {"key": key, "memory": publisher.memory, "decoder": video.decoder, **stats._asdict()}
        print(json.dumps(report | ({"packets": passed_on} if packets else {})))
    else:
        beside = f" and {passed_on} packets" if packets else ""
        print(f"{stats.published} frames{beside} published, {stats.dropped} dropped", file=sys.stderr)


class PacketRelay:
    """Publishes a source's packets as they arrive, before they are decoded."""

    def __init__(self, publisher: Publisher, video: Source, data_size: int) -> None:
        context = video.stream.codec_context
        if context.name in ("rawvideo", "wrapped_avframe"):
            raise ValueError(f"{video.url} is not encoded, so there are no packets to share; leave --packets out")
        publisher.enable_packets(
            context.codec.id,
            extradata=context.extradata,
            slots=MAX_SLOTS,
            data_size=data_size,
            max_packet_size=data_size // 4,
        )
        self._publisher = publisher
        self._parameter_sets = parameter_sets_filter(video.stream)
        self._flags = 0
        video.on_packet = self.pass_on

    def pass_on(self, packet: Any) -> None:
        """Publish one of PyAV's packets."""
        data = packet
        if self._parameter_sets is not None:
            data = av.Packet(bytes(packet))  # a copy: the filter takes its packet over, and the decoder needs it too
            data.is_keyframe = packet.is_keyframe
            (data,) = self._parameter_sets.filter(data)
        flags = self._flags | (PacketFlags.CORRUPT if packet.is_corrupt else 0)
        try:
            self._publisher.publish_packet(
                data,
                pts_ns=nanoseconds(packet.pts, packet.time_base),
                dts_ns=nanoseconds(packet.dts, packet.time_base),
                keyframe=packet.is_keyframe,
                flags=flags,
            )
            self._flags = 0
        except PacketOversized as problem:
            log.warning("a packet was not published: %s (raise --packet-bytes)", problem)
            self._flags = PacketFlags.DISCONTINUITY


def _decoder_gpu(memory: str) -> int | None:
    """The GPU to decode on: that of the published frames. None: decode on the CPU."""
    if memory == "host" or (memory == "auto" and not has_gpu()):
        return None
    return gpu().ordinal


def _publish(publisher: Publisher, frame: Any, pts_ns: int, stamp: bool) -> None:
    if not stamp:
        publisher.publish(frame, pts_ns=pts_ns)
        return
    with publisher.acquire() as slot:
        slot.copy_from(frame)
        pixels.stamp(slot.planes, pts_ns)
        slot.pts_ns = pts_ns
