"""What the page says, as HTML: progress, errors, reports, downloads. All that comes from outside is escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from maquette.app.jobs import JobState

ROUTE = "page"
"""Path under which the page's own files and viewers are served."""

_KINDS = {
    "glb": ("Mesh", ".glb", "textured triangles: Blender, Unity, Unreal, any glTF program"),
    "ply": ("Gaussians", ".ply", "3D Gaussian splats in full precision"),
    "splat": ("Gaussians", ".splat", "small, for web viewers"),
    "mp4": ("Turntable", ".mp4", "one turn around the object"),
}
_REPORTS = ("views-report.json", "report.json")


@dataclass(frozen=True)
class ResultFiles:
    """Names of the files of a finished job by what they are; "" where there is none.

    Attributes:
        ply, splat, glb, mp4: the asset.
        views: sheet of the generated views.
        sheet: sheet of the inputs and of novel views.
        prepared: the picture, cut out.
    """

    ply: str = ""
    splat: str = ""
    glb: str = ""
    mp4: str = ""
    views: str = ""
    sheet: str = ""
    prepared: str = ""

    @staticmethod
    def of(names: Sequence[str]) -> ResultFiles:
        """Sorts file names."""
        found: dict[str, str] = {}
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if suffix in _KINDS:
                found[suffix] = name
            elif suffix == "png":
                ending = stem.rpartition("-")[2]
                found[ending if ending in ("views", "prepared") else "sheet"] = name
        return ResultFiles(**found)


def file_url(job_id: str, name: str) -> str:
    """Where a file of a job is served, relative to the page."""
    return f"{ROUTE}/files/{quote(job_id, safe='')}/{quote(name, safe='')}"


def view_url(job_id: str, name: str) -> str:
    """Where a file of a job can be looked at from all sides, relative to the page."""
    return f"{ROUTE}/view/{quote(job_id, safe='')}/{quote(name, safe='')}"


def kept_url(route: str, key: str, name: str) -> str:
    """Where a file of the page's shelf, or a view of it, is served, relative to the page."""
    return f"{ROUTE}/{route}/{quote(key, safe='')}/{quote(name, safe='')}"


def waiting_html() -> str:
    """What is said while the inputs are read."""
    return '<div class="mq-progress" role="status"><div class="mq-line"><span>Reading the input</span></div></div>'


def surprise(error: BaseException) -> str:
    """Words for an error that nobody foresaw."""
    return f"something went wrong that should not ({type(error).__name__}); the server's log says more"


def progress_html(state: JobState, seconds: float) -> str:
    """Bar and words for a job that waits or runs.

    Args:
        state: of the job.
        seconds: since it was submitted.
    """
    if state.status == "queued":
        ahead = state.position - 1
        words = "Waiting for the job before this one" if ahead <= 0 else f"Waiting: {ahead + 1} jobs before this one"
    else:
        words = stage_words(state.stage)
    percent = round(100 * min(max(state.fraction, 0.0), 1.0))
    return (
        '<div class="mq-progress" role="status">'
        f'<div class="mq-line"><span>{escape(words)}</span><span>{percent}% · {seconds:.0f} s</span></div>'
        f'<div class="mq-track" role="progressbar" aria-label="Progress" aria-valuenow="{percent}">'
        f'<div class="mq-fill" style="width:{percent}%"></div></div></div>'
    )


def stage_words(stage: str) -> str:
    """A stage as a person would say it: its name with a capital, or what it is waiting for."""
    stage = stage.strip() or "starting"
    return stage[0].upper() + stage[1:]


def error_html(message: str) -> str:
    """What went wrong."""
    return f'<div class="mq-note mq-error" role="alert">{escape(message)}</div>'


def note_html(message: str) -> str:
    """Something to know."""
    return f'<div class="mq-note" role="status">{escape(message)}</div>' if message else ""


