from cuframes._core cimport FrameReader, FrameWriter, WriteLease
from cuframes._native.frame_ring cimport cf_taken
from cuframes._native.layout cimport FrameLayout
from cuframes._native.views cimport View


cdef class Frame(View):
    cdef FrameLayout layout
    cdef FrameReader reader
    cdef cf_taken taken
    cdef tuple cached_planes

    cdef int check_held(self) except -1
    cdef int release_views(self) except -1


cdef class WritableFrame(View):
    cdef FrameLayout layout
    cdef FrameWriter writer
    cdef tuple cached_planes
    cdef WriteLease lease
    cdef void* stream
    cdef object stream_keeper
    cdef object timeout
    cdef int wanted
    cdef bint begun
    cdef public object pts_ns
    cdef readonly object seq
    cdef readonly object slot

    cdef int check_begun(self) except -1
    cdef bint end(self) noexcept
    cdef int drop_views(self) except -1
    cdef void abandon(self) noexcept
    cdef void give_up(self) noexcept
