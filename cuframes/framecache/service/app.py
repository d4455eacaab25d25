"""The HTTP interface: its routes, requests and answers."""

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, FastAPI, Path, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

from cuframes._native.slot import DEFAULT_DEPTH, MAX_SOURCE_TYPE, MIN_DEPTH
from cuframes._version import __version__
from cuframes.errors import NotFound
from cuframes.formats import ALIASES, MAX_SIDE
from cuframes.framecache.parameters import (
    CODES,
    MAX_DEPTH,
    MAX_FPS_PART,
    NAMES,
    REGISTRY,
    SLOT_ID,
    SlotParameters,
)
from cuframes.framecache.service.guard import LOOPBACK_NAMES, Guard
from cuframes.framecache.service.metrics import Metrics
from cuframes.framecache.service.problems import Problem, answers, install
from cuframes.framecache.service.registry import Registry
from cuframes.framecache.service.thumbnails import Thumbnails
from cuframes.framecache.slots import SlotInfo

__all__ = ["create_app"]

PAGE = files("cuframes.framecache.service") / "page"
PAGE_TYPES = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

SlotId = Annotated[str, Field(pattern=f"^{SLOT_ID}$", examples=["sdi0"])]


def _no_slot(slot_id: str) -> str:
    if slot_id == REGISTRY:  # a file in the slots' directory, but never one of them
        raise NotFound(f"there is no slot {slot_id!r}: the name is reserved for the service")
    return slot_id


SlotPath = Annotated[str, Path(pattern=f"^{SLOT_ID}$", examples=["sdi0"]), AfterValidator(_no_slot)]


class SlotRequest(BaseModel):
    """A slot to be created."""

    model_config = ConfigDict(extra="forbid", strict=True)

    slot_id: SlotId
    width: Annotated[int, Field(ge=1, le=MAX_SIDE, examples=[1920])]
    height: Annotated[int, Field(ge=1, le=MAX_SIDE, examples=[1080])]
    fps_num: Annotated[int, Field(ge=1, le=MAX_FPS_PART, examples=[60000])]
    fps_den: Annotated[int, Field(ge=1, le=MAX_FPS_PART, examples=[1001])]
    pixel_format: Annotated[
        str | int,
        Field(
            description="FFmpeg's, GStreamer's or V4L2's name, or the code in the slot's header: 0 for uyvy422",
            examples=["uyvy422"],
            json_schema_extra={"enum": [*CODES, *ALIASES, *NAMES]},
        ),
    ]
    source_type: Annotated[
        str,
        Field(max_length=MAX_SOURCE_TYPE, description=f"At most {MAX_SOURCE_TYPE} bytes of UTF-8", examples=["sdi"]),
    ]
    ring_depth: Annotated[int, Field(ge=MIN_DEPTH, le=MAX_DEPTH)] = DEFAULT_DEPTH

    def parameters(self) -> SlotParameters:
        """The request as SlotParameters, checked also for rules that concern several fields."""
        values = self.model_dump()
        if isinstance(self.pixel_format, int):
            values["pixel_format"] = NAMES.get(self.pixel_format, str(self.pixel_format))
        try:
            return SlotParameters(**values).checked()
        except (ValueError, TypeError) as problem:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, str(problem)) from None


DESCRIPTIONS = {
    "frame_size": "Bytes of a frame",
    "size": "Bytes of the slot's file",
    "write_cursor": "Frames ever written",
    "fps": "Measured over the last 2 s; null: unknown",
    "last_frame_age_s": "Age of the newest frame; null: unknown",
    "writer_pid": "0: unknown; null: no process holds the slot's lock",
    "dropped_frames": "Frames that the source lost",
    "color_range": "tv (limited) or pc (full); null: not said, like the other names of FFmpeg here",
    "sample_aspect_ratio": "Width of a sample to its height, like 64:45",
    "rotation": "Degrees by which the picture must be turned clockwise to be upright",
}
FIELDS: dict[str, Any] = {
    name: (kind, Field(description=DESCRIPTIONS.get(name))) for name, kind in get_type_hints(SlotInfo).items()
}
Slot: Any = create_model("Slot", __doc__="State of a slot.", **FIELDS)


