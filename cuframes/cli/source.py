"""Decoded video from anything that FFmpeg can open. PyAV decodes and converts."""

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
# Errors of PyAV when it, the driver or the GPU cannot decode a stream on the GPU.
NO_NVDEC = (av.FFmpegError, OSError, ImportError, TypeError, ValueError, NotImplementedError, RuntimeError, DeviceError)
# Read from a disk, these would run as fast as they decode; everything else comes at its own pace.
PACED_PROTOCOLS = ("file:",)


class Source:
    """A file, URL, camera or ``testsrc``, as frames of one size and format.

    Parameters
    ----------
    url : str
        A path or URL that FFmpeg can open, or ``testsrc``: FFmpeg's test picture.
    size : (int, int), optional
        Scale to this width and height; default: the source's own (1280x720 for ``testsrc``).
    fps : float, optional
        Play at this rate; 0: as fast as the source can be decoded. Default: files at their own rate, live sources as
        their frames arrive.
    format : str
        Pixel format of the frames, by any of its names. Frames in another format are converted, and full range becomes
        limited range, unless the name is one of the full-range names (``yuvj420p``).
    loop : bool
        Start again at the end of a file. Timestamps keep increasing.
    gpu : int, optional
        Decode on this GPU (NVDEC) if it can decode the source and nothing needs converting; the frames then stay there.
        Otherwise decode on the CPU, and log why.

    Attributes
    ----------
    decoder : str
        The decoder in use: ``"nvdec"`` or ``"cpu"``.
    on_packet : callable or None
        Called with every encoded packet of PyAV before its frame is yielded. The frame will have the packet's pts.
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
        """Open the source with a decoder on the GPU; None if that cannot be done."""
        if self._size is not None or pixel_format(self.format).name not in ("nv12", "p010"):
            log.warning("%s: decoding on the CPU, because it converts the frames to %s", self.url, self.format)
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
            # Only the first frame shows whether the decoder works, and its format. The frame is kept, to be played.
            packets = self._packets(container)
            frames: list[Any] = next(filter(None, (packet.decode() for packet in packets)), [])
            found = [getattr(getattr(frame, "sw_format", None), "name", frame.format.name) for frame in frames]
            if set(found) != {pictures.ffmpeg_format(self.format)} or frames[0].format.name != "cuda":
                raise ValueError(f"the decoder gives {found or 'nothing'}, not {self.format}")
            self._begun = packets, frames
            self.decoder = "nvdec"
            return container
        except NO_NVDEC as problem:
            # The packets that were demuxed for the trial come again.
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
        """Yield frames for ``Publisher.publish``, each with its pts in nanoseconds, at the source's pace until it ends.

        A wait comes before its frame is yielded. Damaged data is logged and skipped.
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
        """Yield converted frames with increasing timestamps."""
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
        """Yield encoded packets with increasing timestamps. The empty packet at the end flushes the decoder."""
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                self._clock.place(packet)
                self._demuxed.append(packet)
            yield packet

    def _pass_on(self) -> None:
        """Give ``on_packet`` the packets since the last call. The trial of a GPU's decoder comes before it is set."""
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
    """Keeps timestamps increasing in a stream that jumps back (a looped file, a restarted camera).

    Decoding timestamps increase in any valid stream, so they show a jump. A packet's timestamps are shifted before it
    is decoded, so its frame's timestamp is shifted as well.
    """

    def __init__(self) -> None:
        self._shift = Fraction(0)  # seconds, like all here
        self._last: Fraction | None = None
        self._length = Fraction(1, 25)

    def place(self, packet: Any) -> None:
        """Shift the timestamps of one packet."""
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
    """Whether a generator can go on. One that raised is finished; a new one demuxes on from where it stopped."""
    return getattr(generator, "gi_frame", None) is not None
