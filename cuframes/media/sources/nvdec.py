"""Decoding on a GPU: opening a source with NVDEC, and the trial that shows whether it works."""

from collections.abc import Callable, Iterator
from typing import Any

import av

from cuframes.errors import DeviceError
from cuframes.media import pictures
from cuframes.media.sources.items import Acceleration
from cuframes.memory.driver import current, gpu

__all__ = ["CANNOT", "first_pictures", "open_container"]

# Errors of PyAV when it, the driver or the GPU cannot decode a stream on the GPU.
CANNOT = (av.FFmpegError, OSError, ImportError, TypeError, ValueError, NotImplementedError, RuntimeError, DeviceError)


def open_container(
    wanted: Acceleration, open_container: Callable[..., Any], url: str, video_stream: int
) -> tuple[Any, Any]:
    """A container with a decoder on the GPU, and its video stream. The frames stay on the GPU if that is wanted."""
    from av.codec.hwaccel import HWAccel

    # In the context that the frames are in. FFmpeg's own way to the primary context ("primary_ctx") refuses one that
    # somebody has started with other flags than its own.
    context: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
    accelerator = HWAccel("cuda", str(wanted.ordinal), False, context, is_hw_owned=wanted.keep is not None)
    with current(gpu(wanted.ordinal)):
        container = open_container(url, hwaccel=accelerator)
    if len(container.streams.video) <= video_stream:
        container.close()
        raise ValueError("there is no decoder for it on the GPU")
    return container, container.streams.video[video_stream]


def first_pictures(packets: Iterator[Any], keep: str | None) -> list[tuple[Any, list[Any]]]:
    """The first packets, with the first pictures, to be played. Only a picture shows whether the decoder works."""
    seen: list[tuple[Any, list[Any]]] = []
    frames: list[Any] = []
    for packet in packets:
        if packet is None or not packet.size:
            break
        frames = packet.decode()
        seen.append((packet, frames))
        if frames:
            break
    found = [getattr(getattr(frame, "sw_format", None), "name", frame.format.name) for frame in frames]
    if keep is not None and (set(found) != {pictures.ffmpeg_format(keep)} or frames[0].format.name != "cuda"):
        raise ValueError(f"the decoder gives {found or 'nothing'}, not {keep}")
    return seen
