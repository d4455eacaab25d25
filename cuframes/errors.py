"""The exceptions of cuframes.

All of them derive from :class:`CuframesError`, and from the built-in exception that a caller would otherwise expect.
Bad arguments are plain ``ValueError`` and ``TypeError``. What is not in ``__all__`` stays inside the library.
"""

import errno
from typing import Self

__all__ = [
    "AlreadyExists",
    "CuframesError",
    "DeviceError",
    "Disconnected",
    "FrameDropped",
    "NoCodecParameters",
    "NoPacketRing",
    "NotFound",
    "OutOfSharedMemory",
    "Overwritten",
    "PacketOverrun",
    "PacketOversized",
    "ProtocolError",
    "SegmentTruncated",
    "Timeout",
    "TooManyHeld",
]


class CuframesError(Exception):
    """Base class of every error that is about cuframes rather than about an argument."""


class Timeout(CuframesError, TimeoutError):
    """Nothing happened within the time the caller allowed."""


class Disconnected(CuframesError, ConnectionError):
    """The publisher closed or died, and every frame that was still valid has been taken."""


class AlreadyExists(CuframesError, FileExistsError):
    """A living publisher owns this key, or a subscriber of that name is connected."""


class NotFound(CuframesError, FileNotFoundError):
    """No publisher has this key on this host (or its runtime directory is another one)."""


class ProtocolError(CuframesError):
    """The other side, or a shared segment, does not speak this protocol."""


class SegmentTruncated(ProtocolError):
    """Shared memory was cut off while it was used here: somebody who may write its file made it shorter.

    The object that raises this stays unusable. Close it; the publisher or writer has to be made anew, and with it its
    segment. What was taken and copied before is good; views that were not copied show zeros, and are not ``valid``.
    """

    def __init__(
        self,
        message: str = "the shared memory was cut off while in use: somebody who may write its file made it shorter "
        "(or the file system is full). Close this, and start the publisher or writer anew",
    ) -> None:
        super().__init__(message)


class FrameDropped(CuframesError):
    """Every slot of the ring was held by a subscriber, so this frame was not published."""


class Overwritten(CuframesError):
    """The frame changed while it was held: discard what was read from it.

    Only a publisher that does not honour pins (a plain version 3 program) can cause this.
    """


class TooManyHeld(CuframesError):
    """This subscriber already holds ``max_held`` frames."""


class PacketOversized(CuframesError):
    """The packet is larger than the ring's limit; nothing was published."""


class PacketOverrun(CuframesError):
    """Packets were overwritten before they were read; ``lost`` says how many. Reading goes on at a keyframe."""

    def __init__(self, lost: int) -> None:
        super().__init__(lost)
        self.lost = lost

    def __str__(self) -> str:
        return (
            f"{self.lost} packets were overwritten before they were read; read faster, or let the publisher enlarge "
            "its ring (slots, data_size). The next packet is a keyframe"
        )


class NoPacketRing(CuframesError):
    """The publisher shares no packets."""


class NoCodecParameters(CuframesError):
    """The codec needs extradata and the ring has none yet."""


class OutOfSharedMemory(CuframesError, OSError):
    """The memory for a segment could not be reserved: ``needed`` and ``free`` bytes, None where that is not known."""

    def __init__(self, message: str, needed: int | None = None, free: int | None = None) -> None:
        OSError.__init__(self, errno.ENOSPC, message)
        self.needed = needed
        self.free = free

    def __reduce__(self) -> tuple[type[Self], tuple[str, int | None, int | None]]:
        return type(self), (str(self), self.needed, self.free)

    def __str__(self) -> str:
        return str(self.strerror)


class DeviceError(CuframesError):
    """A GPU was asked for and cannot be used; the message says what is missing."""


class Unavailable(CuframesError):
    """The publisher has no connection left. It may have one later."""


class NoPlace(CuframesError):
    """The publisher has as many subscribers as a ring can have."""


def refusal(thing: object, remedy: str) -> TypeError:
    """What copying and pickling raise: a second object would give the same place in a ring back once more."""
    return TypeError(
        f"a {type(thing).__name__} cannot be copied or pickled, since it stands for this process's part in a ring; "
        f"{remedy}"
    )


def printable(text: str) -> str:
    """What somebody else has written, for a terminal or a log: nothing in it moves the cursor or begins a line."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
