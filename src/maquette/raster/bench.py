"""Speed, memory and agreement of the Gaussian rasterizers on this machine, side by side in one run.

On a GPU the CUDA backend is timed beside gsplat (when installed) on batches as feed-forward models render them; on a
CPU the Numba backend is timed beside the torch reference on single views.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.raster.api import Rasterize

NEAR_Z = 0.2
GPU_RUNS, CPU_RUNS = 20, 5
FAINT_SHARE = 0.4
GRADIENT_NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True)
class BenchScene:
    """A batch to render.

    Attributes:
        name: key in the results.
        items, views, count: sets of Gaussians, views of each, Gaussians in each.
        image_size: height and width in pixels.
        scale: median standard deviation in world units; the object has a radius of about 0.4.
    """

    name: str
    items: int
    views: int
    count: int
    image_size: int
    scale: float

    @property
    def title(self) -> str:
        """Name and sizes in words."""
        return f"{self.name} ({self.items}x{self.views} views, {self.count:,} Gaussians, {self.image_size} px)"


GPU_SCENES = (
    BenchScene("lgm_big", 8, 8, 65_536, 512, 0.008),
    BenchScene("gamba", 8, 8, 16_384, 512, 0.016),
    BenchScene("geolrm", 1, 4, 524_288, 512, 0.004),
    BenchScene("one", 1, 1, 65_536, 512, 0.008),
)
CPU_SCENES = (BenchScene("small", 1, 1, 16_384, 256, 0.016), BenchScene("one", 1, 1, 65_536, 512, 0.008))


@dataclass(frozen=True)
class Measurement:
    """One backend on one scene.

    Attributes:
        backend: "cuda", "gsplat 1.5.3", "cpu" or "reference".
        forward_ms, total_ms: median milliseconds of rendering, and of rendering with all gradients.
        best_total_ms: the shortest of the latter.
        peak_mib: largest amount of GPU memory that torch had handed out at once, in MiB; None on a CPU.
    """

    backend: str
    forward_ms: float
    total_ms: float
    best_total_ms: float
    peak_mib: float | None


@dataclass(frozen=True)
class SceneResult:
    """Measurements of one scene and how far the first two backends agree.

    Attributes:
        scene: what was rendered.
        measurements: one per backend, ours first.
        mean_color_difference, max_color_difference: between ours and the second backend; None with one backend.
        gradient_differences: per tensor, the norm of the difference over the norm of the second backend's gradient.
    """

    scene: BenchScene
    measurements: tuple[Measurement, ...]
    mean_color_difference: float | None
    max_color_difference: float | None
    gradient_differences: dict[str, float]

    def speedup(self) -> float | None:
        """Time with gradients of the second backend over ours."""
        if len(self.measurements) < 2:
            return None
        return self.measurements[1].total_ms / self.measurements[0].total_ms


Images = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Contender:
    name: str
    render: Callable[[Gaussians], tuple[Tensor, ...]]
    as_images: Callable[[tuple[Tensor, ...]], Images]


def make_scene(scene: BenchScene, device: torch.device) -> tuple[Gaussians, Cameras]:
    """Gaussians on a bumpy closed surface, 40 % of them nearly transparent, and cameras around them; fixed seeds."""
    generator = torch.Generator().manual_seed(0)
    size = (scene.items, scene.count)
    directions = torch.nn.functional.normalize(torch.randn(*size, 3, generator=generator), dim=-1)
    radius = 0.35 + 0.15 * torch.sin(15 * directions[..., :1]) * torch.cos(4 * directions[..., 1:2])
    means = directions * radius + 0.01 * torch.randn(*size, 3, generator=generator)
    scales = scene.scale * torch.exp(0.5 * torch.randn(*size, 3, generator=generator))
    quats = torch.nn.functional.normalize(torch.randn(*size, 4, generator=generator), dim=-1)
    opacities = torch.sigmoid(2 * torch.randn(*size, generator=generator) + 1)
    faint = torch.rand(*size, generator=generator) < FAINT_SHARE
    opacities = torch.where(faint, torch.full_like(opacities, 0.002), opacities)
    colors = torch.rand(*size, 3, generator=generator)
    elevations = torch.rand(scene.items, scene.views, generator=torch.Generator().manual_seed(1)) * 60 - 30
    rigs = []
    for item in range(scene.items):
        azimuths = [360 * view / scene.views + math.degrees(0.3 * item) for view in range(scene.views)]
        side = scene.image_size
        rigs.append(Cameras.orbit(azimuths, elevations[item], radius=1.5, fov_deg=49.1, height=side, width=side))
    gaussians = Gaussians(means, quats, scales, opacities, colors)
    return gaussians.map(lambda value: value.contiguous().to(device)), Cameras.stack(rigs).to(device)


def bench_scene(scene: BenchScene, device: torch.device, runs: int | None = None) -> SceneResult:
    """Measures every backend that this machine has on one scene.

    Args:
        scene: what to render.
        device: a CUDA device or the CPU.
        runs: repetitions, of which the median counts; None for 20 on a GPU and 5 on a CPU.

    Raises:
        InvalidInputError: another kind of device.
    """
    if device.type not in ("cuda", "cpu"):
        raise InvalidInputError(f"device must be cuda or cpu, got {device}")
    gaussians, cameras = make_scene(scene, device)
    contenders = _gpu_contenders(cameras) if device.type == "cuda" else _cpu_contenders(cameras)
    runs = runs or (GPU_RUNS if device.type == "cuda" else CPU_RUNS)
    measurements: list[Measurement] = []
    results: list[tuple[Images, list[Tensor]]] = []
    for contender in contenders:
        measurements.append(_measure(contender, gaussians, device, runs))
        if len(results) < 2:
            results.append(_images_and_gradients(contender, gaussians, cameras))
    mean_difference = max_difference = None
    gradient_differences = {}
    if len(results) > 1:
        (images, gradients), (other_images, other_gradients) = results
        difference = (images[0] - other_images[0]).abs()
        mean_difference, max_difference = float(difference.mean()), float(difference.max())
        gradient_differences = {
            name: float((a - b).norm() / b.norm())
            for name, a, b in zip(GRADIENT_NAMES, gradients, other_gradients, strict=True)
        }
    return SceneResult(scene, tuple(measurements), mean_difference, max_difference, gradient_differences)


def _gpu_contenders(cameras: Cameras) -> list[_Contender]:
    contenders = [_own_contender("cuda", cameras)]
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError:
        return contenders
    names = ("width", "height", "near_plane", "packed", "render_mode")
    settings = dict(zip(names, (cameras.width, cameras.height, NEAR_Z, False, "RGB+D"), strict=True))

    def render(g: Gaussians) -> tuple[Tensor, ...]:
        colors, alphas, _ = gsplat.rasterization(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.colors,
            cameras.world_to_camera,
            cameras.intrinsics,
            **settings,
        )
        return colors, alphas

    def as_images(outputs: tuple[Tensor, ...]) -> Images:
        colors, alphas = outputs
        return colors[..., :3].movedim(-1, -3), colors[..., 3], alphas[..., 0]

    return [*contenders, _Contender(f"gsplat {gsplat.__version__}", render, as_images)]


def _cpu_contenders(cameras: Cameras) -> list[_Contender]:
    return [_own_contender("cpu", cameras), _own_contender("reference", cameras)]


def _own_contender(backend: str, cameras: Cameras) -> _Contender:
    """A backend's own `rasterize`, without the argument checks that `render_gaussians` makes before it."""
    black = torch.zeros(*cameras.batch_shape, 3, device=cameras.device)
    rasterize: Rasterize = importlib.import_module(f"maquette.raster.{backend}").rasterize

    def render(g: Gaussians) -> tuple[Tensor, ...]:
        return rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.colors,
            cameras.world_to_camera,
            cameras.intrinsics,
            cameras.height,
            cameras.width,
            black,
            1.0,
        )

    return _Contender(backend, render, lambda outputs: (outputs[0], outputs[1], outputs[2]))


