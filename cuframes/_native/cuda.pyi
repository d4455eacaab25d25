from typing import Any, Self

def load(functions: dict[str, int]) -> None:
    """Set the driver's functions: name to address. ``cuCtxRecordEvent`` may be missing."""

def stream_handle(stream: Any) -> int:
    """:func:`stream_of` for Python: an int."""

class Device:
    """A GPU and its primary context, which frameworks of one process share.

    Calls return the driver's result. A call that names a default stream needs the context to be current. On a thread
    without one it is made current and stays so, as the CUDA runtime does; over another one it is pushed for the call.
    """

    ordinal: int
    uuid: bytes
    name: str
    keep: Any
    def __new__(cls, ordinal: int, uuid: bytes, name: str, context: int, keep: Any) -> Self: ...
    def synchronize_stream(self, stream: Any) -> None:
        """Block the host until a stream's work is over."""
    @property
    def uuid_text(self) -> str:
        """The UUID as nvidia-smi prints it."""
