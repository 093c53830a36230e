"""What this machine can do: versions, GPU, optional packages, weights, disk, and a self-test that renders."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "fail"]

MIN_TORCH = (2, 11)
MIN_FREE_BYTES = 1_000_000_000
_OPTIONAL = {
    "accelerate": "maquette train (pip install 'maquette[train]')",
    "tensorboard": "logs of maquette train (pip install 'maquette[train]')",
    "diffusers": "views from a sentence or a picture with mvdream and imagedream (pip install 'maquette[diffusion]')",
    "transformers": "their encoders (pip install 'maquette[diffusion]')",
    "cuda.core": "CUDA kernels (pip install 'maquette[cuda]')",
    "av": "turntable videos (pip install av)",
    "trimesh": "mesh files other than .glb (pip install trimesh)",
    "skimage": "meshes from Gaussians (pip install scikit-image)",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "ok", "note" (works without it, or more slowly) or "fail" (maquette does not work).
        detail: what was found, and what to do where something is missing.
    """

    name: str
    status: Status
    detail: str


def examine() -> list[Finding]:
    """Looks at everything; never raises: a check that breaks is a finding with status "fail"."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "processor": _processor,
        "torch": _torch,
        "gpu": _gpu,
        "nvrtc": _nvrtc,
        "numba": _numba,
        "packages": _packages,
        "weights": _weights,
        "cache": _cache,
        "self-test cpu": lambda: _self_test("cpu"),
        "self-test gpu": lambda: _self_test("cuda"),
    }
    findings = []
    for name, check in checks.items():
        try:
            finding = check()
        except Exception as error:  # a broken installation may raise anything; the report has to go on
            finding = Finding(name, "fail", f"{type(error).__name__}: {error}")
        findings.append(finding)
    return findings


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.status != "fail" for finding in findings)


def summary(findings: list[Finding]) -> str:
    """One sentence about what the machine can do."""
    if not is_healthy(findings):
        broken = ", ".join(finding.name for finding in findings if finding.status == "fail")
        return f"maquette does not work fully here; see: {broken}"
    status = {finding.name: finding.status for finding in findings}
    if status.get("self-test gpu") == "ok":
        return "This machine can generate, render, evaluate and train, on its GPU."
    return "This machine can generate, render and evaluate on its processor; train larger models on an NVIDIA GPU."


def _python() -> Finding:
    where = f"{platform.system()} {platform.machine()}, {sys.prefix}"
    return Finding("python", "ok", f"{platform.python_version()}, {where}")


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    return Finding("processor", "ok", f"{cores} cores{memory}")


def _torch() -> Finding:
    import torch

    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if found < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        return Finding("torch", "fail", f"{detail}; maquette needs {needed} or newer: pip install 'torch>={needed}'")
    return Finding("torch", "ok", detail)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "note", "no NVIDIA GPU that torch can use; everything runs on the processor")
    names = [
        f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return Finding("gpu", "ok", f"{', '.join(names)}, CUDA {torch.version.cuda}")


def _nvrtc() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("nvrtc", "note", "not needed without a GPU")
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    version = importlib.metadata.version("cuda-core")
    status: Status = "ok" if int(error) == 0 else "fail"
    return Finding("nvrtc", status, f"NVRTC {major}.{minor}, cuda-core {version}")


def _numba() -> Finding:
    import numba

    return Finding("numba", "ok", f"{numba.__version__}, {numba.get_num_threads()} threads")


def _packages() -> Finding:
    missing = [f"{name}: {use}" for name, use in _OPTIONAL.items() if not _has_module(name)]
    if missing:
        return Finding("packages", "note", "without " + "; without ".join(missing))
    return Finding("packages", "ok", f"all optional packages: {', '.join(_OPTIONAL)}")


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name
        return False


def _weights() -> Finding:
    from maquette.generators import GENERATORS
    from maquette.registry import MODELS
    from maquette.weights import find_weights

    found = {name: path for name in (*MODELS, *GENERATORS) if (path := find_weights(name)) is not None}
    if not found:
        return Finding("weights", "note", "none on this machine; see: maquette models list")
    return Finding("weights", "ok", ", ".join(f"{n} ({p.stat().st_size / 2**20:.1f} MiB)" for n, p in found.items()))


def _cache() -> Finding:
    from maquette.cache import cache_folder

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {free / 1e9:.1f} GB free on its disk"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("cache", "note", f"{detail}; not a folder that can be written: set MAQUETTE_CACHE to one")
    if free < MIN_FREE_BYTES:
        return Finding("cache", "note", f"{detail}; too little for weights: make room, or set MAQUETTE_CACHE")
    return Finding("cache", "ok", detail)


def _self_test(device: str) -> Finding:
    """Renders one red Gaussian in the middle of the picture and compares with the closed form."""
    import torch

    from maquette.cameras import Cameras
    from maquette.gaussians import Gaussians
    from maquette.raster import render_gaussians

    name = f"self-test {'gpu' if device == 'cuda' else 'cpu'}"
    if device == "cuda" and not torch.cuda.is_available():
        return Finding(name, "note", "skipped: no GPU")
    gaussians = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.8]),
        torch.tensor([[1.0, 0.0, 0.0]]),
    ).to(device)
    cameras = Cameras.orbit([0.0], height=65, width=65).to(device)  # odd: one pixel centre lies on the axis
    render_gaussians(gaussians, cameras)  # compiles, or loads what is cached
    start = time.perf_counter()
    picture = render_gaussians(gaussians, cameras).color.cpu()
    elapsed_ms = 1000 * (time.perf_counter() - start)
    sigma_px = math.sqrt((0.1 * float(cameras.intrinsics[0, 0, 0]) / 1.5) ** 2 + 0.3)
    expected = [1 - 0.8 * math.exp(-0.5 * (offset / sigma_px) ** 2) for offset in (0, 4)]  # green over white
    got = [float(picture[0, 1, 32, 32 + offset]) for offset in (0, 4)]
    if max(abs(a - b) for a, b in zip(got, expected, strict=True)) > 1e-3:
        return Finding(name, "fail", f"wrong picture: green is {got}, should be {expected}")
    return Finding(name, "ok", f"a rendered picture is right ({elapsed_ms:.1f} ms)")
