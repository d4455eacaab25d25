"""The service's HTTP interface, from Python."""

import json
from typing import Any

from cuframes._cache import DEFAULT_DEPTH
from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory, ProtocolError
from cuframes.framecache.parameters import Rate, check_slot_id, rate
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
        Seconds that a call may take.

    Notes
    -----
    Every method raises NotFound, AlreadyExists, OutOfSharedMemory, PermissionError, ValueError or ProtocolError, as the
    service's answer says, and ConnectionError when there is none. It keeps no connection and needs no closing.
    """

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout: float = 10.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, not {url!r}")
        self.url = url.rstrip("/")
        self._token = token
        self._timeout = timeout

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
            "width": width,
            "height": height,
            "fps_num": per_second.numerator,
            "fps_den": per_second.denominator,
            "pixel_format": format,
            "source_type": source_type,
            "ring_depth": ring_depth,
        }
        return _slot(self._call("POST", "/slots", body))

    def list(self) -> list[SlotInfo]:
        """All slots."""
        return [_slot(entry) for entry in self._call("GET", "/slots")]

    def get(self, slot_id: str) -> SlotInfo:
        """One slot."""
        return _slot(self._call("GET", f"/slots/{check_slot_id(slot_id)}"))

    def remove(self, slot_id: str) -> None:
        """Remove a slot and its semaphore; see :func:`remove_slot`."""
        self._call("DELETE", f"/slots/{check_slot_id(slot_id)}")

    def health(self) -> dict[str, Any]:
        """``status``, ``version``, ``uptime_s``, ``slots``, ``bytes_used``, ``bytes_free``."""
        answer: dict[str, Any] = self._call("GET", "/health")
        return answer

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import urllib.error  # here, since they are most of the import time, and writers and readers need none of it
        import urllib.request

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is on this host
        try:
            with opener.open(request, timeout=self._timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as refusal:
            raise _error(refusal.code, refusal.read()) from None
        except (urllib.error.URLError, OSError) as problem:
            reason = getattr(problem, "reason", problem)
            raise ConnectionError(
                f"no framecache service answers at {self.url} ({reason}); start it with cuframes framecache serve"
            ) from None
        try:
            return json.loads(answer) if answer else None
        except ValueError:
            raise ProtocolError(f"{self.url} is no framecache service: its answer is not JSON") from None


def _slot(entry: Any) -> SlotInfo:
    try:
        return SlotInfo(**{name: entry[name] for name in SlotInfo._fields})
    except (TypeError, KeyError) as missing:
        raise ProtocolError(f"the answer is no slot ({missing} is missing); is this a framecache service?") from None


def _error(status: int, body: bytes) -> Exception:
    """The exception that a problem document stands for."""
    try:
        problem = json.loads(body)
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        problem, detail = {}, f"the service answered with status {status}"
    if status == 404:
        return NotFound(detail)
    if status == 409:
        return AlreadyExists(detail)
    if status == 507:
        return OutOfSharedMemory(detail, problem.get("bytes_needed"), problem.get("bytes_free"))
    if status in (401, 403):
        return PermissionError(detail)
    if status in (400, 413, 415, 421, 422):
        return ValueError(detail)
    return CuframesError(detail)
