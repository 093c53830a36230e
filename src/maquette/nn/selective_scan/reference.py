"""The recurrence in plain torch: any device, any floating-point type, autograd; slow, and it keeps every state."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(inputs: Tensor, steps: Tensor, decay: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
    """y_t = C_t . h_t with h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t and h_(-1) = 0.

    Args:
        inputs: x, `[B, D, L]`.
        steps: dt, `[B, D, L]`.
        decay: A, `[D, N]`.
        into: B, `[B, N, L]`.
        out_of: C, `[B, N, L]`.

    Returns:
        y, `[B, D, L]`.
    """
    state = inputs.new_zeros(*inputs.shape[:2], decay.shape[1])
    outputs = []
    sequences = (inputs.unbind(2), steps.unbind(2), into.unbind(2), out_of.unbind(2))
    for value, step, b, c in zip(*sequences, strict=True):
        state = torch.exp(step[:, :, None] * decay) * state + (step * value)[:, :, None] * b[:, None]
        outputs.append((state * c[:, None]).sum(-1))
    return torch.stack(outputs, dim=-1)
