"""Frame rates as exact fractions: 59.94 means 60000/1001."""

from fractions import Fraction
from numbers import Rational, Real

__all__ = ["UNKNOWN_RATE", "Rate", "nearest", "rate"]

Rate = Fraction | int | float | str | tuple[int, int]
UNKNOWN_RATE = Fraction(25)  # what is assumed where a rate is needed and none is known
MAX_DENOMINATOR = 1001
SLOWEST_DENOMINATOR = 1_000_000  # of rates below one frame per second
# Of NTSC: named by a rounded decimal number, and 1000/1001 of a whole number.
NTSC = tuple(Fraction(n * 1000, MAX_DENOMINATOR) for n in (24, 30, 48, 60, 120, 240))
NAMED_WITHIN = Fraction(5, 1000)  # 23.98 and 59.94 are meant exactly
STANDARD = (
    *(Fraction(n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 48, 50, 60, 72, 75, 90, 100, 120)),
    *(Fraction(n) for n in (144, 200, 240)),
    Fraction(15, 2),
    Fraction(25, 2),
    Fraction(15000, 1001),
    *NTSC,
)
MEASURED_WITHIN = Fraction(1, 100)  # of the rate


def rate(fps: Rate) -> Fraction:
    """Frames per second as a fraction: ``25``, ``59.94``, ``(60000, 1001)``, ``"60000/1001"``.

    Decimal numbers that name a rate of NTSC (23.976, 23.98, 29.97, 59.94, …) mean exactly that rate.

    Raises
    ------
    ValueError
        It is not a finite number above 0.
    """
    real = isinstance(fps, Real) and not isinstance(fps, Rational)  # NumPy has reals that are no float
    try:
        given = Fraction(*fps) if isinstance(fps, tuple) else Fraction(float(fps) if real else fps)
        given = Fraction(int(given.numerator), int(given.denominator))  # NumPy's integers would stay in it
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(f"a frame rate must be a number or a fraction like 60000/1001, not {fps!r}") from None
    if given <= 0:
        raise ValueError(f"a frame rate must be above 0, not {fps}")
    if not real and not (isinstance(fps, str) and "/" not in fps):
        return given
    named = next((ntsc for ntsc in NTSC if abs(ntsc - given) < NAMED_WITHIN), None)
    return named or given.limit_denominator(MAX_DENOMINATOR if given >= 1 else SLOWEST_DENOMINATOR)


def nearest(measured: float | Rational) -> Fraction:
    """The standard rate nearest to a measured one; the measured rate itself where none is within 1 %."""
    exact = Fraction(measured)
    standard = min(STANDARD, key=lambda known: abs(known - exact))
    return standard if abs(standard - exact) <= MEASURED_WITHIN * standard else exact.limit_denominator(MAX_DENOMINATOR)
