"""Training checkpoints: a folder per save, complete or absent, without pickles.

`DIR/checkpoints/step-00001000/` holds one safetensors file per group of tensors and `state.json` with the step, the
config, versions, and size and CRC-32 of every file. It is written under another name, synced and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.errors import FileFormatError, InvalidInputError

FORMAT = "maquette-checkpoint/1"
FOLDER = "checkpoints"
MAX_STATE_BYTES = 1 << 20

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        state: everything else of `state.json`.
        tensors: groups ("model", "ema", "optimizer") to named tensors on the CPU.
    """

    path: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes a checkpoint of run folder `run` and removes all but the newest `keep`; returns its folder.

    A reader (and a process that was killed here) sees all of it or nothing.
    """
    from safetensors.torch import save

    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{target.name}-{os.getpid()}"
    _remove(temporary)
    temporary.mkdir()
    files: dict[str, dict[str, int]] = {}
    for group, named in tensors.items():
        data = save({name: value.detach().cpu().contiguous().clone() for name, value in named.items()})
        files[f"{group}.safetensors"] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        _write_synced(temporary / f"{group}.safetensors", data)
    text = json.dumps({"format": FORMAT, "step": step, "files": files, **state}, indent=1)
    _write_synced(temporary / "state.json", text.encode())
    _sync_folder(temporary)
    if target.exists():
        _retire(target)
    temporary.rename(target)
    _sync_folder(folder)
    for old in list_checkpoints(run)[:-keep]:
        _retire(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def clean_leftovers(run: Path) -> None:
    """Removes what a killed process left half-written. Call while no other process writes to this run."""
    for pattern in (".writing-*", ".retired-*"):
        for path in (run / FOLDER).glob(pattern):
            _remove(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint folder.

    Raises:
        FileFormatError: not a checkpoint, or files are missing, truncated or changed; says what to do.
    """
    advice = f"remove {path} to continue from the save before it, or choose another -o"
    state_file = path / "state.json"
    try:
        if state_file.stat().st_size > MAX_STATE_BYTES:
            raise FileFormatError(f"{state_file} is larger than {MAX_STATE_BYTES} bytes; {advice}")
        state = json.loads(state_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{state_file} cannot be read ({error}); {advice}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise FileFormatError(f"{path} is not a maquette checkpoint: format {found!r}, expected {FORMAT!r}; {advice}")
    step, files = state.get("step"), state.get("files")
    if not isinstance(step, int) or not isinstance(files, dict):
        raise FileFormatError(f"{state_file} lacks the step or the list of files; {advice}")
    tensors = {Path(name).stem: _read_verified(path / Path(name).name, entry, advice) for name, entry in files.items()}
    return Checkpoint(path, step, state, tensors)


def init_tensors(path: Path) -> dict[str, Tensor]:
    """Weights to start from: a .safetensors file, or a checkpoint folder (its averaged weights if it has them).

    Raises:
        InvalidInputError: no such file or folder.
        FileFormatError: not safetensors, or a damaged checkpoint.
    """
    if path.is_dir():
        tensors = load_checkpoint(path).tensors
        return tensors.get("ema") or tensors["model"]
    if not path.is_file():
        raise InvalidInputError(f"no weights at {path}: give a .safetensors file or a checkpoint folder")
    return _parse(path, path.read_bytes(), "export it again with --export")


def _read_verified(file: Path, entry: Any, advice: str) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
        expected = (int(entry["bytes"]), int(entry["crc32"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{file} cannot be read ({error}); {advice}") from error
    if len(data) != expected[0]:
        raise FileFormatError(f"{file} has {len(data)} bytes instead of {expected[0]}; {advice}")
    if zlib.crc32(data) != expected[1]:
        raise FileFormatError(f"{file} was changed after it was written (its CRC-32 differs); {advice}")
    return _parse(file, data, advice)


def _parse(file: Path, data: bytes, advice: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        loaded: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError) as error:
        raise FileFormatError(f"{file} is not a safetensors file ({error}); {advice}") from error
    return loaded


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _retire(path: Path) -> None:
    """Removes a folder so that it is never seen half-removed under its own name."""
    hidden = path.with_name(f".retired-{path.name}-{os.getpid()}")
    _remove(hidden)
    path.rename(hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    import platform

    import maquette

    return {"maquette": maquette.__version__, "torch": torch.__version__, "python": platform.python_version()}
