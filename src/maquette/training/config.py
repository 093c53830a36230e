"""`TrainConfig`: everything that decides what a training run computes, as one frozen value that travels as JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from maquette.errors import InvalidInputError
from maquette.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        lr: peak learning rate, > 0.
        betas: decay of the two moments; beta1 may be overridden by the schedule.
        eps: added to the denominator.
        weight_decay: decoupled decay per unit of learning rate.
        decay_vectors: also decay norms and biases (the official LGM recipe does).
        grad_clip: largest norm of the whole gradient; 0 switches clipping off.
    """

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_vectors: bool = False
    grad_clip: float = 1.0


@dataclass(frozen=True)
class SamplingConfig:
    """Which objects and views a step sees.

    Attributes:
        num_inputs: input views per object (LGM: 4).
        target_views: rendered and compared views per object.
        input_targets: how many of the target views are the input views themselves, at most `num_inputs`.
        realistic_weight: how much more often an object of a realistic source is drawn than another.
        family_exponent: a family of n objects is drawn with weight n ** (1 - exponent): 0 is uniform over objects,
            1 uniform over families, 0.5 between them.
    """

    num_inputs: int = 4
    target_views: int = 8
    input_targets: int = 4
    realistic_weight: float = 1.0
    family_exponent: float = 0.5


