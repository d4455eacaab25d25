"""Frame pools: the memory of a ring's slots.

A publisher's pool offers

``kind``
    the public name of its memory: ``"host"``, ``"cuda"``, ``"cuda-ipc"``, ``"cuda-external"``,
``features``
    the bits it adds to the segment's ``ext_flags``,
``memory``
    the :class:`~cuframes._native.slot_table.SlotTable`: where each frame is,
``exports``
    handles that are stored in the control segment for subscribers to open, or None,
``descriptors()``
    descriptors that are sent over the socket for subscribers to open,
``share_in_process(epoch)``
    lets subscribers of the same process use the pool directly,
``close()``
    closes the publisher's descriptors; the subscribers' mappings stay.

One conformance test class (``tests/test_memory.py``) runs over every kind. The device kinds are imported only when they
are requested.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from cuframes._native.slot_table import SlotTable
from cuframes.errors import DeviceError
from cuframes.memory.host import HostPool

__all__ = ["Pool", "create_external", "create_pool", "open_device", "open_host"]

log = logging.getLogger("cuframes")


class Pool(Protocol):
    """The interface described above."""

    kind: str
    features: int
    memory: SlotTable

    @property
    def exports(self) -> tuple[Any, ...] | None: ...
    def descriptors(self) -> list[int]: ...
    def share_in_process(self, epoch: int) -> None: ...
    def close(self) -> None: ...


def create_pool(memory: str, device: int | None, key: str, frame_bytes: int, ring_size: int) -> Pool:
    """Make the pool for a publisher's ``memory=`` and ``device=``.

    Raises
    ------
    DeviceError
        Device memory was requested and is not available.
    OutOfSharedMemory
    """
    if memory not in ("auto", "host", "cuda", "cuda-ipc"):
        raise ValueError(f"memory must be 'auto', 'host', 'cuda' or 'cuda-ipc', not {memory!r}")
    if memory == "host" and device is not None:
        raise ValueError("device= is only for device memory; leave it out for host memory")
    if memory == "auto":
        memory = "cuda" if device is not None or _has_gpu() else "host"
    if memory == "host":
        return HostPool.create(key, frame_bytes, ring_size)
    from cuframes.memory import cuda, driver

    gpu = driver.gpu(device)
    if memory == "cuda":
        try:
            return cuda.CudaPool.create(gpu, frame_bytes, ring_size)
        except DeviceError as problem:
            log.warning("%s: memory='cuda' falls back to 'cuda-ipc': %s", key, problem)
    return cuda.CudaIpcPool.create(gpu, frame_bytes, ring_size)


def create_external(buffers: Sequence[Any], device: int | None, frame_bytes: int) -> Pool:
    """The pool of the caller's own device buffers."""
    from cuframes.memory import cuda, driver

    return cuda.ExternalPool.create(buffers, frame_bytes, driver.gpu(device))


def open_host(descriptor: int, frame_bytes: int, ring_size: int) -> SlotTable:
    """Map a publisher's host pool, read-only."""
    return HostPool.open(descriptor, frame_bytes, ring_size).memory


def open_device(
    uuid: bytes,
    device: int | None,
    epoch: int,
    frame_bytes: int,
    handles: list[tuple[bytes, int, bytes]],
    descriptor: int | None,
) -> SlotTable:
    """Map a publisher's device pool, on the GPU that it is on.

    Raises
    ------
    DeviceError
        This process does not see that GPU, or requested another GPU.
    """
    from cuframes.memory import cuda, driver

    if not any(uuid):  # a plain version 3 publisher does not say
        gpu = driver.gpu(device)
    else:
        gpu = driver.find_gpu(uuid)
        if device is not None and device != gpu.ordinal:
            wanted = driver.gpu(device)
            raise DeviceError(
                f"the frames are on {gpu.uuid_text} (cuda:{gpu.ordinal}), device={device} is {wanted.uuid_text}; leave "
                "device= out, and copy between GPUs yourself"
            )
    return cuda.open_pool(gpu, epoch, frame_bytes, handles, descriptor)


def _has_gpu() -> bool:
    from cuframes.memory.driver import has_gpu

    return has_gpu()
