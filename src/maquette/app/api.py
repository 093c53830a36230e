"""The HTTP API: submit a job, ask for its state, cancel it, fetch its files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import maquette
from maquette.app.api_page import api_page
from maquette.app.jobs import JobQueue, JobState, QueueFullError, UnknownFileError, UnknownJobError
from maquette.app.limits import Limits, TooLargeError
from maquette.app.request import MAX_GUIDANCE, MAX_STEPS, GenerateRequest
from maquette.choices import CUT_OUTS, FORMATS
from maquette.errors import MaquetteError, MissingDependencyError
from maquette.registry import MODELS
from maquette.weights import find_weights

try:
    import python_multipart  # noqa: F401  (FastAPI reads forms with it)
    from fastapi import APIRouter, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
    from fastapi.routing import APIRoute
    from starlette.types import Message, Receive
except ImportError as missing:
    raise MissingDependencyError("the app needs FastAPI and Gradio: pip install 'maquette[app]'") from missing

RETRY_AFTER_S = 2
"""When a client may try again after a 503."""

_FORM_BYTES = 64_000
"""What a form may have besides its files."""

_MAX_READING = 4
"""Uploads that are in memory at once, besides those in the queue."""

_CHUNK_BYTES = 256 << 10
_MEDIA_TYPES = {
    ".png": "image/png",
    ".mp4": "video/mp4",
    ".glb": "model/gltf-binary",
    ".json": "application/json",
}


@dataclass(frozen=True)
class Problem:
    """What went wrong.

    Attributes:
        detail: in words.
    """

    detail: str


@dataclass(frozen=True)
class ModelInfo:
    """A model that jobs may name.

    Attributes:
        name: for the field `model`.
        summary: one line.
        from_one_picture: takes a picture and no prompt; the others take pictures, prompts, both or posed views.
        available: its weights are on this machine.
        license: of the weights.
    """

    name: str
    summary: str
    from_one_picture: bool
    available: bool
    license: str


@dataclass(frozen=True)
class Health:
    """How the server is.

    Attributes:
        status: "ok".
        version: of maquette.
        waiting, capacity: jobs in the queue, and how many it takes.
        limits: of uploads and jobs, see `maquette.app.limits.Limits`.
    """

    status: str
    version: str
    waiting: int
    capacity: int
    limits: dict[str, float]


def _field(description: str = "", **schema: Any) -> Any:
    """A field of a form whose bounds are only documented here: `GenerateRequest` checks them, in its own words."""
    return Form(description=description, json_schema_extra=schema)


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem, "description": _WORDS[code]} for code in codes}


_WORDS = {
    400: "the form cannot be read",
    403: "another web site's page asked for it",
    404: "no such job or file",
    413: "the upload has too many bytes",
    415: "the upload is not a form (multipart/form-data)",
    422: "a value is not valid",
    503: "the queue is full; try again after Retry-After seconds",
}


def build_api(queue: JobQueue, limits: Limits | None = None) -> FastAPI:
    """The API as an ASGI application: `/api/...`, `/openapi.json`, and a page about it at `/api/docs`.

    Args:
        queue: works off the jobs.
        limits: of uploads; the queue's own bounds were given to it.
    """
    limits = limits or Limits()
    app = FastAPI(
        title="maquette",
        version=maquette.__version__,
        summary="Pictures and sentences to Gaussian splats and meshes.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(_jobs_router(queue, limits))
    app.include_router(_about_router(queue, limits))
    app.add_api_route(
        "/api/docs", lambda: HTMLResponse(api_page(app.openapi())), include_in_schema=False, response_class=HTMLResponse
    )
    app.add_exception_handler(MaquetteError, _maquette_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    return app


def _jobs_router(queue: JobQueue, limits: Limits) -> APIRouter:
    router = APIRouter(prefix="/api/jobs", tags=["jobs"], route_class=_bounded_route(limits))
    reading = threading.Semaphore(_MAX_READING)

    @router.post(
        "", status_code=202, response_description="the job waits", responses=_problems(400, 403, 413, 415, 422, 503)
    )
    async def submit(
        response: Response,
        picture: Annotated[UploadFile | None, File(description="PNG, JPEG or WebP")] = None,
        views: Annotated[UploadFile | None, File(description=".zip of transforms.json and four pictures")] = None,
        prompt: Annotated[str, Form()] = "",
        negative_prompt: Annotated[str, Form()] = "",
        model: Annotated[str, _field("see /api/models", enum=list(MODELS))] = "lgm-mini",
        formats: Annotated[str, Form(description="with commas, of ply, splat, glb, mp4, png")] = ",".join(FORMATS),
        seed: Annotated[int, _field(minimum=0, maximum=2**32 - 1)] = 0,
        steps: Annotated[int | None, _field("of the sampler", minimum=1, maximum=MAX_STEPS)] = None,
        guidance: Annotated[float | None, _field(minimum=1, maximum=MAX_GUIDANCE)] = None,
        cut_out_by: Annotated[str | None, _field("how to find the object", enum=[*CUT_OUTS, ""])] = None,
        fit_mesh: Annotated[bool, Form()] = False,
    ) -> JobState:
        """Puts a job into the queue: a picture, a prompt, both, or a .zip of posed views."""
        values: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model": model,
            "formats": tuple(dict.fromkeys(part.strip().lower() for part in formats.split(","))),
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "cut_out_by": cut_out_by or None,
            "fit_mesh": fit_mesh,
        }
        uploads = {"picture": picture, "views": views}
        state = await run_in_threadpool(_submit, queue, limits, uploads, values, reading)
        response.headers["Location"] = f"/api/jobs/{state.id}"
        return state

    @router.get("/{job_id}", response_description="as it is now", responses=_problems(404, 422))
    def state(job_id: str) -> JobState:
        """The state of a job."""
        return queue.state(job_id)

    @router.delete("/{job_id}", response_description="as it is now", responses=_problems(403, 404, 422))
    def cancel(job_id: str) -> JobState:
        """Cancels a job that is not over; of one that is over, nothing changes."""
        return queue.cancel(job_id)

    @router.get(
        "/{job_id}/files/{name}",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/octet-stream": {}}, "description": "the file"},
            **_problems(404, 422),
        },
    )
    def file(job_id: str, name: str) -> StreamingResponse:
        """A file of a job, one of its state's `files`."""
        return _download(queue.file(job_id, name))

    return router


