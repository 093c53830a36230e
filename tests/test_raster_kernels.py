"""The CUDA rasterizer's own kernels, run on the CPU (see cuda_on_cpu.py), against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cuda_on_cpu import rasterizer_on_cpu
from maquette.raster import cuda, cuda_bins, cuda_landing
from raster_scenes import Scene, surface_scene, wild_scene
from test_raster_cuda import piled_scene
from test_raster_gaussians import assert_gradients_close, assert_images_close

SCENES = {
    "surface": lambda: surface_scene(batch=2, views=2, count=150, height=33, width=40, seed=11),
    "dense": lambda: surface_scene(views=1, count=500, height=32, width=32, scale=0.06, seed=2, faint_share=0.0),
    "opaque": lambda: opaque_scene(),
    "tiny Gaussians": lambda: surface_scene(views=1, count=300, scale=0.002, seed=3),
    "wild": lambda: wild_scene(seed=5),
    "more than 32 tiles each": lambda: surface_scene(views=1, count=30, height=112, width=130, scale=0.2, seed=7),
}


def opaque_scene() -> Scene:
    """Pixels stop early, at the clamp of alpha."""
    scene = surface_scene(views=1, count=300, height=24, width=24, scale=0.1, seed=4, faint_share=0.0)
    return scene.replace(opacities=torch.full_like(scene.values[3], 1.0))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(autouse=True)
def on_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasterizer_on_cpu(libraries, monkeypatch)


def run(scene: Scene, upstream: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Images and gradients of the kernels."""
    return scene.gradients("cuda", upstream)


@pytest.mark.parametrize("name", SCENES)
def test_matches_float64_reference(name: str) -> None:
    scene = SCENES[name]()
    upstream = scene.upstream()
    images, gradients = run(scene, upstream)
    truth, truth_gradients = scene.to(torch.float64).gradients("reference", upstream)
    for got, expected in zip(images, truth, strict=True):
        assert_images_close(got, expected, atol=3e-5, flips=2e-3)
    assert_gradients_close(gradients, truth_gradients, rtol=1e-4, flips=2e-2)


@pytest.mark.parametrize(("count", "equal_depth"), [(1500, False), (1500, True), (4500, False), (4500, True)])
def test_long_tiles(count: int, equal_depth: bool) -> None:
    """The sorting kernels of longer tiles, with and without ties."""
    scene = piled_scene(count, equal_depth)
    upstream = scene.upstream()
    images, gradients = run(scene, upstream)
    truth, truth_gradients = scene.gradients("cpu", upstream)
    for image, expected in zip(images, truth, strict=True):
        assert (image - expected).abs().mean() < 2e-5
    for gradient, expected in zip(gradients, truth_gradients, strict=True):
        assert (gradient - expected).norm() < 5e-2 * expected.norm()


