"""How long a picture takes to become Gaussians at the official sizes: ImageDream, then LGM big, random weights."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.io.atomic import atomic_write_text
from maquette.models.lgm.network import LGM
from maquette.models.lgm.params import LGM_BIG, LGMParams
from maquette.models.lgm.reconstructor import LGMReconstructor
from maquette.models.mvdream.encoders import to_planes
from maquette.models.mvdream.loading import untrained_pipeline
from maquette.models.mvdream.params import IMAGEDREAM, MVDreamParams
from maquette.models.mvdream.pipeline import MultiViewPipeline
from maquette.picture.prepare import prepare_picture
from maquette.views import Views

STAGES = ("prepare picture", "encode conditions", "sample", "decode views", "reconstruct")
_PICTURE_SIZE = 512


@dataclass(frozen=True)
class Variant:
    """A way to run.

    Attributes:
        name: for the table.
        cuda_graphs: the U-Net is recorded and replayed.
        channels_last: order of the weights of convolutions.
    """

    name: str
    cuda_graphs: bool
    channels_last: bool


VARIANTS = (
    Variant("kernel by kernel, channels last", False, True),
    Variant("kernel by kernel, channels first", False, False),
    Variant("CUDA graph, channels last", True, True),
    Variant("CUDA graph, channels first", True, False),
)


@dataclass(frozen=True)
class VariantTimes:
    """Median seconds of each stage and of the whole; whole = their sum in one run, so medians need not add up."""

    name: str
    stages: dict[str, float]
    total: float
    peak_gib: float


def bench_picture_to_gaussians(
    device: torch.device,
    *,
    params: MVDreamParams = IMAGEDREAM,
    lgm: LGMParams = LGM_BIG,
    steps: int = 30,
    guidance: float = 5.0,
    repeats: int = 7,
    variants: tuple[Variant, ...] = VARIANTS,
    report: Callable[[str], None] = lambda text: None,
) -> list[VariantTimes]:
    """Times every variant, weights on the device in fp16 (fp32 on the CPU), after two runs that do not count.

    Args:
        device: where to compute.
        params, lgm: sizes of the two networks.
        steps, guidance: of the sampler, DDIM.
        repeats: runs that count.
        variants: to compare; graphs need a GPU.
        report: told what is measured next.
    """
    results = []
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with torch.device(device):
            network = LGM(lgm)
        _ordered(network.to(dtype), True)
        reconstruct = LGMReconstructor(network.requires_grad_(False))
        for variant in variants:
            report(variant.name)
            results.append(_time_variant(variant, params, reconstruct, device, steps, guidance, repeats))
    return results


def _time_variant(
    variant: Variant,
    params: MVDreamParams,
    reconstruct: LGMReconstructor,
    device: torch.device,
    steps: int,
    guidance: float,
    repeats: int,
) -> VariantTimes:
    on_gpu = device.type == "cuda"
    pipeline = untrained_pipeline(params, device=device, cuda_graphs=variant.cuda_graphs)
    for network in pipeline.parts.networks:
        _ordered(network, variant.channels_last)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    runs = [_one_run(pipeline, reconstruct, steps, guidance, seed) for seed in range(repeats + 2)][2:]
    medians = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    total = statistics.median(sum(run.values()) for run in runs)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0
    del pipeline
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return VariantTimes(variant.name, medians, total, peak)


@torch.inference_mode()
def _one_run(
    pipeline: MultiViewPipeline, reconstruct: LGMReconstructor, steps: int, guidance: float, seed: int
) -> dict[str, float]:
    """Seconds of each stage of one picture; the device has finished at the end of each."""
    times: dict[str, float] = {}
    clock = _Clock(pipeline.device, times)
    generator = torch.Generator().manual_seed(seed)
    picture = _example()
    clock.start()
    prepared = prepare_picture(picture, size=pipeline.params.image_size).image
    clock.stop(STAGES[0])
    conditions = pipeline.conditions("a chair", prepared, negative_prompt="", elevation_deg=0.0, generator=generator)
    clock.stop(STAGES[1])
    latents = pipeline.sample(conditions, steps, guidance, generator=generator)
    clock.stop(STAGES[2])
    images = pipeline.decode(latents)[0]
    clock.stop(STAGES[3])
    size = images.shape[-1]
    cameras = Cameras.orbit([0.0, 90.0, 180.0, 270.0], height=size, width=size).to(images.device)
    reconstruct(Views(torch.cat([to_planes(images, 3), torch.ones_like(images[:, :1])], dim=1), cameras))
    clock.stop(STAGES[4])
    return times


class _Clock:
    def __init__(self, device: torch.device, times: dict[str, float]) -> None:
        self._device, self._times, self._began = device, times, 0.0

    def start(self) -> None:
        self._wait()
        self._began = time.perf_counter()

    def stop(self, stage: str) -> None:
        self._wait()
        now = time.perf_counter()
        self._times[stage], self._began = now - self._began, now

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _example() -> Tensor:
    """A cut-out of 512 px: a disc of one colour."""
    line = torch.linspace(-1, 1, _PICTURE_SIZE)
    inside = ((line[:, None] ** 2 + line[None] ** 2) < 0.6).float()
    return torch.stack([0.8 * inside, 0.4 * inside, 0.2 * inside, inside])


def _ordered(network: nn.Module, channels_last: bool) -> None:
    order = torch.channels_last if channels_last else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)


def markdown(results: list[VariantTimes], where: dict[str, str], steps: int, guidance: float) -> str:
    """The stages as a Markdown table."""
    lines = [
        f"One picture to Gaussians, {steps} steps of ImageDream with guidance {guidance:g}, then LGM big,",
        f"random weights of the official sizes, fp16: {where['device']}, torch {where['torch']}, maquette "
        f"{where['commit'][:12]}, {where['date']}. Median seconds; the paper's figure is 5 s (on another card).",
        "",
        "| way | " + " | ".join(STAGES) + " | total | peak GiB |",
        "| --- |" + " ---: |" * (len(STAGES) + 2),
    ]
    for result in results:
        cells = " | ".join(f"{result.stages[stage]:.3f}" for stage in STAGES)
        lines.append(f"| {result.name} | {cells} | {result.total:.3f} | {result.peak_gib:.1f} |")
    return "\n".join(lines) + "\n"


def write_report(
    folder: Path, results: list[VariantTimes], where: dict[str, str], steps: int, guidance: float
) -> list[Path]:
    """Writes `generate_<device>.json` and `.md` into `folder`."""
    kind = "cpu" if "threads" in where["device"] else "cuda"
    document: dict[str, Any] = {
        "format": "maquette-bench-generate/1",
        "machine": where,
        "steps": steps,
        "guidance": guidance,
        "variants": [
            {"name": r.name, "stages_s": r.stages, "total_s": r.total, "peak_gib": r.peak_gib} for r in results
        ],
    }
    paths = [folder / f"generate_{kind}{suffix}" for suffix in (".json", ".md")]
    atomic_write_text(paths[0], json.dumps(document, indent=2) + "\n")
    atomic_write_text(paths[1], markdown(results, where, steps, guidance))
    return paths
