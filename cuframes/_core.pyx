"""The frame ring for Python: the writer's end, the reader's end, and the hold on a taken frame.

The algorithm is in C (``frame_ring.h``) and runs without the GIL. This module owns the C structures and ties lifetimes
together: a :class:`Hold` keeps its :class:`FrameReader` alive, and a reader keeps its mappings. Memory is therefore
unmapped when its last frame is gone.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from cuframes._native.cuda cimport (
    CF_CUDA_STREAM_LEGACY,
    CF_CUDA_STREAM_PER_THREAD,
    Device,
    check_driver,
    driver_error,
    keeper_of,
    stream_of,
)
from cuframes._native.control cimport header_of, store_presentation
from cuframes._native.mapping cimport Mapping, check_whole, is_cut
from cuframes._native.pending cimport collect, pending_of
from cuframes._native.frame_ring cimport *
from cuframes._native.slot_table cimport SlotTable
from cuframes._shm cimport *
from cuframes._native.ring_end cimport RingEnd, cf_gate_is_empty, cf_gate_is_shut, check_generation, is_inherited
from cuframes._native.status cimport *

import logging

from cuframes.errors import CuframesError, FrameDropped, ProtocolError, Timeout

log = logging.getLogger("cuframes")


cdef extern from "cuframes/wait.h" nogil:
    int64_t CF_SLICE_NS


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    void PyErr_SetInterrupt()


BLOCK = CF_BLOCK
SPIN = CF_SPIN
PREDICT = CF_PREDICT

# The GPU does not signal that an event is over. A wait for one polls quickly at first, then every millisecond.
cdef int64_t GPU_FIRST_NS = 50_000
cdef int64_t GPU_POLL_NS = 1_000_000


cdef void finish_step(object connection, str step) noexcept:
    """Make a step of closing, which can be repeated, and swallow its exception, since closing must finish in spite of
    it. It may come from a signal handler, so the step is made once more, or from an attribute that the garbage
    collector has cleared already.
    """
    for _ in range(2):
        try:
            getattr(connection, step)()
            return
        except KeyboardInterrupt:
            PyErr_SetInterrupt()  # raises it again later
        except AttributeError:
            return
        except BaseException as problem:
            # As text: in a log the exception would keep what it refers to.
            log.error("closing a subscriber's connection failed: %s", repr(problem))


cdef int MAX_STREAMS = 4  # the array in _core.pxd


@cython.no_gc  # holds are owners and must not be collected; there is no cycle, since streams do not refer to frames
cdef class Owner:
    """Keeps a frame's memory alive. On a GPU it also records the streams on which that memory is used."""

    cdef SlotTable memory(self):
        return None

    cdef int use(self, void* stream) except -1:
        """A consumer is about to use the memory on `stream`: order the stream after the frame, and remember it. NULL:
        the consumer takes care of the order.
        """
        return 0

    cdef void follow(self, void* stream, int ordinal, object keeper) noexcept:
        """Remember a consumer's stream, on which an event is recorded when the last view dies.

        `keeper` keeps the stream alive until then (None: look for such an object), since the driver crashes when it is
        given the handle of a destroyed stream. In three cases the event is recorded behind all work of the context
        instead: no object is known to keep the stream alive, the consumer does not tell its stream, or the consumer
        works on the per-thread default stream.
        """
        cdef int i
        if stream == NULL or stream == <void*>CF_CUDA_STREAM_PER_THREAD:
            self.stream_unknown = True
            return
        if keeper is None and stream != <void*>CF_CUDA_STREAM_LEGACY:
            keeper = keeper_of(stream, ordinal)
            if keeper is None:
                self.stream_unknown = True
                return
        with cython.critical_section(self):
            for i in range(self.streams):
                if self.stream[i] == stream:
                    return
            if self.streams >= MAX_STREAMS:
                self.stream_unknown = True
                return
            self.stream[self.streams] = stream
            self.streams += 1
            if keeper is not None:
                self.keepers = (self.keepers, keeper)


