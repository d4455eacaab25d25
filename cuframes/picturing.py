"""Where frames find the functions that make pictures of them.

Those functions need PyAV and are in ``media``, which is above the frames. So the frames do not import them: the
package's face registers how they are loaded, and a frame loads them when it is asked for a picture.
"""

TYPE_CHECKING = False  # as in typing, whose import takes longer than that of the package
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["functions", "register"]

_load: "Callable[[], Any] | None" = None
_loaded: "Any" = None


def register(load: "Callable[[], Any]") -> None:
    """Set the function that loads the module of the functions."""
    global _load
    _load = load


def functions() -> "Any":
    """The module with the functions.

    Raises
    ------
    ImportError
        PyAV is not installed.
    """
    global _loaded
    if _loaded is not None:
        return _loaded
    if _load is None:
        raise ImportError("import cuframes first")
    try:
        _loaded = _load()
    except ModuleNotFoundError as problem:
        if problem.name != "av":
            raise
        raise ImportError(
            "pictures of frames need PyAV, which is not installed: pip install 'cuframes[cli]'", name="av"
        ) from None
    return _loaded
