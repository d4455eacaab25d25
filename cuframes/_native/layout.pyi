from cuframes.formats import FrameShape

class FrameLayout:
    """A :class:`cuframes.formats.FrameShape` in a form that costs nothing per frame."""

    shape: FrameShape
    def __init__(self, shape: FrameShape) -> None: ...
