from typing import Any

from cuframes._native.arrays import FrameRows

def dlpack_pointer(buffer: Any) -> int:
    """Device address of a DLPack tensor. The caller must keep the tensor alive."""

class Tensor:
    """Keeps a consumed DLPack tensor."""

class DeviceFrameRows(FrameRows):
    """The rows of each plane of a frame that is copied on `stream` of a GPU, from arrays in host or device memory."""
