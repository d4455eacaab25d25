from typing import Self

from cuframes.color import Presentation
from cuframes.formats import FrameShape

class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` as C fields, so that using it for every frame costs nothing. With it goes
    what the pictures look like.
    """

    shape: FrameShape
    presentation: Presentation
    def __new__(cls, shape: FrameShape, presentation: Presentation | None = None) -> Self: ...
