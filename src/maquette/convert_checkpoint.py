"""Foreign checkpoints (.ckpt, .pt, .pth, .bin, .safetensors) to our weight files.

The only module that opens pickled files, and only with `weights_only=True`, which executes no code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError, WeightsError
from maquette.models.lgm.official import network_state, rotation_axis_of
from maquette.models.lgm.params import RotationAxis
from maquette.registry import get_entry
from maquette.weights import check_state, read_weights, stored_file, write_weights

PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a foreign checkpoint, on the CPU; unpacks the usual wrappers such as "state_dict".

    Raises:
        InvalidInputError: the file does not exist or has another suffix.
        FileFormatError: it is broken, holds more than tensors, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"no file {path}: give a .safetensors, {', '.join(PICKLED_SUFFIXES)} file")
    if path.suffix == ".safetensors":
        try:
            return read_weights(path)[0]
        except WeightsError as error:
            raise FileFormatError(str(error)) from error
    if path.suffix not in PICKLED_SUFFIXES:
        valid = ", ".join((".safetensors", *PICKLED_SUFFIXES))
        raise InvalidInputError(f"{path.name} has no known suffix of a checkpoint: valid are {valid}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileFormatError(
            f"{path} cannot be read as a file of tensors only ({reason}); export its state dict as .safetensors"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(len(_WRAPPERS)):
        inner = [key for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, not a state dict")
    wrong = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        raise FileFormatError(f"{path} holds no state dict: {wrong[:3] or 'it is empty'} are not tensors")
    return {str(name): value for name, value in content.items()}


def import_checkpoint(
    path: str | Path,
    model: str,
    *,
    rotation_axis: RotationAxis | None = None,
    destination: str | Path | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Converts a checkpoint into the weights of a registered model, after a strict check of names and shapes.

    Args:
        path: see `read_checkpoint`.
        model: registry name.
        rotation_axis: how the checkpoint normalises quaternions; None decides by the file name (see
            `maquette.models.lgm.official.rotation_axis_of`).
        destination: file to write; None takes the model's place in the store.
        facts: further metadata, such as the origin.

    Returns:
        The file written.

    Raises:
        InvalidInputError: unknown model or unsuitable file name.
        FileFormatError: the file is broken.
        WeightsError: it does not fit the model.
    """
    entry = get_entry(model)
    state = network_state(read_checkpoint(path))
    with torch.device("meta"):
        network = entry.build()
    check_state(network, state, path)
    bad = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise WeightsError(f"{path} holds values that are not finite, in {', '.join(bad[:3])}")
    target = Path(destination) if destination is not None else stored_file(entry.name)
    metadata = {"model": entry.name, "rotation_axis": rotation_axis or rotation_axis_of(str(path))}
    write_weights(target, state, metadata | {"source": Path(path).name, "license": entry.license} | dict(facts or {}))
    return target
