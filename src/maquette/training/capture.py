"""The network's forward and backward pass as CUDA graphs: small kernels are started together instead of one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maquette.errors import UnsupportedError


class CapturedNetwork(nn.Module):
    """Records a network's passes at the first call and replays them at every later one.

    For networks of tensors of fixed shapes that take longer to start than to compute. They must draw no random numbers
    and never wait for the device. What a call returns is overwritten by the next.

    Args:
        network: on a CUDA device, in training mode.

    Raises:
        UnsupportedError: the network is not on a CUDA device.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        device = next(network.parameters()).device
        if device.type != "cuda":
            raise UnsupportedError(f"CUDA graphs need a GPU, and the network is on the {device.type}: leave it out")
        self.network = network
        self._replay: Any = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output for tensors of the shapes of the first call."""
        if self._replay is None:
            examples = tuple(value.detach().clone() for value in inputs)
            self._replay = torch.cuda.make_graphed_callables(self.network, examples)
        output: Tensor = self._replay(*inputs)
        return output
