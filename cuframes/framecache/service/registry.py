"""The slots that the service knows: what is in the directory, kept attached, and written down in registry.json."""

import json
import logging
import os
import threading
from typing import Any

from cuframes._cache import CacheRing
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory
from cuframes.framecache.parameters import REGISTRY, SlotParameters
from cuframes.framecache.slots import (
    SlotInfo,
    attach,
    compare,
    directory,
    ensure_semaphore,
    find_slot,
    info,
    make_slot,
    open_slot,
    remove_slot,
    slot_names,
)
from cuframes.names import group_id
from cuframes.segment import free_bytes

__all__ = ["Registry"]

log = logging.getLogger("cuframes.framecache")


class Registry:
    """Slots, created and removed by any thread.

    Parameters
    ----------
    max_bytes : int, optional
        Slots together take no more than this. Default: what the file system has.
    group : str or int, optional
        Members of this group may read and write new slots.
    """

    def __init__(self, *, max_bytes: int | None = None, group: str | int | None = None) -> None:
        self._max_bytes = max_bytes
        self._gid = group_id(group)
        self._attached: dict[str, CacheRing] = {}
        self._refused: dict[str, str] = {}
        self._written: bytes | None = None
        self._looking = threading.Lock()
        self._creating = threading.Lock()  # taken before the other one
        with directory(create=True):
            pass
        self.refresh()

    def refresh(self) -> None:
        """Look at the directory: adopt what is new, forget what is gone, write the list if it changed."""
        with self._looking:
            names = slot_names()
            for name in [name for name in self._attached if name not in names or not self._attached[name].check()[0]]:
                del self._attached[name]
            for name in names:
                if name not in self._attached:
                    self._adopt(name)
            self._refused = {name: reason for name, reason in self._refused.items() if name in names}
            self._write()

    def _adopt(self, name: str) -> None:
        try:
            self._attached[name] = attach(name)
        except NotFound:  # just removed
            return
        except (CuframesError, OSError) as problem:
            if self._refused.get(name) != str(problem):
                self._refused[name] = str(problem)
                log.warning("not a slot of ours", extra={"slot_id": name, "reason": str(problem)})
            return
        log.info("slot adopted", extra={"slot_id": name})
        try:
            fd = open_slot(name)
            try:
                ensure_semaphore(name, fd)
            finally:
                os.close(fd)
        except (CuframesError, OSError) as problem:
            log.warning("slot without semaphore", extra={"slot_id": name, "reason": str(problem)})

    def _write(self) -> None:
        slots = [info(name, self._attached[name]).parameters._asdict() for name in sorted(self._attached)]
        content = json.dumps({"version": 1, "slots": slots}, indent=2).encode() + b"\n"
        if content == self._written:
            return
        temporary = f".{REGISTRY}.new"
        with directory(create=True) as folder:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644, dir_fd=folder)
            with open(fd, "wb") as file:
                file.write(content)
            os.replace(temporary, REGISTRY, src_dir_fd=folder, dst_dir_fd=folder)
        self._written = content

    def slots(self) -> list[SlotInfo]:
        """All slots, by slot_id."""
        self.refresh()
        with self._looking:
            return [info(name, self._attached[name]) for name in sorted(self._attached)]

    def slot(self, slot_id: str) -> SlotInfo:
        """One slot. Raises NotFound."""
        found = next((slot for slot in self.slots() if slot.slot_id == slot_id), None)
        if found is None:
            raise NotFound(f"there is no slot {slot_id!r}")
        return found

    def create(self, wanted: SlotParameters) -> tuple[SlotInfo, bool]:
        """A slot of these parameters, and whether it is new.

        Raises
        ------
        AlreadyExists
            There is one with a living writer, or with other parameters.
        OutOfSharedMemory, PermissionError
        """
        with self._creating:
            while True:
                try:
                    there = self.slot(wanted.slot_id)
                except NotFound:
                    self._check_room(wanted)
                    if make_slot(wanted, self._gid):
                        log.info("slot created", extra={"slot_id": wanted.slot_id, "bytes": wanted.size})
                        with self._looking:
                            self._attached[wanted.slot_id] = attach(wanted.slot_id)
                            self._write()
                        return find_slot(wanted.slot_id), True
                    continue  # a writer was faster
                compare(there, wanted._asdict())
                if there.writer_pid is not None:
                    raise AlreadyExists(
                        f"the slot {wanted.slot_id!r} has a writer (pid {there.writer_pid}); stop it first, or use "
                        "another slot_id"
                    )
                return there, False

    def _check_room(self, wanted: SlotParameters) -> None:
        _, free = self.usage()
        if wanted.size > free:
            raise OutOfSharedMemory(
                f"the slot {wanted.slot_id!r} needs {wanted.size} bytes and {free} are free; remove slots, use a "
                "smaller ring_depth, or give /dev/shm (and the service, --max-gb) more",
                wanted.size,
                free,
            )

    def remove(self, slot_id: str) -> None:
        """Remove a slot and its semaphore. Raises NotFound."""
        with self._creating:
            remove_slot(slot_id)
            log.info("slot removed", extra={"slot_id": slot_id})
            self.refresh()

    def usage(self) -> tuple[int, int]:
        """Bytes that slots take, and bytes that new ones could."""
        used = sum(slot.size for slot in self.slots())
        with directory() as folder:
            free = free_bytes(folder)
        left = [] if self._max_bytes is None else [max(0, self._max_bytes - used)]
        return used, min(left + ([] if free is None else [free]), default=2**63 - 1)

    def summary(self) -> dict[str, Any]:
        """``slots``, ``bytes_used`` and ``bytes_free``."""
        used, free = self.usage()
        with self._looking:
            return {"slots": len(self._attached), "bytes_used": used, "bytes_free": free}
