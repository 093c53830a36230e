"""The mixer of Gamba: one Mamba-1 layer.

Source: Mamba (Gu and Dao, 2023), section 3.4 and figure 3. Parameter names are those of the published state dicts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.nn.selective_scan import selective_scan

_EXPANSION = 2
_KERNEL_SIZE = 4
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
        self.conv1d = nn.Conv1d(inner, inner, _KERNEL_SIZE, groups=inner, padding=_KERNEL_SIZE - 1)
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
        """Applies the layer; the scan runs in float32, whatever the precision of the weights."""
        length = tokens.shape[1]
        mixed, gate = self.in_proj(tokens.to(self.in_proj.weight.dtype)).mT.chunk(2, dim=1)  # [B, inner, L] each
        mixed = F.silu(self.conv1d(mixed)[..., :length])
        step, into, out_of = self.x_proj(mixed.mT).split([self.rank, self.state_size, self.state_size], dim=-1)
        delta = F.linear(step, self.dt_proj.weight).mT
        with torch.autocast(tokens.device.type, enabled=False):
            scanned = selective_scan(
                mixed.float(),
                delta.float(),
                -torch.exp(self.A_log.float()),
                into.mT.float(),
                out_of.mT.float(),
                skip=self.D.float(),
                gate=gate.float(),
                delta_bias=self.dt_proj.bias.float(),
                delta_softplus=True,
            )
        result: Tensor = self.out_proj(scanned.mT.to(self.out_proj.weight.dtype))
        return result
