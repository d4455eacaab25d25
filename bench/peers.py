"""What Python programs use to hand frames over, each through its own API as its documentation says is fastest.

A peer sends blocks of bytes from this process to another. Every block begins with CLOCK_MONOTONIC at the moment
before it was sent; the other process takes a view of the block (a copy where the peer gives nothing else), reads
that, and notes how long it took.
"""

import multiprocessing
import os
import struct
import time
from typing import Any

import numpy
import posix_ipc

import cuframes

STAMP = struct.Struct("<q")
SPAWN = multiprocessing.get_context("spawn")
# Bytes of a block, and the frame that it is: 64 bytes are "header only", the last two are NV12.
FRAMES = {
    64: ("gray8", 64, 1),
    65_536: ("gray8", 256, 256),
    3_110_400: ("nv12", 1920, 1080),
    12_441_600: ("nv12", 3840, 2160),
}


class Peer:
    """One way to hand blocks over. ``start`` makes both ends, ``send`` is what is timed, ``stop`` gives the
    latencies.
    """

    name = ""
    copies = "in"  # what is copied: into shared memory ("in"), and out of it again ("in, out")

    def start(self, size: int) -> None:
        """Make this end, and the other in a process of its own."""
        self.address = f"bench-{os.getpid()}-{time.monotonic_ns()}"
        self._results, theirs = SPAWN.Pipe(duplex=False)
        self.size = size
        extra = self.open()
        self._child = SPAWN.Process(target=self.run, args=(self.address, size, theirs, *extra))
        self._child.start()
        theirs.close()
        self.ready()
        if not self._results.poll(30):
            raise RuntimeError(f"{self.name}: the receiver did not start")
        self._results.recv()

    def pin(self, core: int) -> None:
        """Keep the other process on one core."""
        os.sched_setaffinity(self._child.pid, {core})

    def open(self) -> tuple[Any, ...]:
        """This end, before the other exists; what the other needs besides the address."""
        return ()

    def ready(self) -> None:
        """After the other process was started."""

    def send(self, block: Any) -> None:
        """Hand one block over: a NumPy array of bytes."""
        raise NotImplementedError

    @classmethod
    def run(cls, address: str, size: int, results: Any, *extra: Any) -> None:
        """The other process."""
        took = []
        blocks = cls.receive(address, size, lambda: results.send("ready"), *extra)
        for block in blocks:
            now = time.monotonic_ns()
            (sent,) = STAMP.unpack_from(block)
            took.append(now - sent)
            if sent == 0:
                break
        del block
        blocks.close()
        results.send((took[:-1], time.process_time()))

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, *extra: Any) -> Any:
        """Yield views of blocks as they come."""
        raise NotImplementedError

    def stop(self, block: Any) -> list[int]:
        """End both; latencies in nanoseconds."""
        STAMP.pack_into(block, 0, 0)
        self.send(block)
        took, self.child_cpu_s = self._results.recv()
        self._child.join(20)
        self.close()
        return list(took)

    def close(self) -> None:
        """Let go of this end."""


class Cuframes(Peer):
    """Frames, in order."""

    wait = "block"

    def open(self) -> tuple[Any, ...]:
        kind, width, height = FRAMES[self.size]
        self._publisher = cuframes.Publisher(self.address, width, height, kind, memory="host")
        return (self.wait,)

    def send(self, block: Any) -> None:
        self._publisher.publish(block)

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, wait: str = "block") -> Any:
        with cuframes.Subscriber(address, mode="ordered", wait=wait) as subscriber:
            ready()
            for frame in subscriber:
                yield numpy.asarray(frame)

    def close(self) -> None:
        self._publisher.close()


class CuframesBlock(Cuframes):
    name, wait = "cuframes, block", "block"


class CuframesSpin(Cuframes):
    name, wait = "cuframes, spin", "spin"


class Iceoryx(Peer):
    """iceoryx2: publish-subscribe of byte slices; polling, or an event beside it."""

    event = False

    @staticmethod
    def service(address: str) -> Any:
        import ctypes

        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        name = iox2.ServiceName.new(address)
        data = node.service_builder(name).publish_subscribe(iox2.Slice[ctypes.c_uint8]).open_or_create()
        return node, data, node.service_builder(name).event().open_or_create()

    def open(self) -> tuple[Any, ...]:
        self._node, data, event = self.service(self.address)
        self._publisher = data.publisher_builder().initial_max_slice_len(self.size).create()
        self._notifier = event.notifier_builder().create()
        return (self.event,)

    def send(self, block: Any) -> None:
        sample = self._publisher.loan_slice_uninit(self.size)
        numpy.asarray(sample.payload().as_memory_view())[:] = block
        sample.assume_init().send()
        if self.event:
            self._notifier.notify()

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, event: bool = False) -> Any:
        _node, data, events = cls.service(address)
        subscriber, listener = data.subscriber_builder().create(), events.listener_builder().create()
        ready()
        while True:
            sample = subscriber.receive()
            if sample is not None:
                yield numpy.asarray(sample.payload().as_memory_view())
                sample.delete()
            elif event:
                listener.blocking_wait()


