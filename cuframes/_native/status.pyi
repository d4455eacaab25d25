def own(fd: int) -> int:
    """Close this descriptor in every forked child, also of a fork() in C. Returns it."""

def disown(fd: int) -> bool:
    """The opposite, before it is closed. False: there is nothing to close, since this is a child."""

def begin_exit() -> None:
    """The interpreter ends; this thread closes what is still open."""

def pause_at_exit() -> int:
    """See above; for those who find something closed without a gate. Returns at once, but at exit."""

def is_forked() -> bool:
    """Whether this process is the child of one that had this library loaded."""

def monotonic_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the clock of ``published_ns``."""
