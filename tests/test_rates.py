"""Frame rates: what a number means, and the standard rate nearest to a measured one."""

from fractions import Fraction

import numpy
import pytest

from cuframes.rates import nearest, rate


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (25, Fraction(25)),
        (12.5, Fraction(25, 2)),
        (59.94, Fraction(60000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        (Fraction(36000000, 1200001), Fraction(36000000, 1200001)),
        (0.5, Fraction(1, 2)),
        (0.0003, Fraction(3, 10000)),
        ((60000, 1001), Fraction(60000, 1001)),
        (numpy.float32(25), Fraction(25)),
        (numpy.int64(25), Fraction(25)),
    ],
)
def test_a_rate_means_what_it_names(written, meant):
    assert rate(written) == meant


@pytest.mark.parametrize("written", [0, -1, 0.0, float("nan"), float("inf"), "fast", "1/0", "-25", ""])
def test_what_is_no_rate_is_refused(written):
    with pytest.raises(ValueError, match="frame rate"):
        rate(written)


@pytest.mark.parametrize(
    ("measured", "standard"),
    [
        (29.9698, Fraction(30000, 1001)),
        (29.9999, Fraction(30)),
        (25.1, Fraction(25)),
        (Fraction(36000000, 1200001), Fraction(30)),
        (13.3, Fraction(133, 10)),
    ],
)
def test_a_measured_rate_becomes_a_standard_one(measured, standard):
    assert nearest(measured) == standard
