"""The recurrence on the CPU by Numba: parallel over batch and channels, no state is kept for the backward pass.

States are padded to groups of 16, one vector register or two, whose loops have a fixed length. The backward pass runs
forward once more, keeps the state at the start of every chunk, and then recomputes the states of one chunk at a time.
Sums over channels are taken in fixed groups and a fixed order, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from maquette.raster.cpu_jit import F32, Array, Scalar, compiled, kernel_threads

LANES = 16
"""States that are computed together."""
CHUNK = 128
"""Positions per chunk of the backward pass."""
GROUPS = 8
"""Groups of channels whose gradients for B and C are summed separately."""

_ZERO, _ONE, _HALF, _LN2 = F32(0), F32(1), F32(0.5), F32(math.log(2))
# 2^f on [-0.5, 0.5], Taylor coefficients ln(2)^k / k!: relative error 2e-7 in float32
_E1, _E2, _E3, _E4, _E5, _E6 = (F32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
_LARGEST_EXPONENT, _BIAS, _MANTISSA_BITS = F32(126), np.int32(127), np.int32(23)


@compiled(fast=True, inline=True)
def _exp2(exponent: Scalar) -> Scalar:
    """2^exponent, for exponents cut off at -126 and 126."""
    exponent = min(max(exponent, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
    whole = np.floor(exponent + _HALF)
    part = exponent - whole
    power = ((((((_E6 * part + _E5) * part + _E4) * part + _E3) * part + _E2) * part) + _E1) * part + _ONE
    bits = np.int32(np.int32(whole) + _BIAS) << _MANTISSA_BITS
    return power * np.int32(bits).view(np.float32)


@compiled(fast=True, parallel=True)
def _forward(inputs: Array, steps: Array, decay: Array, into: Array, out_of: Array, outputs: Array) -> None:
    batch, channels, length = inputs.shape
    for item in numba.prange(batch * channels):
        b, d = item // channels, item % channels
        x, dt, y = inputs[b, d], steps[b, d], outputs[b, d]
        y[:] = _ZERO
        for group in range(into.shape[1]):
            a, bs, cs = decay[d, group], into[b, group], out_of[b, group]
            state = np.zeros(LANES, np.float32)
            for t in range(length):
                step = dt[t]
                drive = step * x[t]
                total = _ZERO
                for n in range(LANES):
                    value = _exp2(step * a[n]) * state[n] + drive * bs[t, n]
                    state[n] = value
                    total += value * cs[t, n]
                y[t] += total


# The loops below are many and short on purpose: with more than a few arrays in one, the compiler gives up proving that
# they do not overlap, and computes the states one by one.


@compiled(fast=True)
def _walk(x: Array, dt: Array, a: Array, bs: Array, state: Array, start: int, stop: int) -> None:
    """Moves `state` from position `start` to `stop`, for one channel."""
    for t in range(start, stop):
        step = dt[t]
        drive = step * x[t]
        for n in range(LANES):
            state[n] = _exp2(step * a[n]) * state[n] + drive * bs[t, n]


@compiled(fast=True)
def _recompute(x: Array, dt: Array, a: Array, bs: Array, factors: Array, states: Array, start: int, stop: int) -> None:
    """Fills `factors[: stop - start]` and, from `states[0]`, `states[1 : stop - start + 1]`, for one channel."""
    for t in range(start, stop):
        step = dt[t]
        for n in range(LANES):
            factors[t - start, n] = _exp2(step * a[n])
    for t in range(start, stop):
        drive, k = dt[t] * x[t], t - start
        for n in range(LANES):
            states[k + 1, n] = factors[k, n] * states[k, n] + drive * bs[t, n]


@compiled(fast=True)
def _to_states(cs: Array, upstream: Array, factors: Array, grads: Array, carry: Array, start: int, stop: int) -> None:
    """Fills `grads[: stop - start]` with the gradients of the states; `carry` is what reaches the last one from later
    on, and then what the first one passes on."""
    for t in range(stop - 1, start - 1, -1):
        above, k = upstream[t], t - start
        for n in range(LANES):
            value = carry[n] + above * cs[t, n]
            grads[k, n] = value
            carry[n] = value * factors[k, n]


@compiled(fast=True)
def _to_drives(
    x: Array, dt: Array, bs: Array, grads: Array, start: int, stop: int,
    grad_inputs: Array, grad_steps: Array, grad_into: Array,
) -> None:  # fmt: skip
    """Adds the gradients of B, of the inputs, and of the steps through dt B x."""
    for t in range(start, stop):
        step, value = dt[t], x[t]
        drive, to_drive = step * value, _ZERO
        for n in range(LANES):
            grad_into[t, n] += grads[t - start, n] * drive
            to_drive += grads[t - start, n] * bs[t, n]
        grad_inputs[t] += to_drive * step
        grad_steps[t] += to_drive * value


@compiled(fast=True)
def _to_decays(
    dt: Array, a: Array, factors: Array, states: Array, grads: Array, start: int, stop: int,
    grad_steps: Array, grad_decay: Array,
) -> None:  # fmt: skip
    """Adds the gradients of A, and of the steps through exp(dt A)."""
    for t in range(start, stop):
        step, k = dt[t], t - start
        to_step = _ZERO
        for n in range(LANES):
            change = grads[k, n] * factors[k, n] * states[k, n]
            to_step += change * a[n]
            grad_decay[n] += change * step
        grad_steps[t] += to_step * _LN2


@compiled(fast=True)
def _to_outputs(upstream: Array, states: Array, start: int, stop: int, grad_out_of: Array) -> None:
    """Adds the gradients of C."""
    for t in range(start, stop):
        above = upstream[t]
        for n in range(LANES):
            grad_out_of[t, n] += above * states[t - start + 1, n]


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
    parts = grad_into.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK
    for item in numba.prange(batch * parts):
        b, part = item // parts, item % parts
        starts = np.zeros((chunks, LANES), np.float32)
        states = np.zeros((CHUNK + 1, LANES), np.float32)
        factors = np.zeros((CHUNK, LANES), np.float32)
        grads = np.zeros((CHUNK, LANES), np.float32)
        state, carry = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        for d in range(part * channels // parts, (part + 1) * channels // parts):
            x, dt, above = inputs[b, d], steps[b, d], upstream[b, d]
            to_x, to_dt = grad_inputs[b, d], grad_steps[b, d]
            for group in range(into.shape[1]):
                a, bs, cs = decay[d, group], into[b, group], out_of[b, group]
                state[:] = _ZERO
                for chunk in range(chunks):
                    starts[chunk, :] = state
                    _walk(x, dt, a, bs, state, chunk * CHUNK, min(length, (chunk + 1) * CHUNK))
                carry[:] = _ZERO
                for back in range(chunks):
                    chunk = chunks - 1 - back
                    start, stop = chunk * CHUNK, min(length, (chunk + 1) * CHUNK)
                    states[0, :] = starts[chunk, :]
                    _recompute(x, dt, a, bs, factors, states, start, stop)
                    _to_states(cs, above, factors, grads, carry, start, stop)
                    _to_drives(x, dt, bs, grads, start, stop, to_x, to_dt, grad_into[b, part, group])
                    _to_decays(dt, a, factors, states, grads, start, stop, to_dt, grad_decay[b, d, group])
                    _to_outputs(above, states, start, stop, grad_out_of[b, part, group])


def _arrays(*tensors: Tensor) -> list[Array]:
    """Contiguous arrays; those of contiguous tensors share their memory."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _grouped(decay: Tensor, into: Tensor, out_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A in base 2, `[D, G, 16]`, and B and C, `[B, G, L, 16]`; padding is zero, and its states stay so."""
    groups = -(-decay.shape[1] // LANES)
    padding = groups * LANES - decay.shape[1]
    padded = F.pad(decay.detach() / math.log(2), (0, padding)).reshape(-1, groups, LANES)
    states = (F.pad(value.detach(), (0, 0, 0, padding)) for value in (into, out_of))
    split = [value.reshape(len(value), groups, LANES, -1).mT for value in states]
    return padded, split[0], split[1]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, steps: Tensor, decay: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, steps, decay, into, out_of)
        outputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        with kernel_threads():
            _forward(*_arrays(inputs, steps, *_grouped(decay, into, out_of), outputs))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        inputs, steps, decay, into, out_of = ctx.saved_tensors
        (batch, channels, length), size = inputs.shape, decay.shape[1]
        grouped = _grouped(decay, into, out_of)
        groups = grouped[0].shape[1]
        grad_inputs, grad_steps = inputs.new_zeros(2, *inputs.shape)
        grad_decay = inputs.new_zeros(batch, channels, groups, LANES)
        grad_states = inputs.new_zeros(2, batch, min(GROUPS, channels), groups, length, LANES)
        results = (grad_inputs, grad_steps, grad_decay, *grad_states)
        with kernel_threads():
            _backward(*_arrays(inputs, steps, *grouped, upstream, *results))
        grad_into, grad_out_of = grad_states.sum(2).mT.flatten(2, 3)[:, :, :size]
        return grad_inputs, grad_steps, grad_decay.sum(0).flatten(1)[:, :size], grad_into, grad_out_of


def scan(inputs: Tensor, steps: Tensor, decay: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
    """As `reference.scan`, for float32 tensors on the CPU; differentiable once."""
    result: Tensor = _Scan.apply(inputs, steps, decay, into, out_of)  # type: ignore[no-untyped-call]
    return result
