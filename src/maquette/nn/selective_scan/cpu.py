"""The recurrence on the CPU by Numba: parallel over batch and channels, no state is kept for the backward pass.

The backward pass runs forward once more, keeps the state at the start of every chunk, and then recomputes the states
of one chunk at a time. Sums over channels are taken in fixed groups and a fixed order, so results do not depend on
the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from maquette.raster.cpu_jit import Array, compiled, kernel_threads

CHUNK = 128
"""Positions per chunk of the backward pass."""
GROUPS = 8
"""Groups of channels whose gradients for B and C are summed separately."""


@compiled(fast=True, parallel=True)
def _forward(inputs: Array, steps: Array, decay: Array, into: Array, out_of: Array, outputs: Array) -> None:
    batch, channels, length = inputs.shape
    size = decay.shape[1]
    for item in numba.prange(batch * channels):
        b, d = item // channels, item % channels
        state = np.zeros(size, inputs.dtype)
        for t in range(length):
            step = steps[b, d, t]
            drive = step * inputs[b, d, t]
            total = inputs.dtype.type(0)
            for n in range(size):
                state[n] = np.exp(step * decay[d, n]) * state[n] + drive * into[b, t, n]
                total += state[n] * out_of[b, t, n]
            outputs[b, d, t] = total


@compiled(fast=True)
def _advance(inputs: Array, steps: Array, decay: Array, into: Array, states: Array, start: int, stop: int) -> None:
    """Fills `states[1 : stop - start + 1]` from `states[0]`, for one channel."""
    for t in range(start, stop):
        step = steps[t]
        drive = step * inputs[t]
        for n in range(decay.shape[0]):
            states[t - start + 1, n] = np.exp(step * decay[n]) * states[t - start, n] + drive * into[t, n]


@compiled(fast=True)
def _retreat(
    inputs: Array,
    steps: Array,
    decay: Array,
    into: Array,
    out_of: Array,
    upstream: Array,
    states: Array,
    carry: Array,
    start: int,
    stop: int,
    grad_inputs: Array,
    grad_steps: Array,
    grad_decay: Array,
    grad_into: Array,
    grad_out_of: Array,
) -> None:
    """Backward through one chunk of one channel; `carry` is the gradient that reaches the state from later on."""
    for t in range(stop - 1, start - 1, -1):
        step, value, above = steps[t], inputs[t], upstream[t]
        to_drive = above - above
        to_step = above - above
        for n in range(decay.shape[0]):
            before = states[t - start, n]
            factor = np.exp(step * decay[n])
            grad = carry[n] + above * out_of[t, n]
            grad_out_of[t, n] += above * states[t - start + 1, n]
            grad_into[t, n] += grad * step * value
            to_drive += grad * into[t, n]
            to_step += grad * before * factor * decay[n]
            grad_decay[n] += grad * before * factor * step
            carry[n] = grad * factor
        grad_inputs[t] = to_drive * step
        grad_steps[t] = to_step + to_drive * value


@compiled(fast=True, parallel=True)
def _backward(
    inputs: Array,
    steps: Array,
    decay: Array,
    into: Array,
    out_of: Array,
    upstream: Array,
    grad_inputs: Array,
    grad_steps: Array,
    grad_decay: Array,
    grad_into: Array,
    grad_out_of: Array,
) -> None:
    batch, channels, length = inputs.shape
    size = decay.shape[1]
    groups = grad_into.shape[1]
    chunk = CHUNK
    chunks = (length + chunk - 1) // chunk
    for item in numba.prange(batch * groups):
        b, group = item // groups, item % groups
        starts = np.zeros((chunks, size), inputs.dtype)
        states = np.zeros((chunk + 1, size), inputs.dtype)
        carry = np.zeros(size, inputs.dtype)
        for d in range(group * channels // groups, (group + 1) * channels // groups):
            states[0, :] = 0
            x, dt, a = inputs[b, d], steps[b, d], decay[d]
            for k in range(chunks):
                stop = min(length, (k + 1) * chunk)
                starts[k, :] = states[0, :]
                _advance(x, dt, a, into[b], states, k * chunk, stop)
                states[0, :] = states[stop - k * chunk, :]
            carry[:] = 0
            for back in range(chunks):
                k = chunks - 1 - back
                stop = min(length, (k + 1) * chunk)
                states[0, :] = starts[k, :]
                _advance(x, dt, a, into[b], states, k * chunk, stop)
                _retreat(
                    x, dt, a, into[b], out_of[b], upstream[b, d], states, carry, k * chunk, stop,
                    grad_inputs[b, d], grad_steps[b, d], grad_decay[b, d],
                    grad_into[b, group], grad_out_of[b, group],
                )  # fmt: skip


def _arrays(*tensors: Tensor) -> list[Array]:
    """Contiguous arrays; those of contiguous tensors share their memory."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, steps: Tensor, decay: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, steps, decay, into, out_of)
        outputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        with kernel_threads():
            _forward(*_arrays(inputs, steps, decay, into.mT, out_of.mT, outputs))
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        inputs, steps, decay, into, out_of = ctx.saved_tensors
        batch, channels, length = inputs.shape
        size = decay.shape[1]
        grad_inputs, grad_steps = inputs.new_empty(inputs.shape), inputs.new_empty(inputs.shape)
        grad_decay = inputs.new_zeros(batch, channels, size)
        grad_into, grad_out_of = inputs.new_zeros(2, batch, min(GROUPS, channels), length, size)
        results = (grad_inputs, grad_steps, grad_decay, grad_into, grad_out_of)
        with kernel_threads():
            _backward(*_arrays(inputs, steps, decay, into.mT, out_of.mT, upstream, *results))
        return grad_inputs, grad_steps, grad_decay.sum(0), grad_into.sum(1).mT, grad_out_of.sum(1).mT


def scan(inputs: Tensor, steps: Tensor, decay: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
    """As `reference.scan`, for float32 or float64 tensors on the CPU; differentiable once."""
    result: Tensor = _Scan.apply(inputs, steps, decay, into, out_of)  # type: ignore[no-untyped-call]
    return result
