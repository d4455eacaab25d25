"""The checks that every request passes first (host name, token, size), and the access log."""

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
# Open without a token: the page, which holds no data and asks for the token, and the health check.
OPEN_PATHS = frozenset({"/", "/page.js", "/page.css", "/health"})


class Guard:
    """ASGI middleware.

    - The Host header must be a name of this service. A hostile page that uses DNS rebinding sends its own host name.
    - If a token is set, requests must carry it, except for the page and ``/health``.
    - A body has at most 64 KiB.
    - HEAD is answered wherever GET is: like GET, without the body.

    Time limits for requests are the task of the connection (``server``).
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
                message = {**message, "body": b""}  # Content-Length stays
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
            # The page polls every second. Requests that change something, or fail, are of more interest.
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
                f"unknown Host header {host!r}; if it is a name of this service, add it with --allow-host",
            )
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                return problem(
                    HTTPStatus.UNAUTHORIZED,
                    "the service requires its token; send the header Authorization: Bearer TOKEN",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _body(method: str, headers: Headers, receive: Receive) -> tuple[Response | None, bytes]:
    """Read a request's body. Returns a refusal or None, and the body."""
    if method != "POST":  # no other method has a body that is read
        return None, b""
    too_large = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body of a request has at most {MAX_BODY} bytes")
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY:
        return too_large, b""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return problem(HTTPStatus.BAD_REQUEST, "the request is incomplete"), b""
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return too_large, b""
        if not message.get("more_body"):
            return None, body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Make a receive function that gives the application a body that was read already."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return dict(await receive())
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
