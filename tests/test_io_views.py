"""Folders of posed pictures: layouts of other tools, round trips, and a clear message for each defect."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from maquette.cameras import Cameras
from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import read_views, write_views
from maquette.views import Views

ORBIT = Cameras.orbit([0, 90, 180, 270], 0.0, height=12, width=16)


def make_views(height: int = 12, width: int = 16) -> Views:
    images = torch.rand(4, 4, height, width, generator=torch.Generator().manual_seed(0))
    return Views(images, Cameras.orbit([0, 90, 180, 270], [0, 10, -20, 45], height=height, width=width))


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


def save(folder: Path, data: dict[str, Any]) -> None:
    (folder / "transforms.json").write_text(json.dumps(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as another tool writes it: pictures under images/, no suffix in file_path, one field of view."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    frames = []
    for index, azimuth in enumerate((0, 90, 180, 270)):
        Image.new("RGBA", (16, 12), (index * 50, 100, 200, 128)).save(root / "images" / f"frame_{index}.png")
        a = math.radians(azimuth)
        matrix = [
            [math.cos(a), 0, math.sin(a), 1.5 * math.sin(a)],
            [0, 1, 0, 0],
            [-math.sin(a), 0, math.cos(a), 1.5 * math.cos(a)],
            [0, 0, 0, 1],
        ]
        frames.append({"file_path": f"./images/frame_{index}", "transform_matrix": matrix})
    save(root, {"camera_angle_x": 2 * math.atan(16 / 12 * math.tan(math.radians(49.1) / 2)), "frames": frames})
    return root


def test_round_trip(tmp_path: Path) -> None:
    views = make_views()
    write_views(tmp_path / "out", views)
    back = read_views(tmp_path / "out")
    assert float((back.images - views.images).abs().max()) <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(back.cameras.world_to_camera, views.cameras.world_to_camera, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.cameras.intrinsics, views.cameras.intrinsics, atol=1e-5, rtol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_intrinsics_per_frame(tmp_path: Path) -> None:
    views = make_views()
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[2, 0, 0], intrinsics[2, 1, 2] = 33.0, 5.0
    views = Views(views.images, Cameras(views.cameras.world_to_camera, intrinsics, 12, 16))
    write_views(tmp_path / "out", views)
    torch.testing.assert_close(read_views(tmp_path / "out").cameras.intrinsics, intrinsics, atol=1e-5, rtol=0)


def test_reads_blender_style_file(folder: Path) -> None:
    views = read_views(folder)
    torch.testing.assert_close(views.cameras.world_to_camera, ORBIT.world_to_camera, atol=1e-6, rtol=0)
    torch.testing.assert_close(views.cameras.intrinsics, ORBIT.intrinsics, atol=1e-4, rtol=0)
    assert views.images.shape == (4, 4, 12, 16)
    torch.testing.assert_close(views.images[2, :, 5, 5] * 255, torch.tensor([100.0, 100, 200, 128]))
    # the world origin is seen in the middle of every picture, 1.5 in front of it
    assert float((views.cameras.world_to_camera[:, :3, 3] - torch.tensor([0, 0, 1.5])).abs().max()) < 1e-6


def test_file_itself_subset_and_three_row_matrices(folder: Path) -> None:
    data = content(folder)
    for frame in data["frames"]:
        frame["transform_matrix"] = frame["transform_matrix"][:3]
    data |= {"fl_x": 20, "fl_y": 21, "cx": 7.5, "cy": 6.5, "w": 16, "h": 12, "k1": 0.0, "camera_model": "OPENCV"}
    save(folder, data)
    views = read_views(folder / "transforms.json", frames=[3, 1])
    assert views.cameras.intrinsics[0].tolist() == [[20, 0, 7.5], [0, 21, 6.5], [0, 0, 1]]
    torch.testing.assert_close(views.cameras.world_to_camera, ORBIT.world_to_camera[[3, 1]], atol=1e-6, rtol=0)
    with pytest.raises(InvalidInputError, match="4 frames"):
        read_views(folder, frames=[0, 4])


def test_link_inside_the_folder_is_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to("images/frame_0.png")
    data = content(folder)
    data["frames"][1]["file_path"] = "link"
    save(folder, data)
    views = read_views(folder)
    assert torch.equal(views.images[0], views.images[1])


def defects() -> dict[str, tuple[dict[str, Any], dict[str, Any], str]]:
    """Changes of the file, changes of frame 2, expected message."""
    skewed = [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1.5], [0, 0, 0, 1]]
    scaled = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 1.5], [0, 0, 0, 1]]
    mirrored = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1.5], [0, 0, 0, 1]]
    poisoned = [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 1.5], [0, 0, 0, 1]]
    return {
        "missing picture": ({}, {"file_path": "images/frame_9"}, r"frame 2: the picture 'images/frame_9' is missing"),
        "no path": ({}, {"file_path": None}, "file_path is missing"),
        "absolute": ({}, {"file_path": "/etc/passwd.png"}, "absolute"),
        "dots": ({}, {"file_path": "../secret.png"}, "leaves the folder"),
        "dots to nothing": ({}, {"file_path": "../../none.png"}, "leaves the folder"),
        "backslashes": ({}, {"file_path": "..\\secret.png"}, "leaves the folder"),
        "link": ({}, {"file_path": "outside.png"}, "leaves the folder"),
        "no matrix": ({}, {"transform_matrix": None}, "frame 2: transform_matrix is missing"),
        "words": ({}, {"transform_matrix": "unit"}, "not a table"),
        "ragged": ({}, {"transform_matrix": [[1, 2], [3]]}, "not a table"),
        "shape": ({}, {"transform_matrix": [[1, 0], [0, 1]]}, "4 x 4"),
        "skewed": ({}, {"transform_matrix": skewed}, "not rigid"),
        "scaled": ({}, {"transform_matrix": scaled}, "not rigid"),
        "mirrored": ({}, {"transform_matrix": mirrored}, "not rigid"),
        "NaN": ({}, {"transform_matrix": poisoned}, "NaN"),
        "distorted": ({"k1": -0.1, "p2": 0.01}, {}, "k1, p2 is not zero; undistort"),
        "distorted frame": ({}, {"k2": 0.1}, "frame 2: lens distortion k2"),
        "fisheye": ({"camera_model": "OPENCV_FISHEYE"}, {}, "not a pinhole"),
        "no focal length": ({"camera_angle_x": None}, {}, "focal length is missing"),
        "negative focal length": ({"fl_x": -5}, {}, "focal length"),
        "angle": ({"camera_angle_x": 4}, {}, "radians"),
        "focal word": ({"fl_x": "wide"}, {}, "fl_x must be a finite number"),
        "huge number": ({"fl_x": 10**400}, {}, "fl_x must be"),
        "other size": ({"w": 32, "h": 24}, {}, "32 x 24"),
        "no frames": ({"frames": []}, {}, "0 views found, 1 needed"),
        "frames of words": ({"frames": ["a"]}, {}, "no list 'frames'"),
    }


@pytest.mark.parametrize("case", defects())
def test_defects_are_named(folder: Path, case: str) -> None:
    Image.new("RGBA", (16, 12)).save(folder.parent / "secret.png")
    (folder / "outside.png").symlink_to(folder.parent / "secret.png")
    file_changes, frame_changes, message = defects()[case]
    data = copy.deepcopy(content(folder))
    data["frames"][2] |= frame_changes
    data |= file_changes
    save(folder, data)
    with pytest.raises(FileFormatError, match=message):
        read_views(folder)


def test_missing_and_broken_camera_files(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_views(folder / "none")
    for text in ("", "{", "[]", "[" * 100_000, '{"frames": 3}'):
        (folder / "transforms.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"transforms\.json"):
            read_views(folder)
    (folder / "transforms.json").unlink()
    (folder / "a.png").touch()
    with pytest.raises(FileFormatError, match=r"camera file transforms\.json is missing \(5 pictures"):
        read_views(folder)


def test_three_of_four_pictures(folder: Path) -> None:
    data = content(folder)
    del data["frames"][3]
    save(folder, data)
    assert read_views(folder).num_views == 3
    with pytest.raises(FileFormatError, match="3 views found, 4 needed"):
        read_views(folder, min_views=4)


def test_mixed_sizes(folder: Path) -> None:
    Image.new("RGBA", (20, 12)).save(folder / "images" / "frame_1.png")
    with pytest.raises(FileFormatError, match=r"one size, found 16 x 12 .*20 x 12 \(frame_1.png\)"):
        read_views(folder)


def test_no_alpha(folder: Path) -> None:
    Image.new("RGB", (16, 12)).save(folder / "images" / "frame_1.png")
    with pytest.raises(FileFormatError, match=r"1 of 4 pictures have no alpha channel \(first: frame_1.png\)"):
        read_views(folder)
    assert bool((read_views(folder, require_alpha=False).images[1, 3] == 1).all())


def test_one_picture_in_a_million_frames_is_refused_early(folder: Path) -> None:
    Image.new("RGBA", (4000, 4000)).save(folder / "big.png")
    data = content(folder)
    data["frames"] = [data["frames"][0] | {"file_path": "big"}] * 20
    save(folder, data)
    with pytest.raises(FileFormatError, match="at most 256,000,000"):
        read_views(folder)


def test_existing_folders_are_respected(tmp_path: Path) -> None:
    views = make_views()
    (tmp_path / "empty").mkdir()
    write_views(tmp_path / "empty", views)
    with pytest.raises(InvalidInputError, match="exists"):
        write_views(tmp_path / "empty", views)
    write_views(tmp_path / "empty", make_views(8, 8), overwrite=True)
    assert read_views(tmp_path / "empty").images.shape == (4, 4, 8, 8)
    other = tmp_path / "documents"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="exists"):
        write_views(other, views, overwrite=True)
    assert (other / "letter.txt").read_text() == "dear"
    batch = Views(views.images[None], views.cameras.reshape(1, 4))
    with pytest.raises(InvalidInputError, match="batch"):
        write_views(tmp_path / "batch", batch)


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    views = make_views()
    poisoned = views.images.clone()
    poisoned[3, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="NaN"):
        write_views(tmp_path / "out", Views(poisoned, views.cameras))
    assert list(tmp_path.iterdir()) == []
