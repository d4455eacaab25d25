"""Device memory: the pools of ``memory="cuda"``, ``"cuda-ipc"`` and :meth:`Publisher.external`, and opening them.

``cuda``
    One virtual-memory allocation, passed as a descriptor. Subscribers map it read-only. Its physical memory lives until
    the last mapping is gone, even if the publisher is killed.
``cuda-ipc``
    Plain protocol version 3: an allocation and a legacy IPC handle per slot. Subscribers' mappings are writable.
``external``
    The caller's own buffers, shared through legacy IPC handles of their allocations.

In each kind, every slot has an interprocess event, which is recorded when a frame is published in the slot.
"""

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Self

from cuframes._native.control import VMM_MEMORY
from cuframes._native.cuda import Device
from cuframes._native.slot_table import SlotTable
from cuframes.errors import DeviceError, ProtocolError
from cuframes.memory.driver import call, current, gpu, handle_bytes, handle_of
from cuframes.memory.host import frame_stride

__all__ = ["CudaIpcPool", "CudaPool", "ExternalPool", "buffer_pointer", "open_pool"]

IPC_GRANULE = 2 << 20  # the driver shares whole blocks of this size: no neighbour's data in them

# A process cannot open its own IPC handles; a subscriber in the publisher's process finds the pool here, by epoch.
_own: "weakref.WeakValueDictionary[int, DevicePool]" = weakref.WeakValueDictionary()


class Resources:
    """Device memory and events, with the calls that free them. It owns the memory of :class:`SlotTable` objects, and is
    freed with the last of them.

    It is separate from the pool, so that no reference cycle keeps memory after a close. Driver objects are created in a
    :meth:`building` block, so that a failure leaves nothing behind.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.buffers: list[Any] = []  # the caller's, with Publisher.external
        self._free: list[tuple[Any, ...]] = []
        self._staging: tuple[int, int] | None = None
        self._staging_size = (0, 0)

    def add_finalizer(self, function: Any, *arguments: Any) -> None:
        """Add a call to be made by :meth:`free`. The calls are made in reverse order."""
        self._free.append((function, *arguments))

    def reserve_staging(self, frame_bytes: int, ring_size: int) -> None:
        """Set how much memory :meth:`staging` provides."""
        self._staging_size = frame_stride(frame_bytes), ring_size

    def staging(self) -> tuple[int, int]:
        """(address, bytes per slot) of pinned host memory for uploads; reserved at the first call."""
        if self._staging is None:
            stride, ring_size = self._staging_size
            with current(self.device) as driver:
                address = call(driver.cuMemHostAlloc, stride * ring_size, 0, doing="reserving pinned host memory")
            self.add_finalizer(driver.cuMemFreeHost, address)
            self._staging = int(address), stride
        return self._staging

    @contextlib.contextmanager
    def building(self) -> Iterator[Any]:
        """A block of set-up calls in the device's context. If it raises, everything created so far is freed at once.

        It would otherwise live as long as the exception, whose traceback refers to it.
        """
        try:
            with current(self.device) as driver:
                yield driver
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Free everything, the latest first. Never fails; errors of the driver are ignored."""
        # At the interpreter's exit the driver may have gone, and with it everything; in a forked child it is not ours.
        with contextlib.suppress(Exception), current(self.device):
            while self._free:
                function, *arguments = self._free.pop()
                with contextlib.suppress(Exception):
                    function(*arguments)

    def __del__(self) -> None:
        self.free()


