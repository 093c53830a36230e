"""What a run tells: a progress line, `log.jsonl`, TensorBoard events and picture grids. Only the first process logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maquette.io.atomic import atomic_path

MAX_GRID_ROWS = 6
MAX_GRID_VIEWS = 6


class RunLog:
    """Writes the log of one run.

    Args:
        folder: of the run; gets `log.jsonl`, `tensorboard/` and `pictures/`.
        total_steps: of the run, for the estimate of the time left.
        first_step: where this process starts; later entries of an earlier, killed process are dropped.
        quiet: show nothing on the terminal.
        tensorboard: write TensorBoard events when the package is installed.
    """

    def __init__(
        self, folder: Path, total_steps: int, first_step: int = 0, quiet: bool = False, tensorboard: bool = True
    ) -> None:
        from rich.console import Console

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._total_steps = total_steps
        self._console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._progress = self._start_progress(first_step) if sys.stderr.isatty() and not quiet else None
        self._file = _truncated_log(folder / "log.jsonl", first_step)
        self._writer = _summary_writer(folder / "tensorboard", first_step) if tensorboard else None
        if tensorboard and self._writer is None:
            self.say("TensorBoard is not installed: only log.jsonl is written (pip install 'maquette[train]')")

    def say(self, message: str) -> None:
        """Shows one line."""
        self._console.print(message, markup=False, highlight=False)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step` steps done."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)

    def scalars(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Logs named numbers after `step` steps done."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, values=shown)
        else:
            self.say(f"step {step}/{self._total_steps}  left {format_seconds(seconds_left)}  {shown}")

    def pictures(self, step: int, references: Tensor, predictions: Tensor) -> None:
        """Writes a grid of true and predicted pictures, both `[B, V, 3, H, W]` in 0..1."""
        from PIL import Image

        grid = picture_grid(references, predictions)
        with atomic_path(self._folder / "pictures" / f"step-{step:08d}.png") as path:
            Image.fromarray(grid).save(path)
        if self._writer is not None:
            self._writer.add_image("true_and_predicted", grid, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and ends the progress line."""
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _start_progress(self, first_step: int) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        progress = Progress(*columns, console=self._console)
        progress.add_task("train", total=self._total_steps, completed=first_step, values="")
        progress.start()
        return progress


def picture_grid(references: Tensor, predictions: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB grid `[H', W', 3]`: one row per sample, and in it each true picture with the predicted one beside it."""
    count, views = min(len(references), MAX_GRID_ROWS), min(references.shape[1], MAX_GRID_VIEWS)
    pairs = torch.stack([references[:count, :views], predictions[:count, :views]], dim=2)  # [B, V, 2, 3, H, W]
    rows = pairs.flatten(1, 2).permute(0, 3, 1, 4, 2)  # [B, H, V*2, W, 3]
    grid = rows.reshape(count * rows.shape[1], -1, 3)
    result: np.ndarray[Any, np.dtype[np.uint8]] = (grid.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return result


def format_seconds(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    whole = max(int(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _truncated_log(path: Path, first_step: int) -> Any:
    """Opens the log for appending after dropping entries of steps that will be run again, and torn lines."""
    kept: list[str] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= first_step:
                kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _summary_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
