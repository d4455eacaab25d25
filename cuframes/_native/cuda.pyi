from typing import Any, Self

def load(functions: dict[str, int]) -> None:
    """Set the driver's functions from a dict of name to address. ``cuCtxRecordEvent`` may be missing."""

def stream_handle(stream: Any) -> int:
    """:func:`stream_of` for Python: returns the handle as an int."""

class Device:
    """A GPU and its primary context, which all frameworks in a process share.

    Calls return the driver's result. A call that names a default stream needs this context to be current. On a thread
    without a context, it is made current and stays so, as with the CUDA runtime. On a thread with another context, it
    is pushed for the call.
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
        """The UUID in the form that nvidia-smi prints."""
