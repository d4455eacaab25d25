"""Errors as problem documents (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from cuframes.errors import AlreadyExists, CuframesError, NotFound, OutOfSharedMemory

__all__ = ["PROBLEM_TYPE", "Problem", "answers", "install", "problem"]

log = logging.getLogger("cuframes.framecache")

PROBLEM_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem document. Extension members are further keys at the top level."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """A problem document as a response."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(document, status, headers, PROBLEM_TYPE)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of a route's error answers, for OpenAPI."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every error with a problem document."""

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # Starlette names the methods of the first route of this path; each of ours has one method.
            routes = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = {method for route in routes for method in getattr(route, "methods", ())}
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))  # see Guard
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"field": ".".join(map(str, entry["loc"][1:])) or str(entry["loc"][0]), "problem": entry["msg"]}
            for entry in error.errors()
        ]
        detail = "; ".join(f"{entry['field']}: {entry['problem']}" for entry in errors)
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)

    @app.exception_handler(NotFound)
    def missing(_: Request, error: NotFound) -> JSONResponse:
        return problem(HTTPStatus.NOT_FOUND, str(error))

    @app.exception_handler(AlreadyExists)
    def conflicting(_: Request, error: AlreadyExists) -> JSONResponse:
        return problem(HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(OutOfSharedMemory)
    def full(_: Request, error: OutOfSharedMemory) -> JSONResponse:
        return problem(HTTPStatus.INSUFFICIENT_STORAGE, str(error), bytes_needed=error.needed, bytes_free=error.free)

    @app.exception_handler(PermissionError)
    def forbidden(_: Request, error: PermissionError) -> JSONResponse:
        return problem(HTTPStatus.FORBIDDEN, f"the service has no permission for this: {error}")

    @app.exception_handler(CuframesError)
    @app.exception_handler(OSError)
    def failed(_: Request, error: Exception) -> JSONResponse:
        log.error("request failed", exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> JSONResponse:  # logged by the server
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error of the service: {type(error).__name__}; see its log"
        )