@dataclass(frozen=True)
class AugmentConfig:
    """Colour changes shared by all views of an object, and damage done to the input views only.

    Attributes:
        color_probability: share of objects whose colours change; the strengths below are standard deviations or
            half-widths of that change, 0 switches one off.
        gain: spread of the logarithm of each channel's gain (white balance, exposure).
        hue_deg: half-width of the rotation of the hue in degrees, 0..180.
        saturation: spread of the logarithm of the saturation.
        contrast: spread of the logarithm of the contrast about mid-grey.
        gamma: spread of the logarithm of the exponent.
        grey_probability: share of the changed objects that lose their colour.
        edge_probability: share of input views whose alpha edge is blurred, grown with a halo or eaten away.
        noise: largest standard deviation of the pixel noise of an input view.
        blur_probability: share of input views that are softened.
        mirror_probability: share of objects that are mirrored at the plane x = 0, with all their views.
    """

    color_probability: float = 0.0
    gain: float = 0.12
    hue_deg: float = 180.0
    saturation: float = 0.35
    contrast: float = 0.2
    gamma: float = 0.25
    grey_probability: float = 0.05
    edge_probability: float = 0.0
    noise: float = 0.0
    blur_probability: float = 0.0
    mirror_probability: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """One run. Two runs with equal configs, data and process counts compute the same numbers.

    Attributes:
        model: registry name, such as "lgm-mini".
        steps: optimizer steps in all.
        batch_size: objects per process and forward pass.
        accumulation: forward passes per optimizer step, >= 1.
        seed: decides initial weights, data order, views and augmentation.
        precision: "fp32", or "bf16" (the network under autocast; rendering and losses stay fp32).
        ema_decay: decay of the averaged weights per step, 0 keeps no average.
        target_size: height and width in pixels at which predictions are rendered and compared; None: the model's.
        input_size: side of the square input pictures, px; None: the model's. The model's output grid and its rendered
            pictures scale with it.
        use_depth: whether a model that can learn from true depth does; the data needs geometry then.
        lpips: file of LPIPS weights (.safetensors, published names) for models whose objective has a perceptual term;
            None takes multi-scale SSIM in its place.
        lambda_depth: weight of the depth term, >= 0; None: the model's.
        lambda_ssim: weight of the multi-scale SSIM that stands in for LPIPS, >= 0; None: the model's.
        lambda_fine_ssim: weight of SSIM at the pictures' own resolution, >= 0; None: the model's.
        autoencoder: file of the trained auto-encoder whose latents a denoiser learns, or of which the decoder alone is
            to be trained on; None where there is none.
        latent_copies: versions of the data set that each process keeps as latents, augmented differently, >= 1.
        join_mirrored: whether the loss looks at the joined answers to the picture and its mirror image, in twice the
            time, or at the answer to the picture alone; None: as the model answers. Only for gamba-mini.
        error_knee: mean squared error of a view from which on errors count by their logarithm, >= 0; None: the model's.
        schedule_seconds: None, or the training time in seconds after which the run is over: the learning rate then
            follows the larger share of `steps` and of this time. A run that depends on the clock cannot be repeated
            exactly, nor continued exactly as without an interruption.
        max_bad_steps: successive steps with a non-finite gradient after which the run stops.
        optimizer, schedule, sampling, augment: see their classes.
    """

    model: str
    steps: int = 20_000
    batch_size: int = 8
    accumulation: int = 1
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_decay: float = 0.0
    target_size: int | None = None
    input_size: int | None = None
    use_depth: bool = True
    lpips: str | None = None
    lambda_depth: float | None = None
    lambda_ssim: float | None = None
    lambda_fine_ssim: float | None = None
    error_knee: float | None = None
    join_mirrored: bool | None = None
    autoencoder: str | None = None
    latent_copies: int = 2
    schedule_seconds: float | None = None
    max_bad_steps: int = 50
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        sampling = self.sampling
        at_least: list[tuple[str, float, float]] = [
            ("steps", self.steps, 1),
            ("batch_size", self.batch_size, 1),
            ("accumulation", self.accumulation, 1),
            ("seed", self.seed, 0),
            ("max_bad_steps", self.max_bad_steps, 1),
            ("target_size", self.target_size if self.target_size is not None else 16, 16),
            ("input_size", self.input_size if self.input_size is not None else 16, 16),
            ("schedule_seconds", self.schedule_seconds if self.schedule_seconds is not None else 1, 1),
            ("lambda_depth", self.lambda_depth if self.lambda_depth is not None else 0, 0),
            ("lambda_ssim", self.lambda_ssim if self.lambda_ssim is not None else 0, 0),
            ("lambda_fine_ssim", self.lambda_fine_ssim if self.lambda_fine_ssim is not None else 0, 0),
            ("error_knee", self.error_knee if self.error_knee is not None else 0, 0),
            ("latent_copies", self.latent_copies, 1),
            ("sampling.num_inputs", sampling.num_inputs, 1),
            ("sampling.target_views", sampling.target_views, 1),
            ("sampling.input_targets", sampling.input_targets, 0),
            ("optimizer.weight_decay", self.optimizer.weight_decay, 0),
            ("optimizer.grad_clip", self.optimizer.grad_clip, 0),
        ]
        for name, value, lowest in at_least:
            if value < lowest:
                raise InvalidInputError(f"{name} must be at least {lowest}, got {value}")
        if not self.optimizer.lr > 0:
            raise InvalidInputError(f"optimizer.lr must be > 0, got {self.optimizer.lr}")
        if not 0 <= self.ema_decay < 1:
            raise InvalidInputError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.precision not in ("fp32", "bf16"):
            raise InvalidInputError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if sampling.input_targets > min(sampling.num_inputs, sampling.target_views):
            raise InvalidInputError(
                f"sampling.input_targets is {sampling.input_targets}: at most the {sampling.num_inputs} input views "
                f"and the {sampling.target_views} target views"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrainConfig:
        """Reads what `to_json` wrote.

        Raises:
            InvalidInputError: a field is unknown, missing or of the wrong type.
        """
        config: TrainConfig = _read(TrainConfig, data, "config")
        return config


def differing_fields(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Lines "name: first -> second" for every leaf that differs."""
    left, right = _flatten(first.to_json()), _flatten(second.to_json())
    return [f"{name}: {left[name]!r} -> {right[name]!r}" for name in left if left[name] != right[name]]


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _read(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise InvalidInputError(f"{where} must be a JSON object, got {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise InvalidInputError(f"{where} has unknown fields {unknown}: known are {sorted(hints)}")
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    except TypeError as error:
        raise InvalidInputError(f"{where} is not valid: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, where)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return tuple(float(item) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = str if typing.get_origin(hint) is Literal else hint
    if not isinstance(value, expected):
        raise InvalidInputError(f"{where} must be {expected.__name__}, got {value!r}")
    return value
