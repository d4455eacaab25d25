"""Host memory: one sealed memfd, passed by descriptor, mapped read-only by subscribers."""

import fcntl
import os
from typing import Self

from cuframes._native.control import HOST_MEMORY
from cuframes._native.mapping import Mapping
from cuframes._native.ring_end import Descriptor
from cuframes._native.slot_table import SlotTable
from cuframes.errors import ProtocolError
from cuframes.host.segment import PAGE, create_memfd

__all__ = ["HostPool", "frame_stride"]


def frame_stride(frame_bytes: int) -> int:
    """Bytes from one slot to the next: whole pages."""
    return -(-frame_bytes // PAGE) * PAGE


class HostPool:
    """The pool of a ring in host memory. Slot k begins at ``k * stride``.

    Use :meth:`create` on the publisher's side and :meth:`open` on the subscriber's.
    """

    kind = "host"
    features = HOST_MEMORY

    exports = None

    def __init__(self, file: Descriptor | None, mapping: Mapping, stride: int, ring_size: int) -> None:
        self._file = file
        self.mapping = mapping
        self.stride = stride
        self.memory = SlotTable.of_mapping(mapping, stride, ring_size)

    @classmethod
    def create(cls, key: str, frame_bytes: int, ring_size: int) -> Self:
        """Reserve and touch the memory of every slot.

        Raises
        ------
        OutOfSharedMemory
        """
        stride = frame_stride(frame_bytes)
        file, mapping = create_memfd(f"cuframes-{key}", stride * ring_size)
        try:
            return cls(file, mapping, stride, ring_size)
        except BaseException:
            file.close()
            raise

    @classmethod
    def open(cls, fd: int, frame_bytes: int, ring_size: int) -> Self:
        """Map the pool that a publisher sent, read-only. The caller keeps the descriptor.

        Raises
        ------
        ProtocolError
            The pool is too small, or is not sealed against shrinking.
        """
        stride = frame_stride(frame_bytes)
        size = stride * ring_size
        if os.fstat(fd).st_size < size:
            raise ProtocolError(f"the pool has {os.fstat(fd).st_size} bytes, but {ring_size} frames need {size}")
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = 0
        if not sealed:
            raise ProtocolError("the pool is not sealed against shrinking, so reading it could end this process")
        return cls(None, Mapping(fd, size), stride, ring_size)

    def descriptors(self) -> list[int]:
        """Descriptors for a subscriber. The pool keeps owning them."""
        return [] if self._file is None else [self._file.fileno()]

    def share_in_process(self, epoch: int) -> None:
        """Nothing to do: a subscriber of this process maps the descriptor like any other."""

    def close(self) -> None:
        """Close the descriptor. The memory is freed with its last mapping."""
        if self._file is not None:
            self._file.close()
