"""The public function: checks, step sizes, skip and gate around the recurrence.

Source: Mamba (Gu and Dao, 2023), section 3 and algorithm 2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.nn.selective_scan import cpu, reference

BACKENDS = {"cpu": cpu.scan, "reference": reference.scan}


def selective_scan(
    inputs: Tensor,
    delta: Tensor,
    decay: Tensor,
    into: Tensor,
    out_of: Tensor,
    *,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Scans a sequence with input-dependent step sizes: (C . h + D x) * SiLU(z).

    The state follows h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t from h = 0. Differentiable in every tensor.

    Args:
        inputs: x, `[B, D, L]`, L >= 1.
        delta: step sizes before bias and softplus, `[B, D, L]`.
        decay: A, `[D, N]`, usually negative.
        into: B, `[B, N, L]`.
        out_of: C, `[B, N, L]`.
        skip: D, `[D]`.
        gate: z, `[B, D, L]`.
        delta_bias: added to `delta`, `[D]`.
        delta_softplus: whether step sizes are softplus(delta + bias).
        backend: "cpu" (Numba, float32 and float64 on the CPU) or "reference" (torch). None chooses "cpu" for
            float32 on the CPU, else "reference", also on a GPU.

    Returns:
        `[B, D, L]`.

    Raises:
        InvalidInputError: a shape does not fit, or the backend is unknown or cannot take these tensors.
    """
    if inputs.ndim != 3 or inputs.numel() == 0 or decay.ndim != 2:
        raise InvalidInputError(
            f"inputs must be [B, D, L] and not empty, decay [D, N]; got {list(inputs.shape)}, {list(decay.shape)}"
        )
    (batch, channels, length), size = inputs.shape, decay.shape[1]
    sequence, states, vector = (batch, channels, length), (batch, size, length), (channels,)
    _check("delta", delta, sequence, inputs)
    _check("decay", decay, (channels, size), inputs)
    _check("into", into, states, inputs)
    _check("out_of", out_of, states, inputs)
    _check("skip", skip, vector, inputs)
    _check("gate", gate, sequence, inputs)
    _check("delta_bias", delta_bias, vector, inputs)
    name = backend or ("cpu" if inputs.device.type == "cpu" and inputs.element_size() == 4 else "reference")
    if name not in BACKENDS:
        raise InvalidInputError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if name == "cpu" and (inputs.device.type != "cpu" or inputs.element_size() < 4):
        raise InvalidInputError(
            f"backend 'cpu' takes float32 or float64 on the CPU, got {inputs.dtype} on {inputs.device}; "
            "use backend='reference'"
        )
    steps = delta if delta_bias is None else delta + delta_bias[:, None]
    steps = F.softplus(steps) if delta_softplus else steps
    result = BACKENDS[name](inputs, steps, decay, into, out_of)
    if skip is not None:
        result = result + skip[:, None] * inputs
    return result if gate is None else result * F.silu(gate)


def _check(name: str, value: Tensor | None, shape: tuple[int, ...], inputs: Tensor) -> None:
    if value is None:
        return
    if tuple(value.shape) != shape:
        raise InvalidInputError(f"{name} must be {list(shape)} to fit inputs, got {list(value.shape)}")
    if value.dtype != inputs.dtype or value.device != inputs.device:
        raise InvalidInputError(
            f"{name} is {value.dtype} on {value.device}, inputs are {inputs.dtype} on {inputs.device}; convert one"
        )
