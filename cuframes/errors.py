"""The exceptions of cuframes.

All exceptions derive from :class:`CuframesError`, and from the built-in exception that a caller would otherwise expect.
Bad arguments raise plain ``ValueError`` and ``TypeError``. Exceptions that are not in ``__all__`` are internal.
"""

import errno

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
    "SourceError",
    "Timeout",
    "TooManyHeld",
]


class CuframesError(Exception):
    """Base class of every error that is about cuframes rather than about an argument."""


class Timeout(CuframesError, TimeoutError):
    """The wait took longer than the caller's timeout."""


class Disconnected(CuframesError, ConnectionError):
    """The publisher closed or died, and every frame that was still valid has been taken."""


class AlreadyExists(CuframesError, FileExistsError):
    """A living publisher owns this key, or a subscriber of that name is connected."""


class NotFound(CuframesError, FileNotFoundError):
    """No publisher has this key on this host (or its runtime directory is another one)."""


class ProtocolError(CuframesError):
    """The other side, or a shared segment, does not speak this protocol."""


class SegmentTruncated(ProtocolError):
    """Another process truncated shared memory that is in use here.

    The object that raises this error stays unusable; close it. The publisher or writer must be closed and opened again,
    which creates a new segment. Data that was taken and copied before is good. Views that were not copied show zeros,
    and are not ``valid``.
    """

    def __init__(
        self,
        message: str = "the shared memory was truncated while in use: another process made its file shorter (or the "
        "file system is full). Close this object, and restart the publisher or writer",
    ) -> None:
        super().__init__(message)


class SourceError(CuframesError, OSError):
    """A file, camera or stream cannot be opened, or has ended with an error."""


class FrameDropped(CuframesError):
    """Every slot of the ring was held by a subscriber, so this frame was not published."""


class Overwritten(CuframesError):
    """The frame changed while it was held: discard what was read from it.

    This happens only with a publisher that does not honour pins (a plain version 3 program).
    """


class TooManyHeld(CuframesError):
    """This subscriber already holds ``max_held`` frames."""


class PacketOversized(CuframesError):
    """The packet is larger than the ring's limit; nothing was published."""


class PacketOverrun(CuframesError):
    """Packets were overwritten before they were read; ``lost`` is their number. Reading continues at a keyframe."""

    def __init__(self, lost: int) -> None:
        super().__init__(lost)
        self.lost = lost

    def __str__(self) -> str:
        return (
            f"{self.lost} packet{' was' if self.lost == 1 else 's were'} overwritten before being read; read faster, "
            "or enlarge the publisher's ring (slots, data_size). The next packet is a keyframe"
        )


class NoPacketRing(CuframesError):
    """The publisher shares no packets."""


class NoCodecParameters(CuframesError):
    """The codec's extradata were asked for, and the publisher has set none yet."""


class OutOfSharedMemory(CuframesError, OSError):
    """The memory for a segment could not be reserved.

    ``needed`` and ``free`` are bytes; None if not known.
    """

    def __init__(self, message: str, needed: int | None = None, free: int | None = None) -> None:
        OSError.__init__(self, errno.ENOSPC, message)
        self.needed = needed
        self.free = free

    def __reduce__(self) -> tuple[type["OutOfSharedMemory"], tuple[str, int | None, int | None]]:
        return type(self), (str(self), self.needed, self.free)

    def __str__(self) -> str:
        return str(self.strerror)


class DeviceError(CuframesError):
    """A GPU was requested and cannot be used; the message says why."""


class Unavailable(CuframesError):
    """The publisher has no free connection at present. A later attempt may succeed."""


class NoPlace(CuframesError):
    """The publisher has the maximum number of subscribers."""


def refusal(thing: object, remedy: str) -> TypeError:
    """The error for copying and pickling: a second object would release the same place in a ring a second time."""
    return TypeError(
        f"a {type(thing).__name__} cannot be copied or pickled, since it holds a place in a ring for this process; "
        f"{remedy}"
    )


def printable(text: str) -> str:
    """Text from outside, made safe for a terminal or a log: nothing in it moves the cursor or begins a line."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
