"""A folder of pictures to a folder of assets: resumable, one report, failures listed."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import maquette
from maquette.device import choose_device
from maquette.errors import InvalidInputError, MaquetteError
from maquette.generation import GeneratedAssets, MadeViews, ViewOptions, generate_from, make_views
from maquette.io import IMAGE_SUFFIXES
from maquette.io.atomic import atomic_write_text
from maquette.pipelines import FORMATS, Reconstruct, output_folder
from maquette.rendering import Turntable
from maquette.surface import SurfaceOptions

if TYPE_CHECKING:
    from maquette.models.mvdream.pipeline import MultiViewPipeline

BATCH_JSON, BATCH_HTML = "batch.json", "batch.html"
FORMAT = "maquette-batch/1"
BatchProgress = Callable[[str, str, int, int], None]
"""Called with (picture, "done" | "kept" | what went wrong, pictures finished, pictures in all)."""


@dataclass(frozen=True)
class BatchResult:
    """How a batch ended.

    Attributes:
        done, kept: pictures finished now, and by an earlier call.
        failures: picture to reason.
        report: the HTML report; the JSON one lies beside it.
    """

    done: int
    kept: int
    failures: dict[str, str]
    report: Path


def generate_batch(
    pictures: str | Path,
    output: str | Path,
    options: ViewOptions | None = None,
    *,
    generator: str | MultiViewPipeline = "mvdream-mini",
    generator_weights: str | Path | None = None,
    model: str | Path | Reconstruct = "lgm-mini",
    formats: str | Sequence[str] = FORMATS,
    views_only: bool = False,
    device: str | torch.device | None = None,
    turntable: Turntable | None = None,
    surface: SurfaceOptions | None = None,
    progress: BatchProgress | None = None,
) -> BatchResult:
    """Makes an asset of every picture in a folder; pictures that an earlier call finished with the same settings stay.

    A picture that cannot be used is reported and costs only itself.

    Args:
        pictures: folder with `.png`, `.jpg`, `.jpeg` or `.webp` files; folders in it are not looked at.
        output: one folder per picture, `batch.json` and `batch.html`.
        options, generator, generator_weights, model, formats, device, turntable, surface: see `generate_from`.
        views_only: stop after the views.
        progress: called after every picture.

    Raises:
        InvalidInputError: no folder, no picture in it, or a setting that is wrong for all pictures.
        WeightsError: weights are missing or broken.
    """
    options = options or ViewOptions()
    source = Path(pictures)
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise InvalidInputError(f"{source} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    folder, place = output_folder(output), choose_device(device)
    if isinstance(generator, str):
        from maquette.generators import load_generator

        generator = load_generator(generator, generator_weights, device=place)
    if isinstance(model, (str, Path)) and not views_only:
        loaded: Reconstruct = maquette.load(model, device=place)
        settings_model, model = str(model), loaded
    else:
        settings_model = "none" if views_only else type(model).__name__
    listed = formats if isinstance(formats, str) else ",".join(formats)
    settings = {
        **dataclasses.asdict(options),
        "generator": generator.params.name,
        "generator_weights": None if generator_weights is None else _digest(Path(generator_weights)),
        "model": settings_model,
        "formats": "" if views_only else listed,
    }
    entries = _finished(folder, settings)
    names = _names(found)

    def make(path: Path, name: str) -> MadeViews | GeneratedAssets:
        target = folder / name
        if views_only:
            return make_views(path, target, options, generator=generator, name=name, device=place)
        how: dict[str, Any] = {"turntable": turntable, "surface": surface, "device": place, "formats": formats}
        return generate_from(path, target, options, generator=generator, model=model, name=name, **how)

    done, kept, failures = 0, 0, {}
    for number, path in enumerate(found, start=1):
        name, said = names[path], "kept"
        entry = {"picture": path.name, "sha256": _digest(path)}
        if not entry.items() <= entries.get(name, {}).items() or entries[name]["status"] != "done":
            try:
                entries[name] = {**entry, "status": "done", **_facts(make(path, name))}
                done, said = done + 1, "done"
            except (MaquetteError, OSError) as error:
                failures[path.name] = said = str(error)
                entries[name] = {**entry, "status": "failed", "reason": said}
            _write_reports(folder, settings, entries)
        else:
            kept += 1
        if progress is not None:
            progress(path.name, said, number, len(found))
    entries = {name: entries[name] for name in names.values()}  # pictures that are gone leave the report
    _write_reports(folder, settings, entries)
    return BatchResult(done, kept, failures, folder / BATCH_HTML)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """A folder name for each picture: its own, with the suffix where two would be the same."""
    stems = [path.stem.lower() for path in paths]
    return {path: path.stem if stems.count(path.stem.lower()) == 1 else path.name.replace(".", "-") for path in paths}


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finished(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of an earlier call with the same settings."""
    try:
        document = json.loads((folder / BATCH_JSON).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("settings") != settings:
        return {}
    return dict(document["pictures"])


def _facts(made: MadeViews | GeneratedAssets) -> dict[str, Any]:
    views = made if isinstance(made, MadeViews) else made.made
    results = () if isinstance(made, MadeViews) else made.results
    seconds = sum(views.timings_s.values()) + sum(sum(result.timings_s.values()) for result in results)
    return {
        "prepared": views.files["prepared"].name,
        "views": views.files["views"].name,
        "files": [path.name for result in results for path in result.files.values()],
        "warnings": [*views.warnings, *(text for result in results for text in result.warnings)],
        "seconds": round(seconds, 2),
    }


def _write_reports(folder: Path, settings: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    document = {"format": FORMAT, "maquette": maquette.__version__, "settings": settings, "pictures": entries}
    atomic_write_text(folder / BATCH_JSON, json.dumps(document, indent=1) + "\n")
    rows = "\n".join(_row(name, entry) for name, entry in entries.items())
    failed = sum(entry["status"] == "failed" for entry in entries.values())
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>maquette: {len(entries)} pictures</title>
<style>body{{font:15px sans-serif;margin:2em}}td{{padding:.6em;vertical-align:top;border-top:1px solid #ddd}}
img{{max-height:220px}}.failed{{color:#a00}}small{{color:#666}}</style></head>
<body><h1>{len(entries)} pictures, {failed} failed</h1><table>
{rows}
</table></body></html>
"""
    atomic_write_text(folder / BATCH_HTML, page)


def _row(name: str, entry: dict[str, Any]) -> str:
    title = html.escape(str(entry["picture"]))
    if entry["status"] == "failed":
        return f'<tr><td>{title}</td><td class="failed" colspan="3">{html.escape(str(entry["reason"]))}</td></tr>'

    def link(file: str) -> str:
        return html.escape(f"{name}/{file}", quote=True)

    sheets = [file for file in entry["files"] if file.endswith(".png")]
    pictures = "".join(f'<img src="{link(sheet)}" alt="novel views">' for sheet in sheets)
    files = " ".join(f'<a href="{link(file)}">{html.escape(file)}</a>' for file in entry["files"])
    notes = "<br>".join(html.escape(text) for text in entry["warnings"])
    seconds = f"{entry['seconds']:.1f} s"
    return (
        f"<tr><td>{title}<br><small>{seconds}</small></td>"
        f'<td><img src="{link(entry["prepared"])}" alt="prepared picture"></td>'
        f'<td><img src="{link(entry["views"])}" alt="views">{pictures}</td>'
        f"<td>{files}<br><small>{notes}</small></td></tr>"
    )