def _about_router(queue: JobQueue, limits: Limits) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["about"])

    @router.get("/models", response_description="all models")
    def models() -> list[ModelInfo]:
        """The models that jobs may name."""
        return [
            ModelInfo(
                entry.name,
                entry.summary,
                from_one_picture=entry.params.num_input_views == 1,
                available=find_weights(entry.name) is not None,
                license=entry.license,
            )
            for entry in MODELS.values()
        ]

    @router.get("/health", response_description="jobs are worked off", responses=_problems(503))
    def health() -> Health:
        """Whether jobs are worked off, and the limits."""
        if not queue.is_alive:
            raise HTTPException(503, "jobs are not worked off: the server is shutting down")
        return Health("ok", maquette.__version__, queue.num_waiting, queue.capacity, asdict(limits))

    return router


def _submit(
    queue: JobQueue,
    limits: Limits,
    uploads: dict[str, UploadFile | None],
    values: dict[str, Any],
    reading: threading.Semaphore,
) -> JobState:
    """Checks a request and puts it into the queue; few uploads at once are taken from the disk into memory."""
    with reading:
        queue.check_room()
        files: dict[str, Any] = {
            name: None if upload is None else upload.file.read() for name, upload in uploads.items()
        }
        request = GenerateRequest(**values, **files)
        limits.check(request)
        return queue.submit(request)


def _download(path: Path) -> StreamingResponse:
    """The file as an attachment, so that no browser shows it as a page of this server."""
    try:
        stream = path.open("rb")
    except OSError as error:  # its time was up between two lines of ours
        raise UnknownFileError(f"{path.name} was removed") from error
    headers = {
        "Content-Length": str(os.fstat(stream.fileno()).st_size),
        "Content-Disposition": f'attachment; filename="{path.name}"',
        "X-Content-Type-Options": "nosniff",
    }
    media_type = _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return StreamingResponse(_chunks(stream), headers=headers, media_type=media_type)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _bounded_route(limits: Limits) -> type[APIRoute]:
    """Routes that stop reading a body that is too long, whatever its Content-Length says or hides."""
    most = limits.max_upload_bytes + _FORM_BYTES

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                _refuse_other_sites(request)
                if request.method == "POST":
                    _check_headers(request, most)
                return await handle(Request(request.scope, _counted(request.receive, most)))

            return bounded

    return BoundedRoute


def _refuse_other_sites(request: Request) -> None:
    """Pages of other web sites may not start or cancel jobs on the visitor's own machine."""
    if request.method != "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise HTTPException(403, _WORDS[403])


def _check_headers(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    kind = request.headers.get("content-type", "multipart/form-data").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, f"send multipart/form-data with a picture, a prompt, both, or views; got {kind[:80]}")


def _counted(receive: Receive, most: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise _too_large(most)
        return message

    return counted


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the upload has more than {most:,} bytes; make it smaller", {"Connection": "close"})


def _answer(status: int, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    printable = words.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": printable}, status, {"X-Content-Type-Options": "nosniff", **(headers or {})})


async def _maquette_error(request: Request, error: Exception) -> JSONResponse:
    words = str(error)
    if isinstance(error, QueueFullError):
        return _answer(503, words, {"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, (UnknownJobError, UnknownFileError)):
        return _answer(404, words)
    return _answer(413 if isinstance(error, TooLargeError) else 422, words)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own answer would repeat the input, which may be no text at all."""
    assert isinstance(error, RequestValidationError)
    said = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
    return _answer(422, "; ".join(said)[:2000])
