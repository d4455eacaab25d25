class Buffer:
    """Keeps an object's buffer exported."""

class Array:
    @property
    def shape(self) -> tuple[int, ...]: ...

class FrameRows:
    """The rows of each plane of a frame that is to be published. Keeps the memory of the rows alive."""
