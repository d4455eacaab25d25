"""What a source gives: pictures and packets, and the description of the stream that they belong to."""

from fractions import Fraction
from typing import Any, NamedTuple

from cuframes.color import Presentation

__all__ = ["Acceleration", "EncodedPacket", "Picture", "StreamInfo"]


class StreamInfo(NamedTuple):
    """The video stream of one connection.

    ``width`` and ``height`` are what the container says, in pixels; 0 if it does not say. ``rate`` is the nominal frame
    rate; None if it is not known. ``presentation`` is what the stream says about colours and geometry: ``color``,
    ``sample_aspect_ratio``, ``field_order``, ``frame_rate`` (the nearest standard rate). ``live`` is False for
    files, which end and can be read faster than they play. ``decoder`` is ``"nvdec"`` or ``"cpu"``. ``encoded`` is
    False if the packets are raw pictures.
    """

    codec: str
    codec_id: int
    extradata: bytes
    width: int
    height: int
    rate: Fraction | None
    presentation: Presentation
    live: bool
    decoder: str
    encoded: bool


class Picture(NamedTuple):
    """One decoded picture.

    ``frame`` is a PyAV ``VideoFrame``, in host memory unless it was decoded on a GPU to stay there. ``pts_ns`` grows
    from picture to picture, also over reconnects. ``arrived_ns`` is when its packet came, on CLOCK_MONOTONIC.
    """

    frame: Any
    pts_ns: int
    arrived_ns: int
    stream: StreamInfo


class EncodedPacket(NamedTuple):
    """One encoded packet, before its picture. Its picture has the same pts.

    ``data`` is a PyAV packet. ``flags`` are :class:`cuframes.PacketFlags`: the first packet after a reconnect is
    DISCONTINUITY. Other fields as for :class:`Picture`; a source that has no timestamps gives None for ``pts_ns`` of
    streams with B-frames.
    """

    data: Any
    pts_ns: int | None
    dts_ns: int | None
    keyframe: bool
    flags: int
    arrived_ns: int
    stream: StreamInfo


class Acceleration(NamedTuple):
    """Decoding on a GPU (NVDEC).

    ``ordinal`` is the GPU. With ``keep``, a pixel format, pictures of that format stay there; None copies them to host
    memory. If the GPU cannot decode the source, the CPU does, unless it is ``required``.
    """

    ordinal: int
    keep: str | None = None
    required: bool = False
