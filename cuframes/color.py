"""What pictures look like beyond their pixel format: colour, the shape of a sample, fields, rotation, and rate.

Values have the names that FFmpeg gives them, and in shared memory its codes, which are those of ITU-T H.273. None means
"not said". What a player assumes then is in :meth:`Color.assumed`.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Self

from cuframes.formats import ALIASES as ALIASES_OF_FORMATS
from cuframes.formats import FULL_RANGE, whole_number
from cuframes.rates import Rate, rate

__all__ = ["Color", "ColorLike", "Presentation", "Presented", "color_of", "is_gray", "is_rgb", "presentation"]

RGB_STORED = 255  # the code of RGB's matrix is 0, which in shared memory means "not said"
RANGES = {"tv": 1, "pc": 2}
MATRICES = {
    "gbr": 0,
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "ycgco": 8,
    "bt2020nc": 9,
    "bt2020c": 10,
    "smpte2085": 11,
    "chroma-derived-nc": 12,
    "chroma-derived-c": 13,
    "ictcp": 14,
    "ipt-c2": 15,
    "ycgco-re": 16,
    "ycgco-ro": 17,
}
PRIMARIES = {
    "bt709": 1,
    "bt470m": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "film": 8,
    "bt2020": 9,
    "smpte428": 10,
    "smpte431": 11,
    "smpte432": 12,
    "ebu3213": 22,
}
TRANSFERS = {
    "bt709": 1,
    "bt470m": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "linear": 8,
    "log100": 9,
    "log316": 10,
    "iec61966-2-4": 11,
    "bt1361e": 12,
    "iec61966-2-1": 13,
    "bt2020-10": 14,
    "bt2020-12": 15,
    "smpte2084": 16,
    "smpte428": 17,
    "arib-std-b67": 18,
}
FIELD_ORDERS = {"progressive": 1, "tt": 2, "bb": 3, "tb": 4, "bt": 5}
ROTATIONS = (0, 90, 180, 270)
# Other names for the same values.
ALIASES = {
    "range": {"limited": "tv", "mpeg": "tv", "full": "pc", "jpeg": "pc"},
    "matrix": {"rgb": "gbr", "bt601": "smpte170m", "bt2020": "bt2020nc", "bt2020_ncl": "bt2020nc", "ycocg": "ycgco"},
    "primaries": {"bt601": "smpte170m", "display-p3": "smpte432", "srgb": "bt709"},
    "transfer": {
        "bt601": "smpte170m",
        "gamma22": "bt470m",
        "gamma28": "bt470bg",
        "srgb": "iec61966-2-1",
        "pq": "smpte2084",
        "hlg": "arib-std-b67",
    },
    "field_order": {"tff": "tt", "bff": "bb"},
}
CODES = {
    "range": RANGES,
    "matrix": MATRICES,
    "primaries": PRIMARIES,
    "transfer": TRANSFERS,
    "field_order": FIELD_ORDERS,
}
NAMES = {what: {code: name for name, code in codes.items()} for what, codes in CODES.items()}
NOT_SAID = ("", "unknown", "unspecified", "reserved")
NOT_SAID_CODES = {"range": (0,), "field_order": (0,)}  # of the others it is 2, beside reserved ones
# Players take pictures beyond these for high definition.
SD_LINES = 576
HD_WIDTH = 1280
PAL_LINES = (288, 576)
MATRIX_PRIMARIES = {"gbr": "bt709", "bt709": "bt709", "bt2020nc": "bt2020", "bt2020c": "bt2020", "ictcp": "bt2020"}
U16 = 2**16 - 1
U32 = 2**32 - 1


class Color(NamedTuple):
    """How the samples of a picture become colours. Each field is a name of FFmpeg's, or None: not said.

    Attributes
    ----------
    range : str or None
        ``"tv"`` (limited: luma from 16 to 235 in 8 bits) or ``"pc"`` (full: 0 to 255).
    matrix : str or None
        From RGB to luma and chroma: ``"bt709"``, ``"smpte170m"`` (BT.601), ``"bt2020nc"``, ``"gbr"`` (RGB itself), …
    primaries : str or None
        The colours of red, green and blue: ``"bt709"``, ``"smpte170m"``, ``"bt2020"``, …
    transfer : str or None
        The curve from light to samples: ``"bt709"``, ``"iec61966-2-1"`` (sRGB), ``"smpte2084"`` (PQ), …
    """

    range: str | None = None
    matrix: str | None = None
    primaries: str | None = None
    transfer: str | None = None

    def assumed(self, width: int, height: int, format: str = "nv12") -> "Color":
        """These colours, and for what was not said, what players assume for a picture of this size and format.

        RGB is full range and sRGB, gray is full range. Any other format is limited range unless it is one of FFmpeg's
        full-range names (``yuvj420p``). Its matrix is BT.709 if the picture has more than 576 lines or is at least 1280
        pixels wide, and BT.601 if it is smaller; never BT.2020.
        """
        rgb, high = is_rgb(format), height > SD_LINES or width >= HD_WIDTH
        full = rgb or is_gray(format) or format.startswith("yuvj")
        matrix = self.matrix or ("gbr" if rgb else "bt709" if high else "smpte170m")
        low = "bt470bg" if height in PAL_LINES else "smpte170m"
        return Color(
            self.range or ("pc" if full else "tv"),
            matrix,
            self.primaries or MATRIX_PRIMARIES.get(matrix) or ("bt709" if high else low),
            self.transfer or ("iec61966-2-1" if rgb else "bt709"),
        )


ColorLike = Color | tuple[Any, ...] | Mapping[str, Any] | str
# What a single name says.
STANDARDS = {
    "bt601": Color(None, "smpte170m", "smpte170m", "smpte170m"),
    "bt709": Color(None, "bt709", "bt709", "bt709"),
    "bt2020": Color(None, "bt2020nc", "bt2020", "bt2020-10"),
    "srgb": Color("pc", "gbr", "bt709", "iec61966-2-1"),
}


def is_rgb(format: str) -> bool:
    """Whether the samples of a pixel format, by any name that this library or FFmpeg knows, are red, green and blue."""
    name = ALIASES_OF_FORMATS.get(format, format)
    return "rgb" in name or "bgr" in name or name.startswith("gbr") or name == "pal8"


def is_gray(format: str) -> bool:
    """Whether a pixel format has luma only."""
    return ALIASES_OF_FORMATS.get(format, format).startswith(("gray", "ya", "mono"))


def _named(value: Any, what: str) -> str | None:
    """FFmpeg's name of a value that was given as a name, a code or an enum's member; None: not said."""
    names, codes = NAMES[what], CODES[what]
    if value is None:
        return None
    if not isinstance(value, str):
        code = whole_number(value, what, 0)
        if code not in names and code not in NOT_SAID_CODES.get(what, (0, 2, 3)):
            raise ValueError(f"unknown {what} {code}; known are {', '.join(f'{c} {n}' for c, n in names.items())}")
        return names.get(code)
    name = value.lower()
    name = ALIASES.get(what, {}).get(name, name)
    if name in NOT_SAID:
        return None
    if name not in codes:
        raise ValueError(f"unknown {what.replace('_', ' ')} {value!r}; known are {', '.join(codes)}")
    return name


def color_of(value: ColorLike | None) -> Color:
    """A caller's description of colours as a :class:`Color`.

    Parameters
    ----------
    value : Color, tuple, mapping, str or None
        Range, matrix, primaries and transfer, by position or by name; or the name of a standard: ``"bt601"``,
        ``"bt709"``, ``"bt2020"`` (which leave the range open), ``"srgb"``. Each value is a name of FFmpeg's, its code,
        or the member of an enum that has that code, such as PyAV's.

    Raises
    ------
    ValueError, TypeError
        A value is unknown; the message lists those that are known.
    """
    if value is None:
        return Color()
    if isinstance(value, str):
        if value.lower() not in STANDARDS:
            raise ValueError(
                f"unknown colour {value!r}; give {', '.join(STANDARDS)}, or cuframes.Color(range=…, matrix=…)"
            )
        return STANDARDS[value.lower()]
    if isinstance(value, Mapping):
        wrong = [name for name in value if name not in Color._fields]
        if wrong:
            raise ValueError(f"a colour has {', '.join(Color._fields)}, and no {wrong[0]!r}")
        value = tuple(value.get(name) for name in Color._fields)
    if not isinstance(value, tuple) or len(value) > len(Color._fields):
        raise TypeError(f"color must be a cuframes.Color, a name like 'bt709', or a dict, not {value!r}")
    return Color(*(_named(part, what) for part, what in zip(value, Color._fields, strict=False)))


class Presentation(NamedTuple):
    """What a publisher says about all its pictures. None: not said."""

    color: Color = Color()
    sample_aspect_ratio: Fraction | None = None
    field_order: str | None = None
    rotation: int | None = None
    frame_rate: Fraction | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The values of ``cf_presentation``, in its order."""
        codes = [CODES[what].get(name, 0) if name else 0 for what, name in zip(Color._fields, self.color, strict=True)]
        if self.color.matrix == "gbr":
            codes[1] = RGB_STORED
        aspect, per_second = self.sample_aspect_ratio, self.frame_rate
        return (
            *codes,
            FIELD_ORDERS.get(self.field_order or "", 0),
            0 if self.rotation is None else 1 + ROTATIONS.index(self.rotation),
            *((aspect.numerator, aspect.denominator) if aspect else (0, 0)),
            *((per_second.denominator, per_second.numerator) if per_second else (0, 0)),
        )

    @property
    def named(self) -> dict[str, str | int | None]:
        """The values under names of their own, as text or numbers, for JSON."""
        aspect, per_second = self.sample_aspect_ratio, self.frame_rate
        return {f"color_{part}": value for part, value in self.color._asdict().items()} | {
            "sample_aspect_ratio": None if aspect is None else f"{aspect.numerator}:{aspect.denominator}",
            "field_order": self.field_order,
            "rotation": self.rotation,
            "frame_rate": None if per_second is None else f"{per_second.numerator}/{per_second.denominator}",
        }

    @classmethod
    def of_stored(cls, values: tuple[int, ...]) -> Self:
        """What ``cf_presentation`` says. Any process may have written it: values that are not defined say nothing."""
        *codes, field_order, rotation, aspect_num, aspect_den, rate_den, rate_num = values
        codes[1] = 0 if codes[1] == RGB_STORED else codes[1] or U16  # 0: not said; no matrix has this code
        return cls(
            Color(*(NAMES[what].get(code) for what, code in zip(Color._fields, codes, strict=True))),
            Fraction(aspect_num, aspect_den) if aspect_num and aspect_den else None,
            NAMES["field_order"].get(field_order),
            ROTATIONS[rotation - 1] if 0 < rotation <= len(ROTATIONS) else None,
            Fraction(rate_num, rate_den) if rate_num and rate_den else None,
        )


