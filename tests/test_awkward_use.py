"""Users who ask for the impossible: no such device, no memory, no room, no numbers. One clear message each."""

from __future__ import annotations

import dataclasses
import importlib
import math
import resource
import sys
from pathlib import Path

import pytest
import torch

import maquette
from maquette import cli
from maquette.cameras import Cameras
from maquette.device import choose_device
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.io import read_gaussians, write_gaussians
from maquette.io.atomic import atomic_write_bytes
from maquette.pipelines import generate, render_file
from maquette.preparation import prepare_views
from maquette.rendering import Turntable, render
from maquette.surface import gaussians_to_mesh
from maquette.views import Views
from pipeline_scenes import ball_of_gaussians


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu") and choose_device() == choose_device("auto")
    for wrong in ("tpu", "mps", "meta", "", "cuda:x"):
        with pytest.raises(InvalidInputError, match=f"'{wrong}'; valid: cpu, cuda, cuda:N"):
            choose_device(wrong)
    with pytest.raises(UnsupportedError, match=r"no GPU cuda:99.*maquette doctor"):
        choose_device("cuda:99")


def test_weights_have_floating_point_numbers() -> None:
    with pytest.raises(InvalidInputError, match=r"torch.float32, torch.float16 or torch.bfloat16, got torch.int8"):
        maquette.load("lgm-mini", dtype=torch.int8)


def test_no_objects_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--data", "rendered", "--limit", "0"]) == 1
    assert "--limit must be at least 1, got 0" in capsys.readouterr().err


def test_lists_with_spaces_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "views", "--formats", "ply,", "glb", "--fps", "30"]) == 2
    assert capsys.readouterr().err.endswith("lists are written with commas and without spaces: --formats ply,glb\n")
    assert cli.main(["generate", "views", "--nothing"]) == 2
    assert "commas" not in capsys.readouterr().err


def test_the_device_is_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'tpu'"):
        generate(tmp_path / "absent", tmp_path, device="tpu")
    with pytest.raises(InvalidInputError, match="'tpu'"):
        render_file(tmp_path / "absent.ply", tmp_path / "a.png", device="tpu")


def test_the_output_is_checked_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for output in (file, file / "below", file / "far" / "below"):
        with pytest.raises(InvalidInputError, match=r"notes\.txt is not a folder"):
            generate(tmp_path / "absent", output)
    assert file.read_text() == "mine"
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is not a folder"):
        atomic_write_bytes(file / "below" / "a.ply", b"x")


def test_cameras_need_numbers() -> None:
    for bad in ({"azimuths_deg": [math.nan]}, {"azimuths_deg": [math.inf]}):
        with pytest.raises(InvalidInputError, match="azimuths_deg must be finite"):
            Cameras.orbit(**bad)
    with pytest.raises(InvalidInputError, match="elevations_deg"):
        Cameras.orbit([0.0], math.nan)
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="radius must be > 0"):
            Cameras.orbit([0.0], radius=radius)


def test_arguments_of_python_calls(tmp_path: Path) -> None:
    ball, cameras = ball_of_gaussians(), Cameras.orbit([0.0], height=16, width=16)
    with pytest.raises(InvalidInputError, match="'sun'; valid: studio, unlit"):
        render(ball, cameras, lighting="sun")
    with pytest.raises(InvalidInputError, match=r"three numbers 0\.\.1.*'white'"):
        render(ball, cameras, background="white")
    ring = Cameras.orbit([0.0, 90.0, 180.0, 270.0], height=16, width=16)
    for images, found in (
        (torch.rand(4, 4, 16, 16) * 255, "0..1, these have"),
        (torch.full((4, 4, 16, 16), math.nan), "nan"),
    ):
        with pytest.raises(InvalidInputError, match=found):
            prepare_views(Views(images, ring))
    with pytest.raises(InvalidInputError, match="'glx'; valid: ply"):
        generate(tmp_path, tmp_path, formats="ply,glx")


def test_videos_fit_into_memory() -> None:
    with pytest.raises(InvalidInputError, match="1 to 8192 pixels, got 100000"):
        Turntable(image_size=100_000)
    with pytest.raises(InvalidInputError, match="at most 3640 of this size"):
        Turntable(num_frames=1_000_000)


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
def test_too_little_memory_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("maquette.cli.convert"), "run", fail)
    assert cli.main(["convert", "a.ply", "b.ply"]) == 1
    assert capsys.readouterr().err.startswith("maquette: not enough memory (no room)")


@pytest.mark.skipif(sys.platform != "linux", reason="needs file size limits as Linux has them")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "ball.ply", tmp_path / "copy.ply"
    write_gaussians(source, ball_of_gaussians())
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert cli.main(["convert", str(source), str(target)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.endswith(f"\nmaquette: {target}: File too large\n")
    assert target.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["ball.ply", "copy.ply"]


def test_gaussians_at_the_end_of_the_world_have_no_surface(tmp_path: Path) -> None:
    ball = ball_of_gaussians()
    far = dataclasses.replace(ball, means=ball.means * 1e30)
    with pytest.raises(InvalidInputError, match=r"no surface.*below 1e\+12"):
        gaussians_to_mesh(far)
    write_gaussians(tmp_path / "far.ply", far)
    assert read_gaussians(tmp_path / "far.ply").num_gaussians == ball.num_gaussians
