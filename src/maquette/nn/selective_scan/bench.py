"""Speed, memory and agreement of the selective scan on this machine, side by side in one run.

On a GPU the fused kernels are timed beside those of mamba-ssm, when their compiled module is at hand; on a CPU the
Numba backend is timed beside the torch loop. Each contender gets the tensors in the memory order it is written for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.errors import InvalidInputError
from maquette.nn.selective_scan.api import selective_scan
from maquette.raster.bench import time_cpu, time_gpu

GPU_RUNS, CPU_RUNS = 20, 3
MAMBA_VARIABLE = "MAQUETTE_MAMBA"
"""Environment variable: the folder of mamba-ssm's compiled module `selective_scan_cuda`."""

NAMES = ("inputs", "delta", "decay", "into", "out_of", "skip", "gate", "delta_bias")
_SEQUENCES = ("inputs", "delta", "gate")
_STATES = ("into", "out_of")


@dataclass(frozen=True)
class BenchCase:
    """One size to scan: items, channels, positions, states per channel, type of the sequences."""

    name: str
    batch: int
    channels: int
    length: int
    states: int
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        """Name and sizes in words."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.name} ({self.batch} x {self.channels} x {self.length:,}, {self.states} states, {kind})"


GPU_CASES = (
    BenchCase("gamba", 8, 1024, 16_961, 16, torch.float32),
    BenchCase("gamba", 8, 1024, 16_961, 16, torch.bfloat16),
    BenchCase("gamba", 8, 1024, 16_961, 16, torch.float16),
    BenchCase("even length", 8, 1024, 16_384, 16, torch.bfloat16),
    BenchCase("one picture", 1, 1024, 16_961, 16, torch.bfloat16),
    BenchCase("gamba-mini", 16, 320, 4353, 16, torch.bfloat16),
)
CPU_CASES = (BenchCase("gamba-mini", 1, 320, 4353, 16), BenchCase("a quarter of gamba", 1, 256, 16_961, 16))


@dataclass(frozen=True)
class Measurement:
    """One contender on one size.

    Attributes:
        backend: name of the contender.
        forward_ms: median milliseconds without gradients.
        total_ms: of forward and backward with gradients of all tensors.
        best_total_ms: the shortest of the latter.
        peak_mib: largest amount of GPU memory that torch had handed out at once in the latter, beyond the inputs, MiB;
            None on a CPU.
    """

    backend: str
    forward_ms: float
    total_ms: float
    best_total_ms: float
    peak_mib: float | None


@dataclass(frozen=True)
class CaseResult:
    """Measurements of one size, ours first.

    Attributes:
        case: what was scanned.
        measurements: one per contender.
        differences: norm of the difference of the first and the last contender's results over the norm of the
            latter's: of the output and of each gradient; empty with one contender.
    """

    case: BenchCase
    measurements: tuple[Measurement, ...]
    differences: dict[str, float]

    def speedups(self) -> tuple[float, float] | None:
        """Times of the last contender over the first's: forward, and with gradients."""
        if len(self.measurements) < 2:
            return None
        ours, other = self.measurements[0], self.measurements[-1]
        return other.forward_ms / ours.forward_ms, other.total_ms / ours.total_ms


Scan = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class _Contender:
    name: str
    scan: Scan
    token_major: bool


