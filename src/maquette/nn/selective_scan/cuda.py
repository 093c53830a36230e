"""The whole scan on NVIDIA GPUs, compiled at first use through NVRTC: one kernel forward, one backward (`scan.cu`).

The kernels read sequences in token-major memory, `[B, L, D]` with dense channels, which is how linear layers write
them; others are copied. Arithmetic is float32 whatever the type of the sequences. For the backward pass, forward keeps
the states at every 32nd position: N / 32 floats for each element of the inputs. Gradients of B and C are summed by
atomics, so their last digits vary between runs; everything else is the same to the last bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.raster.nvrtc import launch, load_kernels

MAX_STATES = 64
"""Most states per channel."""

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of sequences, with the number that the source knows them by."""

SOURCE = Path(__file__).with_name("scan.cu")

_LANES, _TILE = 32, 32


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
    result: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
        inputs, delta, into, out_of, gate, _weights(decay), _weights(skip), _weights(delta_bias), delta_softplus
    )
    return result


def kernel_options(dtype: torch.dtype, size: int) -> tuple[str, ...]:
    """Macros of the source for sequences of a type and for so many states."""
    return (f"STATES={size}", f"REAL={DTYPES[dtype]}")


def _weights(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


def _token_major(value: Tensor | None) -> Tensor | None:
    """`[B, C, L]` as `[B, L, C]` with dense channels, without a copy where the memory is so already."""
    if value is None:
        return None
    return value.mT if value.stride(1) == 1 else value.mT.contiguous()


def _with_strides(*values: Tensor | None) -> list[Tensor | int | None]:
    """Each tensor followed by the distances between its items and between its positions."""
    arguments: list[Tensor | int | None] = []
    for value in values:
        arguments += [value, 0, 0] if value is None else [value, value.stride(0), value.stride(1)]
    return arguments


def _geometry(dtype: torch.dtype, batch: int, channels: int, size: int) -> tuple[Any, int, int, int]:
    """The kernels, blocks, threads of each, and groups of states."""
    kernels = load_kernels(SOURCE, ("scan_forward", "scan_backward"), kernel_options(dtype, size))
    groups = -(-size // 16)
    warps = -(-size // (4 * groups))
    return kernels, batch * -(-channels // _LANES), _LANES * warps, groups


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
    ) -> Tensor:
        (batch, channels, length), size = inputs.shape, decay.shape[1]
        with torch.cuda.device(inputs.device):
            kernels, blocks, threads, groups = _geometry(inputs.dtype, batch, channels, size)
            x, steps, b, c, z = (_token_major(value) for value in (inputs, delta, into, out_of, gate))
            outputs = inputs.new_empty(batch, length, channels)
            starts = None
            if any(ctx.needs_input_grad):
                tiles = -(-length // _TILE)
                starts = torch.empty(blocks * tiles * groups * threads * 4, dtype=torch.float32, device=inputs.device)
            arguments = _with_strides(x, steps, z, b, c)
            sizes = (channels, length, int(softplus))
            weights = (decay, skip, bias)
            launch(kernels["scan_forward"], blocks, threads, *arguments, *weights, outputs, starts, *sizes)
        ctx.save_for_backward(x, steps, z, b, c, *weights, starts)
        ctx.softplus = softplus
        return outputs.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, steps, z, b, c, decay, skip, bias, starts = ctx.saved_tensors
        (batch, length, channels), size = x.shape, decay.shape[1]
        with torch.cuda.device(x.device):
            kernels, blocks, threads, _ = _geometry(x.dtype, batch, channels, size)
            sequences = [x.new_empty(x.shape) for _ in range(2 if z is None else 3)]
            grad_inputs, grad_delta, grad_gate = (*sequences, None)[:3]
            states = torch.zeros(2, batch, length, size, dtype=torch.float32, device=x.device)
            grad_decay = states.new_empty(batch, channels, size)
            grad_skip, grad_bias = states.new_empty(2, batch, channels)
            given = _token_major(upstream)
            arguments = (*_with_strides(x, steps, z, b, c, given), decay, skip, bias, starts)
            gradients = (grad_inputs, grad_delta, grad_gate, states[0], states[1], grad_decay, grad_skip, grad_bias)
            sizes = (channels, length, int(ctx.softplus))
            launch(kernels["scan_backward"], blocks, threads, *arguments, *gradients, *sizes)
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
        )