def test_room_of_earlier_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little, just enough or far too much room for pairs and records: the same image, whole gradients."""
    scene = surface_scene(views=2, count=80, height=32, width=32, seed=6)
    upstream = scene.upstream()
    images, gradients = run(scene, upstream)
    ((key, needs),) = cuda_bins._NEEDS.items()
    assert needs.pairs > 80 and 40 < needs.visible < 160
    monkeypatch.setattr(cuda_bins.Needs, "with_slack", lambda self: self)
    pairs, visible = needs
    guesses = [(guess, visible) for guess in (0, 5, pairs // 2, pairs - 1, pairs, 10 * pairs)]
    guesses += [(pairs, guess) for guess in (0, 5, visible // 2, visible - 1, 3 * visible)]
    for guess in guesses:
        cuda_bins._NEEDS[key] = cuda_bins.Needs(*guess)
        again, again_gradients = run(scene, upstream)
        assert all(kept >= needed for kept, needed in zip(cuda_bins._NEEDS[key], needs, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
        for a, b in zip(gradients, again_gradients, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("features", [False, True])
def test_room_of_earlier_gradients(features: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little, just enough or far too much room for rows of gradients: the same ones."""
    scene = surface_scene(views=2, count=80, height=32, width=32, seed=6)
    values = [value.requires_grad_() for value in scene.values]
    if features:
        values.append(torch.rand(*values[0].shape[:2], 4, generator=torch.Generator().manual_seed(0)).requires_grad_())

    def gradients() -> tuple[Tensor, ...]:
        images = cuda.rasterize(
            *values[:5],
            scene.world_to_camera,
            scene.intrinsics,
            32,
            32,
            scene.background,
            1.0,
            features=values[5] if features else None,
        )
        return torch.autograd.grad(sum(image.square().sum() for image in images), values)

    expected = gradients()
    ((key, rows),) = cuda_bins._ROWS.items()
    assert 20 < rows <= 160
    monkeypatch.setattr(cuda_bins, "_with_slack", lambda number: number)
    for guess in (0, 5, rows - 1, rows, 10 * rows):
        cuda_bins._NEEDS.clear()
        cuda_bins._ROWS[key] = guess
        for a, b in zip(gradients(), expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
        assert cuda_bins._ROWS[key] >= rows


def test_gradients_of_a_gaussian_very_far_away() -> None:
    """Coordinates whose products with their own gradients overflow."""
    scene = surface_scene(views=1, count=12, height=21, width=18, scale=0.1, seed=1)
    scene.values[0].view(-1)[26] = -1e20
    upstream = scene.upstream()
    _, gradients = run(scene, upstream)
    _, truth = scene.to(torch.float64).gradients("reference", upstream)
    for gradient, expected in zip(gradients, truth, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4)


def test_room_follows_what_calls_need() -> None:
    needs = cuda_bins.Needs(3200, 320)
    assert needs.after(cuda_bins.Needs(5000, 10)) == (5000, 310), "up at once, down slowly"
    assert needs.with_slack() == (3400, 340)


@pytest.mark.parametrize(("items", "parts"), [(1, 1), (2, 2), (5, 3)])
def test_backward_in_parts(items: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that go backward in parts, the last one shorter, have the gradients that they have together."""
    scene = surface_scene(batch=items, views=2, count=80, height=32, width=32, seed=6)
    upstream = scene.upstream()
    images, gradients = run(scene, upstream)
    monkeypatch.setattr(cuda, "_RECORDS_PER_PART", 80)
    passes: list[cuda_bins.Part] = []
    project_backward = cuda._project_backward
    monkeypatch.setattr(cuda, "_project_backward", lambda *args: (passes.append(args[1]), project_backward(*args)))
    again, again_gradients = run(scene, upstream)
    assert len(passes) == parts and sum(part.items for part in passes) == items
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    for a, b in zip(gradients, again_gradients, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("layout", ["channels last", "views first", "one number", "every other pixel"])
def test_gradients_of_images_in_any_layout(layout: str) -> None:
    """Gradients that autograd hands over transposed, expanded or with gaps count like contiguous ones."""
    scene = surface_scene(batch=2, views=3, count=80, height=20, width=36, seed=6)
    upstream = scene.upstream()
    if layout == "one number":
        upstream = [torch.tensor(1.0 + i).expand_as(image) for i, image in enumerate(upstream)]
    elif layout == "every other pixel":
        upstream = [torch.stack([image, image.neg()], dim=-1)[..., 0] for image in upstream]
    elif layout == "channels last":
        upstream = [image.transpose(2, -1).contiguous().transpose(2, -1) for image in upstream]
    else:  # items and views cannot be walked in one step
        upstream = [image.transpose(0, 1).contiguous().transpose(0, 1) for image in upstream]
    assert not any(image.is_contiguous() for image in upstream)
    _, expected = run(scene, [image.contiguous() for image in upstream])
    _, gradients = run(scene, upstream)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_second_backward_pass() -> None:
    """The lists are made anew, and without blending nobody knows what a pixel may see."""
    scene = surface_scene(batch=2, views=2, count=80, height=32, width=32, seed=6)
    upstream = scene.upstream()
    values = [value.requires_grad_() for value in scene.values]
    images = scene.render("cuda")
    first = torch.autograd.grad(images, values, upstream, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(images, values, upstream), strict=True):
        assert a.any() and (a - b).norm() <= 1e-5 * a.norm()


def test_gradients_take_room_only_for_what_pixels_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of an opaque wall that fills the picture: the first 128 of every tile, or a few more."""
    scene = piled_scene(1500, False)
    scene = scene.replace(scales=20 * scene.values[2], opacities=torch.full_like(scene.values[3], 0.95))
    found: list[list[int]] = []
    wait = cuda_landing.Ticket.wait
    monkeypatch.setattr(cuda_landing.Ticket, "wait", lambda *args: found.append(wait(*args)) or found[-1])
    _, gradients = run(scene, scene.upstream())
    (*_, visible), (rows, *_) = (numbers[:5] for numbers in found)
    assert visible == 1500
    seen = int((gradients[3] != 0).sum())
    assert 0 < seen <= rows < 600


def test_numbers_that_do_not_land_are_asked_for() -> None:
    ticket = cuda_landing.new_ticket(torch.device("cpu"))
    numbers = list(range(10, 10 + cuda_landing.NUMBERS))
    assert ticket.wait(lambda: [5]) == [5], "nothing has landed"
    ticket.cell[:] = [ticket.number, *numbers, ticket.number]
    assert ticket.wait(lambda: [5]) == numbers
    ticket.cell[0] = ticket.number + 1024  # a later kernel has begun to write
    assert ticket.wait(lambda: [5]) == [5]
    tickets = [cuda_landing.new_ticket(torch.device("cpu")) for _ in range(1024)]
    assert len({other.address for other in tickets}) == 1024
    assert tickets[-1].address == ticket.address


def test_without_gradients_the_image_is_the_same() -> None:
    scene = surface_scene(views=2, count=80, height=32, width=32, seed=6)
    images, _ = run(scene, scene.upstream())
    plain = scene.render("cuda")
    assert all(torch.equal(a, b) for a, b in zip(images, plain, strict=True))
