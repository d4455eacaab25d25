from typing import Self

from cuframes.formats import FrameShape

class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` in a form that costs nothing per frame."""

    shape: FrameShape
    def __new__(cls, shape: FrameShape) -> Self: ...