class DevicePool:
    """Base of the device pools: an interprocess event for each slot, and one for the ring.

    The publisher calls ``close``. Memory and events are freed with the last reference to the slots, since a subscriber
    in the same process may still use them.
    """

    kind = ""
    features = 0
    memory: SlotTable

    def __init__(self, device: Device, frame_bytes: int, ring_size: int) -> None:
        self.resources = Resources(device)
        self.resources.reserve_staging(frame_bytes, ring_size)
        self.frame_bytes = frame_bytes
        self.handles: list[bytes] | None = None
        self.offsets = [0] * ring_size
        self.pointers: list[int] | None = None
        with self.resources.building() as driver:
            flags = driver.CUevent_flags.CU_EVENT_INTERPROCESS | driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
            events = []
            for _ in range(ring_size + 1):
                events.append(call(driver.cuEventCreate, flags, doing="creating an interprocess event"))
                self.resources.add_finalizer(driver.cuEventDestroy, events[-1])
            self.event_handles = [handle_bytes(call(driver.cuIpcGetEventHandle, event)) for event in events]
        self.events = [int(event) for event in events]

    def place(self, addresses: list[int]) -> None:
        """Set the addresses of the frames. Must be called in a :meth:`Resources.building` block."""
        device = self.resources.device
        self.memory = SlotTable(
            addresses,
            self.resources,
            device=device,
            events=self.events[:-1],
            ring_event=self.events[-1],
            staging=self.resources.staging,
        )

    @property
    def exports(self) -> tuple[Any, ...]:
        """The handles for the control segment."""
        return (self.handles, self.offsets, self.pointers, self.event_handles[:-1], self.event_handles[-1])

    def share_in_process(self, epoch: int) -> None:
        """Let subscribers of this process use the pool directly."""
        _own[epoch] = self

    def descriptors(self) -> list[int]:
        """Descriptors for a subscriber. The pool keeps owning them."""
        return []

    def close(self) -> None:
        """Close the descriptors. Mappings of subscribers stay."""


