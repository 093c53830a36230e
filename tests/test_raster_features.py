"""Options of the Gaussian rasterizer: features, antialiased mode, expected depth, patches, colours per view."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cuda_on_cpu import run_on_cpu
from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.raster import cuda, reference, render_gaussians
from maquette.raster.api import RenderedGaussians
from maquette.raster.sh import sh_colors
from raster_scenes import Scene, backend_function, orbit_view, pinhole, smooth_scene, surface_scene, wild_scene
from test_raster_gaussians import assert_gradients_close, assert_images_close

EMULATED = "cuda kernels on the CPU"
FAST = ["cpu", EMULATED, pytest.param("cuda", marks=pytest.mark.gpu)]
ALL = ["reference", *FAST]
Render = Callable[..., RenderedGaussians]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture
def backend(request: pytest.FixtureRequest, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend; the CUDA one's own kernels may run on the CPU (see cuda_on_cpu.py)."""
    name: str = request.param
    if name != EMULATED:
        return name
    run_on_cpu(cuda, libraries, monkeypatch)
    monkeypatch.setattr(cuda, "current_stream", lambda: None)
    monkeypatch.setattr(cuda, "_DEVICE", "cpu")
    monkeypatch.setattr("maquette.raster.api._load_backend", lambda *_: cuda.rasterize)
    return "cpu"


