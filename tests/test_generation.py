"""From one picture, a sentence or a folder of pictures to files, with a stand-in for the generator's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hard_pictures import hard_pictures
from maquette import cli
from maquette.batch_generation import BATCH_HTML, BATCH_JSON, generate_batch
from maquette.errors import InvalidInputError, MaquetteError
from maquette.gaussians import Gaussians
from maquette.generation import ViewOptions, default_name, generate_from, make_views, with_alpha
from maquette.io import read_image, read_views, write_image
from maquette.models.mvdream.pipeline import MultiViewPipeline
from maquette.pipelines import generate
from maquette.views import Views
from mvdream_stand_ins import TINY_MINI, TINY_MVDREAM, random_pipeline
from picture_scenes import disc, flat, over
from pipeline_scenes import ball_of_gaussians, ball_views

FAST = ViewOptions(prompt="a red ball", steps=2, seed=3)
SEEN: list[Views] = []


def fake_model(views: Views) -> Gaussians:
    """Stands for a network; remembers what it was given."""
    SEEN.append(views)
    return ball_of_gaussians()


@pytest.fixture(scope="module")
def pipeline() -> MultiViewPipeline:
    return random_pipeline(TINY_MINI)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "ball.png"
    write_image(path, ball_views(image_size=96).images[0])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("report.json")
    }


def test_one_picture_becomes_files_stage_by_stage(pipeline: MultiViewPipeline, picture: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    assets = generate_from(
        picture,
        tmp_path / "out",
        FAST,
        generator=pipeline,
        model=fake_model,
        formats="ply,png",
        progress=lambda stage, done, total: stages.append(stage) if done == 0 else None,
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"ball-prepared.png", "ball-views", "ball-views.png", "ball.ply", "ball.png", "views-report.json"}
    assert stages.index("prepare") < stages.index("make views") < stages.index("reconstruct")
    report = json.loads((tmp_path / "out" / "views-report.json").read_text())
    assert report["seed"] == 3 and report["steps"] == 2 and report["generator"] == "tiny-mini"
    assert assets.results[0].gaussians.num_gaussians == 299
    prepared = read_image(tmp_path / "out" / "ball-prepared.png")
    assert prepared.shape == (4, 32, 32)
    made = read_views(assets.made.folders[0]).images
    assert torch.equal(made[0], prepared) and not torch.equal(made[1], prepared)  # the picture is the front
    # The second half alone does the same.
    first = SEEN[-1]
    generate(assets.made.folders[0], tmp_path / "again", model=fake_model, formats="ply")
    torch.testing.assert_close(SEEN[-1].images, first.images)


def test_the_same_seed_gives_the_same_bytes(pipeline: MultiViewPipeline, picture: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        generate_from(picture, tmp_path / folder, FAST, generator=pipeline, model=fake_model, formats="ply")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    make_views(picture, tmp_path / "other", ViewOptions(steps=2, seed=4), generator=pipeline)
    assert contents(tmp_path / "other")["ball-views.png"] != contents(tmp_path / "first")["ball-views.png"]


def test_sentences_make_several_samples(pipeline: MultiViewPipeline, tmp_path: Path) -> None:
    options = ViewOptions(prompt="A wooden barrel!", steps=1, num_samples=2, elevation_deg=10.0)
    assets = generate_from(None, tmp_path, options, generator=pipeline, model=fake_model, formats="ply")
    assert [folder.name for folder in assets.made.folders] == ["a-wooden-barrel-views-1", "a-wooden-barrel-views-2"]
    assert {path.name for path in tmp_path.glob("*.ply")} == {"a-wooden-barrel-1.ply", "a-wooden-barrel-2.ply"}
    first, second = (read_views(folder) for folder in assets.made.folders)
    assert not torch.equal(first.images, second.images)
    assert "prepared" not in assets.made.files
    heights = first.cameras.positions[:, 1]
    torch.testing.assert_close(heights, torch.full((4,), 1.5 * 0.17364818), atol=1e-4, rtol=0)


def test_names_and_alpha_come_from_what_there_is() -> None:
    assert default_name("a/chair.jpg", "x") == "chair"
    assert default_name(None, " Ein  Stuhl, rot ") == "ein-stuhl-rot" and default_name(None, "!") == "asset"
    image = torch.ones(1, 3, 2, 2)
    image[0, 1, 0, 0] = 0.5
    assert with_alpha(image)[0, 3].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_wrong_settings_are_refused(pipeline: MultiViewPipeline, picture: Path, tmp_path: Path) -> None:
    for settings in ({"num_samples": 0}, {"seed": -1}, {"elevation_deg": 80.0}):
        with pytest.raises(InvalidInputError):
            ViewOptions(**settings)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="plain file name"):
        make_views(picture, tmp_path, name="../x", generator=pipeline)
    with pytest.raises(InvalidInputError, match="takes a sentence only"):
        make_views(picture, tmp_path, FAST, generator=random_pipeline(TINY_MVDREAM))


@pytest.mark.parametrize("name", hard_pictures())
def test_hard_pictures_never_crash(name: str, pipeline: MultiViewPipeline, tmp_path: Path) -> None:
    """Either files, perhaps with a warning, or a message that says what is wrong."""
    try:
        assets = generate_from(
            hard_pictures()[name], tmp_path, ViewOptions(steps=1), generator=pipeline, model=fake_model, formats="ply"
        )
    except MaquetteError as error:
        assert name in {"nothing", "busy background", "cut by the edge", "transparent everywhere", "white on white"} | {
            "glass cut-out",
            "tiny object",
        }
        assert len(str(error)) > 30
        return
    assert name not in {"nothing", "transparent everywhere"}
    assert (tmp_path / "asset.ply").is_file() and len(assets.results) == 1
    if name in ("two objects", "cut by the edge", "tiny object"):
        assert assets.made.warnings


def make_folder(folder: Path) -> None:
    folder.mkdir()
    write_image(folder / "a.png", over(flat(0.8, 0.1, 0.1), disc(), flat(1.0, 1.0, 1.0)))
    write_image(folder / "b <i>.png", over(flat(0.1, 0.1, 0.8), disc(), flat(1.0, 1.0, 1.0)))
    write_image(folder / "a.jpg", over(flat(0.1, 0.8, 0.1), disc(), flat(1.0, 1.0, 1.0)))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")


def test_folders_are_batches_that_continue(pipeline: MultiViewPipeline, tmp_path: Path) -> None:
    make_folder(tmp_path / "in")
    seen: list[tuple[str, str]] = []

    def batch(options: ViewOptions = FAST) -> tuple[int, int, list[str]]:
        seen.clear()
        result = generate_batch(
            tmp_path / "in",
            tmp_path / "out",
            options,
            generator=pipeline,
            model=fake_model,
            formats="ply",
            progress=lambda name, said, number, total: seen.append((name, said)),
        )
        return result.done, result.kept, list(result.failures)

    assert batch() == (3, 0, ["broken.png"])
    assert len(seen) == 4 and dict(seen)["a.jpg"] == "done" and "picture" in dict(seen)["broken.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"a-png", "a-jpg", "b <i>", BATCH_JSON, BATCH_HTML}
    document = json.loads((tmp_path / "out" / BATCH_JSON).read_text())
    assert document["pictures"]["broken"]["status"] == "failed" and document["settings"]["seed"] == 3
    page = (tmp_path / "out" / BATCH_HTML).read_text()
    assert "b &lt;i&gt;" in page and "<i>" not in page and "4 pictures, 1 failed" in page
    assert batch() == (0, 3, ["broken.png"])
    write_image(tmp_path / "in" / "broken.png", over(flat(0.1, 0.1, 0.1), disc(), flat(1.0, 1.0, 1.0)))
    assert batch() == (1, 3, [])
    assert batch(ViewOptions(steps=1)) == (4, 0, [])
    with pytest.raises(InvalidInputError, match="holds no picture"):
        generate_batch(tmp_path / "out", tmp_path / "more", generator=pipeline)


def test_the_command_says_what_is_missing(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate"]) == 1
    assert "--prompt" in capsys.readouterr().err
    assert cli.main(["generate", str(tmp_path / "none.png")]) == 1
    assert "none.png" in capsys.readouterr().err


def test_the_command_runs_every_way(
    pipeline: MultiViewPipeline, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maquette.generators.load_generator", lambda *_, **__: pipeline)
    out = ["-o", str(tmp_path / "out"), "--steps", "1"]
    assert cli.main(["generate", str(picture), "--views-only", "--num-samples", "2", *out]) == 0
    assert (tmp_path / "out" / "ball-views-2" / "transforms.json").is_file()
    assert cli.main(["generate", "--prompt", "a barrel", "--views-only", "--negative-prompt", "dark", *out]) == 0
    assert (tmp_path / "out" / "a-barrel-views" / "transforms.json").is_file()
    make_folder(tmp_path / "in")
    assert (
        cli.main(["generate", str(tmp_path / "in"), "--views-only", "-o", str(tmp_path / "all"), "--steps", "1"]) == 1
    )
    assert (tmp_path / "all" / BATCH_HTML).is_file()
    assert cli.main(["generate", str(tmp_path / "out" / "ball-views-1"), "--views-only", *out]) == 1


def test_the_missing_weights_are_named(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maquette.generators.find_weights", lambda name: None)
    assert cli.main(["generate", str(picture), "-o", str(tmp_path / "out")]) == 1
    assert "weights of mvdream-mini" in capsys.readouterr().err
