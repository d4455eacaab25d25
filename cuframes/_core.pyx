"""The frame ring for Python: the writer's and the reader's end, and the hold on a taken frame.

The algorithm is C (``frame_ring.h``) and runs without the GIL. This module owns its structures and ties lifetimes
together: a :class:`Hold` keeps its :class:`FrameReader`, a reader keeps its mappings, so memory is unmapped when the
last frame of it is gone.
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
from cuframes._native.control cimport header_of
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


cdef extern from "cuframes/status.h" nogil:
    int64_t CF_SLICE_NS


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    void PyErr_SetInterrupt()


BLOCK = CF_BLOCK
SPIN = CF_SPIN
PREDICT = CF_PREDICT

# The GPU gives no sign when an event is over. Who has to wait for one looks soon at first, and then every millisecond.
cdef int64_t GPU_FIRST_NS = 50_000
cdef int64_t GPU_POLL_NS = 1_000_000


cdef void survive(object problem) noexcept:
    """An end must be finished, whatever a signal handler raises meanwhile, or a collection has cleared already."""
    if isinstance(problem, KeyboardInterrupt):
        PyErr_SetInterrupt()  # once more, when this is over
    elif not isinstance(problem, AttributeError):
        log.error("closing a subscriber's connection failed: %r", problem)


cdef int MAX_STREAMS = 4  # the array in _core.pxd


@cython.no_gc  # else holds, which are owners, would be collected: streams know nothing of frames, so there is no cycle
cdef class Owner:
    """What keeps a frame's memory, and on a GPU the streams on which that memory is used."""

    cdef SlotTable memory(self):
        return None

    cdef int use(self, void* stream) except -1:
        """A consumer is about to use the memory on `stream`: order it, and remember it. NULL: it orders itself."""
        return 0

    cdef void follow(self, void* stream, int ordinal, object keeper) noexcept:
        """Remember a consumer's stream, on which an event is recorded when the last view dies.

        Until then `keeper` keeps it alive, if that is not known already: the driver crashes on the handle of a stream
        that was destroyed. A stream that nobody is known to keep, a consumer that does not say where it works, or one
        that works on "this thread's" stream is followed by an event behind all work of the context.
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


@cython.no_gc_clear  # a writable frame that dies in the same cycle still gives its slot back through it
cdef class FrameWriter(RingEnd):
    """The publisher's end of a frame ring.

    One frame is written at a time. `header` and the memory of `slots` stay as long as this object lives.

    Parameters
    ----------
    header : Mapping
        The control segment, writable, zero-filled; it is initialised here.
    slots : SlotTable
    meta : tuple
        (format code, width, height, pitch_y, pitch_uv, bits per pixel, frame bytes)
    exports : tuple, optional
        For device memory: (memory handles or None, offsets, pointers to announce or None, event handles, handle of the
        ring's event).
    """

    def __cinit__(self, Mapping header not None, SlotTable slots not None, *, tuple meta, uint32_t policy,
                  uint32_t ext_flags, uint64_t epoch, tuple version, uint64_t pid, tuple exports=None):
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
        """Take a slot for writing, or raise FrameDropped (drop_oldest) or Timeout (strict_wait). Inside only."""
        cdef int64_t deadline = deadline_after(timeout)
        cdef int status = CF_AGAIN
        self.deadline = deadline
        if self.failure is not None:
            self.check_usable()
        if self.ring.policy == CF_POLICY_DROP_OLDEST:
            status = cf_writer_begin(&self.ring, wanted, deadline)  # never waits: not worth giving the GIL up
        while status == CF_AGAIN and not is_cut(self.header.cut):
            with nogil:
                status = cf_writer_begin(&self.ring, wanted, deadline)
            if status == CF_AGAIN:
                PyErr_CheckSignals()
                self.check_usable()
        if is_cut(self.header.cut):
            # The pins that were looked at may be zeros, and the slot may be somebody's: not a byte is written to it.
            if status == CF_OK:
                cf_writer_abandon(&self.ring)
            check_whole(self.header.cut)
        if status == CF_TIMED_OUT:
            check(status, "a subscriber did not release the oldest frame in time (policy strict_wait)")
        check(status, "another frame of this publisher is being written; a publisher is one writer")
        if self.slots.device is not None:
            self.drop_finished_sources()
            try:
                self.order(stream)
            except BaseException:
                cf_writer_abandon(&self.ring)
                raise
        return 0

    cdef int check_usable(self) except -1:
        """Raise, if nothing may be published any more, although the caller is inside."""
        if cf_gate_is_shut(&self.ring.gate):
            raise ValueError("the publisher was closed before the frame was published")
        if self.failure is not None:
            raise CuframesError(self.failure)
        return 0

    cdef int order(self, void* stream) except -1:
        """Make `stream` wait for what was queued for the slot before. Readers are done: they acknowledged.

        Also on the same stream, where it costs nothing: a handle may belong to a new stream by now.
        """
        cdef int k = self.slot()
        cdef int result
        if self.unfollowed >> k & 1:
            with nogil:
                result = self.slots.device.drain()
            check_driver(result, "waiting for what an earlier frame may still write to the slot failed")
            self.unfollowed &= ~(<uint32_t>1 << k)
        check_driver(self.slots.device.wait(stream, self.slots.event[k]), "ordering two writers' streams failed")
        return 0

    cdef int slot(self) noexcept nogil:
        return <int>cf_writer_slot(&self.ring)

    cdef char* begun(self) noexcept nogil:
        return self.slots.address[self.slot()]

    cdef uint64_t commit(self, object pts_ns, uint64_t written_bytes, void* stream) except? 0:
        """Publish the begun frame, or give it up and raise ValueError, if the publisher was closed meanwhile. Inside
        only.
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
            # Before the sequence number: a subscriber that sees it must find the event recorded.
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
        # For the next writer of the slot. What cannot be recorded it waits for in another way.
        if self.slots.device is not None and self.slots.device.record(self.slots.event[k], stream):
            self.unfollowed |= <uint32_t>1 << k
        cf_writer_abandon(&self.ring)

    cdef void drop(self) noexcept:
        """Give the begun frame up and count it as dropped."""
        cf_writer_drop(&self.ring)

    cdef void keep_source(self, object source):
        """Keep what a queued copy reads until the begun slot's event says that the copy is over.

        Beside what earlier copies into the slot still read: the GPU may be more than a ring behind.
        """
        self.sources[self.slot()].append(source)

    cdef char* staging(self) except? NULL:
        """Pinned host memory for an upload into the begun slot.

        While the GPU is a whole ring behind, the last upload still reads that memory: then drop_oldest drops the frame,
        and strict_wait waits, as long as begin() was told.
        """
        cdef int k = self.slot()
        cdef int64_t pause = GPU_FIRST_NS, now
        cdef uintptr_t base
        if self.staging_base == NULL:
            base, self.staging_stride = self.slots.staging()
            self.staging_base = <char*>base
        while not self.slots.device.finished(self.slots.event[k]):
            if self.ring.policy == CF_POLICY_DROP_OLDEST:
                raise FrameDropped("the GPU has not finished the upload before the last ring_size frames; publish more "
                                   "slowly, or use a larger ring_size")
            self.check_usable()
            now = cf_now_ns()
            if now >= self.deadline:
                raise Timeout("the GPU did not finish an earlier upload into the slot in time (policy strict_wait)")
            with nogil:
                cf_sleep_ns(min(pause, self.deadline - now))
            pause = min(2 * pause, GPU_POLL_NS)
            PyErr_CheckSignals()
        return self.staging_base + k * self.staging_stride

    cdef void drop_finished_sources(self):
        """Called before the begun slot has a copy of its own: until commit its event speaks of the earlier ones
        only.
        """
        cdef int k
        for k in range(self.slots.count):
            if self.sources[k] and not self.unfollowed >> k & 1 and self.slots.device.finished(self.slots.event[k]):
                self.sources[k] = []

    def join(self, bytes name not None, uint64_t pid):
        """Admit a subscriber: (bit, newest seq, its frame_no), or None when all 31 places are taken."""
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
        """Forget a subscriber: its pins, what it owed, its event."""
        with nogil:
            cf_writer_leave(&self.ring, bit)

    def feed(self, uint32_t bit, int fd):
        """Add 1 to this eventfd at every publish, until the subscriber leaves or -1 is given. The caller closes it.
        """
        with nogil:
            cf_writer_feed(&self.ring, bit, fd)

    def fail(self, str reason not None):
        """End the ring for everybody: subscribers drain it, and publishing raises CuframesError with this reason.
        Called by the session thread when it can no longer tell the living from the dead.
        """
        self.failure = reason
        if not is_inherited(self.generation):
            cf_writer_shutdown(&self.ring)
            cf_futex_wake_all(&header_of(self.header).writer_wait)

    cdef void finish(self) noexcept:
        """Tell every subscriber that nothing will come. Frames they hold stay as they are; one that is written in place
        just now can no longer be published.
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
    """The begun slot of a writer, as the owner of views of it, and the stream that the frame is published on."""

    cdef SlotTable memory(self):
        return self.writer.slots

    cdef int use(self, void* stream) except -1:
        cdef Device device = self.writer.slots.device
        if stream != NULL and stream != self.publish_stream:
            # What the main stream has queued for this slot so far, and what it waits for, comes first.
            check_driver(device.wait_for(stream, self.publish_stream), "ordering two streams failed")
        self.follow(stream, device.ordinal, self.writer if stream == self.publish_stream else None)
        return 0

    cdef int gather(self) except -1:
        """Make the main stream wait for every other stream that may write to the frame."""
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


@cython.no_gc_clear  # holds that die in the same cycle still give their slots back through it
cdef class FrameReader(RingEnd):
    """A subscriber's end of a frame ring, for one connection.

    On a GPU a frame goes back in two steps. When its last view dies, an event is recorded on every stream that used it,
    and the frame is *pending*; when the events are over its slot is given back (``pending.h``). The host waits for the
    GPU only when every frame that may be held is pending, and in nothing else: a reader that is closed or dropped goes
    when its last pending frame has gone back.

    Parameters
    ----------
    header : Mapping
        The control segment, writable (pins and counters are written there).
    slots : SlotTable
        The frames.
    connection
        Whatever keeps the place in the ring: its ``fileno()`` is watched while waiting, ``read_messages()`` is called
        when it has something to say (true: the publisher is gone), ``close()`` when the reader is closed and its last
        frame released, ``forget()`` instead in a forked child.
    layout : FrameLayout
        Where the samples of a frame lie.
    ring : tuple
        (bit, max_held, ordered, wait, pins, wakes, strict); wait is BLOCK, SPIN or PREDICT, the last three say what the
        publisher does
    position : tuple
        (last seq, its frame_no or None when what lies before the first frame is not to be counted)
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
            self.stream_keeper = stream  # a handle of a stream is the caller's to keep
            self.pending = pending_of(&self.ring, slots.device)
        if not 1 <= self.ring.bit < CF_MAX_SUBSCRIBERS:
            raise ProtocolError(f"bit {self.ring.bit} is out of range")
        check_whole(header.cut)

    def __dealloc__(self):
        if self.pending is not None:
            self.pending.end(is_inherited(self.generation))

    cdef bint take(self, Hold hold, int64_t deadline) except -1:
        """Let `hold` have the next frame, waiting without the GIL. False: none yet, but one is due any moment, so
        this is the time to get ready; then call again.
        """
        self.enter()
        try:
            return self.take_inside(hold, deadline)
        finally:
            self.leave()

    cdef bint take_inside(self, Hold hold, int64_t deadline) except -1:
        # A frame that is there is not worth giving the GIL up for: getting it back can take a switch interval.
        cdef int status = cf_reader_now(&self.ring, &hold.taken)
        while status != CF_OK:
            check_whole(self.header.cut)
            if status == CF_SOCKET:
                if self.connection.read_messages():
                    cf_reader_hangup(&self.ring)
            elif status == CF_WARM_UP:
                return False
            elif status == CF_CORRUPT:
                log.warning("the frame numbers went back: another process writes to the control segment, and the frame "
                            "before was perhaps none; going on with the frames that come")
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
                          "release frames, and arrays or tensors made from them, or raise max_held")
        check(status, "another thread is taking a frame from this subscriber" if status == CF_BUSY
              else "the subscriber is closed" if status == CF_CLOSED else None)

    cdef bint is_pending(self) noexcept:
        """Whether frames were released that the GPU may still read."""
        return self.pending is not None and self.pending.any()

    cdef int wait(self, int64_t deadline, cf_taken* taken) noexcept nogil:
        """cf_reader_next. If all that may be held is pending, that is not the caller's fault: wait for the GPU."""
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
        """The frame goes back when everything that used it is over."""
        cdef int result
        result = self.pending.defer(hold.taken.slot, hold.taken.seq, hold.stream, hold.streams, hold.stream_unknown,
                                    hold.keepers)
        if result and not self.warned:
            self.warned = True
            try:
                log.warning("a released frame is kept until its use on the GPU can be followed, which the driver "
                            "refuses now: %s", driver_error(result))
            except Exception:  # at interpreter exit
                pass

    cdef void reap(self) noexcept nogil:
        """Give back the pending frames whose GPU work is over."""
        if self.pending is not None:
            self.pending.reap()

    cdef void hang_up_if_idle(self) noexcept:
        """End the connection of a closed reader that holds nothing any more; if frames are pending, later."""
        if not cf_gate_is_empty(&self.ring.gate):
            return
        # Asked again after the table: the last pending frame may have gone back in between.
        if cf_reader_held(&self.ring) and (self.pending is None or self.pending.outlive(self.given_back)
                                           or cf_reader_held(&self.ring)):
            return
        if self.pending is not None:
            self.pending.stay()
        try:
            self.connection.close()  # which does nothing when it is done twice
        except BaseException as problem:
            survive(problem)

    def given_back(self):
        """The last pending frame of a closed reader is back in the ring."""
        self.hang_up_if_idle()

    def set_event(self, int fd):
        """Tell the reader which eventfd the publisher feeds for it, so that it is drained when nothing is left."""
        self.ring.event_fd = fd

    def read_messages(self):
        """Read what the publisher has sent, without waiting. True: it is gone; what is valid can still be taken."""
        self.enter()
        try:
            if self.connection.read_messages():
                cf_reader_hangup(&self.ring)
            return bool(self.ring.gone)
        finally:
            self.leave()

    def inside(self, function):
        """What `function()` gives, while close() waits for it: for all that uses the connection's descriptors."""
        self.enter()
        try:
            return function()
        finally:
            self.leave()

    @property
    def abandoned(self):
        """Whether the publisher is gone, whatever it left."""
        return self.read_messages()

    @property
    def over(self):
        """Whether the publisher is gone, and everything that it left was taken."""
        cdef cf_frame_header* h = header_of(self.header)
        if not self.ring.gone and not cf_load_acquire(&h.shutdown_flag):
            return False
        return cf_reader_pick(&self.ring) == 0

    cdef int event(self) except? -1:
        return self.connection.event_fd

    cdef void forget(self) noexcept:
        try:
            self.connection.forget()
        except BaseException as problem:
            survive(problem)

    cdef void finish(self) noexcept:
        """Nobody takes frames any more. The connection ends when the last held frame is released."""
        with nogil:
            self.reap()
        self.ring.event_fd = -1
        try:
            self.connection.close_event()
        except BaseException as problem:
            survive(problem)
        self.hang_up_if_idle()

    @property
    def counters(self):
        """(received, lost, skipped, held, overwritten)"""
        if self.is_pending() and not is_inherited(self.generation):
            with nogil:
                self.reap()
        return (self.ring.received, self.ring.lost, self.ring.skipped, cf_reader_held(&self.ring),
                self.ring.overwritten)


@cython.no_gc  # it takes part in no cycle, and must find its reader intact when it goes
cdef class Hold(Owner):
    """A place in the ring that cannot be overwritten while this object lives.

    Frames, planes and everything exported from them keep a reference to it, so "the last array of this frame died" is
    its deallocation. That may happen on any thread, or at interpreter exit, and must therefore not raise.
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
        """Release the slot, once. The status says whether the frame was whole."""
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
