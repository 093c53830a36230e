"""The mixer of Gamba: one Mamba-1 layer.

Source: Mamba (Gu and Dao, 2023), section 3.4 and figure 3. Parameter names are those of the published state dicts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.nn.causal_conv import DTYPES, TAPS, causal_conv_silu
from maquette.nn.selective_scan import selective_scan

_EXPANSION = 2
_STEP_RANGE = (1e-3, 0.1)
"""Smallest and largest step size at initialisation."""


class MambaMixer(nn.Module):
    """Mixes a sequence from first to last: tokens `[B, L, C]` to `[B, L, C]`.

    Args:
        width: C.
        state_size: values of state per inner channel.
        num_layers: of the whole network; the output starts smaller by its root.
    """

    def __init__(self, width: int, state_size: int, num_layers: int) -> None:
        super().__init__()
        inner = _EXPANSION * width
        self.rank, self.state_size = math.ceil(width / 16), state_size
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, TAPS, groups=inner, padding=TAPS - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._initialize(num_layers)

    def _initialize(self, num_layers: int) -> None:
        low, high = (math.log(step) for step in _STEP_RANGE)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            steps = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives the steps back
            self.out_proj.weight.div_(math.sqrt(num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Applies the layer.

        The scan computes in float32 whatever the precision of the weights; on a GPU it reads and writes the precision
        that the linear layers give.
        """
        mixed, gate = self.in_proj(tokens.to(self.in_proj.weight.dtype)).chunk(2, dim=-1)  # [B, L, inner] each
        mixed = self._convolved(mixed)
        projected = self.x_proj(mixed)
        step, into, out_of = projected.split([self.rank, self.state_size, self.state_size], dim=-1)
        delta = F.linear(step, self.dt_proj.weight)
        kept = mixed.dtype if mixed.device.type == "cuda" else torch.float32
        mixed, delta, into, out_of, gate = (value.to(kept).mT for value in (mixed, delta, into, out_of, gate))
        with torch.autocast(tokens.device.type, enabled=False):
            scanned = selective_scan(
                mixed,
                delta,
                -torch.exp(self.A_log.float()),
                into,
                out_of,
                skip=self.D.float(),
                gate=gate,
                delta_bias=self.dt_proj.bias.float(),
                delta_softplus=True,
            )
        result: Tensor = self.out_proj(scanned.mT.to(projected.dtype))
        return result

    def _convolved(self, values: Tensor) -> Tensor:
        """Causal convolution and SiLU of `[B, L, inner]`."""
        if values.device.type == "cuda" and values.dtype in DTYPES and self.conv1d.bias is not None:
            with torch.autocast("cuda", enabled=False):
                return causal_conv_silu(values, self.conv1d.weight[:, 0], self.conv1d.bias)
        return F.silu(self.conv1d(values.mT)[..., : values.shape[1]]).mT
