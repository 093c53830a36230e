"""Cameras, rays, data samples, augmentations and recentring against the official ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from golden_rules import image_batch
from lgm_goldens import GOLDEN_MINI, golden, statistics
from maquette.cameras import OPENGL_TO_OPENCV, Cameras
from maquette.errors import InvalidInputError
from maquette.models.lgm import official
from maquette.models.lgm.augment import grid_distortion, orbit_jitter, random_grid_distortion, random_orbit_jitter
from maquette.models.lgm.inputs import default_cameras
from maquette.models.lgm.recenter import recenter
from maquette.nn.posed_images import normalize_poses, ray_maps
from maquette.orbit_camera import OrbitCamera

CAMERAS = golden("cameras")
AUGMENT = golden("augment")


def test_orbit_cameras_and_renderer_matrices() -> None:
    for index, (elevation, azimuth, radius) in enumerate(CAMERAS["angles"]):
        cameras = official.orbit_cameras([elevation], [azimuth], radius=radius)
        np.testing.assert_allclose(cameras.opengl_poses()[0], CAMERAS["pose_opengl"][index], atol=1e-6)
        unflagged = official.left_handed_poses(cameras)[0]
        np.testing.assert_allclose(unflagged, CAMERAS["pose_opencv_flag"][index], atol=1e-6)
        matrices = official.renderer_matrices(cameras)
        np.testing.assert_allclose(matrices.cam_view[0], CAMERAS["cam_view"][index], atol=1e-6)
        np.testing.assert_allclose(matrices.cam_view_proj[0], CAMERAS["cam_view_proj"][index], atol=1e-5)
        np.testing.assert_allclose(matrices.cam_pos[0], CAMERAS["cam_pos"][index], atol=1e-6)


def test_orbit_about_another_target() -> None:
    pose, target = CAMERAS["pose_target"].astype(np.float64), CAMERAS["target"].astype(np.float64)
    x, y, z = pose[:3, 3] - target
    elevation, azimuth = np.degrees(np.arctan2(-y, np.hypot(x, z))), np.degrees(np.arctan2(x, z))
    radius = float(np.linalg.norm(pose[:3, 3] - target))
    cameras = official.orbit_cameras([elevation], [azimuth], radius=radius, target=tuple(target.tolist()))
    # The angles come back from a float32 position near the pole, which is why the azimuth is a little uncertain.
    np.testing.assert_allclose(cameras.opengl_poses()[0], pose, atol=5e-6)


def test_projections() -> None:
    np.testing.assert_allclose(official.projection_matrix(), CAMERAS["proj_matrix"], atol=1e-6)
    intrinsics = official.orbit_cameras([0.0], [0.0]).intrinsics[0]
    assert float(128 / intrinsics[0, 0]) == pytest.approx(float(CAMERAS["tan_half_fov"]), abs=1e-7)
    names = [name for name in CAMERAS if name.startswith("perspective_")]
    assert len(names) == 2
    for name in names:
        options = dict(re.findall(r"(fovy|aspect|near|far)([\d.]+)", name))
        matrix = official.perspective_matrix(
            float(options.pop("fovy")), **{key: float(value) for key, value in options.items()}
        )
        np.testing.assert_allclose(matrix, CAMERAS[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", ["8x8", "6x10"])
def test_rays_of_small_pictures(size: str) -> None:
    """All of them, from the last of the poses: square and not, in the OpenGL and in the OpenCV convention.

    The official OpenCV rays start from the left-handed pose, which `Cameras` takes as it takes any orthogonal matrix.
    """
    height, width = (int(side) for side in size.split("x"))
    pose = torch.from_numpy(CAMERAS["pose_opengl"][-1:])
    cameras = Cameras.from_opengl_poses(pose, 49.1, height, width)
    origins, directions = cameras.rays()
    np.testing.assert_allclose(origins[0], CAMERAS[f"rays_o_{size}"], atol=1e-6)
    np.testing.assert_allclose(directions[0], CAMERAS[f"rays_d_{size}"], atol=1e-6)
    maps = ray_maps(cameras)[0].permute(1, 2, 0)
    np.testing.assert_allclose(maps, CAMERAS[f"plucker_{size}"], atol=1e-6)
    left_handed = official.left_handed_poses(cameras) * torch.tensor(OPENGL_TO_OPENCV)
    opencv = Cameras.from_opengl_poses(left_handed, 60.0, height, width)
    np.testing.assert_allclose(opencv.rays()[1][0], CAMERAS[f"rays_d_opencv_fovy60_{size}"], atol=1e-6)


def test_viewer_camera_after_drags() -> None:
    camera = OrbitCamera()
    for (kind, dx, dy), pose in zip(
        CAMERAS["orbitcam_ops_kind_dx_dy"].tolist(), CAMERAS["orbitcam_poses"], strict=True
    ):
        camera = (
            camera.orbited(dx, dy),
            camera.zoomed(1 if dx > 0 else -1),
            camera.panned(dx, dy),
        )[kind]
        np.testing.assert_allclose(camera.opengl_pose(), pose, atol=1e-6)
    assert camera.radius == pytest.approx(float(CAMERAS["orbitcam_radius"]), rel=1e-9)


@pytest.mark.parametrize("elevation", [0, 15])
def test_diffusion_cameras(elevation: int) -> None:
    cameras = official.diffusion_cameras(elevation)
    np.testing.assert_allclose(cameras, CAMERAS[f"mv_camera_e{elevation}"], atol=1e-6)
    five = official.diffusion_cameras(elevation, with_reference=True)
    np.testing.assert_allclose(five, CAMERAS[f"mv_camera_e{elevation}_extra"], atol=1e-6)


@pytest.mark.parametrize("elevation", [0, 30])
def test_default_rays(elevation: int) -> None:
    name = f"default_rays_e{elevation}"
    rays = ray_maps(default_cameras(-elevation))  # the official elevation counts downwards
    assert list(rays.shape) == list(CAMERAS[f"{name}_shape"])
    np.testing.assert_allclose(rays.flatten()[CAMERAS[f"{name}_idx"]], CAMERAS[f"{name}_val"], atol=1e-6)
    np.testing.assert_allclose(statistics(rays), CAMERAS[f"{name}_stat"], atol=1e-6)


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
        np.testing.assert_allclose(value.flatten()[data[f"{name}_idx"]], data[f"{name}_val"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(statistics(value), data[f"{name}_stat"], atol=1e-6, err_msg=name)
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
