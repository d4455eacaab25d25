from cuframes._native.mapping cimport Mapping
from cuframes._shm cimport cf_frame_header


cdef cf_frame_header* header_of(Mapping mapping) except NULL
