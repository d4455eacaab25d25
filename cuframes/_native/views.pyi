from typing import Any, Literal, NoReturn

import numpy
import numpy.typing

class View:
    """Memory of one frame or plane, as an array of unsigned integers.

    In host memory ``numpy.asarray``, ``memoryview``, ``torch.from_dlpack`` and their like take it without a copy; on a
    GPU ``torch.from_dlpack``, ``cupy.from_dlpack``, ``cupy.asarray`` and Numba do, ordered after the frame's own work.
    Subscribers' views are read-only. The slot they lie in stays held while any such array lives.
    """

    readonly: bool
    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis: (rows, columns) or (rows, columns, components)."""
    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each axis; the first is the pitch."""
    @property
    def dtype(self) -> str:
        """NumPy's name of the element type: ``"uint8"`` or ``"uint16"``."""
    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without the padding of rows."""
    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:N"``, N as this process counts its GPUs."""
    def is_contiguous(self) -> bool:
        """Whether the rows follow each other without padding."""
    def copy_to_host(self) -> numpy.typing.NDArray[Any]:
        """A copy as a NumPy array, whatever memory the frame is in. On a GPU it waits for the copy."""
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __array__(
        self, dtype: numpy.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> numpy.typing.NDArray[Any]: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __setitem__(self, index: Any, value: Any, /) -> None: ...
    def __bool__(self) -> Literal[True]:
        """True, also after the release: a frame is a frame."""
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __reduce__(self) -> NoReturn: ...
    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0) in host memory, (2, N) on a GPU."""
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over the same memory.

        On a GPU `stream` is the consumer's: None or 1 the legacy default stream, 2 the per-thread one, -1 no ordering,
        otherwise a handle. It is made to wait for the frame, and the frame goes back after what it has queued by the
        time the tensor dies. In host memory it must be None.

        A consumer that asks for version 1.0 or later gets a versioned capsule, flagged read-only for a subscriber's
        frame. The older capsule cannot say so: writing through it to a subscriber's frame ends the process (or, on a
        GPU, its context), since the memory is mapped read-only.
        """

class Plane(View):
    """One plane of a frame: rows of samples, ``pitch`` bytes apart."""
    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
