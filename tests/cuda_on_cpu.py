"""Runs the CUDA kernels' own source on the CPU: g++ compiles it, and fibers stand for threads (see cuda_on_cpu.h)."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from maquette.raster import cuda, cuda_bins, nvrtc

_HEADER = Path(__file__).with_suffix(".h")
_INCLUDES = Path(nvrtc.__file__).parent


def run_on_cpu(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a module that launches NVRTC kernels work on CPU tensors; skips the test without a compiler."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")

    def load_kernels(source: str | Path, names: Sequence[str], options: Sequence[str] = ()) -> dict[str, Any]:
        source = _INCLUDES / source
        library = folder / ("-".join([source.stem, *options]) + ".so")
        if not library.exists():
            code = library.with_suffix(".cpp")
            code.write_text(f'#include "{_HEADER}"\n#include "{source}"\n')
            macros = [f"-D{option}" for option in options]
            command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", *macros, f"-I{_INCLUDES}", str(code)]
            command += ["-o", str(library)]
            subprocess.run(command, check=True)
        handle = ctypes.CDLL(str(library))
        return {name: (handle, getattr(handle, name)) for name in names}

    def launch(
        kernel: tuple[Any, Any], blocks: int, threads: int, *args: Tensor | float | None, stream: object = None
    ) -> None:
        numbers = [arg for arg in args if isinstance(arg, float)]
        values = [arg.data_ptr() if isinstance(arg, Tensor) else arg or 0 for arg in args if not isinstance(arg, float)]
        packed = (ctypes.c_uint64 * len(values))(*values)
        number = ctypes.c_float(*numbers)
        kernel[0].run_kernel(kernel[1], blocks, threads, packed, ctypes.c_size_t(len(values)), number)

    monkeypatch.setattr(module, "load_kernels", load_kernels)
    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())


def rasterizer_on_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CUDA backend of the Gaussian rasterizer take tensors on the CPU."""
    for module in (cuda, cuda_bins):
        run_on_cpu(module, folder, monkeypatch)
    monkeypatch.setattr(cuda, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda_bins, "current_stream", lambda: None)
    monkeypatch.setattr(cuda_bins, "_NEEDS", {})
    monkeypatch.setattr(cuda_bins, "_ROWS", {})
