"""The plane sweep against the exact visual hull of a ball, and on cases where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.models.lgm.inputs import default_cameras
from maquette.models.lgm.sweep import plane_sweep

RADIUS = 0.4


def ball_alphas(cameras: Cameras) -> Tensor:
    """Silhouettes `[V, H, W]` of a ball at the origin: rays closer to it than its radius."""
    origins, directions = cameras.rays()
    return (torch.linalg.cross(origins, directions).norm(dim=-1) < RADIUS).float()


def exact_entries(cameras: Cameras, view: int, pixels: Tensor) -> Tensor:
    """Entry into the hull of the other silhouettes by dense search in float64; each silhouette of a ball is a cone."""
    origins, directions = (value[view][pixels[:, 0], pixels[:, 1]].double() for value in cameras.rays())
    closest = origins - directions * (origins * directions).sum(-1, keepdim=True)
    steps = torch.linspace(-0.7, 0.7, 7001, dtype=torch.float64)
    points = closest[:, None] + steps[:, None] * directions[:, None]  # [P, T, 3]
    inside = torch.ones(points.shape[:2], dtype=torch.bool)
    for other in set(range(4)) - {view}:
        center = cameras.positions[other].double()
        toward = points - center
        cosine = -(toward * center).sum(-1) / toward.norm(dim=-1) / center.norm()
        inside &= cosine > math.cos(math.asin(RADIUS / 1.5))
    assert bool(inside.any(dim=1).all())
    return steps[inside.to(torch.uint8).argmax(dim=1)]


@pytest.mark.parametrize("elevation_deg", [0.0, 20.0])
def test_entries_are_those_of_the_exact_hull(elevation_deg: float) -> None:
    cameras = default_cameras(elevation_deg, 128)
    alphas = ball_alphas(cameras)
    images = torch.cat([torch.full((4, 3, 128, 128), 0.5), alphas[:, None]], dim=1)
    sweep = plane_sweep(images[None], cameras.reshape(1, 4), planes=32, grid=64)
    assert sweep.entry.shape == (1, 4, 1, 128, 128) and sweep.profile.shape == (1, 4, 96, 64, 64)
    assert float(sweep.entry[0][alphas[:, None] == 0].abs().max()) == 0.0
    generator = torch.Generator().manual_seed(0)
    for view in range(4):
        well_inside = (-torch.nn.functional.max_pool2d(-alphas[view][None], 7, 1, 3))[0] > 0
        pixels = well_inside.nonzero()
        pixels = pixels[torch.randperm(len(pixels), generator=generator)[:200]]
        found = sweep.entry[0, view, 0][pixels[:, 0], pixels[:, 1]]
        error = (found.double() - exact_entries(cameras, view, pixels)).abs()
        pixel = 1.5 / float(cameras.intrinsics[0, 0, 0])  # 0.011; pixel-exact silhouettes know no more than that
        assert float(error.median()) < pixel and float(error.quantile(0.95)) < 3 * pixel


def test_a_board_thinner_than_the_step_is_found() -> None:
    """Seen edge-on by two views it is two pixels wide; the front view has to find its place behind the middle."""
    cameras = default_cameras(0.0, 128)
    alphas = torch.zeros(4, 128, 128)
    alphas[[0, 2], 40:88, 40:88] = 1.0
    pixel = 1.5 / float(cameras.intrinsics[0, 0, 0])
    alphas[1, 40:88, 78:80] = 1.0  # from +X the camera's right is -Z: the board stands at z = -15 pixels
    alphas[3, 40:88, 48:50] = 1.0
    images = torch.cat([torch.full((4, 3, 128, 128), 0.5), alphas[:, None]], dim=1)
    entry = plane_sweep(images[None], cameras.reshape(1, 4), planes=32, grid=64).entry[0, 0, 0]
    torch.testing.assert_close(entry[60:68, 60:68], torch.full((8, 8), 14 * pixel), atol=1.5 * pixel, rtol=0)


def test_turning_the_world_with_the_views_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(4, 3, 16, 16, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    cameras = default_cameras(0.0, 64)
    images = torch.cat([colors, ball_alphas(cameras)[:, None]], dim=1)
    first = plane_sweep(images[None], cameras.reshape(1, 4), planes=16, grid=32)
    rolled = plane_sweep(images.roll(1, 0)[None], cameras.reshape(1, 4), planes=16, grid=32)
    torch.testing.assert_close(rolled.entry.roll(-1, 1), first.entry, atol=1e-3, rtol=0)
    torch.testing.assert_close(rolled.profile.roll(-1, 1), first.profile, atol=2e-3, rtol=0)


def test_similarity_tells_the_colour_of_the_neighbours() -> None:
    """A red ball with one blue view: the neighbours of red rays look alike on the red side only."""
    cameras = default_cameras(0.0, 64)
    colors = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    images = torch.cat([colors[:, :, None, None].expand(4, 3, 64, 64), ball_alphas(cameras)[:, None]], dim=1)
    profile = plane_sweep(images[None], cameras.reshape(1, 4), planes=16, grid=32).profile[0, 0, :, 16, 16]
    inside, following, previous = profile.reshape(3, 16)
    assert float(inside.max()) > 0.99 and float(inside[0]) < 0.01
    assert float(following.max()) > 0.99  # view 1 is red as well
    assert float(previous.max()) < math.exp(-8 * 2 / 3) + 0.01  # view 3 is blue: two of three channels differ by 1


def test_gradients_do_not_flow_and_empty_pictures_give_zeros() -> None:
    images = torch.zeros(1, 4, 4, 64, 64, requires_grad=True)
    sweep = plane_sweep(images, default_cameras(0.0, 64).reshape(1, 4), planes=8, grid=32)
    assert not sweep.entry.requires_grad and not sweep.profile.requires_grad
    assert float(sweep.entry.abs().max()) == 0.0 == float(sweep.profile.abs().max())
