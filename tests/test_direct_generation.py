"""One picture to files by a model of the Gamba family, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gamba_small import SMALL, ball_views
from maquette import registry
from maquette.cli import main
from maquette.direct_generation import generate_from_picture, one_picture_model
from maquette.errors import InvalidInputError
from maquette.io import read_gaussians, write_image
from maquette.models.gamba.network import Gamba
from maquette.training.export import export_weights
from maquette.training.recipes import get_recipe


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights of a small model that the registry knows as gamba-mini."""
    entry = registry.ModelEntry("gamba-mini", "gamba", SMALL, 0, "none", "small")
    monkeypatch.setitem(registry.MODELS, "gamba-mini", entry)
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    export_weights(path, Gamba(SMALL).state_dict(), get_recipe("gamba-mini"), 0, {})
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "ball.png"
    write_image(path, ball_views(1, 1, size=64).images[0, 0])
    return path


def test_picture_becomes_files(weights: Path, picture: Path, tmp_path: Path) -> None:
    assert (one_picture_model(weights), one_picture_model("gamba")) == ("gamba-mini", "gamba")
    result = generate_from_picture(picture, tmp_path / "out", model=weights, formats="ply,png", elevation_deg=10.0)
    assert set(result.files) == {"ply", "png"} and result.files["ply"].name == "ball.ply"
    assert 0 < read_gaussians(result.files["ply"]).num_gaussians <= SMALL.num_gaussians
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["views"]["azimuths_deg"] == [0.0] and report["views"]["elevations_deg"] == [10.0]


def test_command_line_needs_no_generator(weights: Path, picture: Path, tmp_path: Path) -> None:
    where = ["-o", str(tmp_path / "cli"), "--device", "cpu"]
    assert main(["generate", str(picture), "--model", str(weights), "--formats", "splat", *where]) == 0
    assert (tmp_path / "cli" / "ball.splat").stat().st_size > 0


def test_models_of_several_views_are_refused(picture: Path, tmp_path: Path) -> None:
    assert one_picture_model("lgm-mini") is None
    with pytest.raises(InvalidInputError, match="choose one of gamba-mini, gamba"):
        generate_from_picture(picture, tmp_path, model="lgm-mini")
    with pytest.raises(InvalidInputError, match="elevation"):
        generate_from_picture(picture, tmp_path, elevation_deg=80.0)
