from typing import Self

class Mapping:
    """Bytes of a descriptor, mapped shared. The descriptor may be closed afterwards; nothing is duplicated.

    Parameters
    ----------
    fd : int
    size : int
        Bytes to map; the caller has checked that the file is that long.
    writable : bool
    populate : bool
        Touch every page now, so that the first frames do not pay for it.
    guarded : bool
        Survive that somebody shrinks the file: what is mapped is zeros from then on, and :func:`check_whole` raises
        SegmentTruncated. Costs nothing where the file is sealed against it. False for a file that is about to be.

    Notes
    -----
    The first mapping that has to be guarded installs a handler of SIGBUS, once per process; see guard.h. With
    CUFRAMES_SIGBUS_GUARD=0 in the environment nothing is guarded, and such a file ends the process with SIGBUS.
    """

    size: int
    writable: bool
    def __new__(
        cls, fd: int, size: int, *, writable: bool = False, populate: bool = False, guarded: bool = True
    ) -> Self: ...

class Borrowed:
    """Bytes of a mapping, as a buffer that keeps them mapped."""
