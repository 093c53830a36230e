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
    """A network with fresh weights and the objective that trains it.

    Attributes:
        network: on the CPU.
        objective: see there.
        target_size: side at which the target views are wanted, px; None: as stored, or the config's `target_size`.
        needs_depth: whether the objective needs the depths of the input views.
    """

    network: nn.Module
    objective: Objective
    target_size: int | None = None
    needs_depth: bool = False


def build_task(config: TrainConfig) -> Task:
    """Network and objective of `config.model`.

    Raises:
        InvalidInputError: no such model (lists the valid names), or it cannot work at `config.input_size`.
        WeightsError: `config.lpips` names a file that cannot be read or does not fit.
        UnsupportedError: the family has no training objective.
    """
    from maquette.models.lgm.network import LGM
    from maquette.models.lgm.objective import LGMObjective
    from maquette.nn.lpips import load_lpips
    from maquette.registry import build_network

    network = build_network(config.model)
    if isinstance(network, LGM):
        params = network.params
        if config.input_size is not None:
            params = params.at_input_size(config.input_size)
            network.params = params
        if config.target_size is not None:
            params = dataclasses.replace(params, output_size=config.target_size)
        if config.lambda_depth is not None:
            params = dataclasses.replace(params, lambda_depth=config.lambda_depth)
        if config.lambda_ssim is not None:
            params = dataclasses.replace(params, lambda_ssim=config.lambda_ssim)
        if not config.use_depth:
            params = dataclasses.replace(params, lambda_depth=0.0, lambda_opacity=0.0)
        target_size = params.output_size if config.input_size is not None else None
        lpips = None if config.lpips is None else load_lpips(config.lpips)
        return Task(network, LGMObjective(params, lpips), target_size, params.needs_depth)
    raise UnsupportedError(f"{config.model} cannot be trained: its family has no training objective")
