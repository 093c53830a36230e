"""Metrics against other implementations; protocol, report and sheet with answers that are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.cameras import Cameras
from maquette.cli import evaluate as verb
from maquette.data.dataset import RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.errors import InvalidInputError
from maquette.evaluation.metrics import PSNR_LIMIT, alpha_iou, psnr
from maquette.evaluation.protocol import (
    ORBIT4_NOVEL8,
    ObjectScores,
    Scores,
    evaluate,
    protocol_frames,
)
from maquette.evaluation.report import build_report, markdown_table, sheet_objects, write_report, write_sheet
from maquette.gaussians import Gaussians
from maquette.nn.ssim import ssim
from maquette.raster import render_gaussians
from maquette.views import Views
from training_stand_in import write_dataset

SMALL = dataclasses.replace(ORBIT4_NOVEL8, image_size=32)
AZIMUTHS = [0.0, 90.0, 180.0, 270.0] + [22.5 + 45 * k for k in range(8)]
ELEVATIONS = [0.0] * 4 + [-10.0, 0.0, 10.0, 20.0, 30.0, 20.0, 10.0, 0.0]


def _gaussians(num_objects: int) -> Gaussians:
    generator = torch.Generator().manual_seed(4)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(num_objects, 40, *shape, generator=generator)

    quats = torch.nn.functional.normalize(uniform(4) - 0.5, dim=-1)
    return Gaussians(uniform(3) * 0.8 - 0.4, quats, uniform(3) * 0.1 + 0.05, uniform() * 0.5 + 0.45, uniform(3))


def _dataset(num_objects: int, size: int) -> tuple[RenderedDataset, Gaussians]:
    """The standard orbit of random coloured Gaussians; object 0 is realistic, even ones are tools."""
    gaussians = _gaussians(num_objects)
    cameras = Cameras.stack([Cameras.orbit(AZIMUTHS, ELEVATIONS, height=size, width=size)] * num_objects)
    rendered = render_gaussians(gaussians, cameras)
    alpha = rendered.alpha[:, :, None]
    color = ((rendered.color - (1 - alpha)) / alpha.clamp_min(1e-4)).clamp(0, 1)
    images = (torch.cat([color, alpha.clamp(0, 1)], dim=2) * 255).round().byte()
    infos = [
        ObjectInfo(
            f"o{i:02d}", category="tool" if i % 2 == 0 else "toy", realistic=i == 0, split="test", family=f"f{i}"
        )
        for i in range(num_objects)
    ]
    dataset = RenderedDataset(
        root=Path("nowhere"),
        images=images,
        world_to_camera=cameras.world_to_camera,
        intrinsics=cameras.intrinsics,
        roles=torch.tensor([[0] * 4 + [1] * 8] * num_objects, dtype=torch.uint8),
        variants=torch.zeros(num_objects, 12, dtype=torch.int64),
        objects=tuple(infos),
        settings={"image_size": size, "plan": "standard"},
    )
    return dataset, gaussians


class Oracle:
    """Answers with the true Gaussians, object after object; `spoil` moves those of some objects."""

    def __init__(self, gaussians: Gaussians, spoil: dict[int, float] | None = None) -> None:
        self.gaussians, self.spoil, self.next = gaussians, spoil or {}, 0
        self.asked: list[Views] = []

    def __call__(self, views: Views) -> Gaussians:
        self.asked.append(views)
        first, count = self.next, views.images.shape[0]
        self.next = (first + count) % self.gaussians.batch_shape[0]
        answer = self.gaussians[first : first + count]
        shifts = torch.tensor([self.spoil.get(first + i, 0.0) for i in range(count)])
        return dataclasses.replace(answer, means=answer.means + shifts[:, None, None])


def test_psnr_and_ssim_agree_with_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(5, 3, 48, 40, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(truth, 5, 1, 2)
    guess = (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    for i in range(5):
        expected = peak_signal_noise_ratio(guess[i : i + 1], truth[i : i + 1], data_range=1.0)
        assert float(psnr(guess, truth)[i]) == pytest.approx(float(expected), rel=1e-5)
    _, full = structural_similarity_index_measure(
        guess, truth, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, return_full_image=True
    )
    inside = full[..., 5:-5, 5:-5].mean(dim=(-3, -2, -1))  # windows that lie inside the picture
    assert torch.allclose(ssim(guess, truth), inside, atol=1e-5)
    assert torch.equal(psnr(truth, truth), torch.full((5,), PSNR_LIMIT))
    with pytest.raises(InvalidInputError, match="one shape"):
        psnr(truth, truth[:, :, 1:])


def test_alpha_iou_by_counting() -> None:
    first, second = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    first[0, :2], second[0, 1:3] = 0.9, 0.6  # 8 and 8 pixels, 4 shared
    second[0, 3] = 0.5  # not above the threshold
    assert alpha_iou(first, second).tolist() == pytest.approx([4 / 12, 1.0])


def test_true_gaussians_score_high_and_moved_ones_low() -> None:
    dataset, gaussians = _dataset(5, 32)
    oracle, done = Oracle(gaussians, spoil={3: 0.15}), []
    result = evaluate(oracle, dataset, protocol=SMALL, batch_size=2, progress=done.append)
    assert done == [2, 4, 5]
    assert [item.info.id for item in result.objects] == [info.id for info in dataset.objects]
    for index, item in enumerate(result.objects):
        if index == 3:
            assert item.scores.psnr < 25
            assert item.scores.alpha_iou < 0.9
        else:
            assert item.scores.psnr > 40
            assert item.scores.ssim > 0.99
            assert item.scores.alpha_iou > 0.97
        assert item.seconds > 0
    # The model saw the input frames in order, as rendered.
    assert torch.equal(oracle.asked[0].images, dataset.views(torch.tensor([0, 1]), [[0, 1, 2, 3]] * 2).images)
    # Means: over the views, then over the objects.
    truth = dataset.views(3, list(range(4, 12)))
    moved = dataclasses.replace(gaussians[3], means=gaussians[3].means + 0.15)
    color = render_gaussians(moved, truth.cameras).color.clamp(0, 1)
    errors = (color - truth.composited()).square().flatten(1).mean(1)
    assert result.objects[3].scores.psnr == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-3)
    assert result.mean.psnr == pytest.approx(np.mean([item.scores.psnr for item in result.objects]))
    realistic = result.mean_where(lambda info: info.realistic)
    assert realistic is not None
    assert realistic.psnr == result.objects[0].scores.psnr
    assert result.mean_where(lambda info: info.category == "none") is None


def test_baselines_are_what_they_say() -> None:
    dataset, gaussians = _dataset(2, 32)
    result = evaluate(Oracle(gaussians), dataset, protocol=SMALL)
    truth = torch.stack([dataset.views(i, list(range(4, 12))).composited() for i in range(2)])
    white = -10 * (1 - truth).square().mean(dim=(-3, -2, -1)).log10()
    assert result.baselines["white image"].psnr == pytest.approx(float(white.mean()), abs=1e-3)
    assert result.baselines["white image"].alpha_iou == 0
    inputs = torch.stack([dataset.views(i, [0, 1, 2, 3]).composited() for i in range(2)])
    nearest = inputs[:, [0, 1, 1, 2, 2, 3, 3, 0]]  # 22.5 is nearest to 0, 67.5 to 90, ...
    expected = -10 * (nearest - truth).square().mean(dim=(-3, -2, -1)).log10()
    assert result.baselines["nearest input view"].psnr == pytest.approx(float(expected.mean()), abs=1e-3)


def test_protocol_names_what_a_data_set_lacks() -> None:
    dataset, _ = _dataset(2, 32)
    inputs, targets = protocol_frames(dataset, SMALL)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [list(range(4, 12))] * 2
    with pytest.raises(InvalidInputError, match="256"):
        protocol_frames(dataset, ORBIT4_NOVEL8)
    with pytest.raises(InvalidInputError, match="needs 8 target frames"):
        protocol_frames(dataclasses.replace(dataset, variants=dataset.variants + torch.arange(12) // 11), SMALL)


def test_sheet_shows_best_median_and_worst_once() -> None:
    def item(i: int) -> ObjectScores:
        return ObjectScores(ObjectInfo(f"o{i}"), Scores(float(i), 0.0, 0.0), 0.0)

    chosen = sheet_objects(tuple(item(i) for i in (4, 9, 0, 7, 2, 5, 8, 1, 3, 6, 10)))
    assert [name for name, _ in chosen] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert [int(entry.scores.psnr) for _, entry in chosen] == [10, 9, 8, 6, 5, 4, 2, 1, 0]
    few = sheet_objects(tuple(item(i) for i in range(4)))
    assert sorted(entry.info.id for _, entry in few) == ["o0", "o1", "o2", "o3"]


def test_report_and_sheet_files(tmp_path: Path) -> None:
    dataset, gaussians = _dataset(4, 32)
    result = evaluate(Oracle(gaussians, spoil={2: 0.1}), dataset, protocol=SMALL, batch_size=4)
    write_report(tmp_path, result, {"model": "oracle", "weights_sha256": "00"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads(json.dumps(build_report(result, {"model": "oracle", "weights_sha256": "00"})))
    assert (report["num_objects"], report["num_realistic"], report["protocol"]["name"]) == (4, 1, "orbit4-novel8")
    rows = {entry["id"]: entry for entry in report["objects"]}
    assert report["categories"]["tool"]["psnr"] == pytest.approx(
        (rows["o00"]["psnr"] + rows["o02"]["psnr"]) / 2, abs=1e-4
    )
    assert report["mean"]["realistic"]["psnr"] == rows["o00"]["psnr"]
    assert set(report["mean"]) == {"all", "realistic", "other"}
    table = markdown_table(report)
    assert f"| all | 4 | {report['mean']['all']['psnr']:.2f} |" in table
    assert "baseline: nearest input view" in table
    write_sheet(tmp_path / "sheet.png", result, Oracle(gaussians), dataset)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * (2 * 128 + 22 + 6), 8 * 128, 3)
    assert (sheet < 250).any()


def test_verb_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    dataset, gaussians = _dataset(2, 256)
    write_dataset(dataset, tmp_path / "data")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"abc")
    line = verb.Args(data=tmp_path / "data", output=tmp_path / "out", device="cpu", split="test", limit=1)
    monkeypatch.setattr(verb, "_load_model", lambda args, device: (Oracle(gaussians), weights))
    assert verb.run(line) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["id"] for entry in report["objects"]] == ["o00"]
    assert report["mean"]["all"]["psnr"] > 40
    assert report["weights_sha256"].startswith("ba7816bf8f01cfea")  # of "abc"
    assert report["data_settings"]["plan"] == "standard"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "sheet.png"}
    assert "alpha IoU" in capsys.readouterr().out