def on(*backends: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", backends, indirect=True)


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def nouns(scene: Scene, values: list[Tensor] | None = None) -> tuple[Gaussians, Cameras]:
    cameras = Cameras(scene.world_to_camera, scene.intrinsics, scene.height, scene.width)
    return Gaussians(*(scene.values if values is None else values)), cameras


def features_of(scene: Scene, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*scene.values[3].shape, channels, generator=generator)


def outputs_of(image: RenderedGaussians) -> list[Tensor]:
    parts = [image.color, image.depth, image.alpha]
    return parts if image.features is None else [*parts, image.features]


def run(
    scene: Scene, backend: str, features: Tensor | None = None, **options: Any
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Images, gradients of the five values and of the features, for upstream gradients that depend on shapes only."""
    values = [value.detach().clone().requires_grad_() for value in scene.values]
    extra = None if features is None else features.detach().clone().to(values[0]).requires_grad_()
    image = render_gaussians(
        *nouns(scene, values), features=extra, background=scene.background, backend=backend, **options
    )
    generator = torch.Generator().manual_seed(1)
    outputs = outputs_of(image)
    upstream = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    torch.autograd.backward(outputs, upstream)
    gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
    return [output.detach() for output in outputs], gradients, None if extra is None else extra.grad


def assert_matches_reference(scene: Scene, backend: str, features: Tensor | None = None, **options: Any) -> None:
    """Values and gradients of a fast backend against those of the reference in float64."""
    images, gradients, extra = run(scene.to(device_of(backend)), backend, features, **options)
    truth, truth_gradients, truth_extra = run(scene.to(torch.float64), "reference", features, **options)
    for got, expected in zip(images, truth, strict=True):
        assert got.shape == expected.shape
        assert_images_close(got, expected, atol=3e-5 * max(1.0, float(expected.abs().max())), flips=2e-3)
    assert_gradients_close(gradients, truth_gradients, rtol=3e-4, flips=2e-2)
    if features is not None:
        assert extra is not None and truth_extra is not None
        assert_gradients_close([extra] * 5, [truth_extra] * 5, rtol=3e-4, flips=2e-2)


def weighted_sums_of_reference(scene: Scene, **options: Any) -> Callable[..., tuple[Tensor, ...]]:
    """A function for gradcheck: the five values, and features if given, to weighted sums of the images."""

    def sums(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = reference.rasterize(
            *values[:5],
            scene.world_to_camera,
            scene.intrinsics,
            scene.height,
            scene.width,
            scene.background,
            scene.scale_modifier,
            features=values[5] if len(values) > 5 else None,
            **options,
        )
        generator = torch.Generator().manual_seed(5)
        return tuple((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs)

    return sums


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 7])
@on(*FAST)
def test_features_match_the_reference(backend: str, channels: int) -> None:
    scene = surface_scene(batch=2, views=2, count=120, height=20, width=35, seed=31)
    assert_matches_reference(scene, backend, features_of(scene, channels))


def test_feature_gradients_of_the_reference_by_finite_differences() -> None:
    scene = smooth_scene()
    values = [v.clone().requires_grad_() for v in (*scene.values, features_of(scene, 2).double())]
    assert torch.autograd.gradcheck(weighted_sums_of_reference(scene), values, eps=1e-6, atol=1e-6)


@on(*ALL)
def test_features_are_blended_like_colors_without_background(backend: str) -> None:
    scene = surface_scene(batch=1, views=2, count=100, height=24, width=24, seed=32).to(device_of(backend))
    gaussians, cameras = nouns(scene)
    black = render_gaussians(gaussians, cameras, background=(0.0, 0.0, 0.0), backend=backend)
    features = torch.cat([gaussians.colors, torch.ones_like(gaussians.colors[..., :1])], -1)
    image = render_gaussians(gaussians, cameras, features=features, backend=backend)
    assert image.features is not None and black.features is None
    torch.testing.assert_close(image.features[:, :, :3], black.color, atol=2e-6, rtol=0)
    torch.testing.assert_close(image.features[:, :, 3], image.alpha, atol=2e-6, rtol=0)
    plain = render_gaussians(gaussians, cameras, backend=backend)
    torch.testing.assert_close(plain.color, image.color, atol=1e-6 if backend == "reference" else 0.0, rtol=0)
    torch.testing.assert_close(plain.depth, image.depth, atol=1e-6 if backend == "reference" else 0.0, rtol=0)
    single = render_gaussians(gaussians[0], cameras[0][1], features=features[0], backend=backend)
    assert single.features is not None and single.features.shape == (4, 24, 24)
    torch.testing.assert_close(single.features, image.features[0, 1], atol=1e-5, rtol=0)


@on(*ALL)
def test_loss_on_features_alone_moves_the_geometry(backend: str) -> None:
    """And a loss that leaves them out gives them no gradient but zeros."""
    scene = surface_scene(views=1, count=60, height=20, width=20, seed=33).to(device_of(backend))
    features = features_of(scene, 4).to(scene.values[0]).requires_grad_()
    means = scene.values[0].clone().requires_grad_()
    gaussians, cameras = nouns(scene.replace(means=means))
    image = render_gaussians(gaussians, cameras, features=features, backend=backend)
    assert image.features is not None
    image.features[:, :, 3].square().sum().backward(retain_graph=True)
    assert means.grad is not None and means.grad.abs().max() > 0 and features.grad is not None
    assert (features.grad[..., :3] == 0).all() and features.grad[..., 3].abs().max() > 0
    features.grad = None
    image.color.sum().backward()
    assert features.grad is None or not features.grad.any()


@on(*ALL)
def test_gaussians_with_a_bad_feature_are_left_out(backend: str) -> None:
    scene = surface_scene(views=2, count=40, height=20, width=20, seed=34)
    features = features_of(scene, 5)
    features[0, 1::2, 4] = math.nan
    images, gradients, extra = run(scene.to(device_of(backend)), backend, features)
    good = torch.arange(0, 40, 2)
    expected, _, _ = run(scene.subset(good).to(device_of(backend)), backend, features[:, good])
    for got, truth in zip(images, expected, strict=True):
        torch.testing.assert_close(got, truth, atol=1e-6, rtol=0)
    assert extra is not None and all((g[:, 1::2] == 0).all() for g in [*gradients, extra])


@pytest.mark.parametrize("case", ["none", "behind"])
@on(*ALL)
def test_features_and_patches_of_nothing(backend: str, case: str) -> None:
    scene = surface_scene(views=2, count=0 if case == "none" else 5, height=20, width=20, seed=44)
    scene.world_to_camera[..., 2, 3] = -3.0
    harmonics = torch.zeros(1, len(scene.values[3][0]), 4, 3)
    scene = scene.replace(colors=harmonics).to(device_of(backend))
    options = {"crop": (3, 4, 9, 8), "antialiased": True, "depth_mode": "expected"}
    images, gradients, extra = run(scene, backend, features_of(scene, 4), **options)
    assert [image.shape[2:] for image in images] == [(3, 8, 9), (8, 9), (8, 9), (4, 8, 9)]
    assert torch.equal(images[0], scene.background[..., None, None].expand_as(images[0]))
    assert extra is not None and not any(t.any() for t in [*images[1:], *gradients, extra])


@on(*FAST)
def test_second_backward_pass_with_features(backend: str) -> None:
    """Also with colours of every view, whose gradients are taken out of a shared buffer."""
    scene = surface_scene(views=2, count=60, height=20, width=20, seed=45)
    coefficients = 0.2 * torch.randn(1, 60, 4, 3, generator=torch.Generator().manual_seed(0))
    scene = scene.replace(colors=coefficients).to(device_of(backend))
    values = [v.clone().requires_grad_() for v in (*scene.values, features_of(scene, 4).to(scene.values[0]))]
    image = render_gaussians(*nouns(scene, values[:5]), features=values[5], backend=backend)
    loss = sum(output.square().sum() for output in outputs_of(image))
    assert isinstance(loss, Tensor)
    first = torch.autograd.grad(loss, values, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, values), strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


# --- antialiased mode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "wild"])
@on(*FAST)
def test_antialiased_matches_the_reference(backend: str, name: str) -> None:
    scene = surface_scene(views=2, count=250, height=24, width=24, scale=0.02, seed=35) if name == "small" else None
    assert_matches_reference(scene or wild_scene(seed=36), backend, antialiased=True)


def test_antialiased_gradients_of_the_reference_by_finite_differences() -> None:
    scene = smooth_scene()
    scene.scale_modifier = 0.6
    splats = reference.project(*scene.values[:3], scene.world_to_camera, scene.intrinsics, 9, 13, 0.6)
    assert splats.compensations.min() > 0.1 and splats.compensations.max() < 0.999
    values = [v.clone().requires_grad_() for v in scene.values]
    sums = weighted_sums_of_reference(scene, antialiased=True)
    assert torch.autograd.gradcheck(sums, values, eps=1e-6, atol=1e-6)


@on(*ALL)
def test_antialiased_gaussian_in_closed_form(backend: str) -> None:
    """A sphere of deviation s at depth z: opacity times v / (v + 0.3), v = (f s / z)^2, culled below 1/255."""
    focal, depth_z, size = 40.0, 2.0, 17
    for deviation, opacity in ((0.02, 0.9), (0.1, 0.8), (0.002, 0.9)):
        variance = (focal * deviation / depth_z) ** 2
        values = [
            torch.zeros(1, 1, 3),
            torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
            torch.full((1, 1, 3), deviation),
            torch.full((1, 1), opacity),
            torch.ones(1, 1, 3),
        ]
        camera = pinhole(focal, focal, size / 2, size / 2)[None, None]
        scene = Scene(values, orbit_view(0.0, 0.0, depth_z)[None, None], camera, size, size, torch.zeros(1, 1, 3))
        image = render_gaussians(*nouns(scene.to(device_of(backend))), antialiased=True, backend=backend)
        expected = opacity * variance / (variance + 0.3)
        middle = image.alpha[0, 0, size // 2, size // 2].item()
        assert middle == pytest.approx(expected if expected >= 1 / 255 else 0.0, abs=2e-6)


@on(*ALL)
def test_antialiased_keeps_the_light_of_small_gaussians(backend: str) -> None:
    """Far away, what a faint Gaussian adds up to falls with its area, and not to the area of the dilation."""
    scene = surface_scene(views=1, count=1, height=48, width=48, scale=0.05, seed=37, faint_share=0.0)
    scene = scene.replace(opacities=torch.full((1, 1), 0.8), means=torch.zeros(1, 1, 3))
    totals = {}
    for distance in (1.5, 6.0):
        scene.world_to_camera[..., 2, 3] = distance
        for antialiased in (False, True):
            image = render_gaussians(*nouns(scene.to(device_of(backend))), antialiased=antialiased, backend=backend)
            totals[antialiased, distance] = image.alpha.sum().item() * distance**2
    assert totals[True, 6.0] == pytest.approx(totals[True, 1.5], rel=0.2)
    assert totals[False, 6.0] > 1.3 * totals[False, 1.5]


@on(*ALL)
def test_antialiased_flat_gaussians_have_finite_gradients(backend: str) -> None:
    scene = surface_scene(views=2, count=30, height=20, width=20, scale=0.05, seed=38)
    scales = scene.values[2].clone()
    scales[:, :10, 0] = 0.0
    scales[:, 10:15] = 0.0
    scales[:, 15:20, 1] = 1e-12
    _, gradients, _ = run(scene.replace(scales=scales).to(device_of(backend)), backend, antialiased=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# --- depth modes -----------------------------------------------------------------------------------------------------


@on(*ALL)
def test_expected_depth(backend: str) -> None:
    """Accumulated depth over alpha, 0 where nothing is seen; between the nearest and the furthest centre elsewhere."""
    scene = surface_scene(views=2, count=80, height=30, width=30, seed=39).to(device_of(backend))
    means = scene.values[0].clone().requires_grad_()
    gaussians, cameras = nouns(scene.replace(means=means))
    accumulated = render_gaussians(gaussians, cameras, backend=backend)
    image = render_gaussians(gaussians, cameras, depth_mode="expected", backend=backend)
    seen = image.alpha > 0
    assert 0.2 < seen.double().mean() < 0.99
    assert (image.depth[~seen] == 0).all()
    torch.testing.assert_close((image.depth * image.alpha)[seen], accumulated.depth[seen], atol=2e-6, rtol=0)
    z = gaussians.means @ cameras.world_to_camera[0, :, 2, :3, None] + cameras.world_to_camera[0, :, 2, 3, None, None]
    assert image.depth[seen].min() > z.min() - 1e-4 and image.depth[seen].max() < z.max() + 1e-4
    image.depth.sum().backward()
    assert means.grad is not None and torch.isfinite(means.grad).all() and means.grad.abs().max() > 0


# --- patches ---------------------------------------------------------------------------------------------------------

CROPS = {
    "aligned": [16, 16, 16, 16],
    "anywhere": [13, 7, 21, 18],
    "one pixel": [33, 22, 1, 1],
    "corner": [30, 20, 20, 17],
    "whole": [0, 0, 50, 37],
    "per view": [[[0, 0, 20, 12], [29, 25, 20, 12]], [[15, 16, 20, 12], [30, 3, 20, 12]]],
}


def cut(image: Tensor, crop: list[Any]) -> Tensor:
    """Patches of images `[2, 2, ..., H, W]`."""
    boxes = np.broadcast_to(np.array(crop), (2, 2, 4))
    rows = [[image[b, v][..., y : y + h, x : x + w] for v, (x, y, w, h) in enumerate(boxes[b])] for b in range(2)]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("name", CROPS)
@on(*ALL)
def test_a_patch_is_part_of_its_image(backend: str, name: str) -> None:
    """Gaussians beside the camera and huge ones included, whose shape depends on the field of view."""
    scene = wild_scene(seed=40).to(device_of(backend))
    features = features_of(scene, 1).to(scene.values[0])
    crop = CROPS[name]
    options = {"background": scene.background, "backend": backend, "antialiased": name == "anywhere"}

    def gradients(part: bool) -> tuple[list[Tensor], list[Tensor]]:
        values = [value.clone().requires_grad_() for value in (*scene.values, features)]
        setting = {"crop": torch.tensor(crop)} if part else {}
        image = render_gaussians(*nouns(scene, values[:5]), features=values[5], **setting, **options)
        outputs = outputs_of(image) if part else [cut(output, crop) for output in outputs_of(image)]
        generator = torch.Generator().manual_seed(2)
        upstream = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
        return [o.detach() for o in outputs], list(torch.autograd.grad(outputs, values, upstream))

    images, got = gradients(part=True)
    truth, expected = gradients(part=False)
    exact = backend == "cpu" and cuda._DEVICE == "cuda"
    for image, whole in zip(images, truth, strict=True):
        torch.testing.assert_close(image, whole, atol=0.0 if exact else 1e-4, rtol=0)
    for gradient, whole in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, whole, atol=1e-3 * float(whole.abs().max()) + 1e-12, rtol=0)


def test_a_patch_of_a_single_view() -> None:
    gaussians, cameras = nouns(surface_scene(views=2, count=60, seed=41))
    whole = render_gaussians(gaussians[0], cameras[0][1])
    patch = render_gaussians(gaussians[0], cameras[0][1], crop=(5, 20, 30, 11))
    assert patch.color.shape == (3, 11, 30)
    assert torch.equal(patch.color, whole.color[:, 20:31, 5:35])


# --- colours per view ------------------------------------------------------------------------------------------------


@on(*ALL)
def test_colors_per_view_equal_views_one_by_one(backend: str) -> None:
    """Images, and gradients: those of the colours view by view, those of the geometry summed."""
    scene = surface_scene(batch=2, views=2, count=80, height=24, width=24, seed=42).to(device_of(backend))
    colors = torch.rand(2, 2, 80, 3, generator=torch.Generator().manual_seed(0)).to(scene.values[0])
    rasterize = cuda.rasterize if cuda._DEVICE == "cpu" else backend_function(backend)

    def render(views: slice, colors: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
        cameras = (scene.world_to_camera[:, views], scene.intrinsics[:, views])
        return rasterize(*values, colors, *cameras, 24, 24, scene.background[:, views], 1.0)

    def gradients(parts: list[slice]) -> tuple[Tensor, list[Tensor]]:
        inputs = [value.clone().requires_grad_() for value in (*scene.values[:4], colors)]
        images = [
            render(views, inputs[4][:, views.start] if views.stop - views.start == 1 else inputs[4], inputs[:4])
            for views in parts
        ]
        upstream = torch.randn(2, 2, 3, 24, 24, generator=torch.Generator().manual_seed(3)).to(colors)
        color = torch.cat([image[0] for image in images], 1)
        return color.detach(), list(torch.autograd.grad((color * upstream).sum(), inputs))

    together, got = gradients([slice(0, 2)])
    apart, expected = gradients([slice(0, 1), slice(1, 2)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)
    for gradient, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, truth, atol=1e-5 * float(truth.abs().max()), rtol=0)


@pytest.mark.parametrize("degree", [0, 3])
@on(*FAST)
def test_spherical_harmonics_match_the_reference(backend: str, degree: int) -> None:
    """With features beside them, and one coefficient that is not finite."""
    scene = surface_scene(batch=2, views=2, count=90, height=24, width=24, seed=43)
    generator = torch.Generator().manual_seed(4)
    coefficients = 0.3 * torch.randn(2, 90, (degree + 1) ** 2, 3, generator=generator)
    coefficients[0, 5, 0, 1] = math.nan
    scene = scene.replace(colors=coefficients)
    features = features_of(scene, 2)
    assert_matches_reference(scene, backend, features)
    images, gradients, _ = run(scene.to(device_of(backend)), backend, features)
    assert all((gradient[0, 5] == 0).all() for gradient in gradients)
    explicit = sh_colors(coefficients, scene.values[0], nouns(scene)[1].positions)
    view = scene.replace(colors=explicit[:, 1]).render("cpu")[0][1, 1]
    assert_images_close(images[0][1, 1], view, atol=1e-5)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_of_the_options_say_what_is_valid() -> None:
    gaussians, cameras = nouns(surface_scene(batch=2, views=2, count=10))
    for bad in (torch.ones(2, 9, 3), torch.ones(2, 10), torch.ones(2, 10, 0), torch.ones(10, 3)):
        with pytest.raises(InvalidInputError, match=r"features must be \[2, 10, 'C'\]"):
            render_gaussians(gaussians, cameras, features=bad)
    with pytest.raises(InvalidInputError, match="floating-point"):
        render_gaussians(gaussians, cameras, features=torch.ones(2, 10, 1, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="accumulated, expected"):
        render_gaussians(gaussians, cameras, depth_mode="median")  # type: ignore[arg-type]
    for crop in ((0, 0, 49, 48), (-1, 0, 5, 5), (3, 3, 0, 5), (47, 47, 2, 1)):
        with pytest.raises(InvalidInputError, match=r"crop must be .* 48 x 48 .*got \("):
            render_gaussians(gaussians, cameras, crop=crop)
    for crop in ((0, 0, 5), "left", torch.zeros(2, 4, dtype=torch.int64), (0.0, 0.0, 5.0, 5.0)):
        with pytest.raises(InvalidInputError, match="crop must be"):
            render_gaussians(gaussians, cameras, crop=crop)  # type: ignore[arg-type]
    sizes = torch.tensor([[[0, 0, 5, 5], [0, 0, 5, 5]], [[0, 0, 5, 5], [0, 0, 5, 6]]])
    with pytest.raises(InvalidInputError, match="one width and height"):
        render_gaussians(gaussians, cameras, crop=sizes)
