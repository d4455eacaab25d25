"""Decoded video from anything FFmpeg opens. Decoding and converting are PyAV's."""

import logging
import time
from collections.abc import Callable, Iterator
from copy import copy
from fractions import Fraction
from typing import Any

import av

from cuframes.cli import pixels
from cuframes.codecs import nanoseconds
from cuframes.errors import DeviceError
from cuframes.formats import pixel_format
from cuframes.media import pictures
from cuframes.memory.driver import current, gpu

__all__ = ["Source"]

log = logging.getLogger("cuframes")

SECOND_NS = 1_000_000_000
# What PyAV says when it, the driver or the GPU cannot decode a stream there.
NO_NVDEC = (av.FFmpegError, OSError, ImportError, TypeError, ValueError, NotImplementedError, RuntimeError, DeviceError)
# Read from a disk, these would run as fast as they decode; everything else comes at its own pace.
PACED_PROTOCOLS = ("file:",)


class Source:
    """A file, URL, camera or ``testsrc``, as frames of one size and format.

    Parameters
    ----------
    url : str
        A path or URL that FFmpeg opens, or ``testsrc``: FFmpeg's test picture.
    size : (int, int), optional
        Scale to this width and height; default: the source's own (1280x720 for ``testsrc``).
    fps : float, optional
        Play at this rate, 0 = as fast as it decodes. Default: files at their own rate, live sources as they come.
    format : str
        Pixel format of the frames, by any of its names. Frames that are in another are converted, full range to the
        limited one too, unless a full-range name asks for it (``yuvj420p``).
    loop : bool
        Start again at the end of a file. Timestamps go on growing.
    gpu : int, optional
        Decode on this GPU (NVDEC), where it can and nothing needs converting; frames then stay there. Otherwise says
        why not and decodes on the CPU.

    Attributes
    ----------
    decoder : str
        What decodes: ``"nvdec"`` or ``"cpu"``.
    on_packet : callable or None
        Called with every encoded packet, as PyAV's, before its frame comes. The frame will have the packet's pts.
    """

    def __init__(
        self,
        url: str,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        format: str = "nv12",
        loop: bool = False,
        gpu: int | None = None,
    ) -> None:
        self.url = url
        self.on_packet: Callable[[Any], None] | None = None
        self.format = format
        self._fps = fps
        self._loop = loop
        self._size = size
        self._gpu = gpu
        self.decoder = "cpu"
        self._begun: tuple[Any, list[Any]] | None = None
        self._clock = ContinuousClock()
        self._demuxed: list[Any] = []
        self._container = self._open()
        stream = self._container.streams.video[0]
        own: tuple[int, int] = (stream.codec_context.width, stream.codec_context.height)
        self.width, self.height = size or own
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.rate = Fraction(fps).limit_denominator(1001) if fps else rate

    def _open(self) -> Any:
        if self.url == "testsrc":
            width, height = self._size or (1280, 720)
            rate = Fraction(self._fps).limit_denominator(1001) if self._fps else 25
            return av.open(f"testsrc2=size={width}x{height}:rate={rate}", format="lavfi")
        if self._gpu is not None and (container := self._open_on_gpu(self._gpu)):
            return container
        try:
            container = av.open(self.url)
        except av.FFmpegError as problem:
            reason = problem.strerror or problem
            raise OSError(f"cannot open {self.url!r}: {reason}; give a file, a URL, or testsrc") from None
        if not container.streams.video:
            raise OSError(f"{self.url!r} has no video stream")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def _open_on_gpu(self, ordinal: int) -> Any:
        """The source with its decoder on a GPU, or None."""
        if self._size is not None or pixel_format(self.format).name not in ("nv12", "p010"):
            log.warning("%s: decoding on the CPU, since frames are converted to %s there", self.url, self.format)
            return None
        clock, demuxed = copy(self._clock), list(self._demuxed)
        try:
            from av.codec.hwaccel import HWAccel

            # In the context that the frames are in. FFmpeg's own way to the primary context ("primary_ctx") refuses one
            # that somebody has started with other flags than its own.
            context: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
            accelerator = HWAccel("cuda", str(ordinal), False, context, is_hw_owned=True)
            with current(gpu(ordinal)):
                container = av.open(self.url, hwaccel=accelerator)
            if not container.streams.video:
                raise OSError("there is no decoder for it on the GPU")
            # Whether the decoder works, and what it gives, shows with the first frame; it is kept for the playing.
            packets = self._packets(container)
            frames: list[Any] = next(filter(None, (packet.decode() for packet in packets)), [])
            found = [getattr(getattr(frame, "sw_format", None), "name", frame.format.name) for frame in frames]
            if set(found) != {pictures.ffmpeg_format(self.format)} or frames[0].format.name != "cuda":
                raise ValueError(f"the decoder gives {found or 'nothing'}, not {self.format}")
            self._begun = packets, frames
            self.decoder = "nvdec"
            return container
        except NO_NVDEC as problem:
            # What was demuxed for the trial comes again.
            self._clock, self._demuxed = clock, demuxed
            log.warning("%s: decoding on the CPU, not on cuda:%d: %s", self.url, ordinal, problem)
            return None

    @property
    def _paced(self) -> bool:
        if self._fps is not None:
            return self._fps > 0
        return self.url == "testsrc" or (
            "://" not in self.url.removeprefix("file://") and not self.url.startswith("/dev/")
        )

    def frames(self) -> Iterator[tuple[Any, int]]:
        """(what ``Publisher.publish`` takes, pts in nanoseconds), at the source's pace, until its end.

        Waiting is done before a frame is yielded. Damaged data is logged and skipped.
        """
        start_ns = None
        first_ns = 0
        for frame, pts_ns in self._timed():
            if self._paced:
                if start_ns is None:
                    start_ns, first_ns = time.monotonic_ns(), pts_ns
                late = start_ns + pts_ns - first_ns - time.monotonic_ns()
                if late > 0:
                    time.sleep(late / SECOND_NS)
            yield frame, pts_ns

    def _timed(self) -> Iterator[tuple[Any, int]]:
        """Converted frames with growing timestamps."""
        step_ns = int(SECOND_NS / self.rate)
        last_ns = -step_ns
        count = 0
        while True:
            began_with = count
            for frame in self._decoded():
                if self._fps:
                    pts_ns = count * step_ns
                else:
                    given = nanoseconds(frame.pts, frame.time_base)
                    pts_ns = last_ns + step_ns if given is None or given <= last_ns else given
                last_ns = pts_ns
                count += 1
                yield pixels.convert(frame, self.width, self.height, self.format), pts_ns
            if not self._loop or self.url == "testsrc" or count == began_with:
                return
            self._container.close()
            self._container = self._open()

    @property
    def stream(self) -> Any:
        """PyAV's stream of the encoded video."""
        return self._container.streams.video[0]

    def _packets(self, container: Any) -> Iterator[Any]:
        """Encoded packets with growing timestamps; the empty one at the end makes a decoder give what it still has."""
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                self._clock.place(packet)
                self._demuxed.append(packet)
            yield packet

    def _pass_on(self) -> None:
        """Show what was demuxed since the last call; a decoder on the GPU begins before anybody listens."""
        demuxed, self._demuxed = self._demuxed, []
        if self.on_packet is not None:
            for packet in demuxed:
                self.on_packet(packet)

    def _decoded(self) -> Iterator[Any]:
        packets, ahead = self._begun or (self._packets(self._container), [])
        self._begun = None
        self._pass_on()
        yield from ahead
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                self._pass_on()
                frames = packet.decode()
            except (av.error.EOFError, StopIteration):
                return
            except av.FFmpegError as problem:
                log.warning("%s: %s; going on with the next packet", self.url, problem)
                packets = self._packets(self._container) if not _is_running(packets) else packets
                continue
            yield from frames

    def close(self) -> None:
        """Close the file or device."""
        self._container.close()


class ContinuousClock:
    """Makes a stream that jumps back (a looped file, a restarted camera) go on where it was.

    Decoding timestamps grow in any sound stream, so they show a jump. Packets are moved before they are decoded, and so
    are the frames that come of them.
    """

    def __init__(self) -> None:
        self._shift = Fraction(0)  # seconds, like all here
        self._last: Fraction | None = None
        self._length = Fraction(1, 25)

    def place(self, packet: Any) -> None:
        """Move one packet."""
        if packet.dts is None or packet.time_base is None:
            return
        begin = packet.dts * packet.time_base + self._shift
        if self._last is not None:
            if begin <= self._last:
                self._shift += self._last + self._length - begin
                begin = self._last + self._length
            self._length = packet.duration * packet.time_base if packet.duration else begin - self._last
        self._last = begin
        ticks = round(self._shift / packet.time_base)
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks


def _is_running(generator: Any) -> bool:
    """A generator that raised is finished; demuxing goes on with a new one, at the place where the old one stopped."""
    return getattr(generator, "gi_frame", None) is not None
