"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from maquette.errors import InvalidInputError

ScheduleKind = Literal["onecycle", "cosine", "trapezoid", "constant"]


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate (and, for "onecycle", AdamW's beta1) moves over a run.

    Attributes:
        kind: "onecycle" (cosine up, cosine down, beta1 cycled the other way; the official LGM schedule), "cosine"
            (linear warm-up, then cosine down), "trapezoid" (linear warm-up, constant, linear down) or "constant"
            (linear warm-up only).
        warmup_steps: steps of the rise, >= 0. A rise that would take more than half of the run is cut to half of it.
        start_fraction: learning rate at step 0 as a fraction of the peak ("onecycle": 1/25).
        final_fraction: learning rate at the last step as a fraction of the peak ("onecycle": 1/25/1e4).
        decay_fraction: share of the run that "trapezoid" spends coming down, in (0, 1].
        beta1_range: (lowest, highest) beta1 of "onecycle"; None keeps the optimizer's beta1.
    """

    kind: ScheduleKind = "cosine"
    warmup_steps: int = 500
    start_fraction: float = 0.0
    final_fraction: float = 0.0
    decay_fraction: float = 0.3
    beta1_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class StepValues:
    """Optimizer settings in force during one step: learning rate, and beta1 or None for the optimizer's own."""

    lr: float
    beta1: float | None


def schedule_at(config: ScheduleConfig, step: int, total_steps: int, peak_lr: float) -> StepValues:
    """Learning rate and beta1 of step `step` (0-based) of a run of `total_steps` steps.

    "onecycle" follows Smith and Topin's one-cycle policy in the two-phase cosine form, with the phase ends at
    `warmup_steps - 1` and `total_steps - 1`; steps past the end keep the last values.

    Raises:
        InvalidInputError: an unknown kind, or a run without steps.
    """
    if total_steps < 1:
        raise InvalidInputError(f"a run needs at least 1 step, got {total_steps}")
    position = min(max(step, 0), total_steps - 1)
    warmup = min(config.warmup_steps, total_steps // 2)
    if config.kind == "onecycle":
        return _one_cycle(config, position, total_steps, warmup, peak_lr)
    if position < warmup:
        fraction = config.start_fraction + (1 - config.start_fraction) * (position + 1) / warmup
        return StepValues(peak_lr * fraction, None)
    if config.kind == "constant":
        return StepValues(peak_lr, None)
    if config.kind == "cosine":
        progress = (position - warmup) / max(total_steps - 1 - warmup, 1)
        return StepValues(_cosine(peak_lr, peak_lr * config.final_fraction, progress), None)
    if config.kind == "trapezoid":
        decay_steps = max(round(config.decay_fraction * total_steps), 1)
        progress = max(position - (total_steps - 1 - decay_steps), 0) / decay_steps
        return StepValues(peak_lr * (1 + (config.final_fraction - 1) * progress), None)
    raise InvalidInputError(f"unknown schedule {config.kind!r}: use onecycle, cosine, trapezoid or constant")


def _one_cycle(config: ScheduleConfig, step: int, total: int, warmup: int, peak: float) -> StepValues:
    rise_end, end = max(warmup - 1, 0), total - 1
    low, high = config.beta1_range if config.beta1_range is not None else (0.0, 0.0)
    if step <= rise_end:
        progress = step / rise_end if rise_end > 0 else 1.0
        lr = _cosine(peak * config.start_fraction, peak, progress)
        beta1 = _cosine(high, low, progress)
    else:
        progress = (step - rise_end) / max(end - rise_end, 1)
        lr = _cosine(peak, peak * config.final_fraction, progress)
        beta1 = _cosine(low, high, progress)
    return StepValues(lr, beta1 if config.beta1_range is not None else None)


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) / 2 * (math.cos(math.pi * progress) + 1)
