"""Share video frames, and the encoded packets they came from, between processes of one machine, in place.

One process publishes. Any number of other processes subscribe and use the same memory::

    with cuframes.Publisher("cam0", 1920, 1080, "nv12") as publisher:
        publisher.publish(array)

    with cuframes.Subscriber("cam0") as subscriber:
        for frame in subscriber:
            luma, chroma = map(numpy.asarray, frame.planes)

Modules are loaded when they are first used. A program that gives up rights (chroot, another user, a sandbox) should
import the names it needs before that: ``from cuframes import Subscriber``.
"""

import importlib
import os.path

from cuframes._version import __version__
from cuframes.errors import (
    AlreadyExists,
    CuframesError,
    DeviceError,
    Disconnected,
    FrameDropped,
    NoCodecParameters,
    NoPacketRing,
    NotFound,
    OutOfSharedMemory,
    Overwritten,
    PacketOverrun,
    PacketOversized,
    ProtocolError,
    SegmentTruncated,
    SourceError,
    Timeout,
    TooManyHeld,
)
from cuframes.picturing import register

TYPE_CHECKING = False  # as in typing, whose import would take longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from cuframes import formats as formats
    from cuframes import framecache as framecache
    from cuframes._native.frame import Frame, WritableFrame
    from cuframes._native.status import monotonic_ns
    from cuframes._native.views import Plane
    from cuframes.color import Color
    from cuframes.media.sources import EncodedPacket, Picture, Source, SourceState, open_source
    from cuframes.packets import Packet, PacketFlags, PacketPublisher, PacketReader, PacketReaderStats
    from cuframes.publisher import Publisher, PublisherStats
    from cuframes.session.listing import (
        PacketRingInfo,
        PublisherInfo,
        SubscriberInfo,
        collect_garbage,
        find_publisher,
        list_packet_rings,
        list_publishers,
    )
    from cuframes.subscriber import Subscriber, SubscriberStats
    from cuframes.waiting import wait_any

__all__ = [
    "AlreadyExists",
    "Color",
    "CuframesError",
    "DeviceError",
    "Disconnected",
    "EncodedPacket",
    "Frame",
    "FrameDropped",
    "NoCodecParameters",
    "NoPacketRing",
    "NotFound",
    "OutOfSharedMemory",
    "Overwritten",
    "Packet",
    "PacketFlags",
    "PacketOverrun",
    "PacketOversized",
    "PacketPublisher",
    "PacketReader",
    "PacketReaderStats",
    "PacketRingInfo",
    "Picture",
    "Plane",
    "ProtocolError",
    "Publisher",
    "PublisherInfo",
    "PublisherStats",
    "SegmentTruncated",
    "Source",
    "SourceError",
    "SourceState",
    "Subscriber",
    "SubscriberInfo",
    "SubscriberStats",
    "Timeout",
    "TooManyHeld",
    "WritableFrame",
    "__version__",
    "collect_garbage",
    "find_publisher",
    "formats",
    "framecache",
    "get_include",
    "list_packet_rings",
    "list_publishers",
    "monotonic_ns",
    "open_source",
    "wait_any",
]


# The module of each name. It is imported when the name is first used: a reader of slots does not need CUDA, and a
# program that only lists publishers starts sooner.
_MODULES = {
    "cuframes._native.frame": ("Frame", "WritableFrame"),
    "cuframes._native.status": ("monotonic_ns",),
    "cuframes._native.views": ("Plane",),
    "cuframes.color": ("Color",),
    "cuframes.media.sources": ("EncodedPacket", "Picture", "Source", "SourceState", "open_source"),
    "cuframes.packets": (
        "Packet",
        "PacketFlags",
        "PacketPublisher",
        "PacketReader",
        "PacketReaderStats",
    ),
    "cuframes.publisher": ("Publisher", "PublisherStats"),
    "cuframes.session.listing": (
        "PacketRingInfo",
        "PublisherInfo",
        "SubscriberInfo",
        "collect_garbage",
        "find_publisher",
        "list_packet_rings",
        "list_publishers",
    ),
    "cuframes.subscriber": ("Subscriber", "SubscriberStats"),
    "cuframes.waiting": ("wait_any",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

register(lambda: importlib.import_module("cuframes.media.pictures"))  # for frames, which are below it


def get_include() -> str:
    """The directory of the C headers, for programs that join a ring without Python.

    With this directory as ``-I``, C and C++ programs can ``#include "cuframes/frame_ring.h"`` and the other headers.
    The headers are C11 and C++17, for Linux with gcc or clang, and need nothing else of this library. Include them
    before the headers of the C library, or compile with ``-D_GNU_SOURCE``.
    """
    return os.path.join(os.path.dirname(__file__), "include")


def __getattr__(name: str) -> "Any":
    if name in ("formats", "framecache"):
        return importlib.import_module(f"cuframes.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cuframes' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
