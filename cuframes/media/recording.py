"""Packets to files without re-encoding: remuxing through PyAV."""

import contextlib
import io
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av

from cuframes._native.status import monotonic_ns
from cuframes.codecs import NANOSECOND
from cuframes.errors import Disconnected, NoCodecParameters, PacketOverrun, Timeout
from cuframes.host.files import naming
from cuframes.packets import Packet, PacketFlags, PacketReader

__all__ = ["Recording", "backlog"]

# A fragment for every keyframe makes an MP4 readable after a crash; on close it becomes a plain one. Its index is
# written late, since only then an edit list can say that the first picture is shown at zero although B-frames begin
# before it.
MP4 = {"movflags": "hybrid_fragmented+frag_keyframe+delay_moov", "flush_packets": "1"}
OPTIONS = {
    ".mp4": MP4,
    ".mov": MP4,
    ".mkv": {"flush_packets": "1"},
    ".ts": {"flush_packets": "1", "max_delay": "0"},  # otherwise its clock begins at 1.4 s
}
TIME_BASE = Fraction(1, 90_000)
DEFAULT_STEP_NS = 40_000_000
# How FLV names the codecs whose extradata are a record rather than a piece of the stream.
FLV_FOURCC = {"hevc": b"hvc1", "av1": b"av01"}
RAW_DEMUXERS = {
    "h264": "h264",
    "hevc": "hevc",
    "mpeg4": "m4v",
    "mpeg2video": "mpegvideo",
    "mjpeg": "mjpeg",
    "av1": "obu",
}


def backlog(reader: PacketReader, seconds: float) -> list[Packet]:
    """The packets already in the ring, beginning at the newest keyframe that is at least `seconds` old.

    Parameters
    ----------
    reader : PacketReader
        A reader just opened with ``start="oldest"``. It continues after these packets.
    seconds : float
        If the ring does not go back this far, all its packets are returned.
    """
    packets: list[Packet] = []
    with contextlib.suppress(Timeout, Disconnected):
        while True:
            with contextlib.suppress(PacketOverrun):
                packets.append(reader.next(0))
    since_ns = monotonic_ns() - int(seconds * 1e9)
    keys = [at for at, packet in enumerate(packets) if packet.keyframe]
    first = max((at for at in keys if packets[at].published_ns <= since_ns), default=keys[0] if keys else 0)
    return packets[first:]


