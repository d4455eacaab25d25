"""The memory layout of a frame's planes, for code that runs for every frame."""

from cuframes.color import Presentation


cdef int fill_geometry(Geometry* g, object plane, int item_bytes) except -1:
    cdef int i
    g.offset = plane.offset
    g.ndim = len(plane.shape)
    for i in range(g.ndim):
        g.extent[i] = plane.shape[i]
        g.step[i] = plane.strides[i]
    g.rows = g.extent[0]
    g.row_bytes = g.extent[1] * (g.extent[2] if g.ndim == 3 else 1) * item_bytes
    return 0


cdef class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` as C fields, so that using it for every frame costs nothing. With it goes
    what the pictures look like.
    """

    def __cinit__(self, shape, presentation=None):
        cdef int i
        self.shape = shape
        self.presentation = Presentation() if presentation is None else presentation
        self.format = shape.format.name
        self.planes = len(shape.planes)
        self.item_bytes = shape.format.itemsize
        self.nbytes = shape.nbytes
        self.one_pitch = True
        for i in range(self.planes):
            fill_geometry(&self.plane[i], shape.planes[i], self.item_bytes)
            self.one_pitch = self.one_pitch and self.plane[i].row_bytes == self.plane[0].row_bytes
            self.tight_bytes += self.plane[i].row_bytes * self.plane[i].rows
        self.array_ndim = len(shape.array_shape)
        for i in range(self.array_ndim):
            self.array_extent[i] = shape.array_shape[i]
        self.matrix.ndim = 0
        if shape.matrix is not None:
            fill_geometry(&self.matrix, shape.matrix, self.item_bytes)
