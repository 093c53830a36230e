"""Latents of a rendered data set, computed once with a trained auto-encoder, and batches of them for the denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.dataset import INPUT, RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.models.mvdream.cameras import relative_conditions
from maquette.models.mvdream.encoders import to_planes
from maquette.models.mvdream.objective import DenoisingBatch
from maquette.models.mvdream.params import MVDreamParams
from maquette.models.mvdream.tokenizer import token_ids
from maquette.models.mvdream.training_networks import LatentAutoencoder
from maquette.training.augment import augment, mirror
from maquette.training.config import TrainConfig
from maquette.training.sampling import ViewSampler
from maquette.training.step import step_seed
from maquette.views import Views

_CHUNK = 32
_TOLD_SHARE = 0.6
_FRONT_AZIMUTH = 1e-3  # radians
_TEMPLATES = {"{caption}": 0.2, "a {caption}": 0.2, "{caption}, {category}": 0.1, "a {category}": 0.14}
_NUM_PARTIAL = 4  # captions with words left out: they share the rest
_WORD_SHARE = 0.6


class LatentFeed:
    """Sets of four views as latents in the memory of the training device, drawn object by object as pictures would be.

    Each process keeps `config.latent_copies` versions of every set, augmented differently: half of the versions with
    changed colours as `config.augment` says, the others in their own. Most of what is drawn is told a sentence: true
    fronts of objects as they are, in their own colours. Of the rest (reshaped, turned, other colours) only the picture
    is shown, and any of the four sides may come first.

    Args:
        dataset: pictures with four input views per variant, a quarter turn apart at one elevation.
        config: of the run.
        device: where to keep and give latents.
        rank, world_size: this process among all.
        params: of the model.
        autoencoder: trained; on the CPU.
        tokenizer: the model's, of transformers.
        exported: tensors that belong into the exported weights beside the network's.

    Attributes:
        exported: as given.
    """

    def __init__(
        self,
        dataset: RenderedDataset,
        config: TrainConfig,
        device: torch.device,
        rank: int,
        world_size: int,
        params: MVDreamParams,
        autoencoder: LatentAutoencoder,
        tokenizer: Any,
        exported: Mapping[str, Tensor],
    ) -> None:
        self.exported = exported
        self._config, self._device, self._params = config, device, params
        self._rank, self._world_size = rank, world_size
        assert params.picture_encoder is not None
        self._picture_size = params.picture_encoder.image_size
        objects = dataset.objects
        variants = dataset.variants.cpu().numpy().astype(np.int64)
        is_input = dataset.roles.cpu().numpy() == INPUT
        self._sampler = ViewSampler(
            [info.family or info.id for info in objects],
            [info.realistic for info in objects],
            variants,
            is_input,
            config.sampling,
            config.seed,
        )
        self._variants = torch.from_numpy(variants)
        self._num_variants = int(variants.max()) + 1
        rows, frames = _input_frames(variants, is_input, self._num_variants)
        self._fronts, self._num_fronts = (
            part.to(device) for part in _front_rows(dataset, rows, frames, self._num_variants)
        )
        words = np.random.default_rng(config.seed)
        sentences = [sentence for info in objects for sentence in sentences_about(info, words)]
        self._prompts = token_ids(tokenizer, [*sentences, ""], params.text_encoder).to(device)
        partial = (1 - sum(_TEMPLATES.values())) / _NUM_PARTIAL
        self._shares = torch.tensor([*_TEMPLATES.values(), *[partial] * _NUM_PARTIAL], device=device).cumsum(0)[:-1]
        self._encode_all(dataset, rows, frames, autoencoder.to(device).eval().requires_grad_(False))

    def draw(self, step: int, micro_step: int, generator: torch.Generator) -> tuple[DenoisingBatch]:
        """The batch of this process."""
        config, device = self._config, self._device
        choice = self._sampler.choose(step, self._rank, self._world_size, config.batch_size, micro_step)
        chosen = torch.from_numpy(choice.objects)
        variants = self._variants[chosen, torch.from_numpy(choice.inputs[:, 0])]
        where = torch.stack([chosen, chosen * self._num_variants + variants])
        where = where.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else where
        owners, rows = where
        draws = torch.rand(5, len(rows), generator=generator, device=device)
        copies = (draws[0] * config.latent_copies).long()
        sentence = torch.bucketize(draws[1], self._shares)
        # Sentences are told of the true front in its own colours: only objects that go without may be turned.
        counts = self._num_fronts[owners]
        told = (draws[2] < _TOLD_SHARE) & (counts > 0)
        rows = torch.where(told, self._fronts[owners, (draws[3] * counts).long()], rows)
        copies = torch.where(told, copies - copies % 2, copies)
        first = torch.where(told, 0, (draws[4] * 4).long())
        order = (first[:, None] + torch.arange(4, device=device)) % 4
        latents = self._latents[copies, rows].float().gather(1, _expanded(order, self._latents.shape[3:]))
        pictures = self._pictures[copies, rows, first].float().div_(255)
        prompts = self._prompts[owners * (len(_TEMPLATES) + _NUM_PARTIAL) + sentence]
        return (DenoisingBatch(latents, self._conditions[copies, rows], pictures, prompts, self._prompts[-1], ~told),)

    def close(self) -> None:
        """Nothing to stop."""

    def _encode_all(
        self, dataset: RenderedDataset, rows: Tensor, frames: Tensor, autoencoder: LatentAutoencoder
    ) -> None:
        """Fills `_latents` [copies, rows, 4, C, h, w], `_pictures` [copies, rows, 4, 3, S, S] and `_conditions`
        [copies, rows, 4, 16]; a row is object * variants + variant."""
        config, params, device = self._config, self._params, self._device
        shape = (config.latent_copies, len(dataset) * self._num_variants, 4)
        size, channels = params.latent_size, params.unet.in_channels
        self._latents = torch.zeros(*shape, channels, size, size, dtype=torch.float16, device=device)
        self._pictures = torch.zeros(
            *shape, 3, self._picture_size, self._picture_size, dtype=torch.uint8, device=device
        )
        self._conditions = torch.zeros(*shape, 16, device=device)
        generator = torch.Generator(device=device)
        for copy in range(config.latent_copies):
            color_probability = float(copy % 2)
            for number, first in enumerate(range(0, len(rows), _CHUNK)):
                generator.manual_seed(step_seed(config.seed, number, self._rank * config.latent_copies + copy))
                part = rows[first : first + _CHUNK]
                views = dataset.views(part // self._num_variants, frames[first : first + _CHUNK]).to(device)
                views = self._varied(views, color_probability, generator)
                self._latents[copy, part] = self._encoded(views, autoencoder).half()
                small = F.interpolate(
                    to_planes(views.images.flatten(0, 1), 3), (self._picture_size,) * 2, mode="bilinear", antialias=True
                )
                small = (small.clamp(0, 1) * 255).round().byte()
                self._pictures[copy, part] = small.reshape(len(part), 4, *small.shape[1:])
                self._conditions[copy, part] = relative_conditions(views.cameras)

    def _varied(self, views: Views, color_probability: float, generator: torch.Generator) -> Views:
        """Mirrored (then in reverse order, so that azimuths grow again) and recoloured views."""
        config, device = self._config.augment, views.images.device
        mirrored = torch.rand(len(views.images), generator=generator, device=device) < config.mirror_probability
        views = mirror(views, mirrored)
        straight = torch.arange(4, device=device)
        order = torch.where(mirrored[:, None], (4 - straight) % 4, straight)
        cameras = views.cameras
        poses = cameras.world_to_camera.gather(1, _expanded(order, cameras.world_to_camera.shape[2:]))
        intrinsics = cameras.intrinsics.gather(1, _expanded(order, cameras.intrinsics.shape[2:]))
        images = views.images.gather(1, _expanded(order, views.images.shape[2:]))
        views = Views(images, Cameras(poses, intrinsics, cameras.height, cameras.width))
        changed = dataclasses.replace(config, color_probability=color_probability, mirror_probability=0.0)
        return augment(views, views, changed, generator)[0]

    @torch.no_grad()
    def _encoded(self, views: Views, autoencoder: LatentAutoencoder) -> Tensor:
        """Scaled mean latents `[B, 4, C, h, w]`."""
        params = self._params.autoencoder
        planes = to_planes(views.images.flatten(0, 1), params.image_channels)
        half = self._config.precision == "bf16" and planes.device.type == "cuda"
        with torch.autocast(planes.device.type, dtype=torch.bfloat16, enabled=half):
            mean = autoencoder.encode(planes)
        return (mean.float() * params.scaling_factor).reshape(*views.images.shape[:2], *mean.shape[1:])


def sentences_about(info: ObjectInfo, words: np.random.Generator) -> list[str]:
    """What is said of an object: its caption and category, and its caption with random words left out.

    Told whole captions alone, a model learns objects by heart and knows no caption that it was not told.
    """
    caption, category = info.caption or info.category, info.category or info.caption
    sentences = [template.format(caption=caption, category=category) for template in _TEMPLATES]
    parts = caption.split()
    for _ in range(_NUM_PARTIAL):
        kept = [word for word in parts if words.random() < _WORD_SHARE]
        sentences.append(" ".join(kept or parts[-1:]))
    return sentences


BoolArray = npt.NDArray[np.bool_]


def _input_frames(variants: npt.NDArray[np.int64], is_input: BoolArray, num_variants: int) -> tuple[Tensor, Tensor]:
    """Rows that exist `[R]`, and their four input frames `[R, 4]`."""
    rows, frames = [], []
    for index in range(len(variants)):
        for variant in range(num_variants):
            found = np.flatnonzero((variants[index] == variant) & is_input[index])
            if len(found) >= 4:
                rows.append(index * num_variants + variant)
                frames.append(found[:4])
    return torch.tensor(rows), torch.from_numpy(np.stack(frames))


def _front_rows(dataset: RenderedDataset, rows: Tensor, frames: Tensor, num_variants: int) -> tuple[Tensor, Tensor]:
    """Rows that show an object as it is, from the true front on: `[O, num_variants]`, and how many of them `[O]`.

    `rows` and `frames` are those of `_input_frames`.
    """
    owners, first = rows // num_variants, frames[:, 0]
    size = dataset.image_size
    cameras = Cameras(dataset.world_to_camera[owners, first], dataset.intrinsics[owners, first], size, size)
    positions = cameras.positions.cpu()
    fronts = torch.atan2(positions[:, 0], positions[:, 2]).abs() < _FRONT_AZIMUTH
    if dataset.reshaped is not None:
        fronts &= ~dataset.reshaped[owners, first]
    counts = torch.zeros(len(dataset), dtype=torch.long)
    table = torch.zeros(len(dataset), num_variants, dtype=torch.long)
    for owner, row in zip(owners[fronts].tolist(), rows[fronts].tolist(), strict=True):
        table[owner, counts[owner]] = row
        counts[owner] += 1
    return table, counts


def _expanded(index: Tensor, shape: Sequence[int]) -> Tensor:
    """Index `[B, 4]` for a gather along axis 1 of `[B, 4, *shape]`."""
    return index.reshape(*index.shape, *(1 for _ in shape)).expand(*index.shape, *shape)