@cython.no_gc_clear  # a writable frame that is collected in the same cycle still needs it to give its slot back
cdef class FrameWriter(RingEnd):
    """The publisher's end of a frame ring.

    Only one frame is written at a time. This object keeps `header` and the memory of `slots` alive.

    Parameters
    ----------
    header : Mapping
        The control segment, writable and zero-filled. It is initialised here.
    slots : SlotTable
    meta : tuple
        (format code, width, height, pitch_y, pitch_uv, bits per pixel, frame bytes)
    presentation : tuple
        What the pictures look like: ``Presentation.stored``.
    exports : tuple, optional
        For device memory: (memory handles or None, offsets, pointers to announce or None, event handles, handle of the
        ring's own event).
    """

    def __cinit__(self, Mapping header not None, SlotTable slots not None, *, tuple meta, uint32_t policy,
                  uint32_t ext_flags, uint64_t epoch, tuple version, uint64_t pid, tuple exports=None,
                  tuple presentation=None):
        cdef cf_frame_header* h = header_of(header)
        self.header = header
        self.slots = slots
        self.sources = [[] for _ in range(slots.count)]
        self.gate, self.what, self.word = &self.ring.gate, "publisher", &h.writer_wait
        self.cut = header.cut
        h.proto_version = CF_PROTOCOL_V3
        h.lib_version_major, h.lib_version_minor, h.lib_version_patch = version
        h.ext_flags = ext_flags
        h.producer_pid = pid
        h.ring_size = slots.count
        h.policy = policy
        h.max_subscribers = CF_MAX_SUBSCRIBERS
        (h.meta.format, h.meta.width, h.meta.height, h.meta.pitch_y, h.meta.pitch_uv, h.meta.bits_per_pixel,
         h.meta.frame_size_bytes) = meta
        if presentation is not None:
            store_presentation(&h.meta.presentation, presentation)
        h.epoch = epoch
        if slots.device is not None:
            self.announce(exports)
        cf_writer_init(&self.ring, h, slots.count, policy)
        check_whole(header.cut)

    cdef int announce(self, tuple exports) except -1:
        cdef cf_frame_header* h = header_of(self.header)
        cdef uintptr_t pointer
        cdef int k
        memory, offsets, pointers, events, ring_event = exports
        memcpy(h.meta.device_uuid, <const char*>self.slots.device.uuid, sizeof(h.meta.device_uuid))
        memcpy(h.ipc_event_handle, <const char*>(<bytes>ring_event), sizeof(h.ipc_event_handle))
        for k in range(self.slots.count):
            memcpy(h.slot_event_handles[k], <const char*>(<bytes>events[k]), sizeof(h.slot_event_handles[k]))
            h.slots[k].base_offset = offsets[k]
            if memory is not None:
                memcpy(h.slots[k].mem_handle, <const char*>(<bytes>memory[k]), sizeof(h.slots[k].mem_handle))
            if pointers is not None:
                h.ownership_mode = CF_OWNERSHIP_EXTERNAL
                pointer = pointers[k]
                memcpy(h.slots[k].cuda_ptr_external, &pointer, sizeof(pointer))
        return 0

    cdef int begin(self, object timeout, int wanted, void* stream) except -1:
        """Claim a slot for writing, or raise FrameDropped (drop_oldest) or Timeout (strict_wait). To be called inside
        the gate only.
        """
        cdef int64_t deadline = deadline_after(timeout)
        cdef int status = CF_AGAIN
        self.deadline = deadline
        if self.failure is not None:
            self.check_usable()
        if self.ring.policy == CF_POLICY_DROP_OLDEST:
            status = cf_writer_begin(&self.ring, wanted, deadline)  # never waits, so it keeps the GIL
        while status == CF_AGAIN and not is_cut(self.header.cut):
            with nogil:
                status = cf_writer_begin(&self.ring, wanted, deadline)
            if status == CF_AGAIN:
                PyErr_CheckSignals()
                self.check_usable()
        if is_cut(self.header.cut):
            # The pins that were read may be zeros of our own, so a subscriber may hold the slot: do not write to it.
            if status == CF_OK:
                cf_writer_abandon(&self.ring)
            check_whole(self.header.cut)
        if status == CF_TIMED_OUT:
            check(status, "a subscriber did not release the oldest frame in time (policy strict_wait)")
        check(status, "another frame of this publisher is being written; only one frame at a time can be written")
        if self.slots.device is not None:
            self.drop_finished_sources()
            try:
                self.order(stream)
            except BaseException:
                cf_writer_abandon(&self.ring)
                raise
        return 0

    cdef int check_usable(self) except -1:
        """Raise if nothing may be published any more, although the caller is inside the gate."""
        if cf_gate_is_shut(&self.ring.gate):
            raise ValueError("the publisher was closed before the frame was published")
        if self.failure is not None:
            raise CuframesError(self.failure)
        return 0

    cdef int order(self, void* stream) except -1:
        """Make `stream` wait for the work that earlier frames queued for the slot. Readers have already released it.

        Done even if the stream's handle is the same as before: it costs nothing then, and the handle may by now belong
        to a new stream.
        """
        cdef int k = self.slot()
        cdef int result
        if self.unfollowed >> k & 1:
            with nogil:
                result = self.slots.device.drain()
            check_driver(result, "waiting for writes of an earlier frame to the slot failed")
            self.unfollowed &= ~(<uint32_t>1 << k)
        check_driver(self.slots.device.wait(stream, self.slots.event[k]), "ordering two writers' streams failed")
        return 0

    cdef int slot(self) noexcept nogil:
        return <int>cf_writer_slot(&self.ring)

    cdef char* begun(self) noexcept nogil:
        return self.slots.address[self.slot()]

    cdef uint64_t commit(self, object pts_ns, uint64_t written_bytes, void* stream) except? 0:
        """Publish the begun frame. If the publisher was closed meanwhile, abandon the frame and raise ValueError. To be
        called inside the gate only.
        """
        cdef int64_t now, pts
        cdef uint64_t seq
        cdef int k = self.slot()
        cdef int result
        check_generation(self.generation)
        if cf_gate_is_shut(&self.ring.gate) or self.failure is not None:
            self.abandon(stream)
            self.check_usable()
        if self.slots.device is not None:
            # Before the sequence number is stored: a subscriber that sees the number must find the event recorded.
            result = self.slots.device.record(self.slots.event[k], stream)
            if result == 0:
                result = self.slots.device.record(self.slots.ring_event, stream)
            if result:
                self.abandon(stream)
                check_driver(result, "recording the frame's event failed")
        now = cf_now_ns()
        pts = now if pts_ns is None else pts_ns
        if cf_writer_has_no_sleepers(&self.ring):
            seq = cf_writer_commit(&self.ring, now, pts, written_bytes)
        else:
            with nogil:
                seq = cf_writer_commit(&self.ring, now, pts, written_bytes)
        check_whole(self.header.cut)
        return seq

    cdef void abandon(self, void* stream) noexcept:
        cdef int k = self.slot()
        if is_inherited(self.generation):
            return
        # The event is for the next writer of the slot. If it cannot be recorded, that writer drains the context.
        if self.slots.device is not None and self.slots.device.record(self.slots.event[k], stream):
            self.unfollowed |= <uint32_t>1 << k
        cf_writer_abandon(&self.ring)

    cdef void drop(self) noexcept:
        """Abandon the begun frame and count it as dropped."""
        cf_writer_drop(&self.ring)

    cdef void keep_source(self, object source):
        """Keep the source of a queued copy alive until the begun slot's event shows that the copy is done.

        The sources of earlier copies into the same slot are kept too: the GPU may be more than ring_size frames behind.
        """
        self.sources[self.slot()].append(source)

    cdef char* staging(self) except? NULL:
        """Pinned host memory for an upload into the begun slot.

        If the GPU is ring_size frames behind, an earlier upload still reads that memory. Then drop_oldest drops the
        frame, and strict_wait waits until the deadline that begin() was given.
        """
        cdef int k = self.slot()
        cdef int64_t pause = GPU_FIRST_NS, now
        cdef uintptr_t base
        if self.staging_base == NULL:
            base, self.staging_stride = self.slots.staging()
            self.staging_base = <char*>base
        while not self.slots.device.finished(self.slots.event[k]):
            if self.ring.policy == CF_POLICY_DROP_OLDEST:
                raise FrameDropped("the GPU is still copying the frame uploaded ring_size frames ago; publish more "
                                   "slowly, or use a larger ring_size")
            self.check_usable()
            now = cf_now_ns()
            if now >= self.deadline:
                raise Timeout("the GPU did not finish an earlier upload into the slot in time (policy strict_wait); "
                              "publish more slowly, or use a larger ring_size")
            with nogil:
                cf_sleep_ns(min(pause, self.deadline - now))
            pause = min(2 * pause, GPU_POLL_NS)
            PyErr_CheckSignals()
        return self.staging_base + k * self.staging_stride

    cdef void drop_finished_sources(self):
        """Drop the sources of finished copies. To be called before a copy into the begun slot is queued: until commit
        records the slot's event again, the event covers only the copies of earlier frames.
        """
        cdef int k
        for k in range(self.slots.count):
            if self.sources[k] and not self.unfollowed >> k & 1 and self.slots.device.finished(self.slots.event[k]):
                self.sources[k] = []

    def join(self, bytes name not None, uint64_t pid):
        """Admit a subscriber: returns (bit, newest seq, its frame_no), or None if all 31 places are taken."""
        cdef uint32_t bit
        cdef uint64_t seq, frame_no
        cdef const char* raw = name
        cdef int status
        with nogil:
            status = cf_writer_join(&self.ring, raw, pid, &bit, &seq, &frame_no)
        if status == CF_NO_BIT:
            return None
        check(status)
        if is_cut(self.header.cut):
            self.remove(bit)
            check_whole(self.header.cut)
        return bit, seq, frame_no

    def remove(self, uint32_t bit):
        """Remove a subscriber: its pins, its outstanding acknowledgements and its eventfd."""
        with nogil:
            cf_writer_leave(&self.ring, bit)

    def feed(self, uint32_t bit, int fd):
        """Add 1 to this eventfd whenever a frame is published, until the subscriber leaves or `fd` is set to -1. The
        caller closes the eventfd.
        """
        with nogil:
            cf_writer_feed(&self.ring, bit, fd)

    def fail(self, str reason not None):
        """End the ring for everybody: subscribers take the remaining frames, and publishing raises CuframesError with
        this reason. Called by the session thread when it can no longer tell which subscribers are alive.
        """
        if self.failure is None:  # set once: other threads read it without a lock
            self.failure = reason
        if not is_inherited(self.generation):
            cf_writer_shutdown(&self.ring)
            cf_futex_wake_all(&header_of(self.header).writer_wait)

    cdef void finish(self) noexcept:
        """Tell every subscriber that no more frames will come. Held frames stay intact. A frame that is being written
        in place can no longer be published.
        """
        cdef int k
        cf_writer_shutdown(&self.ring)
        if self.slots.device is not None:
            with nogil:
                for k in range(self.slots.count):
                    self.slots.device.synchronize(self.slots.event[k])  # queued copies still write to the pool
                if self.unfollowed:
                    self.slots.device.drain()
            self.sources = [[] for _ in range(self.slots.count)]

    @property
    def counters(self):
        """(newest seq, frames published, frames dropped), from this process's own memory."""
        return self.ring.seq, self.ring.frames, self.ring.dropped


