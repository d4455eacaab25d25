"""Frame pools: the memory that the slots of a ring stand for.

A pool offers

``kind``
    the public name of its memory (``"host"``),
``features``
    the bits it adds to the segment's ``ext_flags``,
``stride``
    bytes from one slot to the next,
``mapping``
    the frames as mapped bytes, writable for the publisher, read-only for a subscriber,
``descriptors()``
    what a subscriber needs to open it, to be sent over the socket,
``close()``
    frees the publisher's side; what subscribers have mapped stays.

One conformance test class (``tests/test_memory.py``) runs over every kind.
"""

from cuframes.errors import DeviceError
from cuframes.memory.host import HostPool

__all__ = ["HostPool", "create_pool", "frame_stride"]

from cuframes.memory.host import frame_stride


def create_pool(memory: str, key: str, frame_bytes: int, ring_size: int) -> HostPool:
    """Make the pool for a publisher's ``memory=`` argument.

    Raises
    ------
    DeviceError
        For device memory, which this version does not have.
    """
    if memory in ("auto", "host"):
        return HostPool.create(key, frame_bytes, ring_size)
    if memory in ("cuda", "cuda-ipc"):
        raise DeviceError(f"memory={memory!r}: this version of cuframes shares host memory only; use memory='host'")
    raise ValueError(f"memory must be 'auto', 'host', 'cuda' or 'cuda-ipc', not {memory!r}")
