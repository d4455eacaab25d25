def own(fd: int) -> int:
    """Have this descriptor closed in every forked child, also after a fork() in C code. Returns the descriptor."""

def disown(fd: int) -> bool:
    """Undo :func:`own`, before the descriptor is closed. False: this is a forked child, where it is closed already."""

def begin_exit() -> None:
    """The interpreter is about to end. The calling thread closes everything that is still open."""

def pause_at_exit() -> int:
    """Wait as described above, for code that finds an object closed without a gate. Returns at once if the interpreter
    is not ending.
    """

def is_exiting() -> bool:
    """Whether everything is closed, by another thread than the caller's."""

def is_forked() -> bool:
    """Whether this process was forked from one that had loaded this library."""

class RingEnd:
    """One end of a ring. Every call that uses it runs between :meth:`enter` and :meth:`leave`.

    A subclass sets ``gate``, the futex ``word`` on which calls inside sleep, the mark ``cut`` of its mapping, and
    ``what`` (its name in error messages). Its :meth:`finish` releases what belongs to the end.
    """
    @property
    def closed(self) -> bool:
        """Whether close() has begun."""
    def close(self) -> bool:
        """Close this end, wake the calls inside, and wait until they have left; see gate.h.

        Returns
        -------
        bool
            True if this call closed it, False if an earlier one did.
        """

class ReaderEnd(RingEnd):
    """A reader's end of a ring of packets or of a slot: it only maps the ring's file.

    A subclass also sets ``fd`` (the file) and ``polled`` (the address of the eventfd in its C structure).
    """
    def set_event(self, fd: int) -> None:
        """Set the eventfd that :meth:`watch` signals. The reader drains it when nothing is left, and closes it."""
    def watch(self, fd: int) -> None:
        """Signal an eventfd whenever there is something to take, until the ring ends or this end is closed. Runs in a
        thread of its own.
        """
