"""What is trained: the network and objective of a registered model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from maquette.errors import UnsupportedError
from maquette.training.config import TrainConfig
from maquette.training.step import Objective


@dataclass(frozen=True)
class Task:
    """A network with fresh weights and the objective that trains it."""

    network: nn.Module
    objective: Objective


def build_task(config: TrainConfig) -> Task:
    """Network and objective of `config.model`.

    Raises:
        InvalidInputError: no such model; lists the valid names.
        UnsupportedError: the family has no training objective.
    """
    from maquette.models.lgm.network import LGM
    from maquette.models.lgm.objective import LGMObjective
    from maquette.registry import build_network

    network = build_network(config.model)
    if isinstance(network, LGM):
        params = network.params
        if config.target_size is not None:
            params = dataclasses.replace(params, output_size=config.target_size)
        return Task(network, LGMObjective(params))
    raise UnsupportedError(f"{config.model} cannot be trained: its family has no training objective")
