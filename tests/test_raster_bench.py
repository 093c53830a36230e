"""Benchmark of the Gaussian rasterizers: scenes, contenders, agreement, report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.raster import bench, reference, render_gaussians
from maquette.raster.bench import bench_gaussians, bench_machine, bench_scene
from maquette.raster.bench_contenders import OFFICIAL, gpu_contenders, official_contender, own_contender
from maquette.raster.bench_report import draw, machine, markdown, write_report
from maquette.raster.bench_scenes import BenchScene, asset_scene, make_scene
from maquette.weights import find_weights

CPU = torch.device("cpu")
TINY = BenchScene("tiny", 1, 1, 60, 32, 0.03)


class OldSettings(NamedTuple):
    """Fields of the settings of the fork that LGM uses."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


class NewSettings(NamedTuple):
    """Those of the newest original."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool
    antialiasing: bool


def center_px(points: Tensor, clip: Tensor, focal_px: float, size: int, axis: int) -> float:
    """Principal point along an axis: where the kernel's pixels of clip space lie beside focal * x / z."""
    pixels = ((clip[:, axis] / clip[:, 3] + 1) * size - 1) / 2
    offsets = pixels + 0.5 - focal_px * points[:, axis] / points[:, 2]
    assert offsets.std() < 1e-2, "clip space does not fit the field of view"
    return float(offsets.median())


class StandInRasterizer:
    """Does with its settings what the official kernels do, by maquette's reference."""

    num_outputs = 4

    def __init__(self, raster_settings: Any) -> None:
        self.settings = raster_settings

    def __call__(self, means3D: Tensor, means2D: Tensor, opacities: Tensor, **others: Any) -> tuple[Tensor, ...]:
        s = self.settings
        assert opacities.shape == (len(means3D), 1) and means2D.shape == means3D.shape and others["shs"] is None
        rows = torch.cat([means3D, torch.ones_like(opacities)], dim=1).detach()  # row vectors, as in the kernels
        points, clip = rows @ s.viewmatrix, rows @ s.projmatrix
        torch.testing.assert_close(torch.cat([s.campos, s.campos.new_ones(1)]) @ s.viewmatrix, torch.eye(4)[3])
        focal = s.image_width / (2 * s.tanfovx), s.image_height / (2 * s.tanfovy)
        intrinsics = torch.eye(3)
        for axis, size in enumerate((s.image_width, s.image_height)):
            intrinsics[axis, axis], intrinsics[axis, 2] = focal[axis], center_px(points, clip, focal[axis], size, axis)
        color, depth, alpha = reference.rasterize(
            means3D[None],
            others["rotations"][None],
            others["scales"][None],
            opacities.T,
            others["colors_precomp"][None],
            s.viewmatrix.T[None, None],
            intrinsics[None, None],
            s.image_height,
            s.image_width,
            s.bg[None, None],
            s.scale_modifier,
        )
        radii = torch.zeros(len(means3D))
        if self.num_outputs == 4:
            return color[0, 0], radii, depth[0], alpha[0]
        return (color[0, 0], radii, depth[0])[: self.num_outputs]


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("diff_gaussian_rasterization")
    module.GaussianRasterizer = type("GaussianRasterizer", (StandInRasterizer,), {})  # type: ignore[attr-defined]
    module.GaussianRasterizationSettings = OldSettings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", module)
    return module


def odd_cameras(scene: BenchScene) -> tuple[Gaussians, Cameras]:
    """A scene under cameras of unequal sides and focal lengths, off the centre."""
    gaussians, cameras = make_scene(scene, CPU)
    intrinsics = torch.tensor([[55.0, 0.0, 26.5], [0.0, 47.0, 14.0], [0.0, 0.0, 1.0]]).expand(
        scene.items, scene.views, 3, 3
    )
    return gaussians, Cameras(cameras.world_to_camera, intrinsics, 32, 48)


def test_bench_scene_is_fixed() -> None:
    scene = BenchScene("tiny", 2, 3, 50, 32, 0.02)
    gaussians, cameras = make_scene(scene, CPU)
    again, _ = make_scene(scene, CPU)
    assert gaussians.means.shape == (2, 50, 3) and cameras.batch_shape == (2, 3)
    assert torch.equal(gaussians.scales, again.scales)
    gaussians.check_values()