class Presented:
    """The attributes of what has a presentation: publishers, subscribers, and the ends of slots."""

    @property
    def _presentation(self) -> Presentation:
        raise NotImplementedError

    @property
    def color(self) -> Color:
        """Range, matrix, primaries and transfer of the samples, as far as the publisher has said them."""
        return self._presentation.color

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Width of a sample to its height. None: not said, which players take for 1."""
        return self._presentation.sample_aspect_ratio

    @property
    def field_order(self) -> str | None:
        """``"progressive"``, or of interlaced pictures ``"tt"`` (top field first), ``"bb"``, ``"tb"`` or ``"bt"`` (the
        first letter: the field that is stored first; the second: the one that is shown first). None: not said.
        """
        return self._presentation.field_order

    @property
    def rotation(self) -> int | None:
        """Degrees (0, 90, 180, 270) by which a picture must be turned clockwise to be upright. None: not said."""
        return self._presentation.rotation


def presentation(
    color: ColorLike | None = None,
    sample_aspect_ratio: Any = None,
    field_order: str | int | None = None,
    rotation: int | None = None,
    frame_rate: Rate | None = None,
    *,
    format: str = "nv12",
) -> Presentation:
    """A caller's arguments as a :class:`Presentation`. See :class:`cuframes.Publisher` for what they may be.

    Raises
    ------
    ValueError, TypeError
    """
    found = color_of(color)
    if found.range is None and format in FULL_RANGE:
        found = found._replace(range="pc")
    turned = None
    if rotation is not None:
        turned = whole_number(rotation, "rotation") % 360
        if turned not in ROTATIONS:
            raise ValueError(f"rotation must be 0, 90, 180 or 270 degrees, not {rotation}")
    per_second = None
    if frame_rate is not None:
        exact = rate(frame_rate)
        per_second = exact.limit_denominator(U16)
        if not 0 < per_second <= U32 or per_second.numerator > U32:
            raise ValueError(f"frame_rate must be 1/{U16} to {U32} frames per second, not {frame_rate}")
    return Presentation(found, _aspect(sample_aspect_ratio), _named(field_order, "field_order"), turned, per_second)


def _aspect(value: Any) -> Fraction | None:
    """A sample's width to its height; None, 0 or 0:1 (as FFmpeg has it): not said."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = value.replace(":", "/")
        exact = Fraction(*value) if isinstance(value, tuple) else Fraction(value)
    except ZeroDivisionError:
        return None
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"sample_aspect_ratio must be a fraction like (16, 15), '16:15' or 1, not {value!r}") from None
    if exact == 0:
        return None
    near = exact.limit_denominator(U16) if exact <= 1 else 1 / (1 / exact).limit_denominator(U16)
    if exact < 0 or max(near.numerator, near.denominator) > U16 or not near:
        raise ValueError(f"sample_aspect_ratio must be 1:{U16} to {U16}:1, not {value}")
    return near
