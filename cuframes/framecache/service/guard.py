"""What every request passes first: is it meant for us, from somebody who may, and of bearable size? And its log."""

import hmac
import logging
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cuframes.framecache.service.problems import problem

__all__ = ["LOOPBACK_NAMES", "MAX_BODY", "Guard"]

log = logging.getLogger("cuframes.framecache.access")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
MAX_BODY = 64 * 1024
# Without a token: the page itself, which holds no data and asks for the token, and what tells whether we live.
OPEN_PATHS = frozenset({"/", "/page.js", "/page.css", "/health"})


class Guard:
    """ASGI middleware.

    - The Host header must name us: a page whose host name was made to point here (DNS rebinding) sends its own.
    - With a token set, requests carry it, except for the page and ``/health``.
    - A body has at most 64 KiB.
    - HEAD is answered wherever GET is, as GET without the body.

    How long requests may take to come is the connection's business (``server``).
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str] = LOOPBACK_NAMES, token: str | None = None) -> None:
        self.app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}  # its length stays announced
            await send(message)

        try:
            headers = Headers(scope=scope)
            refusal = self._refusal(scope, headers)
            body = b""
            if refusal is None:
                refusal, body = await _body(scope["method"], headers, receive)
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self.app(asked, _replay(body, receive), sending)
        finally:
            # The page asks every second; what changes something, or fails, is of more interest.
            level = logging.DEBUG if status < 400 and scope["method"] in ("GET", "HEAD") else logging.INFO
            details = {
                "method": scope["method"],
                "path": scope["path"],
                "status": int(status),
                "ms": round((time.perf_counter() - began) * 1000, 2),
                "client": (scope.get("client") or ("unknown",))[0],
            }
            log.log(level, "request", extra=details)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts:
            return problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this is no host name of the service: {host!r}; name it with --allow-host if it is",
            )
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                return problem(
                    HTTPStatus.UNAUTHORIZED,
                    "the service wants its token: Authorization: Bearer ...",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _body(method: str, headers: Headers, receive: Receive) -> tuple[Response | None, bytes]:
    """A request's body, or why it is not taken."""
    if method != "POST":  # nothing else has one that is read
        return None, b""
    too_large = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MAX_BODY} bytes")
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY:
        return too_large, b""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return problem(HTTPStatus.BAD_REQUEST, "the request was not whole"), b""
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return too_large, b""
        if not message.get("more_body"):
            return None, body


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application gets to see of a body that was read already."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return dict(await receive())
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
