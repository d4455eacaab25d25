"""Framecache: raw frames in host memory. One process writes them; any number of processes read, each at its own pace.

A slot is a file in /dev/shm that outlives its writers::

    with cuframes.framecache.SlotWriter("sdi0", 1920, 1080, fps=(60000, 1001)) as writer:
        writer.write(uyvy)

    with cuframes.framecache.SlotReader("sdi0") as reader:
        for frame in reader:
            record(frame.data, frame.pts_us)

Only :class:`Client` needs the service (``cuframes framecache serve``), which creates, lists and removes slots over
HTTP.
"""

from cuframes._native.slot import SlotFrame, WritableSlotFrame
from cuframes.framecache.client import Client
from cuframes.framecache.parameters import SlotParameters
from cuframes.framecache.reader import SlotReader, SlotReaderStats
from cuframes.framecache.slots import SlotInfo, create_slot, find_slot, list_slots, remove_slot
from cuframes.framecache.writer import SlotWriter

__all__ = [
    "Client",
    "SlotFrame",
    "SlotInfo",
    "SlotParameters",
    "SlotReader",
    "SlotReaderStats",
    "SlotWriter",
    "WritableSlotFrame",
    "create_slot",
    "find_slot",
    "list_slots",
    "remove_slot",
]
