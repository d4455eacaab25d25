from typing import Any, Literal, NoReturn

import numpy
import numpy.typing

class View:
    """The memory of one frame or plane, as an array of unsigned integers.

    For host memory, ``numpy.asarray``, ``memoryview``, ``torch.from_dlpack`` and similar functions make an array
    without a copy. For GPU memory, ``torch.from_dlpack``, ``cupy.from_dlpack``, ``cupy.asarray`` and Numba do so, and
    their work is ordered after the frame's own. The views of a subscriber are read-only. The slot stays held as long as
    any such array is alive.
    """

    readonly: bool
    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis: (rows, columns) or (rows, columns, components)."""
    @property
    def ndim(self) -> int:
        """Number of axes."""
    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each axis. The first one is the pitch. Empty if the frame's planes
        do not lie in memory as one array.
        """
    @property
    def dtype(self) -> str:
        """NumPy's name for the element type: ``"uint8"`` or ``"uint16"``."""
    @property
    def nbytes(self) -> int:
        """Total bytes of the elements, without the padding of rows."""
    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:N"``, where N is the number of the GPU in this process."""
    def is_contiguous(self) -> bool:
        """Whether the rows are contiguous, without padding."""
    def tobytes(self) -> bytes:
        """The samples without padding, copied, in the order of :meth:`copy_to_host`."""
    def copy_to_host(self) -> numpy.typing.NDArray[Any]:
        """A copy as a NumPy array without padding, in the frame's :attr:`shape`, for host and GPU memory alike and for
        every width. For a frame on a GPU, waits for the copy.
        """
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
        """Always True, also after the release: the truth value does not depend on pixels."""
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

        On a GPU, `stream` is the consumer's stream: None or 1 for the legacy default stream, 2 for the per-thread
        default stream, -1 for no ordering, otherwise a handle. The stream is made to wait for the frame, and the frame
        goes back after all work that the stream has queued when the tensor is destroyed. In host memory `stream` must
        be None.

        A consumer that asks for version 1.0 or later gets a versioned capsule, which is flagged read-only for a
        subscriber's frame. The older kind of capsule has no such flag. Since a subscriber's memory is mapped read-only,
        writing through an unflagged capsule ends the process (or, on a GPU, its context).
        """

class Plane(View):
    """One plane of a frame: rows of samples, ``pitch`` bytes apart."""
    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
