"""Weights from elsewhere to our weight files: foreign checkpoints, and the published ones of the hub.

The only module that opens pickled files, and only with `weights_only=True`, which executes no code.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError, WeightsError
from maquette.generators import GENERATORS, get_generator
from maquette.hub import discard_download, download, mismatch
from maquette.models.gamba import official as gamba_official
from maquette.models.lgm.official import network_state, rotation_axis_of
from maquette.models.lgm.params import LGMParams, RotationAxis
from maquette.registry import MODELS, ModelEntry, get_entry
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
) -> Path:
    """Converts a checkpoint into the weights of a registered model, after a strict check of names and shapes.

    Where weights of the model are published, the file's SHA-256 is compared with the pinned one: a file that equals it
    is recorded as the official one whatever its name; another one, perhaps fine-tuned, is taken with a warning.

    Args:
        path: see `read_checkpoint`.
        model: registry name.
        rotation_axis: of LGM: how the checkpoint normalises quaternions; None decides by the file name (see
            `maquette.models.lgm.official.rotation_axis_of`).
        destination: file to write; None takes the model's place in the store.

    Returns:
        The file written.

    Raises:
        InvalidInputError: unknown model or unsuitable file name.
        FileFormatError: the file is broken.
        WeightsError: it does not fit the model.
    """
    entry = get_entry(model)
    params, state = entry.params, read_checkpoint(path)
    state = network_state(state) if isinstance(params, LGMParams) else gamba_official.network_state(state, params)
    with torch.device("meta"):
        network = entry.build()
    check_state(network, state, path)
    bad = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise WeightsError(f"{path} holds values that are not finite, in {', '.join(bad[:3])}")
    target = Path(destination) if destination is not None else stored_file(entry.name)
    official = _official_facts(entry, path)
    metadata = {"model": entry.name, "source": Path(path).name, "license": entry.license}
    if isinstance(params, LGMParams):
        named = entry.hub_file.filename if entry.hub_file is not None and official else str(path)
        metadata["rotation_axis"] = rotation_axis or rotation_axis_of(named)
    write_weights(target, state, metadata | official)
    return target


def import_folder(folder: str | Path, generator: str, *, destination: str | Path | None = None) -> Path:
    """Converts a published folder of a generator of views into one weight file, after a strict check.

    Args:
        folder: with the components as diffusers lays them out, safetensors only.
        generator: its name, see `maquette.generators`.
        destination: file to write; None takes the generator's place in the store.

    Returns:
        The file written.

    Raises:
        InvalidInputError: unknown generator, or no such folder.
        WeightsError: a component is missing, broken or does not fit.
        MissingDependencyError: the extra `diffusion` is not installed.
    """
    from maquette.models.mvdream.official import check_components, read_folder

    entry = get_generator(generator)
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInputError(f"no folder {folder}: give the published one; {entry.how_to_get}")
    state = read_folder(folder, entry.params)
    check_components(entry.params, state, folder)
    target = Path(destination) if destination is not None else stored_file(entry.name)
    metadata = {"model": entry.name, "source": folder.resolve().name, "license": entry.license}
    write_weights(target, state, metadata)
    return target


def _official_facts(entry: ModelEntry, path: str | Path) -> dict[str, str]:
    """Origin and checksum if the file is the published one of the model; otherwise nothing, and a warning."""
    published = entry.hub_file
    if published is None:
        return {}
    difference = mismatch(Path(path), published)
    if difference is None:
        return {"origin": published.url, "sha256": published.sha256}
    warnings.warn(
        f"{Path(path).name} fits {entry.name}, but is not the published {published.filename} ({difference}): fine if "
        f"you trained it or fine-tuned it; otherwise fetch {published.url}",
        stacklevel=3,
    )
    return {}


def pull(name: str, *, endpoint: str | None = None, progress: Callable[[int, int], None] | None = None) -> Path:
    """Downloads, checks and installs the published weights of a model; returns the file in the store.

    Args:
        name: registry name.
        endpoint: address of the hub; None takes `HF_ENDPOINT` or the public one.
        progress: called with the bytes that are here and their total.

    Raises:
        InvalidInputError: no such model, or nothing is published for it.
        DownloadError: the download failed; says how to do it by hand.
        WeightsError: the file does not fit the network.
    """
    if name in GENERATORS:
        raise InvalidInputError(f"{name} is not pulled, it is imported from a folder: {GENERATORS[name].how_to_get}")
    entry = get_entry(name)
    if entry.hub_file is None:
        published = [other.name for other in MODELS.values() if other.hub_file is not None]
        raise InvalidInputError(
            f"there is nothing to pull for {name}: {entry.how_to_get}. Published: {', '.join(published)}"
        )
    file = entry.hub_file
    by_hand = f"Without a network: {entry.by_hand}"
    downloaded = download(file, by_hand=by_hand, endpoint=endpoint, progress=progress)
    installed = import_checkpoint(downloaded, name)
    discard_download(file)
    return installed