cdef class WriteLease(Owner):
    """Owner of the views of a writer's begun slot, with the stream on which the frame is published."""

    cdef SlotTable memory(self):
        return self.writer.slots

    cdef int use(self, void* stream) except -1:
        cdef Device device = self.writer.slots.device
        if stream != NULL and stream != self.publish_stream:
            # The publishing stream's work for this slot so far, and everything that stream waits for, comes first.
            check_driver(device.wait_for(stream, self.publish_stream), "ordering two streams failed")
        self.follow(stream, device.ordinal, self.writer if stream == self.publish_stream else None)
        return 0

    cdef int gather(self) except -1:
        """Make the publishing stream wait for every other stream that may write to the frame."""
        cdef Device device = self.writer.slots.device
        cdef int i, result = 0
        with nogil:
            if self.stream_unknown:
                result = device.wait_for_all(self.publish_stream)
            for i in range(self.streams):
                if not result and self.stream[i] != self.publish_stream:
                    result = device.wait_for(self.publish_stream, self.stream[i])
        check_driver(result, "ordering two streams failed")
        return 0


@cython.no_gc_clear  # holds that are collected in the same cycle still need it to give their slots back
cdef class FrameReader(RingEnd):
    """A subscriber's end of a frame ring, for one connection.

    On a GPU a frame goes back in two steps. When its last view is gone, an event is recorded on every stream that used
    the frame, and the frame is *pending*. When the events are over, the slot is given back (``pending.h``). The host
    waits for the GPU only if all max_held frames are pending. Closing does not wait: a reader that is closed or dropped
    goes away when its last pending frame has gone back.

    Parameters
    ----------
    header : Mapping
        The control segment, writable: it contains the pins and counters.
    slots : SlotTable
        The frames.
    connection
        An object that keeps the reader's place in the ring. Its ``fileno()`` is watched while waiting, and
        ``read_messages()`` is called when the descriptor is readable (true: the publisher is gone). ``close()`` is
        called when the reader is closed and its last frame released; in a forked child, ``forget()`` instead.
    layout : FrameLayout
        Where the samples of a frame lie.
    ring : tuple
        (bit, max_held, ordered, wait, pins, wakes, strict). `wait` is BLOCK, SPIN or PREDICT; the last three describe
        the publisher.
    position : tuple
        (last seq, its frame_no). frame_no is None if frames missing before the first one are not to be counted.
    stream
        The stream that waits for each frame, for device memory.
    """

    def __cinit__(self, Mapping header not None, SlotTable slots not None, connection, layout, *, tuple ring,
                  tuple position, stream=None):
        self.ring.shared = header_of(header)
        self.header = header
        self.slots = slots
        self.connection = connection
        self.layout = layout
        self.epoch = self.ring.shared.epoch
        self.gate, self.what, self.cut = &self.ring.gate, "subscriber", header.cut
        self.word = cf_low_half(&self.ring.shared.global_seq)
        self.ring.ring_size = slots.count
        self.ring.bit, self.ring.max_held, ordered, self.ring.wait, *publisher = ring
        self.ring.pins, self.ring.wakes, self.ring.strict = publisher
        self.ring.mode = CF_ORDERED if ordered else CF_NEWEST
        self.ring.last_seq, last_frame_no = position
        self.ring.counted = last_frame_no is not None
        self.ring.last_frame_no = last_frame_no or 0
        self.ring.sock = connection.fileno()
        self.ring.event_fd = -1
        if slots.device is not None:
            self.stream = stream_of(stream)
            self.stream_keeper = stream  # if it is a bare handle, the caller must keep the stream alive
            self.pending = pending_of(&self.ring, slots.device)
        if not 1 <= self.ring.bit < CF_MAX_SUBSCRIBERS:
            raise ProtocolError(f"the publisher assigned bit {self.ring.bit}, which is not in 1 to "
                                f"{CF_MAX_SUBSCRIBERS - 1}")
        check_whole(header.cut)

    def __dealloc__(self):
        if self.pending is not None:
            self.pending.end(is_inherited(self.generation))

    cdef bint take(self, Hold hold, int64_t deadline) except -1:
        """Take the next frame into `hold`. Waits for it without the GIL. False: no frame yet, but one is due any
        moment; the caller should warm up and call again.
        """
        self.enter()
        try:
            return self.take_inside(hold, deadline)
        finally:
            self.leave()

    cdef bint take_inside(self, Hold hold, int64_t deadline) except -1:
        # First without releasing the GIL: getting it back can take a switch interval, too long for a waiting frame.
        cdef int status = cf_reader_now(&self.ring, &hold.taken)
        while status != CF_OK:
            check_whole(self.header.cut)
            if status == CF_SOCKET:
                if self.connection.read_messages():
                    cf_reader_hangup(&self.ring)
            elif status == CF_WARM_UP:
                return False
            elif status == CF_CORRUPT:
                log.warning("the frame numbers went backwards: another process writes to the control segment, and the "
                            "previous frame may have been invalid; continuing with the frames that follow")
            elif status != CF_AGAIN and status != CF_EMPTY and not (status == CF_TOO_MANY and self.is_pending()):
                break
            PyErr_CheckSignals()
            with nogil:
                status = self.wait(deadline, &hold.taken)
        if status == CF_OK:
            hold.live = True
            check_whole(self.header.cut)
            if self.slots.device is not None:
                hold.use(self.stream)
            return True
        if status == CF_TOO_MANY:
            check(status, f"this subscriber holds {cf_reader_held(&self.ring)} of at most {self.ring.max_held} frames; "
                          "release frames (and arrays or tensors made from them), or raise max_held")
        check(status, "another thread is taking a frame from this subscriber" if status == CF_BUSY
              else "the subscriber is closed" if status == CF_CLOSED else None)

    cdef bint is_pending(self) noexcept:
        """Whether the GPU may still read frames that were released."""
        return self.pending is not None and self.pending.any()

    cdef int wait(self, int64_t deadline, cf_taken* taken) noexcept nogil:
        """cf_reader_next. If pending frames use up max_held, the caller has none to release: wait for the GPU."""
        cdef int64_t pause = GPU_FIRST_NS, now, slice_end = 0
        cdef int status
        while True:
            if self.pending is not None and self.pending.any():
                self.pending.reap()
            status = cf_reader_next(&self.ring, deadline, taken)
            if status != CF_TOO_MANY or self.pending is None or not self.pending.any():
                return status
            if cf_gate_is_shut(&self.ring.gate):
                return CF_CLOSED
            now = cf_now_ns()
            if not slice_end:
                slice_end = now + CF_SLICE_NS
            if now >= deadline:
                return CF_TIMED_OUT
            if now >= slice_end:
                return CF_AGAIN
            cf_sleep_ns(min(pause, deadline - now))
            pause = min(2 * pause, GPU_POLL_NS)

    cdef void defer(self, Hold hold) noexcept:
        """Give the frame back when all work that used it is over."""
        cdef int result
        result = self.pending.defer(hold.taken.slot, hold.taken.seq, hold.stream, hold.streams, hold.stream_unknown,
                                    hold.keepers)
        if result and not self.warned:
            self.warned = True
            try:
                log.warning("a released frame stays held, since the driver cannot record an event behind its use on "
                            "the GPU now; this is tried again: %s", driver_error(result))
            except Exception:  # at interpreter exit
                pass

    cdef void reap(self) noexcept nogil:
        """Give back the pending frames whose GPU work is over."""
        if self.pending is not None:
            self.pending.reap()

    cdef void hang_up_if_idle(self) noexcept:
        """End the connection of a closed reader if it holds nothing any more. If frames are pending, do it later."""
        if not cf_gate_is_empty(&self.ring.gate):
            return
        # Ask once more after the table was asked: the last pending frame may have gone back in between.
        if cf_reader_held(&self.ring) and (self.pending is None or self.pending.outlive(self.given_back)
                                           or cf_reader_held(&self.ring)):
            return
        if self.pending is not None:
            self.pending.stay()
        finish_step(self.connection, "close")  # does nothing the second time

    def given_back(self):
        """Called when the last pending frame of a closed reader is back in the ring."""
        self.hang_up_if_idle()

    def set_event(self, int fd):
        """Set the eventfd that the publisher signals for this reader. The reader drains it when no frame is left."""
        self.ring.event_fd = fd

    def read_messages(self):
        """Read the publisher's messages, without waiting. True: the publisher is gone; valid frames may remain."""
        self.enter()
        try:
            if self.connection.read_messages():
                cf_reader_hangup(&self.ring)
            return bool(self.ring.gone)
        finally:
            self.leave()

    def inside(self, function):
        """Call `function()` inside the gate, so that close() waits for it, and return its result. For functions that
        use the connection's descriptors.
        """
        self.enter()
        try:
            return function()
        finally:
            self.leave()

    @property
    def abandoned(self):
        """Whether the publisher is gone. Some of its frames may not have been taken yet."""
        return self.read_messages()

    @property
    def over(self):
        """Whether the publisher is gone and all its frames have been taken."""
        cdef cf_frame_header* h = header_of(self.header)
        if not self.ring.gone and not cf_load_acquire(&h.shutdown_flag):
            return False
        return cf_reader_pick(&self.ring) == 0

    cdef int event(self) except? -1:
        return self.connection.event_fd

    cdef void forget(self) noexcept:
        finish_step(self.connection, "forget")

    cdef void finish(self) noexcept:
        """Close the event. The connection ends when the last held frame is released."""
        with nogil:
            self.reap()
        self.ring.event_fd = -1
        finish_step(self.connection, "close_event")
        self.hang_up_if_idle()

    @property
    def counters(self):
        """(received, lost, skipped, held, overwritten)"""
        if self.is_pending() and not is_inherited(self.generation):
            with nogil:
                self.reap()
        return (self.ring.received, self.ring.lost, self.ring.skipped, cf_reader_held(&self.ring),
                self.ring.overwritten)


