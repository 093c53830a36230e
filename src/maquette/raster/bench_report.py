"""What a run of the rasterizer benchmark leaves behind: JSON, a Markdown table and a bar chart."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from maquette import __version__
from maquette.io.atomic import atomic_path, atomic_write_text
from maquette.raster.bench import Agreement, Measurement, SceneResult

FORMAT = "maquette-bench-raster/4"
COLORS = ("#2f6f4f", "#b0b7bd")
BAR_HEIGHT, GAP, LABEL_WIDTH, PLOT_WIDTH, MARGIN = 22, 26, 330, 520, 24


def machine(device: torch.device, commit: str | None = None) -> dict[str, str]:
    """What the numbers depend on: card or processor, versions, commit, date.

    Args:
        device: where the benchmark ran.
        commit: what to report when the sources are no git checkout.
    """
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or "none") if cuda else "none",
        "python": platform.python_version(),
        "maquette": __version__,
        "commit": commit or _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def write_report(
    results: Sequence[SceneResult], where: dict[str, str], folder: Path, name: str, notes: Sequence[str] = ()
) -> list[Path]:
    """Writes `name`.json, .md and .png into `folder` and returns their paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".json", ".md", ".png")]
    document = {
        "format": FORMAT,
        "machine": where,
        "scenes": [
            dataclasses.asdict(result) | {"speedup": result.speedup(), "official_speedup": _official_speedup(result)}
            for result in results
        ],
        "notes": list(notes),
    }
    atomic_write_text(paths[0], json.dumps(document, indent=2) + "\n")
    atomic_write_text(paths[1], markdown(results, where, notes))
    with atomic_path(paths[2]) as temporary:
        draw(results, where).save(temporary, format="PNG", optimize=True)
    return paths


def markdown(results: Sequence[SceneResult], where: dict[str, str], notes: Sequence[str] = ()) -> str:
    """The results as a table, with the machine above, and agreement and notes below it."""
    official = any(result.official_ms() is not None for result in results)
    extra, line = (" beside the official loop |", "---:|") if official else ("", "")
    lines = [
        "# Gaussian rasterizer: speed and memory",
        "",
        f"{where['device']}, torch {where['torch']}, CUDA {where['cuda']}, Python {where['python']}; "
        f"maquette {where['maquette']}, commit {where['commit']}, {where['date']}.",
        "",
        "Milliseconds are medians of direct calls of each backend. Forward renders colour, depth and alpha; with "
        "gradients adds those of all five tensors of the Gaussians. The speed compares times with gradients with the "
        "second backend of the scene. Peak memory is what a call with gradients adds at most to its input data; as "
        "in gsplat's documentation (docs.gsplat.studio, Profiling), the loss is the sum of the images. Own memory is "
        "that part of the peak of a call, to which the caller gives gradients of all images, that is neither the "
        "caller's (Gaussians, these gradients) nor a result (images, gradients of the Gaussians).",
        "",
        f"| scene | backend | forward ms | with gradients ms | speed |{extra} peak MiB | own MiB |",
        f"|---|---|---:|---:|---:|{line}---:|---:|",
    ]
    for result in results:
        lines += [_row(result, measurement, official) for measurement in result.measurements]
    agreements = [_agreement(result, agreement) for result in results for agreement in result.agreements]
    if agreements:
        lines += ["", "Agreement of the others with ours:", "", *agreements]
    if notes:
        lines += ["", *(f"{note}\n" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: SceneResult, measurement: Measurement, official: bool) -> str:
    compared = result.measurements[1].total_ms if len(result.measurements) > 1 else None
    cells = [
        result.scene.title,
        measurement.backend,
        f"{measurement.forward_ms:.2f}",
        f"{measurement.total_ms:.2f}",
        _times(compared, measurement),
        *([_times(result.official_ms(), measurement)] if official else []),
        *("" if mib is None else f"{mib:,.0f}" for mib in (measurement.peak_mib, measurement.own_mib)),
    ]
    return f"| {' | '.join(cells)} |"


def _times(other_ms: float | None, measurement: Measurement) -> str:
    return "" if other_ms is None else f"{other_ms / measurement.total_ms:.2f}x"


def _official_speedup(result: SceneResult) -> float | None:
    other = result.official_ms()
    return None if other is None else other / result.measurements[0].total_ms


def _agreement(result: SceneResult, agreement: Agreement) -> str:
    gradients = ", ".join(f"{name} {value:.1e}" for name, value in agreement.gradient_differences.items())
    return (
        f"- {result.scene.name}, {agreement.backend}: colour {agreement.mean_color_difference:.1e} mean, "
        f"{agreement.max_color_difference:.1e} largest difference"
        + (f"; gradients relative by norm: {gradients}" if gradients else "")
    )


def draw(results: Sequence[SceneResult], where: dict[str, str]) -> Image.Image:
    """A bar per scene and backend: milliseconds with gradients."""
    bars = [(result.scene.title, [(m.backend, m.total_ms) for m in result.measurements]) for result in results]
    return draw_bars(f"Render with gradients, ms (shorter is better); {where['device']}", bars)


def draw_bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Image.Image:
    """A bar per name and value; each group has a title and its own scale, and its first bar stands out."""
    font = ImageFont.load_default(size=14)
    rows = sum(len(bars) for _, bars in groups)
    height = 2 * MARGIN + 52 + rows * BAR_HEIGHT + len(groups) * GAP
    image = Image.new("RGB", (LABEL_WIDTH + PLOT_WIDTH + 120 + 2 * MARGIN, height), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), title, "black", font)
    y = MARGIN + 34
    for name, bars in groups:
        longest = max(value for _, value in bars)
        pen.text((MARGIN, y), name, "black", font)
        y += GAP - 4
        for rank, (label, value) in enumerate(bars):
            pen.text((MARGIN + 16, y), label, "#444444", font)
            left = MARGIN + LABEL_WIDTH
            width = max(1, round(PLOT_WIDTH * value / longest))
            pen.rectangle((left, y + 1, left + width, y + BAR_HEIGHT - 5), COLORS[min(rank, 1)])
            pen.text((left + width + 8, y), f"{value:.2f}", "black", font)
            y += BAR_HEIGHT
        y += 4
    return image


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the checkout that this file lies in, `MAQUETTE_COMMIT`, or "unknown"."""
    given = os.environ.get("MAQUETTE_COMMIT")
    if given:
        return given
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