class Recording:
    """Write packets to an MP4, MOV, MKV or TS file without encoding them again.

    Parameters
    ----------
    path : Path or str
        Created with the first keyframe. Packets before that cannot be decoded, and are skipped.
    reader : PacketReader
        The source of the packets, which also knows their codec.
    overwrite : bool
        Replace existing files.

    Raises
    ------
    FileExistsError, ValueError

    Notes
    -----
    Timestamps begin at zero and grow. A gap in the stream is a gap in the file. If the publisher is restarted, the
    timestamps continue by the real time that has passed. If the codec parameters change, a new file is begun:
    ``name-2.mp4`` and so on.
    """

    def __init__(self, path: Path | str, reader: PacketReader, *, overwrite: bool = False) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() not in OPTIONS:
            raise ValueError(f"a recording must be a {', '.join(OPTIONS)} file, not {self._path.name!r}")
        self._overwrite = overwrite
        self._check_free(self._path)
        self._reader = reader
        self._container: Any = None
        self._parameters: tuple[int, bytes] | None = None
        self._timeline = Timeline()
        self.paths: list[Path] = []
        self.packets = self.bytes = self.lost = 0

    def _check_free(self, path: Path) -> None:
        if path.exists() and not self._overwrite:
            raise FileExistsError(f"{path} already exists; choose another name, or overwrite it")

    def follow(self, reader: PacketReader) -> None:
        """Continue with the packets of the next publisher."""
        self._reader = reader
        self._timeline.restart()

    def write(self, packet: Packet) -> None:
        """Add one packet. Add packets in the order in which they were read."""
        if self._container is None and not packet.keyframe:
            return
        if self._container is None or (packet.keyframe and packet.flags & PacketFlags.DISCONTINUITY):
            parameters = self._reader.codec_id, _extradata(self._reader)
            if parameters != self._parameters:
                self._open(parameters, packet)
        muxed = av.Packet(bytes(packet.data))
        muxed.pts, muxed.dts = self._timeline.place(packet)
        muxed.time_base = NANOSECOND
        muxed.is_keyframe = packet.keyframe
        muxed.stream = self._stream
        with naming(self.paths[-1]):  # which is created by the first packet
            self._container.mux(muxed)
        self.packets += 1
        self.lost += packet.lost
        self.bytes += len(packet.data)

    def _open(self, parameters: tuple[int, bytes], first: Packet) -> None:
        self.close()
        codec = self._reader.codec
        number = len(self.paths) + 1
        path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
        self._check_free(path)
        with _describe(codec, parameters[1], first.data) as template:
            container = av.open(str(path), "w", options=OPTIONS[path.suffix.lower()])
            try:
                self._stream: Any = container.add_stream_from_template(template.streams.video[0], opaque=True)
            except BaseException:
                container.close()
                raise
        self._stream.time_base = TIME_BASE
        self._container, self._parameters = container, parameters
        self._timeline = Timeline()
        self.paths.append(path)

    @property
    def duration_ns(self) -> int:
        """Time from the first to the last packet of the current file, in nanoseconds."""
        return self._timeline.end_ns

    def close(self) -> None:
        """Finish the file. It may be called twice."""
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Timeline:
    """Timestamps of a file: they begin at zero and grow, across gaps and restarted clocks."""

    def __init__(self) -> None:
        self.end_ns = 0
        self._shift_ns: int | None = None
        self._last: Packet | None = None
        self._last_dts_ns = 0
        self._step_ns = DEFAULT_STEP_NS
        self._restarted = False

    def restart(self) -> None:
        """The next packet has a different clock."""
        self._restarted = True

    def place(self, packet: Packet) -> tuple[int, int]:
        """(pts, dts) of a packet in the file, in nanoseconds."""
        given = packet.dts_ns if packet.dts_ns is not None else packet.pts_ns
        dts_ns = given if given is not None else packet.published_ns
        pts_ns = packet.pts_ns if packet.pts_ns is not None else dts_ns
        if self._shift_ns is None or self._last is None:
            self._shift_ns = -pts_ns
        elif self._restarted or packet.seq <= self._last.seq or dts_ns + self._shift_ns <= self._last_dts_ns:
            # The clock is another one. What lies between is the time that passed for real.
            passed_ns = packet.published_ns - self._last.published_ns
            self._shift_ns = self._last_dts_ns + max(self._step_ns, passed_ns) - dts_ns
        elif packet.seq == self._last.seq + 1:
            self._step_ns = dts_ns + self._shift_ns - self._last_dts_ns
        self._restarted = False
        self._last, self._last_dts_ns = packet, dts_ns + self._shift_ns
        self.end_ns = max(self.end_ns, pts_ns + self._shift_ns)
        return pts_ns + self._shift_ns, self._last_dts_ns


def _extradata(reader: PacketReader) -> bytes:
    try:
        return reader.extradata
    except NoCodecParameters:
        return b""


def _describe(codec: str | None, extradata: bytes, keyframe: Any) -> Any:
    """An input whose one stream has the codec's parameters, including the picture size, as FFmpeg probes them.

    FFmpeg takes a stream's parameters from a demuxer. If the extradata are a configuration record (they begin with a 1,
    or with 0x81 for AV1), it is put into FLV, the smallest container for it. Otherwise the keyframe is a complete
    stream by itself.
    """
    data = bytes(keyframe)
    if codec == "h264" and extradata[:1] == b"\x01":
        flv = _flv_tag(b"\x17\0\0\0\0" + extradata) + _flv_tag(b"\x17\1\0\0\0" + data)
    elif codec in FLV_FOURCC and extradata[:1] in (b"\x01", b"\x81"):
        fourcc = FLV_FOURCC[codec]
        flv = _flv_tag(b"\x90" + fourcc + extradata) + _flv_tag(b"\x93" + fourcc + data)
    elif codec in RAW_DEMUXERS:
        # Extradata that are a piece of the stream belong in front of a keyframe that comes without them.
        return av.open(io.BytesIO(extradata + data), format=RAW_DEMUXERS[codec])
    else:
        raise ValueError(f"recording {codec} is not supported; use h264, hevc, {', '.join(list(RAW_DEMUXERS)[2:])}")
    return av.open(io.BytesIO(b"FLV\x01\x01\0\0\0\x09\0\0\0\0" + flv), format="flv")


def _flv_tag(body: bytes) -> bytes:
    head = b"\x09" + len(body).to_bytes(3, "big") + bytes(7)
    return head + body + (len(head) + len(body)).to_bytes(4, "big")
