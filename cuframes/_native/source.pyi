class Buffer:
    """Keeps an object's buffer."""

class Array:
    @property
    def shape(self) -> tuple[int, ...]: ...

class Source:
    """The rows of each plane of a frame to be published. Keeps what they lie in until it is dropped."""
