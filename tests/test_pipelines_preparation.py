"""View preparation: worlds of other people become the canonical one, lenses become 49.1 degrees."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.cameras import Cameras, intrinsics_from_fov
from maquette.errors import InvalidInputError
from maquette.preparation import canonical_cameras, orbit_angles, prepare_views
from maquette.resampling import resample_window
from maquette.views import Views

Z_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)  # Y up -> Z up


def disc_views(cameras: Cameras, radius: float = 0.5) -> Views:
    """Pictures of a sphere about the origin by its closed form: opaque where the ray passes within `radius`."""
    origins, directions = cameras.to(torch.float64).rays()
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1)
    alpha = (nearest < radius).to(torch.float32)
    color = torch.tensor([0.8, 0.3, 0.1])[:, None, None].expand(*cameras.batch_shape, 3, *alpha.shape[-2:])
    return Views(torch.cat([color, alpha[:, None]], dim=1), cameras)


def in_other_world(cameras: Cameras, rotation: torch.Tensor, scale: float, shift: list[float]) -> Cameras:
    """The same rig after the world was rotated, scaled and shifted."""
    poses = cameras.camera_to_world.to(torch.float64)
    moved = poses.clone()
    moved[:, :3, :3] = rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + torch.tensor(shift, dtype=torch.float64)
    world_to_camera = torch.linalg.inv(moved).to(torch.float32)
    return Cameras(world_to_camera, cameras.intrinsics, cameras.height, cameras.width)


def random_rotation(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * torch.sign(torch.diagonal(r))
    return q * torch.sign(torch.linalg.det(q))


@pytest.mark.parametrize("rotation", [torch.eye(3, dtype=torch.float64), Z_UP, random_rotation(0), random_rotation(1)])
@pytest.mark.parametrize("elevation", [0.0, 20.0, -10.0])
def test_any_world_becomes_the_canonical_one(rotation: torch.Tensor, elevation: float) -> None:
    standard = Cameras.orbit([0, 90, 180, 270], elevation, height=32, width=32)
    given = in_other_world(standard, rotation, 3.7, [5.0, -2.0, 0.4])
    canonical, transform = canonical_cameras(given)
    torch.testing.assert_close(canonical.world_to_camera, standard.world_to_camera, atol=2e-5, rtol=0)
    point = torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64)
    moved = 3.7 * rotation @ point + torch.tensor([5.0, -2.0, 0.4], dtype=torch.float64)
    back = transform[:3, :3] @ moved + transform[:3, 3]
    torch.testing.assert_close(back, point, atol=1e-5, rtol=0)


def test_a_canonical_world_stays_as_it_is() -> None:
    views = disc_views(Cameras.orbit([0, 90, 180, 270], 0.0, height=48, width=48))
    prepared = prepare_views(views)
    assert prepared.order == (0, 1, 2, 3)
    assert prepared.warnings == ()
    torch.testing.assert_close(prepared.views.images, views.images)
    torch.testing.assert_close(prepared.transform, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_first_view_becomes_the_front_and_the_rest_is_sorted() -> None:
    cameras = Cameras.orbit([200, 110, 20, 290], 5.0, height=32, width=32)
    prepared = prepare_views(disc_views(cameras))
    assert prepared.order == (0, 3, 2, 1)
    assert prepared.azimuths_deg == pytest.approx((0, 90, 180, 270), abs=1e-3)
    assert prepared.elevations_deg == pytest.approx((5, 5, 5, 5), abs=1e-3)
    azimuths, _ = orbit_angles(prepared.views.cameras)
    assert [azimuth % 360 for azimuth in azimuths] == pytest.approx([0, 90, 180, 270], abs=1e-3)


def test_uneven_elevations_keep_the_world_upright() -> None:
    cameras = Cameras.orbit([0, 85, 180, 275], [0.0, 30.0, 10.0, -10.0], height=32, width=32)
    canonical, _ = canonical_cameras(in_other_world(cameras, random_rotation(3), 0.2, [1.0, 1.0, 1.0]))
    _, elevations = orbit_angles(canonical)
    assert elevations == pytest.approx([0, 30, 10, -10], abs=1e-2)


def test_other_lenses_are_resampled_to_the_standard_one() -> None:
    wide = Cameras.orbit([0, 90, 180, 270], 0.0, fov_deg=65.0, height=160, width=240)
    intrinsics = wide.intrinsics.clone()
    intrinsics[:, 0, 2] += 17.5
    intrinsics[:, 1, 2] -= 6.25
    prepared = prepare_views(disc_views(Cameras(wide.world_to_camera, intrinsics, 160, 240)))
    cameras = prepared.views.cameras
    assert cameras.height == cameras.width
    expected = intrinsics_from_fov(49.1, cameras.height, cameras.width).float()
    torch.testing.assert_close(cameras.intrinsics, expected.expand(4, 3, 3), rtol=1e-5, atol=1e-4)
    truth = disc_views(cameras).images
    assert float((prepared.views.images[:, 3] - truth[:, 3]).abs().mean()) < 0.01
    inside = truth[:, 3] * prepared.views.images[:, 3] > 0.99
    color = prepared.views.images[:, :3].permute(0, 2, 3, 1)[inside]
    torch.testing.assert_close(color, torch.tensor([0.8, 0.3, 0.1]).expand_as(color), atol=1e-5, rtol=0)
    assert prepared.warnings == ()


def test_narrow_lens_is_padded_with_transparency_and_cut_objects_are_named() -> None:
    narrow = prepare_views(disc_views(Cameras.orbit([0, 90, 180, 270], 0.0, fov_deg=40.0, height=64, width=64)))
    assert narrow.views.cameras.height > 64
    assert float(narrow.views.images[:, 3, 0].max()) == 0.0
    assert narrow.warnings == ()
    large = prepare_views(disc_views(Cameras.orbit([0, 90, 180, 270], 0.0, fov_deg=80.0, height=64, width=64), 0.9))
    assert any("cut off" in warning for warning in large.warnings)
    small = prepare_views(disc_views(Cameras.orbit([0, 90, 180, 270], 0.0, height=64, width=64), 0.15))
    assert any("fills only" in warning for warning in small.warnings)


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (Cameras.orbit([0, 90, 180], 0.0, height=32, width=32), "4 views are needed.*got 3"),
        (Cameras.orbit([0, 45, 90, 135, 180], 0.0, height=32, width=32), "got 5.*--pick"),
        (Cameras.orbit([0, 30, 60, 90], 0.0, height=32, width=32), "azimuths 0, 30, 60, 90"),
        (Cameras.orbit([0, 0, 0, 0], 0.0, height=32, width=32), "same direction"),
        (Cameras.orbit([0, 90, 180, 270], 88.0, height=32, width=32), "straight down|same direction"),
    ],
)
def test_unusable_rigs_are_refused(cameras: Cameras, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prepare_views(disc_views(cameras))


def test_cameras_that_look_away_are_refused() -> None:
    cameras = Cameras.orbit([0, 90, 180, 270], 0.0, height=32, width=32)
    turned = cameras.world_to_camera * torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None]  # half a turn about their y axes
    views = disc_views(cameras)
    with pytest.raises(InvalidInputError, match="look away"):
        prepare_views(Views(views.images, Cameras(turned, cameras.intrinsics, 32, 32)))


def test_sheared_and_rolled_cameras_are_refused() -> None:
    cameras = Cameras.orbit([0, 90, 180, 270], 0.0, height=32, width=32)
    images = disc_views(cameras).images
    mirrored = cameras.world_to_camera * torch.tensor([-1.0, 1.0, 1.0, 1.0])[:, None]
    with pytest.raises(InvalidInputError, match="not a rotation"):
        prepare_views(Views(images, Cameras(mirrored, cameras.intrinsics, 32, 32)))
    rolled = cameras.world_to_camera.clone()
    rolled[2, :2] *= -1  # the third camera stands on its head
    with pytest.raises(InvalidInputError, match="which way is up"):
        prepare_views(Views(images, Cameras(rolled, cameras.intrinsics, 32, 32)))


def test_pictures_without_background_removed_are_refused() -> None:
    views = disc_views(Cameras.orbit([0, 90, 180, 270], 0.0, height=32, width=32))
    opaque = views.images.clone()
    opaque[[1, 3], 3] = 1.0
    with pytest.raises(InvalidInputError, match=r"view\(s\) 1, 3 have no transparent background"):
        prepare_views(Views(opaque, views.cameras))
    empty = views.images.clone()
    empty[2, 3] = 0.0
    with pytest.raises(InvalidInputError, match=r"view\(s\) 2 are empty"):
        prepare_views(Views(empty, views.cameras))


def test_unusual_but_usable_rigs_are_warned_about() -> None:
    cameras = Cameras.orbit([0, 115, 180, 270], [0.0, 0.0, 50.0, 0.0], height=64, width=64)
    warnings = " ".join(prepare_views(disc_views(cameras)).warnings)
    assert "view 1 stands at azimuth 115" in warnings
    assert "view 2 stands at elevation 50" in warnings


def test_resampling_agrees_with_pillow_inside_the_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, 40, 50, generator=generator)
    image[3] = 1.0
    for window, size in [((10.3, 8.7, 34.3, 32.7), 8), ((10.3, 8.7, 30.3, 28.7), 20), ((12.0, 9.0, 22.0, 19.0), 25)]:
        got = resample_window(image, window, size)
        for channel in range(3):
            source = Image.fromarray(image[channel].numpy().astype(np.float32), mode="F")
            # Pillow's own triangle filter; a margin keeps its border handling out of the comparison.
            want = np.asarray(source.resize((size, size), Image.Resampling.BILINEAR, box=window))
            inner = slice(2, -2)
            np.testing.assert_allclose(got[channel, inner, inner], want[inner, inner], atol=2e-3)


def test_resampling_on_whole_pixels_copies_and_pads() -> None:
    image = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(1)).clamp_min(0.1)
    got = resample_window(image, (-2.0, -1.0, 8.0, 9.0), 10)
    torch.testing.assert_close(got[:, 1:7, 2:9], image)
    assert float(got[3, 0].max()) == 0.0
    assert float(got[3].sum()) == pytest.approx(float(image[3].sum()), rel=1e-5)
    with pytest.raises(InvalidInputError, match="window"):
        resample_window(image, (3.0, 0.0, 3.0, 4.0), 4)


def test_standard_lens_constant() -> None:
    focal = float(intrinsics_from_fov(49.1, 256, 256)[0, 0])
    assert focal == pytest.approx(128 / math.tan(math.radians(24.55)))
