"""One training step of LGM by stage: where its time goes, and how much of it is the rasterizer's.

The step is the one that training runs (`StepRunner`, `LGMObjective`, `NamedAdamW`), on made pictures, with random
weights. Marks between the stages are CUDA events, which nothing waits for, or the clock on a CPU. Those of the backward
pass come from autograd functions that do nothing else, around the rasterizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.io.atomic import atomic_write_text
from maquette.models.lgm.network import LGM
from maquette.models.lgm.objective import LGMObjective
from maquette.models.lgm.params import LGM_BIG, LGM_SMALL, LGM_TINY, LGMParams
from maquette.raster.bench_scenes import BenchScene, make_scene
from maquette.training.config import TrainConfig
from maquette.training.recipes import get_recipe
from maquette.training.step import AutocastNetwork, StepRunner
from maquette.views import Views

FORMAT = "maquette-bench-step/1"
STAGES = (
    "inputs",
    "network forward",
    "rasterizer forward",
    "loss",
    "loss backward",
    "rasterizer backward",
    "network backward",
    "optimizer",
)
MODELS = {params.name: params for params in (LGM_BIG, LGM_SMALL, LGM_TINY)}
WARMUP_STEPS, STEPS = 3, 10
_TARGET_VIEWS = 8
_TARGET_ELEVATION_DEG = 20.0


@dataclass(frozen=True)
class StepCase:
    """A way to run the step.

    Attributes:
        name: for the report.
        trained_sizes: whether the rasterizer gets the Gaussians of the benchmark's scene, which have the sizes and
            places of a trained model's, in place of those of the untrained network: few large ones in the middle.
            Their gradients reach the network all the same.
        channels_last: order of the weights of convolutions.
    """

    name: str
    trained_sizes: bool
    channels_last: bool


CASES = (
    StepCase("trained model's Gaussians", True, False),
    StepCase("trained model's Gaussians, channels-last weights", True, True),
    StepCase("random weights' Gaussians", False, False),
)


@dataclass(frozen=True)
class StepTimes:
    """One case, measured.

    Attributes:
        case: what was run.
        stages_ms: median milliseconds of each of `STAGES`.
        total_ms: median of whole steps; medians of stages need not add up to it.
        peak_gib: largest amount of GPU memory that torch had handed out at once; None on a CPU.
    """

    case: StepCase
    stages_ms: dict[str, float]
    total_ms: float
    peak_gib: float | None

    @property
    def rasterizer_percent(self) -> float:
        """Share of the rasterizer, forward and backward, in the whole step."""
        return 100 * (self.stages_ms["rasterizer forward"] + self.stages_ms["rasterizer backward"]) / self.total_ms


class StageClock:
    """Milliseconds of stages that follow one another without gaps, step by step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, stage: str) -> None:
        """Ends a stage, which began at the mark before; the stage "" begins a step and counts for none."""
        if self._on_gpu:
            new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
            event = new_event(enable_timing=True)
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))

    def steps(self) -> list[dict[str, float]]:
        """What every step spent in each stage, those that came several times summed; waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        steps: list[dict[str, float]] = []
        for (_, before), (stage, now) in zip([("", None), *self._marks], self._marks, strict=False):
            if not stage:
                steps.append(defaultdict(float))
            else:
                steps[-1][stage] += before.elapsed_time(now) if self._on_gpu else 1000 * (now - before)
        return steps


class _Mark(torch.autograd.Function):
    """Tensors as they are; calls a function when all their gradients have come."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.call()
        return (None, *gradients)


@contextlib.contextmanager
def timed_rasterizer(clock: StageClock, device: torch.device) -> Iterator[None]:
    """Context in which the device's rasterizer marks its stages, forward and backward."""
    module: Any = importlib.import_module(f"maquette.raster.{device.type}")
    original = module.rasterize

    def rasterize(*arguments: Any, **settings: Any) -> tuple[Tensor, ...]:
        clock.mark("loss")  # what the loss prepared: the true pictures on their backgrounds
        mark: Callable[..., tuple[Tensor, ...]] = _Mark.apply
        values = mark(functools.partial(clock.mark, "rasterizer backward"), *arguments[:5])
        images = mark(functools.partial(clock.mark, "loss backward"), *original(*values, *arguments[5:], **settings))
        clock.mark("rasterizer forward")
        return images

    module.rasterize = rasterize
    try:
        yield
    finally:
        module.rasterize = original


