"""What happens behind the "Create" tab: from its fields to a job, and from a finished job to what is shown."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maquette.app import page_words as words
from maquette.errors import InvalidInputError, MaquetteError

if TYPE_CHECKING:
    from maquette.app.jobs import JobQueue, JobState
    from maquette.app.limits import Limits
    from maquette.app.request import GenerateRequest

Source = Literal["picture", "sentence", "views"]
MODEL_WITHOUT_CHOICE = "lgm-mini"
FAST, FITTED = "fast", "fitted"

_POLL_S = 0.25
_MAX_SEED = 2**32


@dataclass(frozen=True)
class Fields:
    """What the fields of the tab hold.

    Texts that were never touched are None.

    Attributes:
        source: which of the inputs counts.
        picture: file of the picture, or None.
        words: about the picture; may be empty.
        sentence: of the input by sentence.
        views: .zip file of four posed views, or None.
        model: registry name.
        quality: of the mesh, "fast" or "fitted".
        seed: 0..2**32 - 1.
        random_seed: draw another seed.
        steps, guidance: of the generator of views; 0 or None takes its own.
        negative: what not to show.
    """

    source: Source = "picture"
    picture: str | None = None
    words: str | None = ""
    sentence: str | None = ""
    views: str | None = None
    model: str | None = MODEL_WITHOUT_CHOICE
    quality: str = FAST
    seed: float | None = 0
    random_seed: bool = False
    steps: float | None = 0
    guidance: float | None = 0
    negative: str | None = ""


@dataclass(frozen=True)
class Shown:
    """A finished job as the page shows it, all HTML.

    Attributes:
        report, downloads, views, gaussians, mesh, video: parts of the result; "" where there is none.
    """

    report: str
    downloads: str
    views: str
    gaussians: str
    mesh: str
    video: str


def models_with_weights() -> list[str]:
    """Names of the models whose weights are on this machine, those that ship first."""
    from maquette.registry import MODELS
    from maquette.weights import find_weights

    return [name for name in MODELS if find_weights(name) is not None]


def request_of(fields: Fields, limits: Limits) -> GenerateRequest:
    """The job that the fields ask for.

    Args:
        fields: of the tab.
        limits: of uploads.

    Raises:
        MaquetteError: something is missing, too large or out of range.
    """
    from maquette.app.request import GenerateRequest

    seed = secrets.randbelow(_MAX_SEED) if fields.random_seed else _whole(fields.seed, "the seed")
    picture = views = None
    prompt = fields.sentence or ""
    if fields.source == "picture":
        if fields.picture is None:
            raise InvalidInputError("there is no picture yet: choose, drop or paste one, or take an example")
        picture, prompt = _bytes(fields.picture, limits), fields.words or ""
    elif fields.source == "views":
        if fields.views is None:
            raise InvalidInputError("there are no views yet: choose a .zip with transforms.json and four pictures")
        views, prompt = _bytes(fields.views, limits), ""
    elif not prompt.strip():
        raise InvalidInputError("there is no sentence yet: say what to make, such as: a wooden chair")
    request = GenerateRequest(
        picture=picture,
        views=views,
        prompt=prompt.strip(),
        negative_prompt=(fields.negative or "").strip() if fields.source != "views" else "",
        model=fields.model or MODEL_WITHOUT_CHOICE,
        seed=seed,
        steps=_whole(fields.steps, "steps") or None,
        guidance=fields.guidance or None,
        fit_mesh=fields.quality == FITTED,
    )
    limits.check(request)
    return request


def caption_of(fields: Fields) -> str:
    """A few words about an input, for the gallery."""
    if fields.source == "sentence":
        return (fields.sentence or "").strip()[:60]
    if fields.source == "views":
        return Path(fields.views or "views").stem[:60]
    return (fields.words or "").strip()[:60] or Path(fields.picture or "picture").stem[:60]


async def follow(queue: JobQueue, job_id: str) -> AsyncIterator[tuple[JobState, float]]:
    """States of a job, and the seconds since the start, until it is over.

    Raises:
        MaquetteError: the job is not there any more.
    """
    start = time.monotonic()
    while True:
        state = queue.state(job_id)
        yield state, time.monotonic() - start
        if state.status not in ("queued", "running"):
            return
        await asyncio.sleep(_POLL_S)


def shown(queue: JobQueue, state: JobState, caption: str, seed: int) -> Shown:
    """What the page shows of a finished job; saved files are named after the caption.

    Raises:
        MaquetteError: the job is not there any more.
    """
    job, files = state.id, words.ResultFiles.of(state.files)
    paths = [queue.file(job, name) for name in state.files]
    sizes = {path.name: path.stat().st_size for path in paths if path.exists()}
    sheet = files.views or files.sheet
    return Shown(
        report=words.report_html(state, words.read_reports(paths), seed),
        downloads=words.downloads_html(job, files, sizes, words.file_stem(caption)),
        views=words.picture_html(words.file_url(job, sheet), "The four views") if sheet else "",
        gaussians=words.viewer_html(words.view_url(job, files.ply), "The Gaussians, to turn") if files.ply else "",
        mesh=words.viewer_html(words.view_url(job, files.glb), "The mesh, to turn") if files.glb else "",
        video=words.video_html(words.file_url(job, files.mp4)) if files.mp4 else "",
    )


def thumbnail_of(queue: JobQueue, state: JobState, size: int = 192) -> bytes | None:
    """A small PNG of the Gaussians of a job for the gallery; None when they are not there any more."""
    import io

    from PIL import Image

    from maquette.cameras import Cameras
    from maquette.io import read_gaussians
    from maquette.rendering import render

    with contextlib.suppress(MaquetteError, OSError):
        gaussians = read_gaussians(queue.file(state.id, words.ResultFiles.of(state.files).ply))
        picture = render(gaussians, Cameras.orbit([30.0], 12.0, height=size, width=size))[0]
        stream = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).mul(255).round().byte().numpy()).save(stream, "PNG")
        return stream.getvalue()
    return None


def _bytes(path: str, limits: Limits) -> bytes:
    with Path(path).open("rb") as stream:
        return stream.read(limits.max_upload_bytes + 1)  # one more, so that what is too large is seen to be


def _whole(value: float | None, what: str) -> int:
    if value is None:
        return 0
    if value != int(value):
        raise InvalidInputError(f"{what} must be a whole number, got {value:g}")
    return int(value)