def _leaves(gaussians: Gaussians) -> Gaussians:
    return gaussians.map(lambda value: value.detach().clone().requires_grad_())


def _inputs(gaussians: Gaussians) -> list[Tensor]:
    return [getattr(gaussians, name) for name in GRADIENT_NAMES]


def _measure(contender: _Contender, gaussians: Gaussians, device: torch.device, runs: int) -> Measurement:
    leaves = _leaves(gaussians)
    with torch.no_grad():
        upstream = [torch.rand_like(output) for output in contender.render(leaves)]

    def forward() -> None:
        with torch.no_grad():
            contender.render(leaves)

    def total() -> None:
        torch.autograd.grad(contender.render(leaves), _inputs(leaves), upstream)

    time_runs = time_gpu if device.type == "cuda" else time_cpu
    forward_ms, total_ms = time_runs(forward, runs), time_runs(total, runs)
    peak_mib = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        total()
        peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
    return Measurement(
        contender.name, statistics.median(forward_ms), statistics.median(total_ms), min(total_ms), peak_mib
    )


def _images_and_gradients(contender: _Contender, gaussians: Gaussians, cameras: Cameras) -> tuple[Images, list[Tensor]]:
    """Images, and gradients for one fixed upstream gradient, on the CPU (so that they do not count as GPU memory)."""
    leaves = _leaves(gaussians)
    images = contender.as_images(contender.render(leaves))
    generator = torch.Generator(device=cameras.device).manual_seed(2)
    upstream = [torch.randn(image.shape, generator=generator, device=cameras.device) for image in images]
    gradients = list(torch.autograd.grad(images, _inputs(leaves), upstream))
    # Backends that normalise quaternions themselves have no gradient along them: compare the part across.
    along = (gradients[1] * gaussians.quats).sum(-1, keepdim=True)
    gradients[1] = gradients[1] - along * gaussians.quats
    color, depth, alpha = (image.detach().cpu() for image in images)
    return (color, depth, alpha), [gradient.cpu() for gradient in gradients]


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
