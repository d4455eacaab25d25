"""A Python client for the HTTP interface of the service."""

import json
from typing import Any

from cuframes._native.slot import DEFAULT_DEPTH
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory, ProtocolError, printable
from cuframes.formats import whole_number
from cuframes.framecache.parameters import check_slot_id, is_slot_id
from cuframes.framecache.slots import SlotInfo
from cuframes.rates import Rate, rate

__all__ = ["DEFAULT_URL", "Client"]

DEFAULT_PORT = 7435
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"


SlotInfos = list[SlotInfo]  # in the class, `list` is its method


class Client:
    """Create, list and remove slots through the service.

    Parameters
    ----------
    url : str
        Address of the service (``cuframes framecache serve``).
    token : str, optional
        Bearer token, if the service requires one.
    timeout : float
        Seconds that a call may take. Resolving the host name is not included: the resolver has a timeout of its own.

    Raises
    ------
    ValueError, TypeError
        The address, the token or the timeout is not valid.

    Notes
    -----
    Every method raises NotFound, AlreadyExists, OutOfSharedMemory, PermissionError or ValueError if the service reports
    that error. It raises ConnectionError if no complete answer arrives within `timeout` seconds, and ProtocolError if
    the answer does not come from a framecache service. A client keeps no connection open and need not be closed.
    """

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._parts = _split(url)
        if token is not None and not (token and all("!" <= c <= "~" for c in token)):
            raise ValueError("the token must be printable ASCII without spaces")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be seconds > 0, not {timeout!r}")
        self._token = token
        self._timeout = float(timeout)

    def __repr__(self) -> str:
        return f"<Client {self.url}>"  # the token is a secret

    def create(
        self,
        slot_id: str,
        width: int,
        height: int,
        format: str = "uyvy422",
        *,
        fps: Rate = 25,
        ring_depth: int = DEFAULT_DEPTH,
        source_type: str = "",
    ) -> SlotInfo:
        """Create a slot; see :func:`create_slot`. If a slot with the same parameters exists and has no writer, it is
        returned instead.
        """
        per_second = rate(fps)
        body = {
            "slot_id": slot_id,
            "width": whole_number(width, "width"),
            "height": whole_number(height, "height"),
            "fps_num": per_second.numerator,
            "fps_den": per_second.denominator,
            "pixel_format": format,
            "source_type": source_type,
            "ring_depth": whole_number(ring_depth, "ring_depth"),
        }
        return self._slot(self._call("POST", "/slots", (200, 201), body))

    def list(self) -> SlotInfos:
        """All slots."""
        found = self._call("GET", "/slots", (200,))
        if not isinstance(found, list):
            raise self._stranger("its answer is not a list of slots")
        return [self._slot(entry) for entry in found]

    def get(self, slot_id: str) -> SlotInfo:
        """One slot."""
        return self._slot(self._call("GET", f"/slots/{check_slot_id(slot_id)}", (200,)))

    def remove(self, slot_id: str) -> None:
        """Remove a slot and its semaphore; see :func:`remove_slot`."""
        self._call("DELETE", f"/slots/{check_slot_id(slot_id)}", (204,))

    def health(self) -> dict[str, Any]:
        """``status`` (``"ok"``, or ``"degraded"`` with a ``problem``), ``version``, ``uptime_s``, ``slots``,
        ``bytes_used``, ``bytes_free``.
        """
        answer = self._call("GET", "/health", (200,))
        if not isinstance(answer, dict) or "status" not in answer:
            raise self._stranger("its answer is not a health report")
        return answer

    def _call(self, method: str, path: str, expected: tuple[int, ...], body: dict[str, Any] | None = None) -> Any:
        # Imported here: it takes most of the import time, and writers and readers do not need it.
        from http.client import HTTPException

        from cuframes.framecache.exchange import exchange

        data = None if body is None else json.dumps(body).encode()
        headers = {"Connection": "close", "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            status, content = exchange(self._parts, method, path, data, headers, self._timeout)
        except TimeoutError:
            raise ConnectionError(
                f"no framecache service answered at {self.url} within {self._timeout:g} s; the service is overloaded, "
                "or another program listens there"
            ) from None
        except OSError as problem:  # before the next one: a server that hangs up is both
            raise ConnectionError(
                f"no framecache service answers at {self.url} ({problem}); start it with cuframes framecache serve"
            ) from None
        except HTTPException as problem:
            what = _plain(" ".join(f"{type(problem).__name__}: {problem}".split()))
            raise self._stranger(f"its answer is not valid HTTP, or incomplete ({what})") from None
        except UnicodeError as problem:
            raise ValueError(f"{self.url} has no valid host name ({problem})") from None
        try:
            answer = json.loads(content) if content else None
        except (ValueError, RecursionError):
            if 200 <= status < 300:
                raise self._stranger("its answer is not JSON") from None
            answer = None
        if status not in expected:
            raise self._error(status, answer)
        return answer

    def _stranger(self, why: str) -> ProtocolError:
        return ProtocolError(f"{self.url} is not a framecache service: {why}; check --url and CUFRAMES_FRAMECACHE_URL")

    def _slot(self, entry: Any) -> SlotInfo:
        """Make a slot from an answer. Every value's type is checked here, so that no later code has to."""
        if not isinstance(entry, dict):
            raise self._stranger("a slot in its answer is not a JSON object")
        entry = SlotInfo._field_defaults | entry  # an older service does not say what pictures look like
        for name, kinds in TYPES.items():
            value = entry.get(name, ())
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            if isinstance(value, str):
                fits = fits and (is_slot_id(value) if name == "slot_id" else value == _plain(value))
            elif isinstance(value, int):
                fits = fits and abs(value) < 2**64
            if not fits:
                raise self._stranger(f"a slot in its answer has no valid {name}")
        return SlotInfo(**{name: entry[name] for name in SlotInfo._fields})

    def _error(self, status: int, problem: Any) -> Exception:
        """The exception for an error status and its problem document."""
        if not isinstance(problem, dict) or not isinstance(problem.get("detail"), str):
            if status >= 500:
                return CuframesError(f"{self.url} answered with status {status} and no reason; see the service's log")
            return self._stranger(f"it answered with status {status} and without a problem document")
        detail = _plain(problem["detail"])
        if status == 404:
            return NotFound(detail)
        if status == 409:
            return AlreadyExists(detail)
        if status == 507:
            needed, free = (
                value if isinstance(value, int) else None
                for value in (problem.get("bytes_needed"), problem.get("bytes_free"))
            )
            return OutOfSharedMemory(detail, needed, free)
        if status in (401, 403):
            return PermissionError(detail)
        if status in (400, 413, 415, 421, 422):
            return ValueError(detail)
        return CuframesError(detail)


# The types of a slot's values in JSON.
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(SlotInfo._fields, (int,)),
    **dict.fromkeys(("slot_id", "pixel_format", "source_type"), (str,)),
    **dict.fromkeys(("fps", "last_frame_age_s"), (int, float, type(None))),
    **dict.fromkeys(SlotInfo._field_defaults, (str, type(None))),
    **dict.fromkeys(("writer_pid", "rotation"), (int, type(None))),
}


def _plain(text: str) -> str:
    """Text that is safe on a terminal, 1000 characters at most."""
    return printable(text[:1000])


def _split(url: str) -> Any:
    """Split the service's address into its parts. Raises ValueError if it is not valid."""
    from urllib.parse import urlsplit

    try:
        if not url.isprintable() or " " in url:  # urlsplit silently drops some of these
            raise ValueError("it has spaces or control characters")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("it must begin with http:// or https://")
        if not parts.hostname:
            raise ValueError("it has no host name")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("only a host, a port and a path may follow the scheme")
        parts.port  # noqa: B018 (it raises)
        if not parts.path.isascii():
            raise ValueError("its path must be ASCII")
    except ValueError as problem:
        raise ValueError(f"{url!r} is not the address of a service ({problem}); use one like {DEFAULT_URL}") from None
    return parts
