"""Names of files by the time, and finding these files again."""

import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

__all__ = ["Found", "Pattern"]

# What strftime writes for each directive.
DIRECTIVES = {
    "Y": r"\d{4}",
    "y": r"\d\d",
    "m": r"0[1-9]|1[0-2]",
    "d": r"0[1-9]|[12]\d|3[01]",
    "j": r"[0-3]\d\d",
    "H": r"[01]\d|2[0-3]",
    "I": r"0[1-9]|1[0-2]",
    "M": r"[0-5]\d",
    "S": r"[0-5]\d|60",
    "f": r"\d{6}",
    "z": r"[+-]\d{4}(?:\d\d)?",
    "Z": r"[A-Za-z0-9+:-]*",
    "p": r"[^/]*",
    "a": r"[^/]+",
    "A": r"[^/]+",
    "b": r"[^/]+",
    "B": r"[^/]+",
    "u": r"[1-7]",
    "w": r"[0-6]",
    "G": r"\d{4}",
    "V": r"[0-5]\d",
    "U": r"[0-5]\d",
    "W": r"[0-5]\d",
}
SHORT = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M"}
DIRECTIVE = re.compile(r"%(.?)", re.S)


class Found(NamedTuple):
    """A file whose name fits a pattern; ``changed_ns`` is the time of its last change since 1970."""

    changed_ns: int
    path: Path
    size: int


class Pattern:
    """A path with strftime's directives, such as ``rec/%Y-%m-%d/%H-%M-%S.mkv``. ``%%`` is a percent sign.

    Parameters
    ----------
    text : str
    utc : bool
        The times are UTC rather than local time.

    Raises
    ------
    ValueError
        There is no such directive.
    """

    def __init__(self, text: str, *, utc: bool = False) -> None:
        for short, long in SHORT.items():
            text = re.sub(f"(?<!%)((?:%%)*){short}", rf"\g<1>{long}", text)
        for match in DIRECTIVE.finditer(text):
            if match[1] != "%" and match[1] not in DIRECTIVES:
                known = " ".join(f"%{letter}" for letter in [*DIRECTIVES, *(short[1:] for short in SHORT)])
                raise ValueError(
                    f"{match[0]!r} in {text!r} is not understood; use {known}, and %% for a percent sign itself"
                )
        self._utc = utc
        self._path = Path(text)
        parts = self._path.parts
        first = next((at for at, part in enumerate(parts) if _varies(part)), len(parts) - 1)
        self._root = Path(*(part.replace("%%", "%") for part in parts[:first]))
        self._levels = [re.compile(_regex(part, {})) for part in parts[first:-1]]
        names: dict[str, str] = {}
        levels = [_regex(part, names) for part in parts[first:-1]]
        stem = _regex(self._path.stem, names) + r"(?:-(?:[2-9]|[1-9]\d+))?"
        self._whole = re.compile("/".join([*levels, stem + re.escape(self._path.suffix)]))

    @property
    def suffix(self) -> str:
        """The end of the files' names."""
        return self._path.suffix

    @property
    def dated(self) -> bool:
        """Whether the name of the file itself has a time."""
        return _varies(self._path.name)

    def path(self, wall_ns: int) -> Path:
        """The name for a time, given in nanoseconds since 1970."""
        at = datetime.fromtimestamp(wall_ns / 1e9, UTC)
        return Path((at if self._utc else at.astimezone()).strftime(str(self._path)))

    def files(self) -> list[Found]:
        """The files whose names this pattern can have given, numbered ones included, the oldest change first.

        Links are not followed, and not found.
        """
        return sorted(self._find(self._root, 0, ""))

    def _find(self, folder: Path, depth: int, before: str) -> Iterator[Found]:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            return
        for entry in entries:
            relative = before + entry.name
            try:
                if depth < len(self._levels):
                    if entry.is_dir(follow_symlinks=False) and self._levels[depth].fullmatch(entry.name):
                        yield from self._find(folder / entry.name, depth + 1, relative + "/")
                elif self._whole.fullmatch(relative):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield Found(found.st_mtime_ns, folder / entry.name, found.st_size)
            except OSError:  # it has just been removed
                continue

    def remove_empty_folders(self, path: Path) -> None:
        """Remove the folders of a file that has been removed, as far as this pattern made them and they are empty."""
        for folder, _ in zip(path.parents, self._levels, strict=False):
            try:
                folder.rmdir()
            except OSError:
                return


def _varies(part: str) -> bool:
    return any(match[1] != "%" for match in DIRECTIVE.finditer(part))


def _regex(part: str, names: dict[str, str]) -> str:
    """A regular expression for what strftime makes of a part of a path. What was the same time before must be the same
    again: `names` has the group of every directive so far."""
    pieces, at = [], 0
    for match in DIRECTIVE.finditer(part):
        pieces.append(re.escape(part[at : match.start()]))
        at = match.end()
        letter = match[1]
        if letter == "%":
            pieces.append("%")
        elif letter in names:
            pieces.append(f"(?P={names[letter]})")
        else:
            names[letter] = f"time_{letter}"
            pieces.append(f"(?P<{names[letter]}>{DIRECTIVES[letter]})")
    return "".join([*pieces, re.escape(part[at:])])