class _TimedNetwork(nn.Module):
    """The network between two marks; gives the values of `instead`, where there are any, with its own gradients."""

    def __init__(self, network: nn.Module, clock: StageClock, instead: Gaussians | None) -> None:
        super().__init__()
        self.network = network
        self._clock, self._instead = clock, instead

    def forward(self, *inputs: Tensor) -> Gaussians:
        """Runs the network."""
        self._clock.mark("inputs")
        made: Gaussians = self.network(*inputs)
        if self._instead is not None:
            fields = ("means", "quats", "scales", "opacities", "colors")
            pairs = [(getattr(made, name), getattr(self._instead, name)) for name in fields]
            made = Gaussians(*(value + (own - own.detach()) for own, value in pairs))
        self._clock.mark("network forward")
        return made


class _OneBatch:
    """The same batch in every step, on the device already."""

    exported: Mapping[str, Tensor] = {}

    def __init__(self, inputs: Views, targets: Views) -> None:
        self._batch = (inputs, targets)

    def draw(self, step: int, micro_step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """The batch."""
        return self._batch

    def close(self) -> None:
        """Nothing to end."""


def recipe_of(model: str, batch_size: int) -> tuple[LGMParams, TrainConfig]:
    """Parameters and recipe of an official LGM with another batch; eight supervised views, as the paper has them.

    Raises:
        InvalidInputError: not one of them.
    """
    if model not in MODELS:
        raise InvalidInputError(f"no official LGM {model!r}: choose one of {', '.join(MODELS)}")
    config = get_recipe(model)
    sampling = dataclasses.replace(config.sampling, target_views=_TARGET_VIEWS)
    return MODELS[model], dataclasses.replace(config, batch_size=batch_size, sampling=sampling)


def bench_step(
    device: torch.device,
    params: LGMParams,
    config: TrainConfig,
    *,
    cases: Sequence[StepCase] = CASES,
    steps: int = STEPS,
    warmup_steps: int = WARMUP_STEPS,
) -> tuple[list[StepTimes], list[str]]:
    """Times the training step of a model on one device.

    Args:
        device: a CUDA device or the CPU.
        params: of the network, with the parametrisation "world".
        config: of the training; decides batch, precision, optimizer and the number of supervised views.
        cases: what to measure.
        steps, warmup_steps: steps that count, after some that do not.

    Returns:
        The results, and a line for every case that the GPU has too little memory for.
    """
    results, notes = [], []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for case in cases:
            try:
                results.append(_bench_case(case, device, params, config, steps, warmup_steps))
            except torch.cuda.OutOfMemoryError:
                notes.append(f"{case.name}: left out, it needs more memory than this GPU has.")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return results, notes


def _bench_case(
    case: StepCase, device: torch.device, params: LGMParams, config: TrainConfig, steps: int, warmup_steps: int
) -> StepTimes:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    with torch.device(device):
        network = LGM(params).train()
    if case.channels_last:
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    clock = StageClock(device)
    instead = _trained_gaussians(params, config.batch_size, device) if case.trained_sizes else None
    wrapped = _TimedNetwork(AutocastNetwork(network, config.precision == "bf16"), clock, instead)
    feed = _OneBatch(
        _pictures(config.batch_size, config.sampling.num_inputs, 0.0, params.input_size, device),
        _pictures(config.batch_size, config.sampling.target_views, _TARGET_ELEVATION_DEG, params.output_size, device),
    )

    def backward(loss: Tensor) -> None:
        clock.mark("loss")
        torch.autograd.backward(loss)
        clock.mark("network backward")

    objective = LGMObjective(params)
    runner = StepRunner(config, network, wrapped, objective, feed, 0, backward, contextlib.nullcontext)
    with timed_rasterizer(clock, device):
        for step in range(warmup_steps + steps):
            clock.mark("")
            runner.run(step)
            clock.mark("optimizer")
    measured = clock.steps()[warmup_steps:]
    medians = {stage: statistics.median(step[stage] for step in measured) for stage in STAGES}
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    return StepTimes(case, medians, statistics.median(sum(step.values()) for step in measured), peak_gib)


def _trained_gaussians(params: LGMParams, items: int, device: torch.device) -> Gaussians:
    """As many as the model makes, as the scenes of `maquette bench raster` have them: smaller where there are more."""
    count = params.num_gaussians
    scene = BenchScene(params.name, items, 1, count, params.output_size, 0.008 * math.sqrt(65_536 / count))
    return make_scene(scene, device)[0]


def _pictures(items: int, views: int, elevation_deg: float, size: int, device: torch.device) -> Views:
    """Pictures of noise on a disc from cameras evenly around."""
    generator = torch.Generator().manual_seed(views)
    line = torch.linspace(-1, 1, size)
    inside = ((line[:, None] ** 2 + line[None] ** 2) < 0.4).float().expand(items, views, 1, -1, -1)
    colors = torch.rand(items, views, 3, 1, 1, generator=generator) * torch.rand(
        1, 1, 3, size, size, generator=generator
    )
    rig = Cameras.orbit([360 * view / views for view in range(views)], elevation_deg, height=size, width=size)
    return Views(torch.cat([colors, inside], dim=2), Cameras.stack([rig] * items)).to(device)


def markdown(
    results: Sequence[StepTimes],
    where: dict[str, str],
    params: LGMParams,
    config: TrainConfig,
    notes: Sequence[str] = (),
) -> str:
    """The results as a table, with the machine above it."""
    sampling = config.sampling
    lines = [
        f"# One training step of {params.name}, by stage",
        "",
        f"{where['device']}, torch {where['torch']}, CUDA {where['cuda']}, Python {where['python']}; "
        f"maquette {where['maquette']}, commit {where['commit']}, {where['date']}.",
        "",
        f"{config.batch_size} objects, {sampling.num_inputs} input views at {params.input_size} px, "
        f"{sampling.target_views} supervised views at {params.output_size} px, {params.num_gaussians:,} Gaussians "
        f"each, {config.precision}, random weights, no gradient checkpointing. There are no weights of LPIPS here: "
        "multi-scale SSIM stands in for it, as in training without them. Milliseconds are medians. A trained model's "
        "Gaussians are those of the scenes of `maquette bench raster`; random weights make large ones, all near the "
        "middle.",
        "",
        "| stage | " + " | ".join(f"{result.case.name}, ms" for result in results) + " |",
        "|---|" + "---:|" * len(results),
    ]
    for stage in STAGES:
        lines.append(f"| {stage} | " + " | ".join(f"{result.stages_ms[stage]:.2f}" for result in results) + " |")
    rows: list[tuple[str, list[str]]] = [
        ("whole step", [f"{result.total_ms:.2f}" for result in results]),
        ("rasterizer, share of the step", [f"{result.rasterizer_percent:.1f} %" for result in results]),
        ("objects per second", [f"{1000 * config.batch_size / result.total_ms:.1f}" for result in results]),
        ("peak GiB", ["" if result.peak_gib is None else f"{result.peak_gib:.1f}" for result in results]),
    ]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def write_report(
    results: Sequence[StepTimes],
    where: dict[str, str],
    params: LGMParams,
    config: TrainConfig,
    folder: Path,
    name: str,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Writes `name`.json and .md into `folder` and returns their paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".json", ".md")]
    document = {
        "format": FORMAT,
        "machine": where,
        "model": params.name,
        "config": config.to_json(),
        "cases": [dataclasses.asdict(result) | {"rasterizer_percent": result.rasterizer_percent} for result in results],
        "notes": list(notes),
    }
    atomic_write_text(paths[0], json.dumps(document, indent=2) + "\n")
    atomic_write_text(paths[1], markdown(results, where, params, config, notes))
    return paths
