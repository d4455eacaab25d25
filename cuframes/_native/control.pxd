from cuframes._native.mapping cimport Mapping
from cuframes._shm cimport cf_frame_header, cf_presentation


cdef cf_frame_header* header_of(Mapping mapping) except NULL
cdef int store_presentation(cf_presentation* to, tuple values) except -1
cdef tuple presentation_values(const cf_presentation* found)
