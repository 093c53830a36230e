"""How generators of views are measured: sides from the front, baselines, captions before a classifier."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maquette import cli
from maquette.cameras import Cameras
from maquette.data.dataset import RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.errors import InvalidInputError, WeightsError
from maquette.evaluation.captions import evaluate_captions, markdown_captions
from maquette.evaluation.classifier import ViewClassifier, load_classifier, save_classifier, train_classifier
from maquette.evaluation.generation import NearestObject, evaluate_sides, from_front, markdown_sides, repeat_front
from maquette.evaluation.generation_sheet import write_sides_sheet
from maquette.evaluation.protocol import evaluate
from maquette.evaluation.report import write_report
from maquette.gaussians import Gaussians
from maquette.views import Views
from maquette.weights import write_weights
from pipeline_scenes import ball_of_gaussians

ROOT = Path(__file__).resolve().parents[1]
SIZE = 256
COLORS = ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.8, 0.1))
CATEGORIES = ("fruit", "water", "plant")


def painted(shift: float = 0.0) -> RenderedDataset:
    """Three discs of one colour; the sides differ in size."""
    line = torch.linspace(-1, 1, SIZE)
    radius = (line[:, None] ** 2 + line[None] ** 2).sqrt()
    sizes = torch.tensor([0.5, 0.3, 0.5, 0.3] + [0.4] * 8) + shift
    alpha = (radius < sizes[:, None, None]).float()
    images = torch.stack(
        [torch.cat([torch.tensor(c)[:, None, None].expand(12, 3, SIZE, SIZE), alpha[:, None]], dim=1) for c in COLORS]
    )
    cameras = Cameras.orbit([0.0, 90.0, 180.0, 270.0] + [22.5 + 45 * k for k in range(8)], height=SIZE, width=SIZE)
    return RenderedDataset(
        root=Path("painted"),
        images=(images * 255).round().byte(),
        world_to_camera=cameras.world_to_camera.expand(3, -1, -1, -1),
        intrinsics=cameras.intrinsics.expand(3, -1, -1, -1),
        roles=torch.tensor([[0] * 4 + [1] * 8] * 3, dtype=torch.uint8),
        variants=torch.zeros(3, 12, dtype=torch.int64),
        objects=tuple(ObjectInfo(f"o{i}", f"some {name}", name) for i, name in enumerate(CATEGORIES)),
        settings={},
    )


def ball(views: Views) -> Gaussians:
    one = ball_of_gaussians()
    return one.map(lambda value: value[None].expand(len(views.images), *value.shape))


def test_sides_are_scored_with_and_without_the_front() -> None:
    data = painted()
    truth = evaluate_sides("truth", lambda _, index: data.views(index, [0, 1, 2, 3]).images, data)
    assert truth.mean.psnr == 100 and truth.mean.alpha_iou == 1 and math.isnan(truth.mean.psnr_novel)
    repeated = evaluate_sides("repeated", repeat_front, data, reconstruct=ball)
    mean = repeated.mean
    assert mean.psnr > mean.psnr_unseen and mean.psnr_novel > 3
    assert mean.alpha_iou == pytest.approx((1 + 1 + 2 * 0.36) / 4, abs=0.01)
    assert mean.alpha_iou_unseen == pytest.approx((1 + 2 * 0.36) / 3, abs=0.01)
    small = evaluate_sides("small", lambda front, _: front[:, ::4, ::4].expand(4, -1, -1, -1), data)
    assert small.mean.psnr < repeated.mean.psnr
    table = markdown_sides([truth, repeated])
    assert "| truth | 100.00 (100.00) | 1.000 (1.000) |" in table


def test_novel_views_may_be_made_with_the_front_that_was_given() -> None:
    data, seen = painted(), []

    def reconstruct(views: Views) -> Gaussians:
        seen.append(views.images[0])
        return ball(views)

    def nothing(front: torch.Tensor, _: int) -> torch.Tensor:
        return torch.zeros_like(front).expand(4, -1, -1, -1)

    scores = [
        evaluate_sides("nothing", nothing, data, reconstruct=reconstruct, keep_front=kept).mean
        for kept in (False, True)
    ]
    assert scores[0].psnr == scores[1].psnr < 100  # the front that was made is scored either way
    assert not seen[0].any()
    assert torch.equal(seen[3][0], data.views(0, [0]).images[0]) and not seen[3][1:].any()


def test_a_whole_way_sees_nothing_but_the_front() -> None:
    """The other views that are given may be anything; the result is that of the views that the answer makes."""
    data, seen = painted(), []
    fronts = [data.views(index, [0]).images[0] for index in range(3)]

    def reconstruct(views: Views) -> Gaussians:
        seen.append(views.images)
        return ball(views)

    def answer(front: torch.Tensor, _: int) -> torch.Tensor:
        return (front[:, ::2, ::2] * 0.5).expand(4, -1, -1, -1)

    for kept in (False, True):
        evaluation = evaluate(from_front(reconstruct, answer, kept), data, batch_size=3)
        assert evaluation.mean.psnr > 3
    made, kept_front = seen
    assert made.shape == kept_front.shape == (3, 4, 4, SIZE, SIZE)
    for index, front in enumerate(fronts):
        assert torch.equal(kept_front[index, 0], front) and torch.equal(kept_front[index, 1:], made[index, 1:])
        assert torch.equal(made[index, 0], made[index, 2])
        assert (made[index, 0] - 0.5 * front).abs().mean() < 0.01


def test_reports_are_compared_only_on_equal_terms(tmp_path: Path) -> None:
    data = painted()
    reports = []
    for name, way in (("front", from_front(ball, repeat_front, True)), ("ball", ball)):
        facts = {"model": name, "weights": "ball.safetensors", "generator": None, "input_views": 4, "split": "test"}
        write_report(tmp_path / name, evaluate(way, data), facts | {"device": "cpu"})
        reports.append(str(tmp_path / name / "report.json"))
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "compare_reports.py"),
        *reports,
        "-o",
        str(tmp_path / "table.md"),
    ]
    subprocess.run(script, check=True, capture_output=True)
    mean = json.loads(Path(reports[1]).read_text())["mean"]["all"]
    table = (tmp_path / "table.md").read_text()
    assert f"| ball | four views | {mean['psnr']:.2f} | {mean['ssim']:.3f} |" in table
    assert "| front (ball weights) | four views |" in table
    other = json.loads(Path(reports[1]).read_text())
    other["objects"] = other["objects"][1:]
    Path(reports[1]).write_text(json.dumps(other))
    failed = subprocess.run(script, capture_output=True, text=True)
    assert failed.returncode == 1 and "other objects" in failed.stderr


def test_the_nearest_training_object_is_found(tmp_path: Path) -> None:
    nearest = NearestObject(painted(shift=0.02))
    for index in range(3):
        found = nearest(painted().views(index, [0]).images[0], index)
        assert found.shape == (4, 4, SIZE, SIZE)
        torch.testing.assert_close(found[0, :3, 128, 128], torch.tensor(COLORS[index]), atol=0.01, rtol=0)
    write_sides_sheet(tmp_path / "sheet.png", painted(), nearest, shown=2)
    assert (tmp_path / "sheet.png").is_file()


def test_the_classifier_learns_categories_and_judges_captions(tmp_path: Path) -> None:
    data = painted()
    network = train_classifier(data, steps=48, batch_size=6, lr=2e-3)
    file = tmp_path / "classifier.safetensors"
    save_classifier(file, network, {"data": "painted"})
    judge = load_classifier(file)
    assert judge.categories == tuple(sorted(CATEGORIES))

    def make(caption: str, index: int) -> Tensor:
        shown = 1 if index == 0 else index  # the first caption gets the wrong object
        return data.views(shown, [0, 1, 2, 3]).images

    result = evaluate_captions(make, data, judge, sheet=tmp_path / "captions.png")
    assert result.share_true == 1.0 and result.share_made == pytest.approx(2 / 3)
    assert (tmp_path / "captions.png").is_file() and "67%" in markdown_captions(result)
    write_weights(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"model": "other"})
    with pytest.raises(WeightsError, match="no classifier"):
        load_classifier(tmp_path / "other.safetensors")


def test_the_command_writes_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mvdream_stand_ins import TINY_MINI, random_pipeline

    save_classifier(tmp_path / "judge.safetensors", ViewClassifier(CATEGORIES), {})
    monkeypatch.setattr("maquette.generators.load_generator", lambda *_, **__: random_pipeline(TINY_MINI))
    monkeypatch.setattr("maquette.cli.evaluate.load_dataset", lambda *_: painted())
    monkeypatch.setattr("maquette.data.dataset.RenderedDataset.load", lambda *_: painted())
    words = f"evaluate-views --data x --train-data y --steps 1 2 --reconstructor none -o {tmp_path} --device cpu"
    assert cli.main([*words.split(), "--classifier", str(tmp_path / "judge.safetensors")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [side["name"].split(",")[0] for side in report["sides"]] == [
        "1 steps",
        "2 steps",
        "baseline: front repeated",
        "baseline: nearest training object",
    ]
    assert len(report["captions"]["objects"]) == 3 and report["sides"][0]["mean"]["psnr_novel"] is None
    assert "Captions: the classifier" in capsys.readouterr().out


def test_classifiers_need_categories() -> None:
    data = painted()
    object.__setattr__(data, "objects", tuple(ObjectInfo(f"o{i}") for i in range(3)))
    with pytest.raises(InvalidInputError, match="category"):
        train_classifier(data, steps=1)
