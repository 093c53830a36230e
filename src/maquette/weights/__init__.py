"""Files of weights: always safetensors, embedded in the package or in the user's store.

Our own weights lie beside this file as `NAME.safetensors`; downloaded and imported ones in the store. A file carries
string metadata: `format` ("maquette-weights/1"), `model` (registry name) and what the family needs besides.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import maquette
from maquette.cache import cache_folder
from maquette.errors import WeightsError
from maquette.io.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "maquette-weights/1"
_MAX_HEADER_BYTES = 100_000_000
_SHOWN_MISMATCHES = 5


def store_folder() -> Path:
    """Folder of downloaded and imported weights."""
    return cache_folder() / "weights"


def embedded_file(name: str) -> Path:
    """Where the weights of `name` lie if they are part of the package."""
    return Path(__file__).parent / f"{name}.safetensors"


def stored_file(name: str) -> Path:
    """Where the weights of `name` lie if they were downloaded or imported."""
    return store_folder() / f"{name}.safetensors"


def find_weights(name: str) -> Path | None:
    """The weights of a model on this machine: the store wins over the package; None if there are none."""
    for path in (stored_file(name), embedded_file(name)):
        if path.is_file():
            return path
    return None


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of a safetensors file, without reading its tensors (and without torch).

    Raises:
        WeightsError: the file is missing or not safetensors.
    """
    return _read_header(Path(path))[0]


def count_parameters(path: str | Path) -> int:
    """Number of values in a safetensors file, from its header.

    Raises:
        WeightsError: the file is missing or not safetensors.
    """
    total = 0
    for shape in _read_header(Path(path))[1].values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_MAX_HEADER_BYTES, path.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        return dict(metadata), {name: list(entry["shape"]) for name, entry in header.items()}
    except OSError as error:
        raise WeightsError(f"cannot read weights from {path}: {error.strerror or error}") from error
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); see: maquette models import --help") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata of a safetensors file, on the CPU.

    Raises:
        WeightsError: the file is missing, broken or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return load_file(path), metadata
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is broken: {error}; download or export it again") from error


def write_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a state dict as safetensors, atomically.

    Args:
        path: ends in .safetensors.
        state: tensors of any device.
        metadata: must name the `model`; `format` and `maquette` (version) are added.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    facts = {"format": FORMAT, "maquette": maquette.__version__, **metadata}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, facts)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copies a state dict into a network after checking that names and shapes agree exactly.

    Raises:
        WeightsError: lists the first differences; the network is unchanged.
    """
    check_state(network, state, source)
    network.load_state_dict(dict(state))


def check_state(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that a state dict fits a network (which may be on the meta device) exactly.

    Raises:
        WeightsError: lists the first differences.
    """
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    given = {name: list(value.shape) for name, value in state.items()}
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} is unexpected" for name in sorted(given) if name not in expected]
    problems += [
        f"{name} has shape {given[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:_SHOWN_MISMATCHES])
        more = len(problems) - _SHOWN_MISMATCHES
        rest = f"; and {more} more" if more > 0 else ""
        raise WeightsError(
            f"{source} does not fit {type(network).__name__}: {shown}{rest}. "
            "Check the model's name; `maquette models list` shows what there is"
        )
