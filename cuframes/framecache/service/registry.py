"""The slots that the service knows: those in the directory, also listed in registry.json."""

import contextlib
import json
import logging
import os
import threading
from typing import Any

from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory
from cuframes.framecache.parameters import REGISTRY, SlotParameters
from cuframes.framecache.slots import (
    NO_DESCRIPTORS,
    SlotInfo,
    compare,
    directory,
    ensure_semaphore,
    find_slot,
    make_slot,
    open_slot,
    remove_slot,
    slot_names,
    slots_dir,
)
from cuframes.host.files import lock_attempts
from cuframes.host.names import group_id
from cuframes.host.segment import free_bytes

__all__ = ["Registry"]

log = logging.getLogger("cuframes.framecache")


class Registry:
    """Lists, creates and removes slots, from any thread.

    Every call looks at the directory again. No slot stays open between calls, so the slots and other files in the
    directory cost no descriptors, however many there are.

    Parameters
    ----------
    max_bytes : int, optional
        Limit for all slots together. Default: the file system's size is the only limit.
    group : str or int, optional
        Members of this group may read and write new slots.
    """

    def __init__(self, *, max_bytes: int | None = None, group: str | int | None = None) -> None:
        self._max_bytes = max_bytes
        self._gid = group_id(group)
        self._adopted: set[str] = set()
        self._refused: dict[str, str] = {}
        self._written: bytes | None = None
        self._unwritten: str | None = None
        self._changed_ns = 0  # when the directory had last changed
        self._looking = threading.Lock()
        self._creating = threading.Lock()  # taken before the other one
        with directory(create=True):
            pass
        self.slots()

    def slots(self) -> list[SlotInfo]:
        """All slots, sorted by slot_id. Adopts new slots, forgets removed ones, and writes the list if it changed."""
        with self._looking:
            names = slot_names()
            self._adopted.intersection_update(names)
            self._refused = {name: reason for name, reason in self._refused.items() if name in names}
            found = [slot for slot in map(self._look, names) if slot is not None]
            self._write(found)
            return found

    def refresh(self) -> None:
        """Have registry.json list the slots that there are now, if others have made or removed some."""
        with contextlib.suppress(OSError):  # the next request tells
            changed_ns = os.stat(slots_dir()).st_mtime_ns
            if changed_ns != self._changed_ns:
                self.slots()
                self._changed_ns = changed_ns

    def _look(self, name: str) -> SlotInfo | None:
        try:
            slot = find_slot(name)
        except NotFound:  # just removed
            self._adopted.discard(name)
            return None
        except (CuframesError, OSError) as problem:
            if isinstance(problem, OSError) and problem.errno in NO_DESCRIPTORS:
                raise  # a problem of this process, not of the file
            self._adopted.discard(name)
            if name not in self._refused:  # logged once, however often the file changes
                log.warning("not a slot of ours", extra={"slot_id": name, "reason": str(problem)})
            self._refused[name] = str(problem)
            return None
        self._refused.pop(name, None)
        if name not in self._adopted:
            self._adopted.add(name)
            self._adopt(name, slot.size)
        return slot

    def _adopt(self, name: str, size: int) -> None:
        log.info("slot adopted", extra={"slot_id": name})
        try:
            with open_slot(name) as file:
                fd = file.fileno()
                taken = os.fstat(fd).st_blocks * 512
                if taken < size:  # a C program made it with ftruncate alone: the missing memory is not reserved
                    log.warning("slot is sparse", extra={"slot_id": name, "bytes": size, "bytes_in_memory": taken})
                ensure_semaphore(name, fd)
        except (CuframesError, OSError) as problem:
            log.warning("slot without semaphore", extra={"slot_id": name, "reason": str(problem)})

    def _write(self, found: list[SlotInfo]) -> None:
        """Write registry.json. The service goes on without the file: its contents are also available over HTTP."""
        slots = [slot.parameters._asdict() for slot in found]
        content = json.dumps({"version": 1, "slots": slots}, indent=2).encode() + b"\n"
        if content == self._written:
            return
        try:
            _replace(content)
        except OSError as problem:
            reason = f"{slots_dir() / REGISTRY} cannot be written: {problem.strerror or problem}"
            if self._unwritten is None:  # logged once, and not with every request
                log.warning("list not written", extra={"reason": reason})
            self._written, self._unwritten = None, reason
            return
        if self._unwritten is not None:
            log.info("list written again")
        self._written, self._unwritten = content, None

    def slot(self, slot_id: str) -> SlotInfo:
        """One slot. Raises NotFound."""
        found = next((slot for slot in self.slots() if slot.slot_id == slot_id), None)
        if found is None:
            raise NotFound(f"there is no slot {slot_id!r}")
        return found

    def create(self, wanted: SlotParameters) -> tuple[SlotInfo, bool]:
        """Return a slot with these parameters, and whether it is new.

        Raises
        ------
        AlreadyExists
            The slot has a living writer or other parameters, or the name belongs to something that is not a slot.
        OutOfSharedMemory, PermissionError
        """
        # A killed writer is often restarted at once, while a process that inherited its lock may still hold it.
        for _ in lock_attempts():
            if not _has_writer(wanted.slot_id):
                break
        with self._creating:
            for _ in range(3):  # a writer may create the slot first, and another process remove it
                try:
                    there = self.slot(wanted.slot_id)
                except NotFound:
                    self._check_room(wanted)
                    made = make_slot(wanted, self._gid)
                    if made is None:
                        continue
                    made.close()
                    log.info("slot created", extra={"slot_id": wanted.slot_id, "bytes": wanted.size})
                    with self._looking:
                        self._adopted.add(wanted.slot_id)
                    self.slots()  # which writes the list
                    return find_slot(wanted.slot_id), True
                compare(there, wanted._asdict())
                if there.writer_pid is not None:
                    raise AlreadyExists(
                        f"the slot {wanted.slot_id!r} has a writer (pid {there.writer_pid or 'unknown'}); stop it "
                        "first, or use another slot_id"
                    )
                return there, False
            reason = self._refused.get(wanted.slot_id, "other processes keep creating and removing it")
            raise AlreadyExists(f"the name {wanted.slot_id!r} is taken by something else than a slot: {reason}")

    def _check_room(self, wanted: SlotParameters) -> None:
        with directory(create=True):  # somebody may have removed it, or put something else there
            pass
        _, free = self._usage(self.slots())
        if wanted.size > free:
            raise OutOfSharedMemory(
                f"the slot {wanted.slot_id!r} needs {wanted.size} bytes, but {free} are free; remove slots, use a "
                "smaller ring_depth, or raise the limits (the size of /dev/shm, and --max-gb of the service)",
                wanted.size,
                free,
            )

    def remove(self, slot_id: str) -> None:
        """Remove a slot and its semaphore. Raises NotFound."""
        with self._creating:
            remove_slot(slot_id)
            log.info("slot removed", extra={"slot_id": slot_id})
            self.slots()

    def _usage(self, slots: list[SlotInfo]) -> tuple[int, int]:
        """Bytes used by slots, and bytes available to new ones."""
        used = sum(slot.size for slot in slots)
        try:
            with directory(create=True) as folder:
                free = free_bytes(folder)
        except OSError:
            free = 0
        left = [] if self._max_bytes is None else [max(0, self._max_bytes - used)]
        return used, min(left + ([] if free is None else [free]), default=2**63 - 1)

    def summary(self, slots: list[SlotInfo] | None = None) -> dict[str, Any]:
        """``slots``, ``bytes_used`` and ``bytes_free``."""
        slots = self.slots() if slots is None else slots
        used, free = self._usage(slots)
        return {"slots": len(slots), "bytes_used": used, "bytes_free": free}

    def health(self) -> dict[str, Any]:
        """The values of :meth:`summary`, and ``problem``: a problem that does not stop the service, or None."""
        try:
            summary = self.summary()
        except OSError as problem:
            return {"slots": 0, "bytes_used": 0, "bytes_free": 0, "problem": f"the slots cannot be listed: {problem}"}
        return summary | {"problem": self._unwritten}


def _has_writer(slot_id: str) -> bool:
    try:
        return find_slot(slot_id).writer_pid is not None
    except (CuframesError, OSError):
        return False


def _replace(content: bytes) -> None:
    """Replace registry.json atomically."""
    temporary = f".{REGISTRY}.new"
    with directory(create=True) as folder:
        # Never open a file that has this name already: a FIFO would block, a link would lead elsewhere.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o644)  # whatever the umask is
                file.write(content)
            os.replace(temporary, REGISTRY, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
