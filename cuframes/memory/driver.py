"""The CUDA driver through cuda-python: devices, allocations, handles. It is used for set-up; the hot path uses
``cuda.pyx``.

Importing this module needs no GPU. If no GPU can be used, :func:`gpu` raises an error that says what is missing.
"""

import ctypes
import os
from typing import Any

from cuframes._native import cuda as hot
from cuframes._native.cuda import Device
from cuframes.errors import DeviceError
from cuframes.formats import whole_number

__all__ = ["call", "find_gpu", "gpu", "has_gpu"]

# The functions of the hot path, at the version of the driver's interface in which they have the form used here.
HOT = {
    "cuEventRecord": 12000,
    "cuStreamWaitEvent": 12000,
    "cuEventQuery": 12000,
    "cuEventSynchronize": 12000,
    "cuEventCreate": 12000,
    "cuEventDestroy": 12000,
    "cuCtxGetCurrent": 12000,
    "cuCtxSetCurrent": 12000,
    "cuCtxPushCurrent": 12000,
    "cuCtxPopCurrent": 12000,
    "cuMemcpy2DAsync": 12000,
    "cuStreamSynchronize": 12000,
    "cuStreamIsCapturing": 12000,
    "cuCtxSynchronize": 12000,
    "cuThreadExchangeStreamCaptureMode": 12000,
    "cuPointerGetAttribute": 12000,
    "cuGetErrorName": 12000,
    "cuGetErrorString": 12000,
}
OPTIONAL = {"cuCtxRecordEvent": 12050}

_devices: dict[int, Device] = {}
_bindings: Any = None
_pid = 0


def _driver() -> Any:
    """cuda-python's driver module, initialised."""
    global _bindings, _pid
    if _bindings is not None:
        if _pid != os.getpid():
            raise DeviceError("a forked child cannot use CUDA after its parent has used it; start the child with spawn")
        return _bindings
    try:
        from cuda.bindings import driver
    except ImportError as missing:
        raise DeviceError(
            f"device memory needs cuda-python ({missing}); install it with: pip install 'cuframes[cuda13]' (or cuda12, "
            "by the driver's CUDA version)"
        ) from None
    try:
        (result,) = driver.cuInit(0)
    except RuntimeError as problem:  # cuda-python's way of saying that there is no libcuda.so.1
        raise DeviceError(f"there is no CUDA driver on this machine: {problem}; use memory='host'") from None
    if result != driver.CUresult.CUDA_SUCCESS:
        hint = "if this is a forked child, start it with spawn; otherwise use memory='host'"
        raise DeviceError(f"the CUDA driver cannot start: {_text(driver, result)}; {hint}")
    functions = {name: int(call(driver.cuGetProcAddress, name.encode(), since, 0)[0]) for name, since in HOT.items()}
    for name, since in OPTIONAL.items():
        result, address, _ = driver.cuGetProcAddress(name.encode(), since, 0)
        functions[name] = int(address) if result == driver.CUresult.CUDA_SUCCESS and address else 0
    hot.load(functions)
    _bindings, _pid = driver, os.getpid()
    return driver


def _text(driver: Any, result: Any) -> str:
    _, text = driver.cuGetErrorString(result)
    return f"{result.name} ({text.decode() if text else 'unknown'})"


def call(function: Any, *arguments: Any, doing: str = "") -> Any:
    """Call a function of cuda-python's driver module. Returns its values without the result code.

    Raises
    ------
    DeviceError
        The call failed; the message has the driver's name and text of the error.
    """
    from cuda.bindings import driver

    result, *values = function(*arguments)
    if result != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{doing or function.__name__}: {_text(driver, result)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def count() -> int:
    """Number of GPUs that this process sees."""
    found: int = call(_driver().cuDeviceGetCount)
    return found


def has_gpu() -> bool:
    """Whether device memory can be used in this process."""
    try:
        return count() > 0
    except DeviceError:
        return False


def gpu(ordinal: int | None = None) -> Device:
    """A GPU, with its primary context, by its ordinal in this process (default: the current context's, or 0).

    Raises
    ------
    DeviceError
        There is no such GPU; the message says what is missing.
    """
    driver = _driver()
    ordinal = _current(driver) if ordinal is None else whole_number(ordinal, "device")
    if ordinal in _devices:
        return _devices[ordinal]
    if not 0 <= ordinal < count():
        raise DeviceError(f"there is no GPU cuda:{ordinal}; this process sees {count()}")
    device = call(driver.cuDeviceGet, ordinal)
    uuid = bytes(call(driver.cuDeviceGetUuid, device).bytes)
    name = call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
    # Never released: the frameworks of the process share it, and its end is the driver's affair.
    context = call(driver.cuDevicePrimaryCtxRetain, device, doing="starting the GPU's context")
    _devices[ordinal] = Device(ordinal, uuid, name, int(context), context)
    return _devices[ordinal]


def _current(driver: Any) -> int:
    context = call(driver.cuCtxGetCurrent)
    if not int(context):
        return 0
    return int(call(driver.cuCtxGetDevice))


def find_gpu(uuid: bytes) -> Device:
    """The GPU with this UUID, whatever its ordinal is here.

    Raises
    ------
    DeviceError
        This process does not see that GPU.
    """
    driver = _driver()
    seen = []
    for ordinal in range(count()):
        found = bytes(call(driver.cuDeviceGetUuid, call(driver.cuDeviceGet, ordinal)).bytes)
        if found == uuid:
            return gpu(ordinal)
        seen.append(uuid_text(found))
    raise DeviceError(
        f"the frames are on {uuid_text(uuid)}, which this process does not see; it sees {', '.join(seen) or 'no GPU'} "
        "(CUDA_VISIBLE_DEVICES)"
    )


def uuid_text(uuid: bytes) -> str:
    """The UUID as nvidia-smi prints it."""
    h = uuid.hex()
    return f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


class current:
    """Make a GPU's context current for a block of set-up calls. The calls do not disturb a graph capture of
    another thread."""

    def __init__(self, device: Device) -> None:
        self._context = device.keep
        self._mode: Any = None

    def __enter__(self) -> Any:
        driver = _driver()
        call(driver.cuCtxPushCurrent, self._context)
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _, self._mode = driver.cuThreadExchangeStreamCaptureMode(relaxed)
        return driver

    def __exit__(self, *exc: object) -> None:
        driver = _driver()
        driver.cuThreadExchangeStreamCaptureMode(self._mode)
        call(driver.cuCtxPopCurrent)


def handle_bytes(handle: Any) -> bytes:
    """The 64 bytes of an IPC memory or event handle."""
    return ctypes.string_at(handle.getPtr(), 64)


def handle_of(kind: Any, raw: bytes) -> Any:
    """An IPC handle of cuda-python from its 64 bytes."""
    handle = kind()
    ctypes.memmove(handle.getPtr(), raw, 64)
    return handle


def upload_columns(plane: Any, columns: Any) -> None:
    """Overwrite the first bytes of every row of a writable device plane; `columns` is a (rows, bytes) array of uint8.

    Uses the legacy default stream, and waits for it.
    """
    driver = _driver()
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_HOST
    copy.srcHost = columns.ctypes.data
    copy.srcPitch = copy.WidthInBytes = columns.shape[1]
    copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.dstDevice = plane.__cuda_array_interface__["data"][0]
    copy.dstPitch = plane.pitch
    copy.Height = columns.shape[0]
    ordinal = plane.__dlpack_device__()[1]
    with current(gpu(ordinal)):
        call(driver.cuMemcpy2DAsync, copy, 1, doing="writing to a frame")
    gpu(ordinal).synchronize_stream(None)
