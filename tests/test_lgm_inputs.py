"""Cameras, rays, data samples, augmentations and recentring against the official ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden_rules import image_batch
from lgm_goldens import GOLDEN_MINI, golden
from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.models.lgm import official
from maquette.models.lgm.augment import grid_distortion, orbit_jitter, random_grid_distortion, random_orbit_jitter
from maquette.models.lgm.inputs import default_cameras, normalize_poses, ray_maps
from maquette.models.lgm.recenter import recenter

CAMERAS = golden("cameras")
AUGMENT = golden("augment")


def test_orbit_cameras_and_renderer_matrices() -> None:
    for index, (elevation, azimuth, radius) in enumerate(CAMERAS["angles"]):
        cameras = official.orbit_cameras([elevation], [azimuth], radius=radius)
        np.testing.assert_allclose(cameras.opengl_poses()[0], CAMERAS["pose_opengl"][index], atol=1e-6)
        matrices = official.renderer_matrices(cameras)
        np.testing.assert_allclose(matrices.cam_view[0], CAMERAS["cam_view"][index], atol=1e-6)
        np.testing.assert_allclose(matrices.cam_view_proj[0], CAMERAS["cam_view_proj"][index], atol=1e-5)
        np.testing.assert_allclose(matrices.cam_pos[0], CAMERAS["cam_pos"][index], atol=1e-6)


def test_projections() -> None:
    np.testing.assert_allclose(official.projection_matrix(), CAMERAS["proj_matrix"], atol=1e-6)
    np.testing.assert_allclose(official.perspective_matrix(49.1), CAMERAS["perspective_fovy49.1"], atol=1e-6)
    wide = official.perspective_matrix(60, aspect=1.5, near=0.1, far=10)
    np.testing.assert_allclose(wide, CAMERAS["perspective_fovy60_aspect1.5_near0.1_far10"], atol=1e-6)


@pytest.mark.parametrize("elevation", [0, 15])
def test_diffusion_cameras(elevation: int) -> None:
    cameras = official.diffusion_cameras(elevation)
    np.testing.assert_allclose(cameras, CAMERAS[f"mv_camera_e{elevation}"], atol=1e-6)
    five = official.diffusion_cameras(elevation, with_reference=True)
    np.testing.assert_allclose(five, CAMERAS[f"mv_camera_e{elevation}_extra"], atol=1e-6)


def test_default_rays() -> None:
    for elevation in (0, 30):
        rays = ray_maps(default_cameras(-elevation))  # the official elevation counts downwards
        assert list(rays.shape) == list(CAMERAS[f"default_rays_e{elevation}_shape"])
        value = rays.flatten()[CAMERAS[f"default_rays_e{elevation}_idx"]]
        np.testing.assert_allclose(value, CAMERAS[f"default_rays_e{elevation}_val"], atol=1e-6)


def test_dataset_sample() -> None:
    data = golden("dataset_sample")
    views, poses = torch.from_numpy(data["views_bgra"]), torch.from_numpy(data["pose_text_values"])
    sample = official.dataset_sample(views, poses, GOLDEN_MINI)
    for name, value in {
        "input": sample.inputs,
        "images_output": sample.images_output,
        "masks_output": sample.masks_output,
    }.items():
        assert list(value.shape) == list(data[f"{name}_shape"])
        np.testing.assert_allclose(value.flatten()[data[f"{name}_idx"]], data[f"{name}_val"], atol=2e-6, err_msg=name)
    np.testing.assert_allclose(sample.matrices.cam_view, data["cam_view"], atol=1e-6)
    np.testing.assert_allclose(sample.matrices.cam_view_proj, data["cam_view_proj"], atol=1e-5)
    np.testing.assert_allclose(sample.matrices.cam_pos, data["cam_pos"], atol=1e-6)


def test_normalised_poses_put_the_first_camera_in_front() -> None:
    cameras = Cameras.orbit([40.0, 130.0, 220.0], [10.0, 10.0, 10.0], radius=1.5)
    moved = normalize_poses(cameras, cameras[:1], 1.5)
    front = Cameras.orbit([0.0])
    torch.testing.assert_close(moved.world_to_camera[0], front.world_to_camera[0], atol=1e-6, rtol=0)
    relative = cameras.world_to_camera[1] @ cameras.camera_to_world[2]
    torch.testing.assert_close(moved.world_to_camera[1] @ moved.camera_to_world[2], relative, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_grid_distortion(case: int) -> None:
    images = torch.from_numpy(image_batch("public", f"aug{case}", 3, 64, 64))
    uniforms = torch.from_numpy(AUGMENT[f"grid{case}_uniforms"])
    strength = float(AUGMENT[f"grid{case}_strength"])
    result = grid_distortion(images, uniforms, strength=strength)
    np.testing.assert_allclose(result.flatten()[AUGMENT[f"grid{case}_idx"]], AUGMENT[f"grid{case}_val"], atol=1e-5)
    # More columns than knots, and other pictures beside it, change nothing.
    padded = torch.cat([uniforms, torch.rand(3, 2, 4)], dim=-1).repeat(2, 1, 1)
    knots = torch.tensor([uniforms.shape[-1]] * 3 + [8] * 3)
    both = grid_distortion(images.repeat(2, 1, 1, 1), padded, knots, strength)
    torch.testing.assert_close(both[:3], result, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_orbit_jitter(case: int) -> None:
    poses = torch.from_numpy(AUGMENT[f"jitter{case}_in"])
    uniforms = np.concatenate([AUGMENT[f"jitter{case}_uniform_x"], AUGMENT[f"jitter{case}_uniform_y"]], axis=-1)
    jittered = orbit_jitter(Cameras.from_opengl_poses(poses, 49.1, 64, 64), torch.from_numpy(uniforms))
    np.testing.assert_allclose(jittered.opengl_poses(), AUGMENT[f"jitter{case}_out"], atol=1e-5)


def test_random_augmentations_follow_the_generator_and_the_probability() -> None:
    images = torch.rand(5, 3, 3, 32, 32)
    cameras = Cameras.stack([Cameras.orbit([90.0, 180.0, 270.0], height=32, width=32)] * 5)
    first = random_grid_distortion(images, 1.0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, random_grid_distortion(images, 1.0, torch.Generator().manual_seed(3)))
    assert bool((first != images).flatten(1).any(dim=1).all())
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(random_grid_distortion(images, 0.0, generator), images)
    still = random_orbit_jitter(cameras, 0.0, generator)
    torch.testing.assert_close(still.world_to_camera, cameras.world_to_camera)
    moved = random_orbit_jitter(cameras, 1.0, generator)
    torch.testing.assert_close(moved.positions.norm(dim=-1), torch.full((5, 3), 1.5))
    cosine = (moved.positions * cameras.positions).sum(-1) / 1.5**2
    assert float(cosine.min()) > np.cos(np.radians(18 + 9))
    assert float(cosine.max()) < 1.0


@pytest.mark.parametrize("case", [0, 1])
def test_recenter(case: int) -> None:
    data = golden("recenter")
    image = torch.from_numpy(data[f"in{case}"]).permute(2, 0, 1)
    mask = torch.from_numpy(data[f"mask{case}"])
    whole = recenter(image, mask).permute(1, 2, 0).numpy()
    assert whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - data[f"out{case}_uint8"].astype(int)).max() <= 1
    exact = recenter(image.float() / 255, mask).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(exact, data[f"out{case}_float"], atol=1e-4)


def test_recenter_shrinks_large_objects_and_refuses_empty_masks() -> None:
    image = torch.zeros(4, 40, 40, dtype=torch.float64)
    image[:, :39, :39] = torch.arange(39.0).repeat(4, 39, 1)
    full = torch.ones(40, 40, dtype=torch.bool)
    centred = recenter(image, full, 0.5)
    assert float(centred[0, 20, 10:30].mean()) == pytest.approx(19.0)
    assert float(centred[:, :9].abs().max()) == 0
    with pytest.raises(InvalidInputError, match="no object"):
        recenter(image, torch.zeros(40, 40, dtype=torch.bool))
