"""Gamba in the registry: without weights, with the published checkpoint's layout, with our own files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import maquette
from gamba_goldens import GOLDEN_MINI
from gamba_small import SMALL, ball_views
from maquette import registry
from maquette.cli import main
from maquette.convert_checkpoint import import_checkpoint
from maquette.errors import WeightsError
from maquette.models.gamba.network import Gamba
from maquette.models.gamba.official import official_name
from maquette.models.gamba.reconstructor import GambaReconstructor
from maquette.weights import find_weights, read_metadata, stored_file, write_weights

NAME = "test-gamba"
PARAMS = dataclasses.replace(
    GOLDEN_MINI,
    name=NAME,
    encoder=dataclasses.replace(GOLDEN_MINI.encoder, width=16, depth=1, num_heads=2),
    encoder_size=28,
    input_size=32,
    width=16,
    num_layers=2,
)
"""The official architecture with few weights."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store and one more, small model."""
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path / "cache"))
    with torch.device("meta"):
        count = sum(p.numel() for p in Gamba(PARAMS).parameters())
    entry = registry.ModelEntry(NAME, "gamba", PARAMS, count, "Apache-2.0", "For tests.")
    monkeypatch.setitem(registry.MODELS, NAME, entry)
    return tmp_path


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(Gamba(PARAMS).state_dict())


def official_checkpoint(state: dict[str, Tensor]) -> dict[str, object]:
    """As the training of the official code saves it."""
    bins = torch.linspace(-0.4, 0.4, 21).repeat(3, 1)
    model = {official_name(name): value for name, value in state.items()} | {"model.decoder.coords": bins}
    perceptual = {"lpips_loss.net.slice1.0.weight": torch.zeros(1), "lpips_loss.lins.0.model.1.weight": torch.zeros(1)}
    return {"model": model | perceptual, "epoch": 399}


def test_models_without_weights_are_not_offered_as_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_weights("lgm-tiny") is None and find_weights("gamba") is None
    with pytest.raises(WeightsError, match="not on this machine: none are published; train them"):
        maquette.load("lgm-tiny")
    with pytest.raises(WeightsError, match=r"florinshen/Gamba \(gamba_ep399\.pth\), then run: maquette models import"):
        maquette.load("gamba")
    assert main(["models", "list"]) == 0
    rows = {line.split()[0]: line.split()[1:6] for line in capsys.readouterr().out.splitlines()}
    assert rows["gamba-mini"][:3] == ["gamba", "4.0", "M"]
    assert rows["gamba"] == ["gamba", "124.6", "M", "none", "-"]
    assert main(["models", "info", "gamba"]) == 0
    described = capsys.readouterr().out
    assert "1 view of 512 x 512 px" in described and "16,384 Gaussians" in described and "none stated" in described


def test_published_layout_is_imported_and_used(store: Path, state: dict[str, Tensor]) -> None:
    file = store / "gamba_ep399.pth"
    torch.save(official_checkpoint(state), file)
    path = import_checkpoint(file, NAME)
    assert path == stored_file(NAME)
    metadata = read_metadata(path)
    assert metadata["source"] == "gamba_ep399.pth" and "rotation_axis" not in metadata
    reconstruct = maquette.load(NAME, device="cpu")
    assert isinstance(reconstruct, GambaReconstructor)
    expected = Gamba(PARAMS).eval()
    expected.load_state_dict(state)
    views = ball_views(1, 4)
    got, wanted = reconstruct(views), GambaReconstructor(expected)(views)
    torch.testing.assert_close(got.means, wanted.means)
    assert got.batch_shape == (1,) and got.num_gaussians == 64


def test_checkpoints_that_do_not_fit_are_explained(store: Path, state: dict[str, Tensor]) -> None:
    file = store / "cut.pth"
    checkpoint = official_checkpoint(state)
    assert isinstance(checkpoint["model"], dict)
    del checkpoint["model"]["model.transformer.layers.1.mamba_block.mixer.A_log"]
    torch.save(checkpoint, file)
    with pytest.raises(WeightsError, match=r"layers\.1\.mamba_block\.mixer\.A_log is missing"):
        import_checkpoint(file, NAME)
    with pytest.raises(WeightsError, match="does not fit LGM"):
        import_checkpoint(file, "lgm-tiny")


def test_files_of_ours_are_loaded_by_path_in_half_precision_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODELS, NAME, dataclasses.replace(registry.MODELS[NAME], params=SMALL))
    torch.manual_seed(0)
    network = Gamba(SMALL)
    file = store / "mine.safetensors"
    write_weights(file, network.half().state_dict(), {"model": NAME})
    views = ball_views(1, 1)
    single = maquette.load(file, device="cpu")(views)
    half = registry.reconstructor_of(registry.load_network(NAME, file, dtype=torch.bfloat16))(views)
    assert single.means.dtype == half.means.dtype == torch.float32
    assert float((single.means - half.means).abs().mean()) < 0.01
