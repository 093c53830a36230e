"""The registry, weight files, imports of foreign checkpoints, and `maquette models`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maquette
from lgm_goldens import GOLDEN_MINI
from maquette import registry
from maquette.cli import main
from maquette.convert_checkpoint import import_checkpoint, read_checkpoint
from maquette.errors import FileFormatError, InvalidInputError, WeightsError
from maquette.models.lgm.inputs import default_cameras
from maquette.models.lgm.network import LGM
from maquette.views import Views
from maquette.weights import count_parameters, find_weights, read_metadata, read_weights, stored_file, write_weights

NAME = "test-lgm"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store and one more, small model."""
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path / "cache"))
    entry = registry.ModelEntry(NAME, "lgm", GOLDEN_MINI, 3_612_032, "Apache-2.0", "For tests.")
    monkeypatch.setitem(registry.MODELS, NAME, entry)
    return tmp_path


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(LGM(GOLDEN_MINI).state_dict())


def test_importing_maquette_and_its_registry_needs_no_torch() -> None:
    code = "import sys, maquette, maquette.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parameter_counts_are_true() -> None:
    for entry in registry.MODELS.values():
        with torch.device("meta"):
            assert sum(p.numel() for p in entry.build().parameters()) == entry.num_parameters, entry.name


def test_unknown_models_and_missing_weights_say_what_to_do() -> None:
    with pytest.raises(InvalidInputError, match=r"'lgm'.*lgm-mini, lgm-big"):
        registry.get_entry("lgm")
    with pytest.raises(WeightsError, match="maquette models pull lgm-big"):
        maquette.load("lgm-big")
    with pytest.raises(WeightsError, match="maquette train lgm-tiny"):
        maquette.load("lgm-tiny")
    with pytest.raises(InvalidInputError, match=r"nowhere\.safetensors.*neither"):
        maquette.load("nowhere.safetensors")


def test_weights_are_found_and_loaded_by_name_and_by_file(store: Path, state: dict[str, torch.Tensor]) -> None:
    views = Views(torch.rand(4, 4, 64, 64), default_cameras(0.0, 64))
    file = store / "mine.safetensors"
    write_weights(file, state, {"model": NAME})
    assert count_parameters(file) == 3_612_032 and read_metadata(file)["format"] == "maquette-weights/1"
    from_file = maquette.load(file, device="cpu")(views)
    assert find_weights(NAME) is None
    write_weights(stored_file(NAME), state, {"model": NAME})
    by_name = maquette.load(NAME, device="cpu")(views)
    torch.testing.assert_close(by_name.means, from_file.means)
    assert registry.load_network(NAME, dtype=torch.float16).conv.weight.dtype == torch.float16


def test_loading_leaves_the_global_generator_alone(state: dict[str, torch.Tensor]) -> None:
    write_weights(stored_file(NAME), state, {"model": NAME})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    registry.load_network(NAME)
    torch.testing.assert_close(torch.rand(2), expected)


def test_the_first_mismatches_are_listed(store: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = dict(state)
    del wrong["conv.bias"]
    wrong["extra"] = torch.zeros(1)
    wrong["conv.weight"] = torch.zeros(3, 14, 1, 1)
    file = store / "wrong.safetensors"
    write_weights(file, wrong, {"model": NAME})
    with pytest.raises(WeightsError, match=r"conv.bias is missing; extra is unexpected; conv.weight has shape \[3, 14"):
        registry.load_network(NAME, file)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, (5).to_bytes(8, "little") + b"{not}"])
def test_broken_weight_files_are_refused(store: Path, content: bytes) -> None:
    file = store / "broken.safetensors"
    file.write_bytes(content)
    for read in (read_metadata, read_weights, maquette.load):
        with pytest.raises(WeightsError, match=r"broken\.safetensors"):
            read(file)


def test_truncated_weights_are_refused(store: Path, state: dict[str, torch.Tensor]) -> None:
    file = store / "cut.safetensors"
    write_weights(file, state, {"model": NAME})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is broken"):
        maquette.load(file, device="cpu")


def test_files_of_unknown_models_are_refused(store: Path, state: dict[str, torch.Tensor]) -> None:
    file = store / "foreign.safetensors"
    write_weights(file, state, {"model": "other"})
    with pytest.raises(WeightsError, match="maquette models import"):
        maquette.load(file)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_checkpoints_are_imported(store: Path, state: dict[str, torch.Tensor], wrapped: bool) -> None:
    prefixed = {f"module.{name}": value for name, value in state.items()}
    content = {"state_dict": prefixed | {"lpips_loss.lin0.model.1.weight": torch.zeros(1)}, "step": 3}
    file = store / "model.ckpt"
    torch.save(content if wrapped else state, file)
    path = import_checkpoint(file, NAME)
    assert path == stored_file(NAME)
    loaded, metadata = read_weights(path)
    assert metadata["rotation_axis"] == "last" and metadata["source"] == "model.ckpt"
    torch.testing.assert_close(loaded, state)


def test_old_official_files_keep_their_rotation(store: Path, state: dict[str, torch.Tensor]) -> None:
    old = store / "model_fp16.safetensors"
    write_weights(old, state, {})
    import_checkpoint(old, NAME)
    assert registry.load_network(NAME).params.rotation_axis == "gaussians"
    import_checkpoint(old, NAME, rotation_axis="last")
    assert registry.load_network(NAME).params.rotation_axis == "last"


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_checkpoints_is_not_run(store: Path) -> None:
    file = store / "evil.pt"
    torch.save({"state_dict": _Payload()}, file)
    with pytest.raises(FileFormatError, match="tensors only"):
        read_checkpoint(file)
    file.write_bytes(pickle.dumps(_Payload()))
    with pytest.raises(FileFormatError, match=r"evil\.pt"):
        read_checkpoint(file)


def test_unsuitable_checkpoints_are_explained(store: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InvalidInputError, match="no file"):
        read_checkpoint(store / "absent.pt")
    text = store / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InvalidInputError, match="known suffix"):
        read_checkpoint(text)
    numbers = store / "numbers.pt"
    torch.save({"step": 3}, numbers)
    with pytest.raises(FileFormatError, match="no state dict"):
        read_checkpoint(numbers)
    poisoned = store / "poisoned.pt"
    torch.save(state | {"conv.bias": torch.full((14,), float("nan"))}, poisoned)
    with pytest.raises(WeightsError, match=r"conv\.bias"):
        import_checkpoint(poisoned, NAME)


def test_cli_lists_describes_and_imports(
    store: Path, state: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in registry.MODELS) and "415.0 M" in table and "pull" in table
    file = store / "mine.pt"
    torch.save(state, file)
    assert main(["models", "import", str(file), "--model", NAME]) == 0
    assert main(["models", "info", NAME]) == 0
    described = capsys.readouterr().out
    assert str(stored_file(NAME)) in described and "3,612,032" in described
    assert main(["models", "info", "nothing"]) == 1
    assert "choose one of" in capsys.readouterr().err
