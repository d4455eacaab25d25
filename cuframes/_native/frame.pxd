from cuframes._core cimport FrameReader, FrameWriter, WriteLease
from cuframes._native.frame_ring cimport cf_taken
from cuframes._native.layout cimport FrameLayout
from cuframes._native.views cimport View


cdef class FrameView(View):
    cdef FrameLayout layout
    cdef tuple cached_planes
    cdef tuple full_shape(self)
    cdef object packed(self)

    cdef int check_usable(self) except -1


cdef class Frame(FrameView):
    cdef FrameReader reader
    cdef cf_taken taken

    cdef int release_views(self) except -1


cdef class WritableFrame(FrameView):
    cdef FrameWriter writer
    cdef WriteLease lease
    cdef void* stream
    cdef object stream_keeper
    cdef object timeout
    cdef int wanted
    cdef bint begun
    cdef public object pts_ns
    cdef readonly object seq
    cdef readonly object slot

    cdef bint end(self) noexcept
    cdef int drop_views(self) except -1
    cdef void abandon(self) noexcept
    cdef void give_up(self) noexcept
