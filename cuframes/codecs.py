"""Codec names and numbers, and FFmpeg's packets.

FFmpeg's codec ids differ between its versions, so the FFmpeg in use translates them: that of PyAV (``cuframes[cli]``).
H.264 and HEVC have the same ids in every version, and need no PyAV.
"""

import operator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

__all__ = ["NANOSECOND", "codec_id", "codec_name", "nanoseconds", "parameter_sets_filter"]

NANOSECOND = Fraction(1, 1_000_000_000)
FIXED = {"h264": 27, "hevc": 173}
_START_CODES = (b"\0\0\1", b"\0\0\0\1")


def codec_id(codec: str | int) -> int:
    """FFmpeg's AVCodecID of a codec, an encoder or a decoder. An int is taken as an AVCodecID.

    Raises
    ------
    ValueError
        The FFmpeg in use does not know the name, or PyAV is not installed.
    """
    if hasattr(codec, "__index__") and not isinstance(codec, bool):
        number = operator.index(codec)
        if not 0 < number < 2**32:
            raise ValueError(f"a codec id must be FFmpeg's AVCodecID, a positive number, not {number}")
        return number
    if not isinstance(codec, str):
        raise TypeError(f"codec must be a name or FFmpeg's AVCodecID, not {type(codec).__name__}")
    if codec in FIXED:
        return FIXED[codec]
    found = _codec(codec)
    if found is None:
        raise ValueError(f"FFmpeg knows no codec {codec!r}; give one of its names, such as h264, hevc, av1, mjpeg")
    return int(found.id)


def codec_name(number: int) -> str | None:
    """FFmpeg's name of an AVCodecID; None if the FFmpeg in use does not know it, or PyAV is not installed."""
    for name, fixed in FIXED.items():
        if number == fixed:
            return name
    try:
        import av
    except ImportError:
        return None
    known = (_codec(name) for name in sorted(av.codecs_available))
    return next((codec.canonical_name for codec in known if codec is not None and codec.id == number), None)


def _codec(name: str) -> Any:
    try:
        import av
    except ImportError:
        raise ValueError(
            f"the codec name {name!r} needs FFmpeg to translate it: pip install 'cuframes[cli]', or give its AVCodecID"
        ) from None
    for mode in ("r", "w"):
        try:
            return av.Codec(name, mode)
        except (ValueError, av.FFmpegError):
            pass
    return None


def nanoseconds(ticks: int | None, time_base: Fraction | None) -> int | None:
    """Convert an FFmpeg timestamp to nanoseconds; None stays None."""
    return None if ticks is None or time_base is None else int(ticks * time_base / NANOSECOND)


def parameter_sets_filter(stream: "av.VideoStream") -> Any:
    """FFmpeg's bitstream filter that repeats a stream's parameter sets at every keyframe; None if none is needed.

    RTSP cameras often send the parameter sets of H.264 and HEVC only in the session description. In MP4 and similar
    containers (whose extradata begin with a 1) they are always in the extradata, which readers get from the ring. Such
    a stream needs no filter.
    """
    from av.bitstream import BitStreamFilterContext

    extradata = stream.codec_context.extradata or b""
    if stream.codec_context.name not in FIXED or not extradata.startswith(_START_CODES):
        return None
    return BitStreamFilterContext("dump_extra=freq=keyframe", stream)