class Health(BaseModel):
    """Health of the service."""

    status: Annotated[str, Field(description="ok, or degraded: the service works, but has a problem")]
    version: str
    uptime_s: float
    slots: int
    bytes_used: int
    bytes_free: int
    problem: Annotated[str | None, Field(description="What the problem is; null: there is none")]


def json_only(request: Request) -> None:
    """Refuse content types that a browser sends to another site without a CORS preflight request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with Content-Type: application/json")


def create_app(
    registry: Registry, *, token: str | None = None, allowed_hosts: Iterable[str] = LOOPBACK_NAMES
) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    registry : Registry
    token : str, optional
        Bearer token that requests must carry.
    allowed_hosts : iterable of str
        Names that are accepted in a request's Host header.
    """
    began = time.monotonic()
    metrics, thumbnails = Metrics(registry), Thumbnails()
    # /health has its own threads, so that it answers while all others wait for memory to be reserved.
    for_health = ThreadPoolExecutor(2, "health")
    app = FastAPI(title="cuframes framecache", version=__version__, docs_url=None, redoc_url=None)
    install(app)
    app.add_middleware(Guard, hosts=allowed_hosts, token=token)
    refusals = (401,) if token is not None else ()

    @app.post(
        "/slots",
        status_code=HTTPStatus.CREATED,
        response_model=Slot,
        dependencies=[Depends(json_only)],
        responses={
            200: {"model": Slot, "description": "The slot existed already, with these parameters"},
            **answers(400, 403, 409, 413, 415, 422, 507, *refusals),
        },
    )
    def create(request: SlotRequest, response: Response) -> dict[str, Any]:
        """Create a slot: its file and its semaphore. A slot that has a writer or other parameters is a conflict."""
        slot, is_new = registry.create(request.parameters())
        if not is_new:
            response.status_code = HTTPStatus.OK
        return slot._asdict()

    @app.get("/slots", response_model=list[Slot], responses=answers(*refusals))
    def slots() -> list[dict[str, Any]]:
        """All slots, by slot_id."""
        return [slot._asdict() for slot in registry.slots()]

    @app.get("/slots/{slot_id}", response_model=Slot, responses=answers(404, 422, *refusals))
    def slot(slot_id: SlotPath) -> dict[str, Any]:
        """One slot."""
        return registry.slot(slot_id)._asdict()

    @app.delete("/slots/{slot_id}", status_code=HTTPStatus.NO_CONTENT, responses=answers(403, 404, 422, *refusals))
    def remove(slot_id: SlotPath) -> None:
        """Remove a slot and its semaphore. Its readers can read the remaining frames, and are then disconnected."""
        registry.remove(slot_id)

    @app.get(
        "/slots/{slot_id}/thumbnail.jpg",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **answers(404, 422, *refusals)},
    )
    def thumbnail(slot_id: SlotPath) -> Response:
        """The newest frame as a small picture, made at most once a second. The ETag is the frame's number."""
        number, picture = thumbnails.get(slot_id)
        headers = {"Cache-Control": "no-store", "ETag": f'"{number}"'}
        return Response(picture, media_type="image/jpeg", headers=headers)

    @app.get("/health")
    async def health() -> Health:
        """Whether the service works, and how much memory is used and free."""
        found = await asyncio.get_running_loop().run_in_executor(for_health, registry.health)
        status = "ok" if found["problem"] is None else "degraded"
        return Health(status=status, version=__version__, uptime_s=round(time.monotonic() - began, 1), **found)

    @app.get("/metrics", response_class=PlainTextResponse, responses=answers(*refusals))
    def prometheus() -> PlainTextResponse:
        """Metrics for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for name, media_type in PAGE_TYPES.items():
        path = "/" if name == "page.html" else f"/{name}"
        app.get(path, include_in_schema=False)(_file(name, media_type))
    _describe_problems(app)
    return app


def _file(name: str, media_type: str) -> Any:
    content = (PAGE / name).read_bytes()

    def page() -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return page


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of the problem document, which the routes refer to, to /openapi.json."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return description

    app.openapi = openapi  # type: ignore[method-assign]
