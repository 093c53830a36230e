"""What a run of the scan's benchmark leaves behind: JSON, a Markdown table and a bar chart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from maquette.io.atomic import atomic_path, atomic_write_text
from maquette.nn.selective_scan.bench import CaseResult, Measurement
from maquette.raster.bench_report import draw_bars

FORMAT = "maquette-bench-scan/1"


def write_report(results: Sequence[CaseResult], where: dict[str, str], folder: Path, name: str) -> list[Path]:
    """Writes `name`.json, .md and .png into `folder` and returns their paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".json", ".md", ".png")]
    cases = [_as_json(result) for result in results]
    atomic_write_text(paths[0], json.dumps({"format": FORMAT, "machine": where, "cases": cases}, indent=2) + "\n")
    atomic_write_text(paths[1], markdown(results, where))
    bars = [(result.case.title, [(m.backend, m.total_ms) for m in result.measurements]) for result in results]
    title = f"Scan with gradients, ms (shorter is better); {where['device']}"
    with atomic_path(paths[2]) as temporary:
        draw_bars(title, bars).save(temporary, format="PNG", optimize=True)
    return paths


def _as_json(result: CaseResult) -> dict[str, object]:
    document = dataclasses.asdict(result)
    document["case"]["dtype"] = str(result.case.dtype).removeprefix("torch.")
    return document | {"speedups": result.speedups()}


def markdown(results: Sequence[CaseResult], where: dict[str, str]) -> str:
    """The results as a table, with the machine above and the agreement below it."""
    lines = [
        "# Selective scan: speed and memory",
        "",
        f"{where['device']}, torch {where['torch']}, CUDA {where['cuda']}, Python {where['python']}; "
        f"maquette {where['maquette']}, commit {where['commit']}, {where['date']}.",
        "",
        "Milliseconds are medians. Sizes are items x channels x positions. The scan includes the softplus of the "
        "steps, skip and gate; with gradients adds those of all tensors. Each contender gets its own order: ours "
        "has the channels of a position side by side, mamba-ssm the positions of a channel; the row of transposed "
        "inputs is ours with mamba-ssm's order, copies included. Peak memory is beyond the inputs. The speed is "
        "relative to the last row of a size.",
        "",
        "| size | backend | forward ms | speed | with gradients ms | speed | peak MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        lines += [_row(result, measurement) for measurement in result.measurements]
    agreements = [_agreement(result) for result in results if result.differences]
    if agreements:
        lines += ["", "Differences of the first and the last row of a size, relative by norm:", "", *agreements]
    return "\n".join(lines) + "\n"


def _row(result: CaseResult, measurement: Measurement) -> str:
    last = result.measurements[-1]
    peak = "" if measurement.peak_mib is None else f"{measurement.peak_mib:,.0f}"
    return (
        f"| {result.case.title} | {measurement.backend} "
        f"| {measurement.forward_ms:.2f} | {last.forward_ms / measurement.forward_ms:.2f}x "
        f"| {measurement.total_ms:.2f} | {last.total_ms / measurement.total_ms:.2f}x | {peak} |"
    )


def _agreement(result: CaseResult) -> str:
    values = ", ".join(f"{name} {value:.1e}" for name, value in result.differences.items())
    return f"- {result.case.title}: {values}"
