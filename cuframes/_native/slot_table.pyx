"""The addresses of a ring's slots in this process."""

from libc.stdint cimport uintptr_t

from cuframes._native.cuda cimport Device
from cuframes._native.mapping cimport Mapping
from cuframes._shm cimport CF_MAX_RING, CF_MIN_RING

from cuframes.errors import ProtocolError


cdef class SlotTable:
    """The slots of a ring: one address per slot, and on a GPU one event per slot.

    Parameters
    ----------
    addresses : list of int
    owner
        An object that keeps the memory (and the events) alive.
    device : Device or None
        None for host memory.
    events : list of int
        The driver's event of each slot, for device memory.
    ring_event : int
        The event that is recorded for every frame, in any slot. Only for a publisher.
    staging : callable
        Called once, returns (address, bytes per slot) of pinned host memory for uploads. Only for a publisher.
    """

    def __cinit__(self, list addresses not None, owner, *, Device device=None, list events=None,
                  uintptr_t ring_event=0, staging=None):
        cdef int k
        self.count = len(addresses)
        if not <int>CF_MIN_RING <= self.count <= <int>CF_MAX_RING:
            raise ValueError(f"a ring has {CF_MIN_RING} to {CF_MAX_RING} slots, not {self.count}")
        self.owner = owner
        self.staging = staging
        self.device = device
        self.ring_event = <void*>ring_event
        for k in range(self.count):
            self.address[k] = <char*><uintptr_t>addresses[k]
            self.event[k] = <void*><uintptr_t>events[k] if events else NULL

    @property
    def addresses(self):
        """The address of each slot."""
        return [<uintptr_t>self.address[k] for k in range(self.count)]

    @staticmethod
    def of_mapping(Mapping mapping not None, Py_ssize_t stride, int count):
        """A table of slots that follow each other in one mapping."""
        if mapping.size < stride * count:
            raise ProtocolError(f"{count} frames of {stride} bytes do not fit into a pool of {mapping.size} bytes")
        return SlotTable([<uintptr_t>mapping.address + k * stride for k in range(count)], mapping)
