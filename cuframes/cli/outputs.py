"""What a source is published as: keys with frames and packets."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from cuframes._native.status import monotonic_ns
from cuframes.cli import pixels
from cuframes.cli.shapes import Shaper
from cuframes.cli.watch import percentiles
from cuframes.errors import FrameDropped, PacketOversized
from cuframes.media.sources import EncodedPacket, Picture, StreamInfo
from cuframes.media.sources.clock import Thinner
from cuframes.packets import PacketFlags
from cuframes.publisher import Publisher
from cuframes.rates import Rate, rate

__all__ = ["Output", "Sharing"]

log = logging.getLogger("cuframes")

MAX_SLOTS = 1024  # of the packet ring; the slots are small
WAIT_SECONDS = 0.01
DELAYS_KEPT = 10_000


class Sharing(NamedTuple):
    """How the frames of all outputs of a command are shared."""

    memory: Literal["auto", "host", "cuda", "cuda-ipc"]
    policy: Literal["drop_oldest", "strict_wait"]
    ring_size: int
    group: str | None
    stamp: bool


class Output:
    """One key. Its publisher is opened with the first picture, and again when size, codec or extradata change.

    Parameters
    ----------
    key : str
    shaper : Shaper
    sharing : Sharing
    fps : number, optional
        Take only this many pictures per second.
    packet_bytes : int, optional
        Also share the packets, and keep this many bytes of them.
    wait_for : int
        How many subscribers :meth:`wait` waits for.

    Attributes
    ----------
    on_ready : callable
        Called when the publisher was opened for the first time, with this output and the picture.
    """

    def __init__(
        self,
        key: str,
        shaper: Shaper,
        sharing: Sharing,
        *,
        fps: Rate | None = None,
        packet_bytes: int | None = None,
        wait_for: int = 0,
    ) -> None:
        self.on_ready: Callable[[Any, Picture], object] = lambda output, picture: None
        self.key = key
        self.group = sharing.group
        self.publisher: Publisher | None = None
        self.memory = ""
        self.published = self.dropped = self.packets = 0  # by publishers that are closed
        self.seq = self.subscribers = 0  # of the last one
        self.delays_ns: deque[int] = deque(maxlen=DELAYS_KEPT)
        self._shaper = shaper
        self._sharing = sharing
        self._fps = None if fps is None else rate(fps)
        self._thinner = None if fps is None else Thinner(fps)
        self._packet_bytes = packet_bytes
        self._wait_for = wait_for
        self._opened = False
        self._shared: tuple[int, bytes] | None = None  # codec and extradata of the packet ring
        self._kept: list[EncodedPacket] = []  # the packets since the newest keyframe, for a ring to come
        self._kept_bytes = 0
        self._flags = 0

    # ---- items of the source

    def take(self, item: Picture | EncodedPacket) -> None:
        """Publish a picture or a packet."""
        if isinstance(item, Picture):
            self._take_picture(item)
        elif self._packet_bytes is not None:
            self._take_packet(item)

    def _take_picture(self, picture: Picture) -> None:
        if self._thinner is not None and not self._thinner.wants(picture.pts_ns):
            return
        width, height = self._shaper.size_of(picture)
        publisher = self.publisher
        if publisher is None or (publisher.width, publisher.height) != (width, height):
            publisher = self._open(picture, width, height)
        frame = self._shaper.convert(picture, width, height)
        with contextlib.suppress(FrameDropped):  # counted by the publisher
            if self._sharing.stamp:
                with publisher.acquire() as slot:
                    slot.copy_from(frame)
                    pixels.stamp(slot.planes, picture.pts_ns)
                    slot.pts_ns = picture.pts_ns
            else:
                publisher.publish(frame, pts_ns=picture.pts_ns)
            if picture.stream.live:
                self.delays_ns.append(monotonic_ns() - picture.arrived_ns)

    def _take_packet(self, packet: EncodedPacket) -> None:
        # Kept for a ring to come: the size of a stream is known with its first picture, which comes after its packets.
        if packet.keyframe:
            self._kept, self._kept_bytes = [], 0
        assert self._packet_bytes is not None
        self._kept_bytes += packet.data.size
        if self._kept_bytes <= self._packet_bytes:
            self._kept.append(packet)
        if self.publisher is not None and (packet.stream.codec_id, packet.stream.extradata) != self._shared:
            self._leave()
        if self.publisher is not None:
            self._share(packet)

    # ---- publishers

    def _open(self, picture: Picture, width: int, height: int) -> Publisher:
        self._leave()
        sharing = self._sharing
        if sharing.stamp:
            pixels.check_stampable(self._shaper.format, width, height)
        # The only place where a publisher is made.
        publisher = Publisher(
            self.key,
            width,
            height,
            self._shaper.format,
            memory=sharing.memory,
            policy=sharing.policy,
            ring_size=sharing.ring_size,
            group=sharing.group,
            **self._presentation(picture, width, height),
        )
        self.publisher = publisher
        if self._packet_bytes is not None:
            self._open_packets(publisher, picture.stream, self._packet_bytes)
        if not self._opened:
            self._opened = True
            self.on_ready(self, picture)
        else:
            log.info("%s: %s %dx%d from now on", self.key, publisher.format, width, height)
        return publisher

    def _presentation(self, picture: Picture, width: int, height: int) -> dict[str, Any]:
        said = self._shaper.presentation(picture, width, height)
        if self._fps is not None and (said.frame_rate is None or said.frame_rate > self._fps):
            said = said._replace(frame_rate=self._fps)
        return said._asdict()

    def _open_packets(self, publisher: Publisher, stream: StreamInfo, packet_bytes: int) -> None:
        if not stream.encoded:
            raise ValueError(
                f"{self.key}: the source is not encoded, so there are no packets to share; leave --packets out"
            )
        publisher.enable_packets(
            stream.codec_id,
            extradata=stream.extradata or None,
            slots=MAX_SLOTS,
            data_size=packet_bytes,
            max_packet_size=max(1, packet_bytes // 4),
        )
        self._shared = stream.codec_id, stream.extradata
        for packet in self._kept:
            self._share(packet)

    def _share(self, packet: EncodedPacket) -> None:
        assert self.publisher is not None
        try:
            self.publisher.publish_packet(
                packet.data,
                pts_ns=packet.pts_ns,
                dts_ns=packet.dts_ns,
                keyframe=packet.keyframe,
                flags=packet.flags | self._flags,
            )
            self._flags = 0
        except PacketOversized as problem:
            log.warning("%s: a packet was not published: %s (raise --packet-bytes)", self.key, problem)
            self._flags = PacketFlags.DISCONTINUITY

    def _leave(self) -> None:
        """Close the publisher; another one may follow."""
        publisher = self.publisher
        if publisher is None:
            return
        self.publisher = None
        publisher.close()
        stats = publisher.stats()
        self.published += stats.published
        self.dropped += stats.dropped
        self.packets += publisher.packets.packets_published if publisher.packets is not None else 0
        self.seq, self.subscribers, self.memory = stats.seq, stats.subscribers, publisher.memory

    def wait(self) -> None:
        """Wait for subscribers, once the publisher is open."""
        publisher = self.publisher
        while publisher is not None and len(publisher.subscribers) < self._wait_for:
            time.sleep(WAIT_SECONDS)

    def describe(self) -> dict[str, Any]:
        """What it publishes now."""
        publisher = self.publisher
        assert publisher is not None
        about = {"key": self.key, "format": publisher.format, "width": publisher.width, "height": publisher.height}
        return about | {"memory": publisher.memory, "packets": publisher.packets is not None}

    def __str__(self) -> str:
        publisher = self.publisher
        assert publisher is not None
        beside = " and packets" if publisher.packets is not None else ""
        video = f"{publisher.format} {publisher.width}x{publisher.height}{beside}"
        return f"publishing {self.key}: {video} in {publisher.memory} memory,"

    def close(self) -> None:
        """Close the publisher. The counters are final."""
        self._leave()

    def report(self) -> dict[str, Any]:
        """The figures, once it is closed. The delay is the time from a live packet's arrival to its frame."""
        report: dict[str, Any] = {
            "key": self.key,
            "memory": self.memory,
            "published": self.published,
            "dropped": self.dropped,
            "seq": self.seq,
            "subscribers": self.subscribers,
        }
        if self.delays_ns:
            p50, p99 = percentiles(self.delays_ns)
            report |= {"delay_p50_us": p50, "delay_p99_us": p99}
        return report | ({} if self._packet_bytes is None else {"packets": self.packets})