def test_bench_measures_and_reports(tmp_path: Path) -> None:
    result = bench_scene(TINY, CPU, runs=2)
    assert [m.backend for m in result.measurements] == ["cpu", "reference"]
    (agreement,) = result.agreements
    assert agreement.backend == "reference" and agreement.mean_color_difference < 1e-4
    assert max(agreement.gradient_differences.values()) < 1e-2
    where = machine(CPU, "abc")
    paths = write_report([result], where, tmp_path, "raster_cpu")
    assert [path.suffix for path in paths] == [".json", ".md", ".png"] and all(p.stat().st_size > 0 for p in paths)
    text = markdown([result], where, ["x is left out"])
    assert "| tiny" in text and "official" not in text and text.endswith("x is left out\n")
    assert draw([result], where).width > 300


def test_official_loop_gets_the_right_cameras(official: ModuleType) -> None:
    gaussians, cameras = odd_cameras(BenchScene("two", 2, 2, 40, 32, 0.05))
    (contender,) = official_contender(cameras)
    color, depth, alpha = contender.as_images(contender.render(gaussians))
    expected = render_gaussians(gaussians, cameras, background=(0.0, 0.0, 0.0), backend="reference")
    assert expected.alpha.mean() > 0.1
    for image, truth in zip((color, depth, alpha), (expected.color, expected.depth, expected.alpha), strict=True):
        torch.testing.assert_close(image, truth, atol=1e-4, rtol=0)


def test_official_rasterizers_with_colour_only(official: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    official.GaussianRasterizationSettings = NewSettings
    official.GaussianRasterizer.num_outputs = 3
    monkeypatch.setattr(bench, "cpu_contenders", lambda c: [own_contender("cpu", c), *official_contender(c)])
    gaussians, cameras = odd_cameras(TINY)
    result = bench_gaussians(TINY, gaussians, cameras, runs=1)
    (agreement,) = result.agreements
    assert agreement.max_color_difference < 1e-3 and agreement.gradient_differences == {}


def test_official_loop_alone_is_reported(official: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "cpu_contenders", lambda c: [own_contender("cpu", c), *official_contender(c)])
    gaussians, cameras = odd_cameras(TINY)
    both = bench_gaussians(TINY, gaussians, cameras, runs=1)
    assert max(both.agreements[0].gradient_differences.values()) < 1e-2
    monkeypatch.setattr(bench, "cpu_contenders", lambda c: [own_contender("cpu", c)])
    ours = bench_gaussians(TINY, gaussians, cameras, runs=1)
    assert ours.speedup() is None and ours.official_ms() is None and ours.agreements == ()
    paths = write_report([both, ours], machine(CPU, "abc"), tmp_path, "raster_cpu")
    rows = [line.split("|")[2:-1] for line in paths[1].read_text().splitlines() if line.startswith("| tiny")]
    ratio = both.measurements[1].total_ms / both.measurements[0].total_ms
    assert [row[0].strip() for row in rows] == ["cpu", OFFICIAL, "cpu"]
    assert [row[4].strip() for row in rows] == [f"{ratio:.2f}x", "1.00x", ""], "beside the official loop"
    assert json.loads(paths[0].read_text())["scenes"][0]["official_speedup"] == pytest.approx(ratio)


def test_gpu_contenders_come_in_order(official: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat = ModuleType("gsplat")
    gsplat.__version__ = "1.5.3"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat", gsplat)
    _, cameras = make_scene(TINY, CPU)
    assert [contender.name for contender in gpu_contenders(cameras)] == ["cuda", "gsplat 1.5.3", OFFICIAL]


def test_assets_that_are_not_there_are_left_out() -> None:
    results, notes = bench_machine(CPU, [TINY], ["nowhere"], runs=1)
    assert [result.scene.name for result in results] == ["tiny"]
    assert len(notes) == 1 and notes[0].startswith("nowhere (lgm-mini) is left out: ")


@pytest.mark.skipif(find_weights("lgm-mini") is None, reason="needs the weights of lgm-mini")
def test_assets_are_seen_from_all_sides() -> None:
    scene, gaussians, cameras = asset_scene("taxi", CPU)
    assert scene.name == "taxi (lgm-mini)" and cameras.batch_shape == (1, 8) and cameras.height == 512
    assert gaussians.means.shape == (1, scene.count, 3) and 10_000 < scene.count < 262_144
    alpha = render_gaussians(gaussians, cameras.resized(64, 64)).alpha
    assert (alpha.mean((2, 3)) > 0.05).all() and (alpha[..., 0, :].max() < 0.05)
