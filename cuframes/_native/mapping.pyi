from typing import Self

class Mapping:
    """A shared mapping of a file. The descriptor is not duplicated, and may be closed afterwards.

    Parameters
    ----------
    fd : int
    size : int
        Number of bytes to map. The caller has checked that the file has at least this many bytes.
    writable : bool
    populate : bool
        Touch every page now, so that the first frames do not cause page faults.
    guarded : bool
        Survive the truncation of the file: the mapping then contains zeros, and :func:`check_whole` raises
        SegmentTruncated. Costs nothing if the file is sealed against shrinking. Pass False for a file that is about to
        be sealed.

    Notes
    -----
    The first mapping that needs a guard installs a handler of SIGBUS, once per process; see guard.h. With
    CUFRAMES_SIGBUS_GUARD=0 in the environment no mapping is guarded, and touching a truncated file ends the process
    with SIGBUS.
    """

    size: int
    writable: bool
    def __new__(
        cls, fd: int, size: int, *, writable: bool = False, populate: bool = False, guarded: bool = True
    ) -> Self: ...

class Borrowed:
    """Bytes of a mapping as a buffer. It keeps the mapping alive."""
