"""The size and the way up of published pictures."""

import logging
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av

from cuframes.cli import pixels
from cuframes.color import Color, Presentation
from cuframes.formats import FrameShape, pixel_format
from cuframes.media.pictures import color_as, decoded_format, rotation_of, video_rows
from cuframes.media.scaling import color_of_video, tag
from cuframes.media.sources import Picture

__all__ = ["DEFAULT_FORMAT", "Fit", "Rotate", "Shaper", "Size", "parse_size"]

log = logging.getLogger("cuframes")

Fit = Literal["letterbox", "crop", "stretch"]
Rotate = Literal["auto", "keep"]
TURNS = {90: "transpose=clock", 180: "hflip,vflip", 270: "transpose=cclock"}  # clockwise
# A difference of the shapes by less than this is a matter of whole pixels.
ALIKE = Fraction(1, 100)
DEFAULT_FORMAT = "nv12"  # where the decoder's own format cannot be published


class Size(NamedTuple):
    """A wanted width and height. One of them may be negative: -2 is what keeps the shape, in multiples of 2."""

    width: int
    height: int


def parse_size(text: str | None, option: str = "--size", *, relative: bool = False) -> Size | None:
    """``"1280x720"`` as (1280, 720), and with `relative` also ``"640x-2"``."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    digits = [side.removeprefix("-") if relative else side for side in (width, height)]
    if not all(side.isdigit() and int(side) for side in digits) or (width[:1] == height[:1] == "-"):
        more = ", or WIDTHx-2" if relative else ""
        raise ValueError(f"{option} must be WIDTHxHEIGHT{more}, not {text!r}")
    return Size(int(width), int(height))


class Shaper:
    """Turns, scales and converts decoded frames to what is published.

    Parameters
    ----------
    format : str or None
        Pixel format, by any of its names. None: that of the first picture, which costs no conversion; NV12 if this
        library does not have it.
    size : Size, optional
        Default: the source's own, without the last row or column if the format needs even ones.
    fit : {"letterbox", "crop", "stretch"}
        What happens to a picture of another shape than `size`: black bars, its edges cut off, or distorted.
    rotate : {"auto", "keep"}
        Whether a picture that says that it lies on its side is turned.
    name : str
        For the log.

    Raises
    ------
    ValueError
        The format cannot have this size.
    """

    def __init__(
        self,
        format: str | None,
        size: Size | None = None,
        fit: Fit = "letterbox",
        rotate: Rotate = "auto",
        name: str = "",
    ) -> None:
        self.format = ""
        self._wanted = size
        self._kept: Fraction | None = None  # the shape that a relative size keeps, but for rounding
        self._fit = fit
        self._rotate = rotate
        self._name = name
        self._canvas: tuple[tuple[int, int, int, int, Color], Any] | None = None
        self._graph: tuple[tuple[Any, ...], Any] | None = None
        self._warned = False
        self._color: Color | None = None  # of what is published
        self._aspect = Fraction(1)  # of the samples of what is published
        self._fixed = False
        if format is not None:
            self._set_format(format)

    def _set_format(self, format: str) -> None:
        self.format = format
        self._divisors = pixel_format(format).divisors
        v210 = pixel_format(format).name == "v210"
        self._planar = "yuv422p10le" if v210 else format  # in which bars are drawn
        if self._wanted is not None and min(self._wanted) > 0:
            FrameShape(pixel_format(format), *self._wanted)  # now, and not when the first picture comes

    def size_of(self, picture: Picture) -> tuple[int, int]:
        """The size in which a picture is published."""
        if not self.format:
            self._set_format(_own_format(picture.frame))
        if self._wanted is None:
            return self._own_size(picture.frame)
        shape = self._shape(picture)
        wide, high = self._wanted
        if min(wide, high) < 0:
            self._kept = shape
        if high < 0:
            return self._whole(wide), _multiple(wide / shape, max(-high, self._divisors[1]))
        if wide < 0:
            return _multiple(high * shape, max(-wide, self._divisors[0])), self._whole(high, 1)
        return wide, high

    def presentation(self, picture: Picture, width: int, height: int) -> Presentation:
        """What to say about pictures of this size. They keep these colours, also if the source's change."""
        said, frame = picture.stream.presentation, picture.frame
        self._color = color_as(said.color, frame, self.format, (width, height))
        turn, lies = self._turn(frame), rotation_of(frame)
        aspect = said.sample_aspect_ratio
        if not self._keeps(frame, width, height):
            aspect = Fraction(1)
        elif turn in (90, 270) and aspect:
            aspect = 1 / aspect
        self._aspect = aspect or Fraction(1)
        alike = abs(self._shape(picture) / self._aspect / Fraction(width, height) - 1) < ALIKE
        kept = (width, height) == self._own_size(frame) and alike and not turn
        return said._replace(
            color=self._color,
            sample_aspect_ratio=aspect,
            field_order=said.field_order if kept else None,
            rotation=(lies - turn) % 360 if lies else None,
        )

    def fix(self, width: int, height: int) -> None:
        """From now on pictures are fitted into this size. Those that have it anyway stay as they are."""
        self._wanted = Size(width, height)
        self._fixed = True

    def convert(self, picture: Picture, width: int, height: int) -> Any:
        """A picture's frame, for ``Publisher.publish``, in a size from :meth:`size_of`; good until the next call."""
        frame = picture.frame
        if frame.format.name == "cuda":  # the GPU decodes only when nothing needs converting
            return frame
        steps = [TURNS[turn]] if (turn := self._turn(frame)) else []
        shape = self._shape(picture) / self._aspect  # in samples
        target = Fraction(width, height)
        same = shape == self._kept or abs(shape / target - 1) < ALIKE
        if self._keeps(frame, width, height):
            wide, high = self._upright(frame)
            if 0 <= wide - width < 2 and 0 <= high - height < 2 and (wide, high) != (width, height):
                steps.append(f"crop={width}:{height}:0:0:exact=1")
            return self._converted(self._filtered(frame, steps), width, height)
        if not same:
            self._warn(frame, width, height)
        if same or self._fit == "stretch":
            return self._converted(self._filtered(frame, steps), width, height)
        if self._fit == "crop":
            part = f"iw*{float(target / shape)}:ih" if shape > target else f"iw:ih*{float(shape / target)}"
            return self._converted(self._filtered(frame, [*steps, f"crop={part}"]), width, height)
        return self._letterboxed(self._filtered(frame, steps), shape, width, height)

    def _letterboxed(self, frame: Any, shape: Fraction, width: int, height: int) -> Any:
        wide, high = pixel_format(self._planar).divisors
        inner_width = min(width, _multiple(height * shape, wide))
        inner_height = min(height, _multiple(width / shape, high))
        left = (width - inner_width) // 2 // wide * wide
        top = (height - inner_height) // 2 // high * high
        inner = pixels.convert(frame, inner_width, inner_height, self._planar, self._color)
        key = (left, top, inner_width, inner_height, color_of_video(inner))
        if self._canvas is None or self._canvas[0] != key:
            black = av.VideoFrame(width, height, "rgb24")
            video_rows(black.planes[0], 3 * width)[:] = 0
            self._canvas = key, pixels.convert(black, width, height, self._planar, color_of_video(inner))
            tag(self._canvas[1], color_of_video(inner))
        canvas = self._canvas[1]
        whole = FrameShape(pixel_format(self._planar), width, height)
        for plane, into, source in zip(whole.planes, canvas.planes, inner.planes, strict=True):
            row = plane.shape[1] * plane.strides[1]
            begin, end = row * left // width, row * (left + inner_width) // width
            first = plane.shape[0] * top // height
            picture = video_rows(source, end - begin)[: plane.shape[0] * inner_height // height]
            video_rows(into, row)[first : first + len(picture), begin:end] = picture
        return self._converted(canvas, width, height)

    def _converted(self, frame: Any, width: int, height: int) -> Any:
        return pixels.convert(frame, width, height, self.format, self._color)

    def _filtered(self, frame: Any, steps: list[str]) -> Any:
        if not steps:
            return frame
        key = (frame.format.name, frame.width, frame.height, *steps)
        if self._graph is None or self._graph[0] != key:
            self._graph = key, _Graph(frame, ",".join(steps))
        return self._graph[1].run(frame)

    def _turn(self, frame: Any) -> int:
        """How far to turn a frame clockwise, in degrees."""
        if self._rotate == "keep" or frame.format.name == "cuda":
            return 0
        return rotation_of(frame)

    def _upright(self, frame: Any) -> tuple[int, int]:
        """Width and height once it is turned."""
        return (frame.height, frame.width) if self._turn(frame) in (90, 270) else (frame.width, frame.height)

    def _own_size(self, frame: Any) -> tuple[int, int]:
        """The size of a frame as it is, without what the format cannot have."""
        width, height = self._upright(frame)
        return self._whole(width), self._whole(height, 1)

    def _keeps(self, frame: Any, width: int, height: int) -> bool:
        """Whether the pixels of a frame stay where they are."""
        return self._wanted is None or (self._fixed and self._own_size(frame) == (width, height))

    def _shape(self, picture: Picture) -> Fraction:
        """Width by height of the picture as it is to be seen."""
        frame = picture.frame
        shape = Fraction(frame.width, frame.height) * (picture.stream.presentation.sample_aspect_ratio or 1)
        return 1 / shape if self._turn(frame) in (90, 270) else shape

    def _whole(self, side: int, axis: int = 0) -> int:
        divisor = self._divisors[axis]
        return max(divisor, side - side % divisor)

    def _warn(self, frame: Any, width: int, height: int) -> None:
        if not self._warned:
            what = {"letterbox": "black bars", "crop": "its edges are cut off", "stretch": "it is distorted"}
            log.warning(
                "%s: the picture of %dx%d has another shape than %dx%d: %s (--fit)",
                self._name,
                frame.width,
                frame.height,
                width,
                height,
                what[self._fit],
            )
        self._warned = True


class _Graph:
    """Filters of FFmpeg that move pixels, and do not convert them."""

    def __init__(self, frame: Any, steps: str) -> None:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000)
        )
        last = source
        for step in steps.split(","):
            name, _, arguments = step.partition("=")
            following = graph.add(name, arguments or None)
            last.link_to(following)
            last = following
        sink = graph.add("buffersink")
        last.link_to(sink)
        graph.configure()
        self._graph = graph

    def run(self, frame: Any) -> Any:
        self._graph.push(frame)
        return self._graph.pull()


def _own_format(frame: Any) -> str:
    """The pixel format of a decoded frame, by FFmpeg's name, if frames in it can be published."""
    name = decoded_format(frame) or DEFAULT_FORMAT
    try:
        pixel_format(name)
    except ValueError:
        return DEFAULT_FORMAT
    return name


def _multiple(side: Fraction | float, of: int) -> int:
    return max(of, round(side / of) * of)
