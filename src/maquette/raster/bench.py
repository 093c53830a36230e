"""Speed, memory and agreement of the Gaussian rasterizers on this machine, side by side in one run.

On a GPU the CUDA backend is timed beside gsplat and the official rasterizer (where they are installed) on batches as
feed-forward models render them; on a CPU the Numba backend is timed, on single views beside the torch reference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, MaquetteError
from maquette.gaussians import Gaussians
from maquette.raster.bench_contenders import OFFICIAL, Contender, cpu_contenders, gpu_contenders
from maquette.raster.bench_scenes import (
    ASSET_MODEL,
    ASSETS,
    CPU_SCENES,
    GPU_SCENES,
    BenchScene,
    asset_scene,
    make_scene,
)

GPU_RUNS, CPU_RUNS = 20, 5
GPU_ROUNDS, CPU_ROUNDS = 5, 1
GRADIENT_NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True)
class Measurement:
    """One backend on one scene.

    Attributes:
        backend: "cuda", "gsplat 1.5.3", "official loop", "cpu" or "reference".
        forward_ms, total_ms: median milliseconds of rendering, and of rendering with all gradients.
        best_total_ms: the shortest of the latter.
        peak_mib: most GPU memory that a call with gradients adds to its input data, in MiB, as gsplat's documentation
            measures it: the loss is the sum of the images. None on a CPU.
        own_mib: where the caller holds gradients of all images: the part of the peak that is neither the caller's
            (Gaussians, these gradients) nor a result (images, gradients of the Gaussians).
    """

    backend: str
    forward_ms: float
    total_ms: float
    best_total_ms: float
    peak_mib: float | None
    own_mib: float | None


@dataclass(frozen=True)
class Agreement:
    """How far another backend is from ours.

    Attributes:
        backend: its name.
        mean_color_difference, max_color_difference: between the pictures.
        gradient_differences: per tensor, the norm of the difference over the norm of the other's gradient; empty where
            the other gives colours only.
    """

    backend: str
    mean_color_difference: float
    max_color_difference: float
    gradient_differences: dict[str, float]


@dataclass(frozen=True)
class SceneResult:
    """Measurements of one scene and how far the backends agree.

    Attributes:
        scene: what was rendered.
        measurements: one per backend, ours first, then gsplat or the reference, the official loop last.
        agreements: of the others with ours, in the same order.
    """

    scene: BenchScene
    measurements: tuple[Measurement, ...]
    agreements: tuple[Agreement, ...]

    def speedup(self) -> float | None:
        """Time with gradients of the second backend over ours."""
        if len(self.measurements) < 2:
            return None
        return self.measurements[1].total_ms / self.measurements[0].total_ms

    def official_ms(self) -> float | None:
        """Time with gradients of the official loop; None where it was not measured."""
        return next((m.total_ms for m in self.measurements if m.backend == OFFICIAL), None)


def bench_machine(
    device: torch.device,
    scenes: Sequence[BenchScene] | None = None,
    assets: Sequence[str] = ASSETS,
    runs: int | None = None,
) -> tuple[list[SceneResult], list[str]]:
    """Measures made scenes and real assets.

    Args:
        device: a CUDA device or the CPU.
        scenes: made ones; None for `GPU_SCENES` or `CPU_SCENES`.
        assets: folders of four views under `examples`.
        runs: see `bench_scene`.

    Returns:
        The results, and a line for every asset that was left out.
    """
    if scenes is None:
        scenes = GPU_SCENES if device.type == "cuda" else CPU_SCENES
    results, notes = [bench_scene(scene, device, runs) for scene in scenes], []
    for name in assets:
        try:
            scene, gaussians, cameras = asset_scene(name, device)
        except (MaquetteError, ImportError, OSError) as error:
            notes.append(f"{name} ({ASSET_MODEL}) is left out: {error}")
            continue
        results.append(bench_gaussians(scene, gaussians, cameras, runs))
    return results, notes


def bench_scene(scene: BenchScene, device: torch.device, runs: int | None = None) -> SceneResult:
    """Measures every backend that this machine has on one made scene.

    Args:
        scene: what to render.
        device: a CUDA device or the CPU.
        runs: repetitions per round, whose median counts; None for 20 on a GPU and 5 on a CPU. On a GPU the backends
            take turns in 5 rounds, so that what slows the machine for a while slows all of them.

    Raises:
        InvalidInputError: another kind of device.
    """
    if device.type not in ("cuda", "cpu"):
        raise InvalidInputError(f"device must be cuda or cpu, got {device}")
    return bench_gaussians(scene, *make_scene(scene, device), runs)


def bench_gaussians(scene: BenchScene, gaussians: Gaussians, cameras: Cameras, runs: int | None = None) -> SceneResult:
    """The same for Gaussians `[B, N]` and cameras `[B, V]` on a CUDA device or the CPU."""
    device = gaussians.device
    contenders = gpu_contenders(cameras) if device.type == "cuda" else cpu_contenders(cameras)
    runs = runs or (GPU_RUNS if device.type == "cuda" else CPU_RUNS)
    times = _times(contenders, gaussians, runs)
    measurements: list[Measurement] = []
    agreements: list[Agreement] = []
    ours: tuple[tuple[Tensor, ...], list[Tensor]] | None = None
    for contender, (forward_ms, total_ms) in zip(contenders, times, strict=True):
        middles = statistics.median(forward_ms), statistics.median(total_ms)
        memory = _memory_mib(contender, gaussians) if device.type == "cuda" else (None, None)
        measurements.append(Measurement(contender.name, *middles, min(total_ms), *memory))
        result = _images_and_gradients(contender, gaussians, cameras)
        if ours is None:
            ours = result
        else:
            agreements.append(_agreement(contender.name, ours, result))
    return SceneResult(scene, tuple(measurements), tuple(agreements))


def _agreement(
    name: str, ours: tuple[tuple[Tensor, ...], list[Tensor]], other: tuple[tuple[Tensor, ...], list[Tensor]]
) -> Agreement:
    (images, gradients), (other_images, other_gradients) = ours, other
    difference = (images[0] - other_images[0]).abs()
    comparable = len(images) == len(other_images)  # else the gradients are of another loss
    differences = {
        tensor: float((a - b).norm() / b.norm())
        for tensor, a, b in zip(GRADIENT_NAMES, gradients, other_gradients, strict=True)
        if comparable
    }
    return Agreement(name, float(difference.mean()), float(difference.max()), differences)


def _leaves(gaussians: Gaussians) -> Gaussians:
    return gaussians.map(lambda value: value.detach().clone().requires_grad_())


def _inputs(gaussians: Gaussians) -> list[Tensor]:
    return [getattr(gaussians, name) for name in GRADIENT_NAMES]


def _calls(contender: Contender, gaussians: Gaussians) -> tuple[Callable[[], None], Callable[[], None]]:
    """Rendering, and rendering with all gradients."""
    leaves = _leaves(gaussians)
    with torch.no_grad():
        upstream = [torch.rand_like(output) for output in contender.render(leaves)]

    def forward() -> None:
        with torch.no_grad():
            contender.render(leaves)

    def total() -> None:
        torch.autograd.grad(contender.render(leaves), _inputs(leaves), upstream)

    return forward, total


def _times(contenders: Sequence[Contender], gaussians: Gaussians, runs: int) -> list[tuple[list[float], list[float]]]:
    """Milliseconds of both calls of every backend, which take turns."""
    on_gpu = gaussians.device.type == "cuda"
    time_runs, rounds = (time_gpu, GPU_ROUNDS) if on_gpu else (time_cpu, CPU_ROUNDS)
    calls = [_calls(contender, gaussians) for contender in contenders]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in calls]
    for _ in range(rounds):
        for (forward, total), (forward_ms, total_ms) in zip(calls, times, strict=True):
            forward_ms += time_runs(forward, runs)
            total_ms += time_runs(total, runs)
    return times


def _memory_mib(contender: Contender, gaussians: Gaussians) -> tuple[float, float]:
    """`peak_mib` and `own_mib` of a backend."""
    leaves = _leaves(gaussians)
    images, inputs = contender.render(leaves), _inputs(leaves)
    results = sum(tensor.nbytes for tensor in (*images, *inputs)) / 2**20  # a gradient is as large as its input
    upstream = [torch.rand_like(image) for image in images]
    del images

    def with_sum() -> None:
        outputs = contender.render(leaves)
        torch.autograd.grad([output.sum() for output in outputs], inputs)

    def with_gradients() -> None:
        torch.autograd.grad(contender.render(leaves), inputs, upstream)

    peak, dense = (_added_mib(call, gaussians.device) for call in (with_sum, with_gradients))
    return peak, dense - results


def _added_mib(call: Callable[[], None], device: torch.device) -> float:
    """Most GPU memory that torch hands out at once during a call, beyond what it had handed out before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _images_and_gradients(
    contender: Contender, gaussians: Gaussians, cameras: Cameras
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Images, and gradients for one fixed upstream gradient, on the CPU (so that they do not count as GPU memory)."""
    leaves = _leaves(gaussians)
    images = contender.as_images(contender.render(leaves))
    generator = torch.Generator(device=cameras.device).manual_seed(2)
    upstream = [torch.randn(image.shape, generator=generator, device=cameras.device) for image in images]
    gradients = list(torch.autograd.grad(images, _inputs(leaves), upstream))
    # Backends that normalise quaternions themselves have no gradient along them: compare the part across.
    along = (gradients[1] * gaussians.quats).sum(-1, keepdim=True)
    gradients[1] = gradients[1] - along * gaussians.quats
    return tuple(image.detach().cpu() for image in images), [gradient.cpu() for gradient in gradients]


def time_gpu(function: Callable[[], None], runs: int) -> Sequence[float]:
    """Milliseconds between CUDA events around each of `runs` calls, after three calls to warm up."""
    for _ in range(3):
        function()
    new_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    events = [(new_event(enable_timing=True), new_event(enable_timing=True)) for _ in range(runs)]
    torch.cuda.synchronize()
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def time_cpu(function: Callable[[], None], runs: int) -> Sequence[float]:
    """Milliseconds of each of `runs` calls by the clock, after one call to warm up."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return times
