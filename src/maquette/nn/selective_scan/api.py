"""The public function: checks, the choice of a backend, and what surrounds a backend that is the recurrence only.

Source: Mamba (Gu and Dao, 2023), section 3 and algorithm 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.nn.selective_scan import cpu, cuda, reference

RECURRENCES = {"cpu": cpu.scan, "reference": reference.scan}
BACKENDS = (*RECURRENCES, "cuda")


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
        backend: "cuda" (fused, on a GPU: float32, bfloat16 and float16, N up to 64; fastest where channels are dense in
            memory), "cpu" (Numba: float32 on the CPU) or "reference" (torch). None chooses by device, and
            "reference" where that backend cannot take the tensors.

    Tensors over D only (`decay`, `skip`, `delta_bias`) may be float32 beside half-precision sequences, which are
    computed in float32.

    Returns:
        `[B, D, L]`, of the type of `inputs`.

    Raises:
        InvalidInputError: a shape does not fit, or the backend is unknown or cannot take these tensors.
        MissingDependencyError: cuda-core or NVRTC is missing.
        UnsupportedError: a GPU older than Ampere.
    """
    if inputs.ndim != 3 or inputs.numel() == 0 or decay.ndim != 2 or decay.shape[1] == 0:
        raise InvalidInputError(
            f"inputs must be [B, D, L] and not empty, decay [D, N]; got {list(inputs.shape)}, {list(decay.shape)}"
        )
    (batch, channels, length), size = inputs.shape, decay.shape[1]
    sequence, states, vector = (batch, channels, length), (batch, size, length), (channels,)
    _check("delta", delta, sequence, inputs)
    _check("decay", decay, (channels, size), inputs, weight=True)
    _check("into", into, states, inputs)
    _check("out_of", out_of, states, inputs)
    _check("skip", skip, vector, inputs, weight=True)
    _check("gate", gate, sequence, inputs)
    _check("delta_bias", delta_bias, vector, inputs, weight=True)
    name = _backend(backend, inputs, size)
    if name == "cuda":
        return cuda.scan(inputs, delta, decay, into, out_of, skip, gate, delta_bias, delta_softplus)
    accurate = torch.promote_types(inputs.dtype, torch.float32)
    x, steps = inputs.to(accurate), delta.to(accurate)
    steps = steps if delta_bias is None else steps + delta_bias[:, None]
    steps = F.softplus(steps) if delta_softplus else steps
    result = RECURRENCES[name](x, steps, decay.to(accurate), into.to(accurate), out_of.to(accurate))
    if skip is not None:
        result = result + skip[:, None] * x
    return (result if gate is None else result * F.silu(gate.to(accurate))).to(inputs.dtype)


def _backend(wanted: str | None, inputs: Tensor, size: int) -> str:
    """The backend to use, which can take the tensors."""
    device, dtype = inputs.device.type, inputs.dtype
    if wanted is None:
        if device == "cuda" and dtype in cuda.DTYPES and size <= cuda.MAX_STATES:
            return "cuda"
        return "cpu" if device == "cpu" and dtype == torch.float32 else "reference"
    if wanted not in BACKENDS:
        raise InvalidInputError(f"unknown backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted == "cpu" and (device != "cpu" or dtype != torch.float32):
        raise InvalidInputError(
            f"backend 'cpu' takes float32 on the CPU, got {dtype} on {inputs.device}; use backend='reference'"
        )
    if wanted == "cuda" and (device != "cuda" or dtype not in cuda.DTYPES or size > cuda.MAX_STATES):
        raise InvalidInputError(
            f"backend 'cuda' takes float32, bfloat16 or float16 on a GPU and at most {cuda.MAX_STATES} states, got "
            f"{dtype} on {inputs.device} and {size} states; use backend='reference'"
        )
    return wanted


def _check(name: str, value: Tensor | None, shape: tuple[int, ...], inputs: Tensor, weight: bool = False) -> None:
    if value is None:
        return
    if tuple(value.shape) != shape:
        raise InvalidInputError(f"{name} must be {list(shape)} to fit inputs, got {list(value.shape)}")
    fits = value.dtype == inputs.dtype or (weight and value.dtype == torch.float32 and inputs.element_size() < 4)
    if not fits or value.device != inputs.device:
        raise InvalidInputError(
            f"{name} is {value.dtype} on {value.device}, inputs are {inputs.dtype} on {inputs.device}; convert one"
        )
