"""The service's HTTP interface, from Python."""

import json
from typing import Any

from cuframes._native.slot import DEFAULT_DEPTH
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory, ProtocolError, printable
from cuframes.formats import whole_number
from cuframes.framecache.parameters import Rate, check_slot_id, is_slot_id, rate
from cuframes.framecache.slots import SlotInfo

__all__ = ["DEFAULT_URL", "Client"]

DEFAULT_PORT = 7435
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"


class Client:
    """Create, list and remove slots through the service.

    Parameters
    ----------
    url : str
        Where ``cuframes framecache serve`` listens.
    token : str, optional
        Its bearer token, if it wants one.
    timeout : float
        Seconds that a call may take, after the host's name was found: the resolver has a limit of its own.

    Raises
    ------
    ValueError, TypeError
        The address, the token or the timeout is none.

    Notes
    -----
    Every method raises NotFound, AlreadyExists, OutOfSharedMemory, PermissionError or ValueError as the service's
    answer says; ConnectionError when there is none within `timeout` seconds, however slowly it comes; and ProtocolError
    when what answers is not the service. It keeps no connection and needs no closing.
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
        """Create a slot; see :func:`create_slot`. One that is there with the same parameters and without a writer is as
        good.
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

    def list(self) -> list[SlotInfo]:
        """All slots."""
        found = self._call("GET", "/slots", (200,))
        if not isinstance(found, list):
            raise self._stranger("its list of slots is none")
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
            raise self._stranger("its health is none")
        return answer

    def _call(self, method: str, path: str, expected: tuple[int, ...], body: dict[str, Any] | None = None) -> Any:
        # Here, since it is most of the import time, and writers and readers need none of it.
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
                f"no framecache service answered at {self.url} within {self._timeout:g} s; it is overloaded, or "
                "something else listens there"
            ) from None
        except OSError as problem:  # before the next one: a server that hangs up is both
            raise ConnectionError(
                f"no framecache service answers at {self.url} ({problem}); start it with cuframes framecache serve"
            ) from None
        except HTTPException as problem:
            what = _plain(" ".join(f"{type(problem).__name__}: {problem}".split()))
            raise self._stranger(f"what came is no whole answer of HTTP ({what})") from None
        except UnicodeError as problem:
            raise ValueError(f"{self.url} names no host ({problem})") from None
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
        return ProtocolError(f"{self.url} is no framecache service: {why}; see --url and CUFRAMES_FRAMECACHE_URL")

    def _slot(self, entry: Any) -> SlotInfo:
        """A slot from an answer, every value of its type: what is done with them is not to be surprised."""
        if not isinstance(entry, dict):
            raise self._stranger("a slot in its answer is none")
        for name, kinds in TYPES.items():
            value = entry.get(name, ())
            fits = isinstance(value, kinds) and not isinstance(value, bool)
            if isinstance(value, str):
                fits = fits and (is_slot_id(value) if name == "slot_id" else value == _plain(value))
            elif isinstance(value, int):
                fits = fits and abs(value) < 2**64
            if not fits:
                raise self._stranger(f"a slot in its answer has no {name}, or none that can be")
        return SlotInfo(**{name: entry[name] for name in SlotInfo._fields})

    def _error(self, status: int, problem: Any) -> Exception:
        """The exception that a problem document stands for."""
        if not isinstance(problem, dict) or not isinstance(problem.get("detail"), str):
            if status >= 500:
                return CuframesError(f"{self.url} answered with status {status}, and does not say why; see its log")
            return self._stranger(f"it answered with status {status}, and nothing that the service would say")
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


# What a slot's values are, in JSON.
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(SlotInfo._fields, (int,)),
    **dict.fromkeys(("slot_id", "pixel_format", "source_type"), (str,)),
    **dict.fromkeys(("fps", "last_frame_age_s"), (int, float, type(None))),
    "writer_pid": (int, type(None)),
}


def _plain(text: str) -> str:
    """Text for a terminal, and not more than fits one."""
    return printable(text[:1000])


def _split(url: str) -> Any:
    """The parts of the service's address. Raises ValueError if it is none."""
    from urllib.parse import urlsplit

    try:
        if not url.isprintable() or " " in url:  # urlsplit leaves some of these out
            raise ValueError("it has spaces or control characters")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("it must begin with http:// or https://")
        if not parts.hostname:
            raise ValueError("it names no host")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("it must have no more than a host, a port and a path")
        parts.port  # noqa: B018 (it raises)
        if not parts.path.isascii():
            raise ValueError("its path must be ASCII")
    except ValueError as problem:
        raise ValueError(f"{url!r} is no address of a service ({problem}); give one like {DEFAULT_URL}") from None
    return parts
