"""The whole scan on NVIDIA GPUs, compiled at first use through NVRTC: one kernel forward, one backward.

The kernels read sequences in token-major memory, `[B, L, D]` with dense channels, which is how linear layers write
them; others are copied. Arithmetic is float32 whatever the type of the sequences. For the backward pass, forward keeps
the states at every 32nd position: N / 32 floats for each element of the inputs (every 16th with more than 16 states).
A grid too small for the GPU gets the length in chunks (see `chunks`), whose ends one more kernel finds. Gradients of B
and C are summed by atomics, so their last digits vary between runs; everything else is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.nn.selective_scan import chunks
from maquette.nn.selective_scan.chunks import ScanCost, chunk_count
from maquette.raster.nvrtc import launch, load_kernels

MAX_STATES = 64
"""Most states per channel."""

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of sequences, with the number that the source knows them by."""

SOURCES = {name: Path(__file__).with_name(f"{name}.cu") for name in ("scan_forward", "scan_ends", "scan_backward")}
"""The file of each kernel."""

_LANES = 32


def scan(
    inputs: Tensor,
    delta: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """As `maquette.nn.selective_scan.selective_scan`, for CUDA tensors; differentiable once."""
    tensors = (inputs, delta, into, out_of, gate, _weights(decay), _weights(skip), _weights(delta_bias))
    # Asked here, because inside the function gradients are always off and parameters always want one.
    differentiable = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors)
    result: Tensor = _Scan.apply(*tensors, delta_softplus, differentiable)  # type: ignore[no-untyped-call]
    return result


def kernel_options(dtype: torch.dtype, size: int, softplus: bool, gated: bool) -> tuple[str, ...]:
    """Macros of the sources for sequences of a type, so many states, and what is done to step sizes and results."""
    return (f"STATES={size}", f"REAL={DTYPES[dtype]}", f"SOFTPLUS={int(softplus)}", f"GATED={int(gated)}")


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _weights(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


def _token_major(value: Tensor) -> Tensor:
    """`[B, C, L]` as `[B, L, C]` with dense channels, without a copy where the memory is so already."""
    return value.mT if value.stride(1) == 1 else value.mT.contiguous()


def _with_strides(*values: Tensor | None) -> list[Tensor | int | None]:
    """Each tensor followed by the distances between its items and between its positions."""
    arguments: list[Tensor | int | None] = []
    for value in values:
        arguments += [value, 0, 0] if value is None else [value, value.stride(0), value.stride(1)]
    return arguments


@dataclass(frozen=True)
class _Geometry:
    """How a scan is laid out: see `scan.cuh`."""

    options: tuple[str, ...]
    channels: int
    length: int
    columns: int  # of up to 32 channels of an item
    groups: int  # of states
    threads: int
    tiles: int
    chunk_tiles: int

    @property
    def chunks(self) -> int:
        return -(-self.tiles // self.chunk_tiles)

    @property
    def kept(self) -> int:
        """Floats of the states of a column at one position."""
        return self.groups * self.threads * 4

    def launch(self, name: str, arguments: Sequence[Tensor | int | None], options: Sequence[str] = ()) -> None:
        """Runs a kernel on every chunk of every column."""
        kernel = load_kernels(SOURCES[name], (name,), (*self.options, *options))[name]
        sizes = (self.channels, self.length, self.chunk_tiles)
        launch(kernel, self.columns * self.chunks, self.threads, *arguments, *sizes)

    def ends(
        self,
        backward: bool,
        values: Tensor,
        steps: Tensor,
        gate: Tensor | None,
        states: Tensor,
        decay: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What more than one chunk needs to know of the others: states at their ends from zero, sums of step sizes.

        Args:
            backward: whether to walk from last to first, for the gradients of the states.
            values: x; or backward the gradient of the result, which the gate multiplies.
            steps: before bias and softplus.
            gate: z, backward.
            states: B; or backward C.
            decay: A.
            bias: of the steps.
        """
        if self.chunks == 1:
            return None, None
        size = self.columns * self.chunks
        ends, spans = (values.new_empty(size * per, dtype=torch.float32) for per in (self.kept, _LANES))
        arguments = (*_with_strides(values, steps, gate, states), decay, bias, ends, spans)
        self.launch("scan_ends", arguments, (f"BACKWARD={int(backward)}",))
        return ends, spans


def _geometry(x: Tensor, size: int, softplus: bool, gated: bool, cost: ScanCost) -> _Geometry:
    """The layout for sequences like x, `[B, L, D]`."""
    batch, length, channels = x.shape
    columns = batch * -(-channels // _LANES)
    groups = 4 if size > 32 else -(-size // 16)
    tiles = -(-length // (16 if size > 16 else 32))
    count = chunk_count(cost, columns, tiles, processors(x.device))
    return _Geometry(
        options=kernel_options(x.dtype, size, softplus, gated),
        channels=channels,
        length=length,
        columns=columns,
        groups=groups,
        threads=_LANES * -(-size // (4 * groups)),
        tiles=tiles,
        chunk_tiles=-(-tiles // count),
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        delta: Tensor,
        into: Tensor,
        out_of: Tensor,
        gate: Tensor | None,
        decay: Tensor,
        skip: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
        differentiable: bool,
    ) -> Tensor:
        with torch.cuda.device(inputs.device):
            x, steps, b, c = (_token_major(value) for value in (inputs, delta, into, out_of))
            z = None if gate is None else _token_major(gate)
            plan = _geometry(x, decay.shape[1], softplus, z is not None, chunks.FORWARD)
            outputs = x.new_empty(x.shape)
            starts = None
            if differentiable:
                starts = x.new_empty(plan.columns * plan.tiles * plan.kept, dtype=torch.float32)
            ends = plan.ends(False, x, steps, None, b, decay, bias)
            weights = (decay, skip, bias)
            plan.launch("scan_forward", (*_with_strides(x, steps, z, b, c), *weights, *ends, outputs, starts))
        ctx.save_for_backward(x, steps, z, b, c, *weights, starts)
        ctx.softplus = softplus
        return outputs.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, steps, z, b, c, decay, skip, bias, starts = ctx.saved_tensors
        (batch, length, channels), size = x.shape, decay.shape[1]
        with torch.cuda.device(x.device):
            plan = _geometry(x, size, ctx.softplus, z is not None, chunks.BACKWARD)
            sequences = [x.new_empty(x.shape) for _ in range(2 if z is None else 3)]
            grad_inputs, grad_delta, grad_gate = (*sequences, None)[:3]
            states = torch.zeros(2, batch, length, size, dtype=torch.float32, device=x.device)
            parts = batch * plan.chunks  # summed below, in a fixed order
            grad_decay = states.new_empty(parts, channels, size)
            grad_skip, grad_bias = states.new_empty(2, parts, channels)
            given = _token_major(upstream)
            ends = plan.ends(True, given, steps, z, c, decay, bias)
            arguments = (*_with_strides(x, steps, z, b, c, given), decay, skip, bias, starts, *ends)
            gradients = (grad_inputs, grad_delta, grad_gate, states[0], states[1], grad_decay, grad_skip, grad_bias)
            plan.launch("scan_backward", (*arguments, *gradients))
        grad_into, grad_out_of = states.to(x.dtype).mT
        return (
            grad_inputs.mT,
            grad_delta.mT,
            grad_into,
            grad_out_of,
            None if grad_gate is None else grad_gate.mT,
            grad_decay.sum(0),
            None if skip is None else grad_skip.sum(0),
            None if bias is None else grad_bias.sum(0),
            None,
            None,
        )
