"""What is trained: the network and objective of a registered model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from maquette.errors import InvalidInputError, UnsupportedError
from maquette.generators import GENERATORS, get_generator
from maquette.training.config import TrainConfig
from maquette.training.step import Feed, Objective

if TYPE_CHECKING:
    from maquette.data.dataset import RenderedDataset
    from maquette.models.gamba.network import Gamba
    from maquette.models.gamba.params import GambaParams
    from maquette.models.lgm.network import LGM
    from maquette.models.lgm.params import LGMParams
    from maquette.models.mvdream.params import MVDreamParams
    from maquette.nn.lpips import LPIPS
    from maquette.training.processes import Processes

Params = TypeVar("Params", "LGMParams", "GambaParams")


AUTOENCODER_SUFFIX = "-autoencoder"
"""The first stage of a diffusion model is trained under the model's name with this at its end."""


@dataclass(frozen=True)
class Task:
    """A network with fresh weights and the objective that trains it.

    Attributes:
        network: on the CPU.
        objective: see there.
        target_size: side at which the target views are wanted, px; None: as stored, or the config's `target_size`.
        needs_depth: whether the objective needs the depths of the input views.
        feed: makes the batches of this process from the data set and the training device; None: views as rendered.
    """

    network: nn.Module
    objective: Objective
    target_size: int | None = None
    needs_depth: bool = False
    feed: Callable[[RenderedDataset, torch.device, Processes], Feed] | None = None


def build_task(config: TrainConfig) -> Task:
    """Network and objective of `config.model`.

    Raises:
        InvalidInputError: no such model (lists the valid names), or it cannot work at `config.input_size`.
        WeightsError: `config.lpips` names a file that cannot be read or does not fit.
        UnsupportedError: the family has no training objective.
        MissingDependencyError: the extra `diffusion` is not installed and the model is one of diffusion.
    """
    if config.model.endswith(AUTOENCODER_SUFFIX):
        return autoencoder_task(diffusion_params(config.model.removesuffix(AUTOENCODER_SUFFIX)), config)
    if config.model in GENERATORS:
        return denoiser_task(diffusion_params(config.model), config)
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
        "lambda_fine_ssim": config.lambda_fine_ssim,
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
    changes: dict[str, Any] = {
        "output_size": config.target_size,
        "lambda_ssim": config.lambda_ssim,
        "lambda_fine_ssim": config.lambda_fine_ssim,
        "error_knee": config.error_knee,
        "join_mirrored": config.join_mirrored,
    }
    params = _replaced(params, changes)
    target_size = params.output_size if config.input_size is not None else None
    return Task(network, GambaObjective(params, _lpips(config)), target_size)


def diffusion_params(name: str) -> MVDreamParams:
    """Parameters of a diffusion model that can be trained.

    Raises:
        UnsupportedError: it is an official one: there is no objective for those.
    """
    params = get_generator(name).params
    if not params.picture_optional:
        raise UnsupportedError(f"{name} cannot be trained here, only mvdream-mini")
    return params


def autoencoder_task(params: MVDreamParams, config: TrainConfig) -> Task:
    """First stage of a diffusion model: its auto-encoder, on the input views.

    With `config.autoencoder` only the decoder is trained, from that file: the latents stay what a denoiser learned.

    Raises:
        WeightsError: that file cannot be read or does not fit.
    """
    from maquette.models.mvdream.objective import AutoencoderObjective
    from maquette.models.mvdream.training_networks import LatentAutoencoder

    network = LatentAutoencoder(params.autoencoder)
    if config.autoencoder is not None:
        _load_autoencoder(network, config.autoencoder)
        network.freeze_encoder()
    changes = {} if config.lambda_ssim is None else {"lambda_ssim": config.lambda_ssim}
    return Task(network, AutoencoderObjective(params.autoencoder, **changes))


def _load_autoencoder(network: nn.Module, path: str) -> dict[str, Tensor]:
    """Loads and returns the auto-encoder of a file, which may be a whole model."""
    from maquette.weights import load_strictly, read_weights

    state = {name: value for name, value in read_weights(path)[0].items() if name.startswith("vae.")}
    load_strictly(network, state, path)
    return state


def denoiser_task(params: MVDreamParams, config: TrainConfig) -> Task:
    """Second stage: U-Net, text and picture encoder, on latents of the input views; exports the whole model.

    Raises:
        InvalidInputError: `config.autoencoder` is not given.
        WeightsError: that file cannot be read or does not fit.
    """
    from maquette.models.mvdream.objective import DenoisingObjective
    from maquette.models.mvdream.official import MERGES, SUBJECTS, VOCABULARY
    from maquette.models.mvdream.subjects import fit_subjects
    from maquette.models.mvdream.tokenizer import build_tokenizer, trained_tokenizer
    from maquette.models.mvdream.training_networks import ConditionalDenoiser, LatentAutoencoder
    from maquette.training.latents import LatentFeed

    if config.autoencoder is None:
        raise InvalidInputError(
            f"{config.model} learns latents: train {config.model}{AUTOENCODER_SUFFIX} first and give its export "
            "as --autoencoder FILE"
        )
    autoencoder = LatentAutoencoder(params.autoencoder)
    state = _load_autoencoder(autoencoder, config.autoencoder)

    def feed(dataset: RenderedDataset, device: torch.device, processes: Processes) -> LatentFeed:
        captions = [text for info in dataset.objects for text in (info.caption, info.category)]
        files = trained_tokenizer(captions, params.text_encoder)
        exported = dict(state)
        for name, content in zip((VOCABULARY, MERGES), files, strict=True):
            exported[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if params.subject_shares is not None:
            captions = [info.caption or info.category for info in dataset.objects]
            subjects = fit_subjects(captions, [info.category or info.caption for info in dataset.objects])
            exported |= {f"{SUBJECTS}.{name}": value for name, value in subjects.tensors().items()}
        return LatentFeed(
            dataset,
            config,
            device,
            processes.rank,
            processes.world_size,
            params,
            autoencoder,
            build_tokenizer(*files, params.text_encoder),
            exported,
        )

    return Task(ConditionalDenoiser(params), DenoisingObjective(params), feed=feed)


def _replaced(params: Params, changes: Mapping[str, Any]) -> Params:
    """The parameters with those changes that are not None."""
    return dataclasses.replace(params, **{name: value for name, value in changes.items() if value is not None})


def _lpips(config: TrainConfig) -> LPIPS | None:
    from maquette.nn.lpips import load_lpips

    return None if config.lpips is None else load_lpips(config.lpips)
