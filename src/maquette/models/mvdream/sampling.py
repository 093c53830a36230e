"""From noise to latents: the official noise schedule, two samplers of diffusers, guidance as one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from maquette.errors import InvalidInputError, MissingDependencyError
from maquette.models.mvdream.params import NoiseParams

Sampler = Literal["ddim", "dpm++"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "dpm++")


def build_scheduler(noise: NoiseParams, sampler: Sampler = "ddim") -> Any:
    """A scheduler of diffusers, configured as the official one where `noise` is the official schedule.

    Args:
        noise: the noise schedule.
        sampler: "ddim" (official) or "dpm++" (DPM-Solver++ of second order, multistep).

    Raises:
        InvalidInputError: no such sampler.
        MissingDependencyError: diffusers is not installed.
    """
    if sampler not in SAMPLERS:
        raise InvalidInputError(f"no sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    try:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    except ImportError as error:
        raise MissingDependencyError(
            "diffusers is needed for MVDream and ImageDream: pip install 'maquette[diffusion]'"
        ) from error
    common = {
        "num_train_timesteps": noise.num_steps,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": noise.prediction,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if noise.from_pure_noise else "leading",
        "rescale_betas_zero_snr": noise.from_pure_noise,
    }
    if sampler == "ddim":
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=noise.from_pure_noise)
    return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)


def sample_latents(
    predict: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    noise: NoiseParams,
    steps: int,
    *,
    sampler: Sampler = "ddim",
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Runs a sampler from noise to clean latents, in float32.

    Args:
        predict: noisy latents and one timestep (a scalar tensor) to the prediction, same shape.
        start: standard normal noise.
        noise: the noise schedule.
        steps: number of predictions, at most those of the schedule.
        sampler: see `build_scheduler`.
        eta: share of fresh noise in each step of ddim, 0..1; other samplers know only 0.
        generator: of the CPU, draws that noise.
        progress: called after each step with the number of steps done and their total.

    Raises:
        InvalidInputError: `sampler`, `steps` or `eta` out of range.
        MissingDependencyError: diffusers is not installed.
    """
    if not 1 <= steps <= noise.num_steps:
        raise InvalidInputError(f"steps must lie in 1..{noise.num_steps}, got {steps}")
    if not 0.0 <= eta <= 1.0 or (eta > 0 and sampler != "ddim"):
        raise InvalidInputError(f"eta must lie in 0..1, and be 0 for other samplers than ddim, got {eta}")
    scheduler = build_scheduler(noise, sampler)
    options: dict[str, Any] = {"eta": eta, "generator": generator} if sampler == "ddim" else {}
    scheduler.set_timesteps(steps)  # on the CPU, so that looking up a noise level does not wait for the GPU
    on_device = scheduler.timesteps.to(start.device)
    latents = start.to(torch.float32) * float(scheduler.init_noise_sigma)
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = predict(latents, on_device[index]).to(torch.float32)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
        if progress is not None:
            progress(index + 1, len(scheduler.timesteps))
    return latents


def guided(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: the conditional prediction, pushed away from the unconditional one."""
    return unconditional + guidance * (conditional - unconditional)


def composed(
    unconditional: Tensor, conditional: Tensor, subject: Tensor, guidance: float, share: float | Tensor
) -> Tensor:
    """Guidance by two conditions at once, `share` of it (0..1) by the subject: Liu et al., 2022, equation 11."""
    return guided(unconditional, torch.lerp(conditional, subject, share), guidance)
