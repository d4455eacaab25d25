from typing import Self

from cuframes.formats import FrameShape

class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` as C fields, so that using it for every frame costs nothing."""

    shape: FrameShape
    def __new__(cls, shape: FrameShape) -> Self: ...
