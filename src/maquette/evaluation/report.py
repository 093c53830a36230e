"""Reports of an evaluation: JSON, a Markdown table and a picture sheet."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import maquette
from maquette.data.dataset import RenderedDataset
from maquette.evaluation.protocol import Evaluation, ObjectScores, Reconstruct, Scores, mean_scores, ranked
from maquette.evaluation.sheet import draw_sheet
from maquette.io.atomic import atomic_path, atomic_write_text

FORMAT = "maquette-evaluation/1"


def write_report(folder: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `report.json` and `report.md` into `folder` and returns the report.

    Args:
        folder: created if missing.
        evaluation: the results.
        facts: what identifies the run: model, weights, data, split, device...
    """
    report = build_report(evaluation, facts)
    atomic_write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
    atomic_write_text(folder / "report.md", markdown_table(report))
    return report


def build_report(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain data: facts, versions, protocol, means (all, realistic, other, by category), objects."""
    categories = sorted({item.info.category for item in evaluation.objects})
    groups = {
        "all": evaluation.mean,
        "realistic": evaluation.mean_where(lambda info: info.realistic),
        "other": evaluation.mean_where(lambda info: not info.realistic),
    }
    return {
        "format": FORMAT,
        **facts,
        "protocol": dataclasses.asdict(evaluation.protocol),
        "versions": {
            "maquette": maquette.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": source_commit(),
        "num_objects": len(evaluation.objects),
        "num_realistic": sum(item.info.realistic for item in evaluation.objects),
        "seconds": round(sum(item.seconds for item in evaluation.objects), 3),
        "mean": {name: _rounded(scores) for name, scores in groups.items() if scores is not None},
        "baselines": {name: _rounded(scores) for name, scores in evaluation.baselines.items()},
        "categories": {name: _category_entry(evaluation, name) for name in categories},
        "objects": [_object_entry(item) for item in evaluation.objects],
    }


def markdown_table(report: Mapping[str, Any]) -> str:
    """The means of a report as a Markdown table."""
    counts = {"all": report["num_objects"], "realistic": report["num_realistic"]}
    counts["other"] = counts["all"] - counts["realistic"]
    lines = [
        f"{report.get('model', 'model')} on {report['protocol']['name']}: {report['num_objects']} objects, "
        f"{report['protocol']['num_targets']} novel views of {report['protocol']['image_size']} px each",
        "",
        "| objects | number | PSNR dB | SSIM | alpha IoU |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [_row(name, counts[name], scores) for name, scores in report["mean"].items()]
    lines += [_row(f"baseline: {name}", counts["all"], scores) for name, scores in report["baselines"].items()]
    return "\n".join(lines) + "\n"


def write_sheet(
    path: Path,
    evaluation: Evaluation,
    reconstruct: Reconstruct,
    dataset: RenderedDataset,
    device: torch.device | str = "cpu",
    each: int = 3,
) -> None:
    """Writes a PNG with the best, the median and the worst objects, true above predicted pictures."""
    from PIL import Image

    sheet = draw_sheet(sheet_objects(evaluation.objects, each), evaluation.protocol, reconstruct, dataset, device)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)


def sheet_objects(objects: tuple[ObjectScores, ...], each: int = 3) -> list[tuple[str, ObjectScores]]:
    """Which objects a sheet shows, with their group: "best", "median", "worst"; none appears twice."""
    order = ranked(objects)
    middle = max((len(order) - each) // 2, 0)
    groups = {
        "best": order[:each],
        "worst": order[max(len(order) - each, 0) :],
        "median": order[middle : middle + each],
    }
    seen: set[str] = set()
    chosen: dict[str, list[ObjectScores]] = {}
    for name, items in groups.items():
        chosen[name] = [item for item in items if item.info.id not in seen]
        seen.update(item.info.id for item in items)
    return [(name, item) for name in ("best", "median", "worst") for item in chosen[name]]


def source_commit() -> str | None:
    """Commit of the checkout that this package runs from (with "+changes" if files differ), or None outside one."""
    folder = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _row(name: str, count: int, scores: Mapping[str, float]) -> str:
    return f"| {name} | {count} | {scores['psnr']:.2f} | {scores['ssim']:.3f} | {scores['alpha_iou']:.3f} |"


def _category_entry(evaluation: Evaluation, category: str) -> dict[str, Any]:
    scores = [item.scores for item in evaluation.objects if item.info.category == category]
    return {"num_objects": len(scores), **_rounded(mean_scores(scores))}


def _object_entry(item: ObjectScores) -> dict[str, Any]:
    return {
        "id": item.info.id,
        "family": item.info.family,
        "category": item.info.category,
        "realistic": item.info.realistic,
        **_rounded(item.scores),
        "seconds": round(item.seconds, 4),
    }


def _rounded(scores: Scores) -> dict[str, float]:
    return {name: round(value, 5) for name, value in dataclasses.asdict(scores).items()}