def report_html(state: JobState, reports: Sequence[dict[str, Any]], seed: int) -> str:
    """What was made, how long every stage took, and what may be wrong with it.

    Args:
        state: of the finished job.
        reports: of its views and of its asset, as `read_reports` gives them.
        seed: that was used.
    """
    stages = [item for report in reports for item in report.get("timings_s", {}).items()]
    total = sum(seconds for _, seconds in stages)
    facts = [f"{sum(r.get('gaussians') or 0 for r in reports):,} Gaussians"]
    faces = [r["mesh"].get("triangles") for r in reports if isinstance(r.get("mesh"), dict)]
    facts += [f"{count:,} triangles" for count in faces if isinstance(count, int)]
    facts += [f"{total:.1f} s of work"] if stages else []
    facts += [f"seed {seed}"]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in state.warnings)
    rows = "".join(
        f"<tr><td>{escape(stage_words(stage))}</td><td>{seconds:.1f} s</td></tr>"
        for stage, seconds in stages
        if seconds >= 0.05
    )
    return (
        f'<div class="mq-report"><p>{escape(" · ".join(facts))}</p>'
        + (f'<ul class="mq-warnings">{warnings}</ul>' if warnings else "")
        + (f"<details><summary>Seconds per stage</summary><table>{rows}</table></details>" if rows else "")
        + "</div>"
    )


def read_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The JSON reports among some files, views first; broken ones are left out."""
    found = []
    for name in _REPORTS:
        for path in paths:
            if path.name != name:
                continue
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict):
                found.append(content)
    return found


def downloads_html(job_id: str, files: ResultFiles, sizes: dict[str, int], stem: str = "asset") -> str:
    """Links to the files of an asset.

    Args:
        job_id: of the job.
        files: of the job.
        sizes: name to bytes.
        stem: under which they are saved.
    """
    links = [
        download_html(file_url(job_id, name), stem + suffix, f"{what} {suffix}", sizes.get(name, 0), hint)
        for kind, (what, suffix, hint) in _KINDS.items()
        if (name := getattr(files, kind))
    ]
    return f'<div class="mq-downloads">{"".join(links)}</div>'


def downloads_row(url: str, name: str, num_bytes: int) -> str:
    """The link to one mesh, alone."""
    return f'<div class="mq-downloads">{download_html(url, name, "Mesh .glb", num_bytes, name)}</div>'


def download_html(url: str, name: str, label: str, num_bytes: int, hint: str = "") -> str:
    """One link that saves a file."""
    return (
        f'<a class="mq-download" href="{escape(url)}" download="{escape(name)}" title="{escape(hint)}">'
        f"<b>{escape(label)}</b> <span>{size_text(num_bytes)}</span></a>"
    )


def file_stem(caption: str) -> str:
    """A name for files of a caption: its letters and digits, the rest as hyphens."""
    words = re.findall(r"[^\W_]+", caption)
    return "-".join(words)[:60].strip("-") or "asset"


def size_text(num_bytes: int) -> str:
    """A file size for people, in powers of 1000."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    power = min(int(math.log10(num_bytes) // 3), 3)
    return f"{num_bytes / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}"


def picture_html(url: str, words: str) -> str:
    """A picture as wide as there is room; a click opens it alone."""
    return (
        f'<a class="mq-sheet" href="{escape(url)}" target="_blank" rel="noopener">'
        f'<img src="{escape(url)}" alt="{escape(words)}"></a>'
    )


def video_html(url: str) -> str:
    """A video that loops."""
    return f'<video class="mq-video" src="{escape(url)}" autoplay loop muted playsinline controls></video>'


def viewer_html(url: str, title: str) -> str:
    """A frame with the interactive view of an asset, shut off from the page around it."""
    return (
        f'<iframe class="mq-viewer" src="{escape(url)}" title="{escape(title)}" '
        'sandbox="allow-scripts allow-downloads" allow="fullscreen"></iframe>'
    )