@cython.no_gc  # it is part of no cycle, and its deallocation needs an intact reader
cdef class Hold(Owner):
    """A held slot of the ring: it cannot be overwritten while this object is alive.

    Frames, planes and everything exported from them keep a reference to it, so it is deallocated when the last array of
    the frame is gone. That may happen on any thread, or at interpreter exit, and must therefore not raise.
    """

    cdef SlotTable memory(self):
        return self.reader.slots

    cdef int use(self, void* stream) except -1:
        cdef SlotTable slots = self.reader.slots
        if stream != NULL:
            check_driver(slots.device.wait(stream, slots.event[self.taken.slot]),
                         "waiting for the frame's event failed")
        self.follow(stream, slots.device.ordinal, self.reader if stream == self.reader.stream else None)
        return 0

    cdef int unpin(self) noexcept:
        """Release the slot, once. The status tells whether the frame stayed intact."""
        cdef int status = CF_OK
        if not self.live:
            return status
        self.live = False
        cdef FrameReader reader = self.reader
        if is_inherited(reader.generation):
            return status
        if reader.slots.device is None:
            status = cf_reader_release(&reader.ring, self.taken.slot, self.taken.seq)
        else:
            reader.defer(self)
        reader.hang_up_if_idle()
        collect()
        return status

    def __dealloc__(self):
        self.unpin()
