"""Durations, numbers of bytes and options of FFmpeg, as people write them."""

import re
from collections.abc import Iterable

__all__ = ["parse_bytes", "parse_duration", "parse_options"]

NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
SECONDS = {
    "": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "day": 86_400, "days": 86_400,
    "w": 604_800, "week": 604_800, "weeks": 604_800,
}  # fmt: skip
PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_duration(text: str, option: str) -> float:
    """Seconds in ``600``, ``10min``, ``1h``, ``7d``, … `option` is for the error.

    Raises
    ------
    ValueError
    """
    found = NUMBER.fullmatch(text)
    if found is None or found[2].lower() not in SECONDS or float(found[1]) <= 0:
        raise ValueError(f"{option} must be a time such as 600 (seconds), 10min, 1h or 7d, not {text!r}")
    return float(found[1]) * SECONDS[found[2].lower()]


def parse_bytes(text: str, option: str) -> int:
    """Bytes in ``500G``, ``1.5TB``, ``200MiB``, …: k, M, G and T are powers of 1000, ki, Mi, Gi and Ti of 1024.

    Raises
    ------
    ValueError
    """
    found = NUMBER.fullmatch(text)
    unit = found[2].lower().removesuffix("b") if found is not None else "?"
    base = 1024 if unit.endswith("i") and len(unit) == 2 else 1000
    unit = unit.removesuffix("i") if base == 1024 else unit
    if found is None or unit not in PREFIXES or float(found[1]) <= 0:
        raise ValueError(f"{option} must be a size such as 500G, 1.5T or 200MiB, not {text!r}")
    return int(float(found[1]) * base ** PREFIXES[unit])


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """The texts of ``--option``, each NAME=VALUE, as a dict.

    Raises
    ------
    ValueError
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--option must be NAME=VALUE, not {text!r}")
        options[name] = value
    return options
