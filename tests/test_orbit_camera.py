"""The viewer's camera: agreement with `Cameras.orbit`, no roll, what is refused (the official series: LGM's tests)."""

from __future__ import annotations

import math

import pytest
import torch

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.orbit_camera import OrbitCamera


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (130.0, 35.0), (-50.0, -80.0), (400.0, 90.0)])
def test_agrees_with_orbit_cameras(azimuth: float, elevation: float) -> None:
    camera = OrbitCamera(azimuth, elevation, 2.0, (0.1, -0.2, 0.3)).cameras(40.0, 30, 50)
    expected = Cameras.orbit(
        [azimuth], elevation, radius=2.0, fov_deg=40.0, height=30, width=50, target=(0.1, -0.2, 0.3)
    )
    torch.testing.assert_close(camera.world_to_camera, expected.world_to_camera, atol=1e-6, rtol=0)
    torch.testing.assert_close(camera.intrinsics, expected.intrinsics)


def test_the_target_stays_in_the_middle_and_the_horizon_level() -> None:
    camera = OrbitCamera()
    for step in range(50):
        camera = camera.orbited(37 * step, -91).panned(step, -3 * step).zoomed((-1) ** step)
    pose = camera.opengl_pose()
    torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, torch.eye(3, dtype=torch.float64))
    assert abs(float(pose[1, 0])) < 1e-12
    middle = pose[:3, 3] - camera.radius * pose[:3, 2]
    torch.testing.assert_close(middle, torch.tensor(camera.target, dtype=torch.float64))


def test_movements_follow_the_pointer() -> None:
    """Seen from the front: dragging right brings the object's left side into view, down its top."""
    start = OrbitCamera()
    assert start.orbited(100, 0).opengl_pose()[0, 3] < 0
    assert start.orbited(0, 100).opengl_pose()[1, 3] > 0
    assert start.zoomed(2).radius == pytest.approx(1.5 / 1.21)
    assert start.panned(100, 0).target[0] < 0 < start.panned(0, 100).target[1]
    assert start == OrbitCamera()


@pytest.mark.parametrize("change", [{"radius": 0.0}, {"azimuth_deg": math.nan}, {"target": (0.0, math.inf, 0.0)}])
def test_impossible_cameras_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="radius > 0"):
        OrbitCamera(**change)
