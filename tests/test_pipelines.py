"""The whole way: posed pictures in, files out; and what happens when something is wrong or interrupted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import maquette
from maquette.cli import main
from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.conversion import convert
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io import read_video_info
from maquette.models.lgm.reconstructor import LGMReconstructor
from maquette.pipelines import FORMATS, generate, render_file
from maquette.registry import build_network
from maquette.rendering import Turntable, fitted, render, render_turntable
from maquette.surface import SurfaceOptions
from maquette.views import Views
from pipeline_scenes import ball_of_gaussians, ball_views, write_views_folder

SMALL = Turntable(num_frames=6, fps=30, image_size=48)


def fake_model(views: Views) -> Gaussians:
    """Stands for a network: takes four prepared views, gives a ball."""
    assert views.images.shape[:2] == (4, 4)
    return ball_of_gaussians()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_views_folder(tmp_path / "ball", ball_views())
    return tmp_path / "ball"


def test_generate_writes_files_that_open(folder: Path, tmp_path: Path) -> None:
    import trimesh

    seen: list[tuple[str, int, int]] = []
    output = tmp_path / "out"
    result = generate(folder, output, model=fake_model, turntable=SMALL, progress=lambda *event: seen.append(event))

    assert sorted(p.name for p in output.iterdir()) == sorted([*(f"ball.{f}" for f in FORMATS), "report.json"])
    assert result.gaussians.num_gaussians == 299  # the invisible one is gone
    assert maquette.read_gaussians(result.files["ply"]).num_gaussians == 299
    assert maquette.read_gaussians(result.files["splat"]).num_gaussians == 299
    video = read_video_info(result.files["mp4"])
    assert (video.num_frames, video.width, video.height, video.fps) == (6, 48, 48, 30)
    with Image.open(result.files["png"]) as sheet:
        assert min(sheet.size) > 600
    scene = trimesh.load(result.files["glb"])
    assert scene.extents.max() == pytest.approx(0.9, abs=0.25)

    report = json.loads((output / "report.json").read_text())
    assert report["gaussians"] == 299
    assert list(report["timings_s"]) == [
        "read", "prepare", "load model", "reconstruct", *(f"write .{fmt}" for fmt in FORMATS)
    ]  # fmt: skip
    assert report["files"]["ply"]["bytes"] == result.files["ply"].stat().st_size
    assert ("reconstruct", 0, 1) in seen
    assert ("reconstruct", 1, 1) in seen


def test_mesh_keeps_orientation_and_colors(tmp_path: Path) -> None:
    path = tmp_path / "ball.glb"
    maquette.write_gaussians(tmp_path / "ball.ply", ball_of_gaussians(2000))
    convert(tmp_path / "ball.ply", path, options=SurfaceOptions(fast=True, colors="vertices"))
    mesh = maquette.read_mesh(path)
    assert mesh.vertex_colors is not None
    front = mesh.vertex_colors[mesh.vertices[:, 2] > 0.4].mean(dim=0)
    top = mesh.vertex_colors[mesh.vertices[:, 1] > 0.42].mean(dim=0)
    assert front[0] > 2 * front[2]  # red looks at +Z
    assert top[1] > 2 * top[0]  # green is up


def test_generate_with_a_random_network(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LGMReconstructor(build_network("lgm-mini").eval())
    result = generate(folder, tmp_path, model=network, formats=["ply"], name="noise")
    assert result.files["ply"] == tmp_path / "noise.ply"
    assert maquette.read_gaussians(result.files["ply"]).num_gaussians == result.gaussians.num_gaussians > 0


def test_interrupted_runs_leave_whole_files_only(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "ball.mp4").write_bytes(b"old video")

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "write .mp4" and done > 0:
            raise KeyboardInterrupt

    turntable = Turntable(num_frames=40, image_size=256)  # several chunks
    with pytest.raises(KeyboardInterrupt):
        generate(folder, output, model=fake_model, formats=["ply", "mp4"], turntable=turntable, progress=interrupt)
    assert sorted(path.name for path in output.iterdir()) == ["ball.mp4", "ball.ply"]
    assert (output / "ball.mp4").read_bytes() == b"old video"
    assert maquette.read_gaussians(output / "ball.ply").num_gaussians == 299


def test_files_are_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ball.splat").write_bytes(b"old")
    generate(folder, tmp_path, model=fake_model, formats=["splat"])
    assert maquette.read_gaussians(tmp_path / "ball.splat").num_gaussians == 299


def test_a_model_that_sees_nothing_is_an_error(folder: Path, tmp_path: Path) -> None:
    def blind(views: Views) -> Gaussians:
        ball = ball_of_gaussians()
        return dataclasses.replace(ball, opacities=torch.zeros_like(ball.opacities))

    with pytest.raises(InvalidInputError, match="saw no object"):
        generate(folder, tmp_path / "out", model=blind, formats=["ply"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "ply,docx"], "unknown format(s): 'docx'; valid: ply, splat, glb, mp4, png"),
        (["--model", "lgm-huge"], "lgm-mini"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--name", "../up"], "plain file name"),
        (["--pick", "0,1,2,9"], "not [9]"),
        (["--pick", "first"], "whole numbers"),
    ],
)
def test_wrong_options(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folder), "-o", str(tmp_path / "out"), *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_wrong_views_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(folder: Path) -> str:
        assert main(["generate", str(folder), "-o", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    three = tmp_path / "three"
    content = write_views_folder(three, ball_views())
    frames = content["frames"]
    assert isinstance(frames, list)
    (three / "transforms.json").write_text(json.dumps({**content, "frames": frames[:3]}))
    assert "4 views are needed" in complaint(three)
    assert "got 3" in complaint(three)

    (tmp_path / "bare" / "rgb").mkdir(parents=True)
    assert "transforms.json" in complaint(tmp_path / "bare")

    mixed = tmp_path / "mixed"
    write_views_folder(mixed, ball_views())
    Image.new("RGBA", (80, 64)).save(mixed / "rgb" / "002.png")
    assert "one size" in complaint(mixed)

    opaque = tmp_path / "opaque"
    write_views_folder(opaque, ball_views(), mode="RGB")
    assert "alpha" in complaint(opaque)

    filled = tmp_path / "filled"
    views = ball_views()
    images = views.images.clone()
    images[:, 3] = 1
    write_views_folder(filled, Views(images, views.cameras))
    assert "remove the background" in complaint(filled)

    output = tmp_path / "file"
    output.write_text("")
    write_views_folder(tmp_path / "fine", ball_views())
    assert main(["generate", str(tmp_path / "fine"), "-o", str(output)]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_four_of_many_views_can_be_picked(tmp_path: Path) -> None:
    many = ball_views(azimuths=(0, 45, 90, 135, 180, 225, 270, 315))
    write_views_folder(tmp_path / "many", many)
    for views in (tmp_path / "many", many):
        result = generate(views, tmp_path, model=fake_model, formats=["ply"], pick=[0, 2, 4, 6])
        assert result.warnings == ()


def test_turntable_loops_and_chunks_do_not_show() -> None:
    ball = ball_of_gaussians()
    turntable = Turntable(num_frames=8, image_size=64)
    frames = render_turntable(ball, turntable)
    assert frames.shape == (8, 3, 64, 64)
    positions = turntable.cameras().positions
    steps = (positions - positions.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(8))  # from last to first as between any two
    one = render(ball, turntable.camera(45.0, turntable.elevation_deg))
    torch.testing.assert_close(one, frames[1])
    done: list[tuple[int, int]] = []
    large = Turntable(num_frames=5, image_size=512)
    render_turntable(ball, large, progress=lambda *step: done.append(step))
    assert done == [(4, 5), (5, 5)]


def test_mesh_and_gaussians_render_alike(tmp_path: Path) -> None:
    """The two rasterizers share cameras: the same ball has the same outline and the same red front."""
    import trimesh

    sphere = trimesh.creation.icosphere(radius=0.45, subdivisions=3)
    sphere.visual.vertex_colors = [230, 25, 25, 255]
    sphere.export(tmp_path / "ball.glb")
    camera = Turntable(image_size=192).camera(0.0, 0.0)
    mesh_picture = render(tmp_path / "ball.glb", camera, lighting="unlit")
    splat_picture = render(ball_of_gaussians(3000, scale=0.01), camera)
    outline = [(picture < 0.7).any(dim=0) for picture in (mesh_picture, splat_picture)]
    overlap = (outline[0] & outline[1]).sum() / (outline[0] | outline[1]).sum()
    assert float(overlap) > 0.9
    srgb = [1.055 * (value / 255) ** (1 / 2.4) - 0.055 for value in (230, 25, 25)]  # glTF's vertex colours are linear
    assert mesh_picture[:, 96, 96].tolist() == pytest.approx(srgb, abs=0.02)
    lit = render(tmp_path / "ball.glb", camera)
    assert float((lit - mesh_picture).abs().max()) > 0.05


@pytest.mark.parametrize("name", ["ball.mp4", "sheet.png", "ball.webp"])
def test_render_file(name: str, tmp_path: Path) -> None:
    maquette.write_gaussians(tmp_path / "ball.ply", ball_of_gaussians())
    path = render_file(tmp_path / "ball.ply", tmp_path / name, turntable=SMALL)
    assert path.stat().st_size > 500
    view = ["--azimuth", "30", "--image-size", "40", "--fit"]
    assert main(["render", str(tmp_path / "ball.ply"), "-o", str(tmp_path / "view.png"), *view]) == 0
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.size == (40, 40)
    with pytest.raises(InvalidInputError, match=r"\.mp4"):
        render_file(tmp_path / "ball.ply", tmp_path / "ball.gif")


def test_fitting_ignores_position_size_and_strays() -> None:
    ball = ball_of_gaussians(400)
    means = ball.means * 30 + 5
    means[7] = 1e5
    moved = dataclasses.replace(ball, means=means, scales=ball.scales * 30)
    fit = fitted(moved)
    assert isinstance(fit, Gaussians)
    torch.testing.assert_close(fit.means[8:].mean(dim=0), torch.zeros(3), atol=0.02, rtol=0)
    assert float(fit.means[8:].norm(dim=-1).max()) < 0.6
    with pytest.raises(InvalidInputError, match="nothing visible"):
        fitted(dataclasses.replace(ball, opacities=torch.zeros_like(ball.opacities)))


def test_meshes_do_not_become_gaussians(tmp_path: Path) -> None:
    import trimesh

    trimesh.creation.box().export(tmp_path / "box.glb")
    convert(tmp_path / "box.glb", tmp_path / "box.obj")
    assert (tmp_path / "box.obj").stat().st_size > 100
    with pytest.raises(UnsupportedError, match="cannot become Gaussians"):
        convert(tmp_path / "box.glb", tmp_path / "box.splat")


def test_contact_sheet_puts_pictures_where_they_belong() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(1, 3, 10, 20)
    sheet = contact_sheet(
        [SheetRow("one", red, ["a"]), SheetRow("two", red.repeat(2, 1, 1, 1), ["b", "c"])], tile_size=40
    )
    is_red = (sheet - torch.tensor([1.0, 0.0, 0.0])[:, None, None]).abs().sum(dim=0) < 0.01
    assert int(is_red.sum()) == 3 * 20 * 40  # a 20 x 10 picture keeps its shape on a 40 px tile
    assert int(is_red[: sheet.shape[1] // 2].sum()) == 20 * 40
    with pytest.raises(InvalidInputError, match="as many labels"):
        SheetRow("one", red, [])
    with pytest.raises(InvalidInputError, match="at least one row"):
        contact_sheet([])