class CudaIpcPool(DevicePool):
    """An allocation per slot, and its legacy IPC handle."""

    kind = "cuda-ipc"

    @classmethod
    def create(cls, device: Device, frame_bytes: int, ring_size: int) -> Self:
        """Allocate.

        Raises
        ------
        DeviceError
        """
        pool = cls(device, frame_bytes, ring_size)
        size = -(-frame_bytes // IPC_GRANULE) * IPC_GRANULE
        addresses = []
        pool.handles = []
        with pool.resources.building() as driver:
            for _ in range(ring_size):
                address = call(driver.cuMemAlloc, size, doing=f"allocating {size} bytes of device memory")
                pool.resources.add_finalizer(driver.cuMemFree, address)
                handle = call(driver.cuIpcGetMemHandle, address, doing="exporting device memory by legacy CUDA IPC")
                pool.handles.append(handle_bytes(handle))
                addresses.append(int(address))
            pool.place(addresses)
        return pool


class CudaPool(DevicePool):
    """One virtual-memory allocation, exported as a descriptor."""

    kind = "cuda"
    features = VMM_MEMORY
    _fd = -1  # also of a pool whose __init__ failed

    @classmethod
    def create(cls, device: Device, frame_bytes: int, ring_size: int) -> Self:
        """Allocate.

        Raises
        ------
        DeviceError
            Also if the device cannot export virtual memory; ``cuda-ipc`` may work then.
        """
        pool = cls(device, frame_bytes, ring_size)
        stride = frame_stride(frame_bytes)
        try:
            with pool.resources.building() as driver:
                kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                properties = _properties(driver, device, kind)
                size = _mapped_size(driver, properties, stride * ring_size)
                doing = f"allocating {size} bytes of device memory"
                handle = call(driver.cuMemCreate, size, properties, 0, doing=doing)
                pool.resources.add_finalizer(driver.cuMemRelease, handle)
                doing = "exporting device memory by descriptor"
                pool._fd = int(call(driver.cuMemExportToShareableHandle, handle, kind, 0, doing=doing))
                base = _map(driver, pool.resources, handle, size, writable=True)
                pool.place([base + k * stride for k in range(ring_size)])
        except BaseException:
            pool.close()
            raise
        return pool

    def descriptors(self) -> list[int]:
        return [self._fd]

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class ExternalPool(DevicePool):
    """The caller's buffers, one per slot. The caller owns them; the pool keeps references to them."""

    kind = "cuda-external"

    @classmethod
    def create(cls, buffers: Sequence[Any], frame_bytes: int, device: Device | None) -> Self:
        """Look up the allocation of each buffer, and export it.

        Raises
        ------
        DeviceError
            A buffer cannot be exported: it is managed, stream-ordered, or not GPU memory.
        ValueError
            A buffer is too small.
        """
        pointers = [buffer_pointer(buffer) for buffer in buffers]
        device = device or gpu()
        pool = cls(device, frame_bytes, len(buffers))
        pool.resources.buffers = list(buffers)
        pool.handles, pool.pointers = [], pointers
        with pool.resources.building() as driver:
            for index, pointer in enumerate(pointers):
                _check_exportable(driver, device, index, pointer)
                base, size = call(driver.cuMemGetAddressRange, pointer)
                offset = pointer - int(base)
                if offset + frame_bytes > size:
                    raise ValueError(
                        f"buffer {index} has {size - offset} bytes up to the end of its allocation, a frame needs "
                        f"{frame_bytes}"
                    )
                handle = call(driver.cuIpcGetMemHandle, base, doing=f"exporting buffer {index} by legacy CUDA IPC")
                pool.handles.append(handle_bytes(handle))
                pool.offsets[index] = offset
            pool.place(pointers)
        return pool


def open_pool(
    device: Device, epoch: int, frame_bytes: int, handles: list[tuple[bytes, int, bytes]], descriptor: int | None
) -> SlotTable:
    """Map a publisher's frames and open their events. They are unmapped with the last reference.

    Parameters
    ----------
    handles : list of (memory handle, offset, event handle)
        One for each slot, read from the control segment and not trusted.
    descriptor : int or None
        Descriptor of the virtual-memory allocation; None for legacy handles. The caller keeps it.

    Raises
    ------
    DeviceError
        The driver refuses a handle or the descriptor.
    ProtocolError
        A slot does not lie in the memory of its handle.
    """
    own = _own.get(epoch) if epoch else None
    # The epoch is shared bytes too: another ring of this process may have it, but never a smaller one.
    if own is not None and own.frame_bytes >= frame_bytes and own.memory.count == len(handles):
        return own.memory
    resources = Resources(device)
    with resources.building() as driver:
        if descriptor is None:
            addresses = _open_legacy(driver, resources, handles, frame_bytes)
        else:
            addresses = _open_descriptor(driver, resources, descriptor, frame_bytes, len(handles))
        events = []
        for _, _, raw in handles:
            handle = handle_of(driver.CUipcEventHandle, raw)
            event = call(driver.cuIpcOpenEventHandle, handle, doing="opening a frame's event")
            resources.add_finalizer(driver.cuEventDestroy, event)
            events.append(int(event))
        return SlotTable(addresses, resources, device=device, events=events)


def _open_legacy(
    driver: Any, resources: Resources, handles: list[tuple[bytes, int, bytes]], frame_bytes: int
) -> list[int]:
    flag = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
    bases: dict[bytes, tuple[int, int]] = {}
    addresses = []
    for slot, (raw, offset, _) in enumerate(handles):
        if not any(raw):
            raise ProtocolError("the publisher shares no memory handle for a slot")
        if raw not in bases:
            handle = handle_of(driver.CUipcMemHandle, raw)
            doing = "opening the publisher's memory (its process must be another one, with another pid)"
            base = call(driver.cuIpcOpenMemHandle, handle, flag, doing=doing)
            resources.add_finalizer(driver.cuIpcCloseMemHandle, base)
            start, size = call(driver.cuMemGetAddressRange, base, doing="asking for the size of the publisher's memory")
            bases[raw] = int(start), int(size)
        start, size = bases[raw]
        if offset + frame_bytes > size:
            raise ProtocolError(
                f"slot {slot} begins at {offset} of an allocation of {size} bytes, where a frame of {frame_bytes} does "
                "not fit"
            )
        addresses.append(start + offset)
    return addresses


def _open_descriptor(driver: Any, resources: Resources, descriptor: int, frame_bytes: int, count: int) -> list[int]:
    stride = frame_stride(frame_bytes)
    kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    size = _mapped_size(driver, _properties(driver, resources.device, kind), stride * count)
    handle = call(driver.cuMemImportFromShareableHandle, descriptor, kind, doing="importing the publisher's memory")
    resources.add_finalizer(driver.cuMemRelease, handle)
    base = _map(driver, resources, handle, size, writable=False)
    return [base + k * stride for k in range(count)]


def buffer_pointer(buffer: Any) -> int:
    """Device address of a buffer: an int, or an array with the CUDA array interface or DLPack (by CuPy or PyTorch)."""
    if isinstance(buffer, Integral) and not isinstance(buffer, bool):
        return int(buffer)
    interface = getattr(buffer, "__cuda_array_interface__", None)
    if interface is not None:
        return int(interface["data"][0])
    if hasattr(buffer, "__dlpack__"):
        from cuframes._native.device_arrays import dlpack_pointer

        return int(dlpack_pointer(buffer))
    raise TypeError(f"a buffer must be a device array or a device address, not {type(buffer).__name__}")


def _properties(driver: Any, device: Device, kind: Any) -> Any:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.requestedHandleTypes = kind
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device.ordinal
    return properties


def _mapped_size(driver: Any, properties: Any, size: int) -> int:
    minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    granule = int(call(driver.cuMemGetAllocationGranularity, properties, minimum))
    return -(-size // granule) * granule


def _map(driver: Any, resources: Resources, handle: Any, size: int, *, writable: bool) -> int:
    address = call(driver.cuMemAddressReserve, size, 0, 0, 0, doing="reserving device addresses")
    resources.add_finalizer(driver.cuMemAddressFree, address, size)
    call(driver.cuMemMap, address, size, 0, handle, 0, doing="mapping device memory")
    resources.add_finalizer(driver.cuMemUnmap, address, size)
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = resources.device.ordinal
    flags = driver.CUmemAccess_flags
    access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
    call(driver.cuMemSetAccess, address, size, [access], 1, doing="setting access to device memory")
    return int(address)


def _check_exportable(driver: Any, device: Device, index: int, pointer: int) -> None:
    attribute = driver.CUpointer_attribute

    def ask(what: Any) -> Any:
        result, value = driver.cuPointerGetAttribute(what, pointer)
        return value if result == driver.CUresult.CUDA_SUCCESS else None

    kind = ask(attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    if kind is None or int(kind) != int(driver.CUmemorytype.CU_MEMORYTYPE_DEVICE):
        raise DeviceError(f"buffer {index} at {pointer:#x} is not GPU memory; allocate it with cuMemAlloc")
    if ask(attribute.CU_POINTER_ATTRIBUTE_IS_MANAGED):
        raise DeviceError(f"buffer {index} is managed memory, which cannot be shared; allocate it with cuMemAlloc")
    if int(ask(attribute.CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE) or 0):
        raise DeviceError(
            f"buffer {index} comes from a stream-ordered pool (cuMemAllocAsync), which legacy IPC cannot share; "
            "allocate it with cuMemAlloc"
        )
    if ask(attribute.CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE) in (False, 0):
        raise DeviceError(
            f"buffer {index} is virtual-memory mapped, which legacy IPC cannot share (in PyTorch: "
            "expandable_segments:False)"
        )
    ordinal = ask(attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
    if ordinal is not None and int(ordinal) != device.ordinal:
        raise DeviceError(f"buffer {index} is on cuda:{int(ordinal)}, but the publisher is on cuda:{device.ordinal}")
