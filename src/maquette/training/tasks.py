"""What is trained: the network and objective of a registered model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from maquette.errors import UnsupportedError
from maquette.training.config import TrainConfig
from maquette.training.step import Objective

if TYPE_CHECKING:
    from maquette.models.gamba.network import Gamba
    from maquette.models.gamba.params import GambaParams
    from maquette.models.lgm.network import LGM
    from maquette.models.lgm.params import LGMParams
    from maquette.nn.lpips import LPIPS

Params = TypeVar("Params", "LGMParams", "GambaParams")


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
    from maquette.models.gamba.network import Gamba
    from maquette.models.lgm.network import LGM
    from maquette.registry import build_network

    network = build_network(config.model)
    if isinstance(network, LGM):
        return _lgm_task(network, config)
    if isinstance(network, Gamba):
        return _gamba_task(network, config)
    raise UnsupportedError(f"{config.model} cannot be trained: its family has no training objective")


def _lgm_task(network: LGM, config: TrainConfig) -> Task:
    from maquette.models.lgm.objective import LGMObjective

    params = network.params
    if config.input_size is not None:
        params = params.at_input_size(config.input_size)
        network.params = params
    changes: dict[str, Any] = {
        "output_size": config.target_size,
        "lambda_depth": config.lambda_depth if config.use_depth else 0.0,
        "lambda_ssim": config.lambda_ssim,
        "error_knee": config.error_knee,
    }
    params = _replaced(params, changes)
    target_size = params.output_size if config.input_size is not None else None
    return Task(network, LGMObjective(params, _lpips(config)), target_size, params.needs_depth)


def _gamba_task(network: Gamba, config: TrainConfig) -> Task:
    from maquette.models.gamba.objective import GambaObjective

    params = network.params
    if config.input_size is not None:
        params = params.at_input_size(config.input_size)
        network.params = params
    params = _replaced(params, {"output_size": config.target_size, "lambda_ssim": config.lambda_ssim})
    target_size = params.output_size if config.input_size is not None else None
    return Task(network, GambaObjective(params, _lpips(config)), target_size)


def _replaced(params: Params, changes: Mapping[str, Any]) -> Params:
    """The parameters with those changes that are not None."""
    return dataclasses.replace(params, **{name: value for name, value in changes.items() if value is not None})


def _lpips(config: TrainConfig) -> LPIPS | None:
    from maquette.nn.lpips import load_lpips

    return None if config.lpips is None else load_lpips(config.lpips)
