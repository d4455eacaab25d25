"""Packets into containers without encoding: FFmpeg's muxers, told of the stream by its first keyframe."""

import io
from copy import copy
from fractions import Fraction
from typing import Any

import av

from cuframes.codecs import NANOSECOND, codec_name
from cuframes.errors import NoCodecParameters
from cuframes.media.timeline import Timeline
from cuframes.packets import Packet, PacketReader

__all__ = ["MPEGTS_OPTIONS", "DamagedPacket", "Muxer", "Parameters"]

TIME_BASE = Fraction(1, 90_000)
# Every packet is written at once. Without max_delay FFmpeg's clock begins at 1.4 s.
MPEGTS_OPTIONS = {"flush_packets": "1", "max_delay": "0"}
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
# NAL units that describe the sequence, and units that hold a picture, by type.
SEQUENCE_SETS = {"h264": 7, "hevc": 33}
PICTURES = {"h264": range(1, 6), "hevc": range(32)}


# What FFmpeg says of packets that a container cannot hold.
REFUSED = (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError)


class DamagedPacket(ValueError):
    """A packet that a container cannot hold, or a keyframe with which none can begin. The next one may be whole."""


class Parameters:
    """What a container must say about a stream, as the reader and a keyframe tell it.

    Two of them are equal if one container can hold packets of both.
    """

    def __init__(self, reader: PacketReader, keyframe: Packet) -> None:
        self.codec_id = reader.codec_id
        try:
            self.extradata = reader.extradata
        except NoCodecParameters:
            self.extradata = b""
        self._keyframe = bytes(keyframe.data)
        self._sets = _sequence_sets(codec_name(self.codec_id), self._keyframe)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameters):
            return NotImplemented
        same = self.codec_id == other.codec_id and self.extradata == other.extradata
        # A keyframe without sequence parameter sets continues with those of the one before.
        return same and (self._sets == other._sets or not (self._sets and other._sets))

    __hash__ = None  # type: ignore[assignment]

    def after(self, before: "Parameters") -> "Parameters":
        """Those of a stream that goes on, of which `before` is known: a keyframe may come without parameter sets."""
        return self if self._sets else before

    def template(self) -> Any:
        """An input whose one stream has the codec's parameters, including the picture size.

        Raises
        ------
        DamagedPacket
            The keyframe does not tell them.
        ValueError
            The codec cannot be recorded.
        """
        try:
            template = self._probe()
        except REFUSED as problem:
            raise DamagedPacket(f"a keyframe is damaged: {problem.strerror}") from None
        streams = template.streams.video
        if not (streams and streams[0].codec_context.width and streams[0].codec_context.height):
            template.close()
            raise DamagedPacket("a keyframe is damaged, or the stream has no parameter sets: no picture size in it")
        return template

    def _probe(self) -> Any:
        """An input whose one stream has the codec's parameters, including the picture size, as FFmpeg probes them.

        FFmpeg takes a stream's parameters from a demuxer. If the extradata are a configuration record (they begin with
        a 1, or with 0x81 for AV1), it is put into FLV, the smallest container for it. Otherwise the keyframe is a
        complete stream by itself.
        """
        codec, extradata, data = codec_name(self.codec_id), self.extradata, self._keyframe
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


def _sequence_sets(codec: str | None, data: bytes) -> list[bytes]:
    """What in a keyframe tells of the picture size: the sequence parameter sets of H.264 and HEVC with start codes
    (picture parameter sets may change within a stream), and the sizes in MPEG-2 and JPEG."""
    if codec == "mjpeg":
        return _jpeg_size(data)
    if codec == "mpeg2video":
        at = data.find(b"\0\0\1\xb3")
        return [data[at + 4 : at + 7]] if at >= 0 else []
    found: list[bytes] = []
    if codec not in SEQUENCE_SETS or not data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return found
    at = data.find(b"\0\0\1")
    while at >= 0 and len(data) > at + 3:
        kind = data[at + 3] & 31 if codec == "h264" else data[at + 3] >> 1 & 63
        if kind in PICTURES[codec]:
            break
        end = data.find(b"\0\0\1", at + 3)
        if kind == SEQUENCE_SETS[codec]:
            found.append(data[at + 3 : end if end >= 0 else None].rstrip(b"\0"))
        at = end
    return found


def _jpeg_size(data: bytes) -> list[bytes]:
    at = 2
    while len(data) >= at + 9 and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            return [data[at + 5 : at + 9]]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return []


class Muxer:
    """One container that is being written. Its times begin at zero.

    Parameters
    ----------
    target : str or file-like
        For ``av.open``.
    format : str
        FFmpeg's name of the container's format.
    parameters : Parameters
    options, container_options : dict
        Of the format; of the format and the protocol, for :func:`av.open`.
    """

    def __init__(self, target: Any, format: str, parameters: Parameters, options: dict[str, str], **more: Any) -> None:
        self.parameters = parameters
        self.refusing = False  # whether the newest packet was refused
        with parameters.template() as template:
            stream = template.streams.video[0]
            # PyAV of old knows only whether there is any.
            depth = getattr(stream.codec_context, "reorder_depth", 2 * stream.codec_context.has_b_frames)
            self._container: Any = av.open(target, "w", format=format, options=options, **more)
            try:
                self._stream = self._container.add_stream_from_template(stream, opaque=True)
            except BaseException:
                self._container.close()
                raise
        self._stream.time_base = TIME_BASE
        self.timeline = Timeline(int(depth))

    def begin(self) -> None:
        """Write the head of the container. Otherwise the first packet does."""
        self._container.start_encoding()

    def mux(self, packet: Packet) -> None:
        """Add a packet.

        Raises
        ------
        DamagedPacket
            The container cannot hold it; it goes on without.
        """
        muxed = av.Packet(bytes(packet.data))
        muxed.pts, muxed.dts = self.timeline.place(packet)
        muxed.time_base = NANOSECOND
        muxed.is_keyframe = packet.keyframe
        muxed.stream = self._stream
        try:
            self._container.mux(muxed)
        except REFUSED as problem:
            self.refusing = True
            raise DamagedPacket(f"a packet is damaged: {problem.strerror}") from problem
        self.refusing = False

    def where_ns(self, packet: Packet) -> int:
        """At what time the packet would be shown, if it were the next one."""
        return copy(self.timeline).place(packet)[0]

    def close(self) -> None:
        """Finish the container. It may be called twice."""
        container, self._container = self._container, None
        if container is not None:
            container.close()