class IceoryxPoll(Iceoryx):
    name, event = "iceoryx2, poll", False


class IceoryxEvent(Iceoryx):
    name, event = "iceoryx2, event", True


class RawMemory(Peer):
    """``multiprocessing.shared_memory`` by hand: a counter and one block; spinning, or a named semaphore."""

    semaphore = False

    def open(self) -> tuple[Any, ...]:
        from multiprocessing.shared_memory import SharedMemory

        self._memory = SharedMemory(self.address, create=True, size=64 + self.size)
        self._counter = numpy.frombuffer(self._memory.buf, numpy.int64, 1)
        self._block = numpy.frombuffer(self._memory.buf, numpy.uint8, self.size, 64)
        self._semaphore = posix_ipc.Semaphore(f"/{self.address}", posix_ipc.O_CREX)
        return (self.semaphore,)

    def send(self, block: Any) -> None:
        self._block[:] = block
        self._counter[0] += 1
        if self.semaphore:
            self._semaphore.release()

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, semaphore: bool = False) -> Any:
        from multiprocessing.shared_memory import SharedMemory

        memory = SharedMemory(address)
        counter = numpy.frombuffer(memory.buf, numpy.int64, 1)
        block = numpy.frombuffer(memory.buf, numpy.uint8, size, 64)
        signal = posix_ipc.Semaphore(f"/{address}")
        seen = 0
        ready()
        try:
            while True:
                if semaphore:
                    signal.acquire()
                else:
                    while counter[0] == seen:
                        pass
                seen = int(counter[0])
                yield block
        finally:
            del counter, block

    def close(self) -> None:
        del self._counter, self._block
        self._memory.close()
        self._memory.unlink()
        self._semaphore.unlink()


class RawSpin(RawMemory):
    name, semaphore = "shared_memory, spin", False


class RawSemaphore(RawMemory):
    name, semaphore = "shared_memory, semaphore", True


class Pyshmem(Peer):
    """pyshmem: the latest value of a stream, copied out into a buffer that is kept."""

    name = "pyshmem, notify"
    copies = "in, out"

    def open(self) -> tuple[Any, ...]:
        import pyshmem

        self._stream = pyshmem.create(self.address, shape=(self.size,), dtype=numpy.uint8, notify=True)
        return ()

    def send(self, block: Any) -> None:
        self._stream.write(block)

    @classmethod
    def receive(cls, address: str, size: int, ready: Any) -> Any:
        import pyshmem

        stream = pyshmem.open(address)
        out = numpy.empty(size, numpy.uint8)
        ready()
        while True:
            yield stream.read_new(out=out)

    def close(self) -> None:
        self._stream.unlink()


class Zmq(Peer):
    """pyzmq: PUSH and PULL over ``ipc://``, messages not copied by Python."""

    name = "pyzmq ipc"
    copies = "in, out"

    def open(self) -> tuple[Any, ...]:
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.bind(f"ipc:///tmp/{self.address}")
        return ()

    def send(self, block: Any) -> None:
        self._socket.send(block, copy=self.size < 65_536)

    @classmethod
    def receive(cls, address: str, size: int, ready: Any) -> Any:
        import zmq

        socket = zmq.Context().socket(zmq.PULL)
        socket.connect(f"ipc:///tmp/{address}")
        ready()
        while True:
            yield socket.recv(copy=False).buffer

    def close(self) -> None:
        self._context.destroy(linger=0)
        if os.path.exists(f"/tmp/{self.address}"):
            os.unlink(f"/tmp/{self.address}")


class Pipe(Peer):
    """``multiprocessing.Pipe``: bytes through the kernel."""

    name = "multiprocessing.Pipe"
    copies = "in, out"

    def open(self) -> tuple[Any, ...]:
        self._theirs, self._ours = SPAWN.Pipe(duplex=False)
        return (self._theirs,)

    def send(self, block: Any) -> None:
        self._ours.send_bytes(block)

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, pipe: Any = None) -> Any:
        buffer = bytearray(size)
        ready()
        while True:
            pipe.recv_bytes_into(buffer)
            yield buffer


class Queue(Peer):
    """``multiprocessing.Queue``: pickled arrays through a thread and a pipe."""

    name = "multiprocessing.Queue"
    copies = "in, out"

    def open(self) -> tuple[Any, ...]:
        self._queue = SPAWN.Queue()
        return (self._queue,)

    def send(self, block: Any) -> None:
        self._queue.put(block.copy())  # it is pickled later, by a thread

    @classmethod
    def receive(cls, address: str, size: int, ready: Any, queue: Any = None) -> Any:
        ready()
        while True:
            yield queue.get()

    def close(self) -> None:
        self._queue.close()
        self._queue.join_thread()


PEERS: list[type[Peer]] = [
    CuframesSpin, CuframesBlock, IceoryxPoll, IceoryxEvent, RawSpin, RawSemaphore, Pyshmem, Zmq, Pipe, Queue,
]  # fmt: skip