def mamba_module(folder: Path | None = None) -> Any | None:
    """mamba-ssm's compiled module: from a folder, from the one in `MAQUETTE_MAMBA`, or installed; None without one.

    Raises:
        InvalidInputError: the folder that was given has no such module.
    """
    given = folder or (Path(os.environ[MAMBA_VARIABLE]) if os.environ.get(MAMBA_VARIABLE) else None)
    if given is None:
        try:
            return importlib.import_module("selective_scan_cuda")
        except ImportError:
            return None
    files = sorted(given.glob("selective_scan_cuda*.so"))
    if not files:
        raise InvalidInputError(
            f"{given} holds no selective_scan_cuda*.so; build mamba-ssm's csrc/selective_scan there"
        )
    spec = importlib.util.spec_from_file_location("selective_scan_cuda", files[0])
    if spec is None or spec.loader is None:
        raise InvalidInputError(f"{files[0]} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_case(case: BenchCase, device: torch.device, token_major: bool) -> dict[str, Tensor]:
    """Fixed random tensors of realistic sizes: steps about 0.01 to 0.1, decays -1 to -N.

    Args:
        case: sizes.
        device: where the tensors lie.
        token_major: whether the channels of a position lie side by side (else the positions of a channel).
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    sizes = {name: case.channels for name in _SEQUENCES} | {name: case.states for name in _STATES}
    values = {}
    for name, size in sizes.items():
        value = normal(case.batch, size, case.length).to(case.dtype)
        values[name] = value.mT.contiguous().mT if token_major else value
    values["decay"] = -torch.arange(1.0, case.states + 1, device=device).repeat(case.channels, 1)
    values["skip"], values["delta_bias"] = normal(case.channels), normal(case.channels) * 0.5 - 4
    return {name: values[name].requires_grad_() for name in NAMES}


def bench_case(case: BenchCase, device: torch.device, runs: int | None = None, mamba: Any | None = None) -> CaseResult:
    """Measures every contender that this machine has on one size.

    Args:
        case: what to scan.
        device: a CUDA device or the CPU.
        runs: repetitions, of which the median counts; None for 20 on a GPU and 3 on a CPU.
        mamba: what `mamba_module` found, for a GPU.
    """
    on_gpu = device.type == "cuda"
    runs = runs or (GPU_RUNS if on_gpu else CPU_RUNS)
    contenders = _gpu_contenders(mamba) if on_gpu else _cpu_contenders()
    measurements, results = [], []
    for contender in contenders:
        values = make_case(case, device, contender.token_major)
        measurements.append(_measure(contender, values, device, runs))
        if contender in (contenders[0], contenders[-1]):
            results.append(_results(contender, values))
        del values
    differences = {}
    if len(results) > 1:
        pairs = zip(("output", *NAMES), *results, strict=True)
        differences = {name: float((a - b).norm() / b.norm()) for name, a, b in pairs}
    return CaseResult(case, tuple(measurements), differences)


def _own(backend: str) -> Scan:
    return lambda values: selective_scan(**values, delta_softplus=True, backend=backend)


def _cpu_contenders() -> list[_Contender]:
    return [_Contender("cpu", _own("cpu"), False), _Contender("reference", _own("reference"), False)]


def _gpu_contenders(mamba: Any | None) -> list[_Contender]:
    contenders = [
        _Contender("cuda", _own("cuda"), True),
        _Contender("cuda, transposed inputs", _own("cuda"), False),
    ]
    if mamba is None:
        return contenders[:1]

    def scan(v: dict[str, Tensor]) -> Tensor:
        result: Tensor = _MambaScan.apply(mamba, *(v[name] for name in NAMES))  # type: ignore[no-untyped-call]
        return result

    return [*contenders, _Contender("mamba-ssm", scan, False)]


class _MambaScan(torch.autograd.Function):
    """mamba-ssm's fused kernels, called as its own Python function does."""

    @staticmethod
    def forward(
        ctx: Any,
        mamba: Any,
        inputs: Tensor,
        delta: Tensor,
        decay: Tensor,
        into: Tensor,
        out_of: Tensor,
        skip: Tensor,
        gate: Tensor,
        bias: Tensor,
    ) -> Tensor:
        states = (into[:, None], out_of[:, None])
        output, kept, *gated = mamba.fwd(inputs, delta, decay, *states, skip, gate, bias, True)
        ctx.mamba = mamba
        ctx.save_for_backward(inputs, delta, decay, *states, skip, gate, bias, kept, output)
        result: Tensor = gated[0]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, delta, decay, into, out_of, skip, gate, bias, kept, output = ctx.saved_tensors
        gradients = ctx.mamba.bwd(
            inputs, delta, decay, into, out_of, skip, gate, bias, upstream, kept, output, None, True, False
        )
        to_inputs, to_delta, to_decay, to_into, to_out_of, to_skip, to_bias, to_gate = gradients
        return None, to_inputs, to_delta, to_decay, to_into[:, 0], to_out_of[:, 0], to_skip, to_gate, to_bias


def _measure(contender: _Contender, values: dict[str, Tensor], device: torch.device, runs: int) -> Measurement:
    upstream = torch.randn_like(values["inputs"])

    def forward() -> None:
        with torch.no_grad():
            contender.scan(values)

    def total() -> None:
        torch.autograd.grad(contender.scan(values), tuple(values.values()), upstream)

    time_runs: Callable[[Callable[[], None], int], Sequence[float]]
    time_runs = time_gpu if device.type == "cuda" else time_cpu
    forward_ms, total_ms = time_runs(forward, runs), time_runs(total, runs)
    peak_mib = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        total()
        peak_mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    name = contender.name
    return Measurement(name, statistics.median(forward_ms), statistics.median(total_ms), min(total_ms), peak_mib)


def _results(contender: _Contender, values: dict[str, Tensor]) -> list[Tensor]:
    """The output and the gradients for one fixed upstream gradient, float32."""
    output = contender.scan(values)
    generator = torch.Generator(output.device).manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
    gradients = torch.autograd.grad(output, tuple(values.values()), upstream)
    return [value.detach().float() for value in (output, *gradients)]
