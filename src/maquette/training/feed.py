"""Batches of posed views for a training step, from a data set in GPU memory or in host memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.dataset import INPUT, RenderedDataset
from maquette.data.depths import decode_levels
from maquette.data.layout import read_index
from maquette.nn.posed_images import resize_views
from maquette.training.augment import augment
from maquette.training.config import TrainConfig
from maquette.training.sampling import ViewSampler
from maquette.views import Views

Placement = Literal["auto", "cpu", "gpu"]

GPU_SHARE = 0.5
"""Largest share of the free GPU memory that "auto" gives to the data set."""


class BatchFeed:
    """Turns (step, micro step) into the input and target views of this process, on the training device.

    Pictures that stay in host memory are gathered one batch ahead by a thread, pinned, and copied without waiting.

    Args:
        dataset: pictures on `device` or on the CPU.
        config: of the run.
        device: where batches go.
        rank, world_size: this process among all.
        target_size: side of the target views, px; None: the config's, or as stored. The inputs have the config's
            `input_size`, or are as stored.

    Attributes:
        exported: nothing, see `maquette.training.step.Feed`.
    """

    def __init__(
        self,
        dataset: RenderedDataset,
        config: TrainConfig,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        target_size: int | None = None,
    ) -> None:
        self.exported: Mapping[str, Tensor] = {}
        objects = dataset.objects
        self._sampler = ViewSampler(
            [info.family or info.id for info in objects],
            [info.realistic for info in objects],
            dataset.variants.cpu().numpy().astype(np.int64),
            dataset.roles.cpu().numpy() == INPUT,
            config.sampling,
            config.seed,
        )
        self._dataset = dataset
        self._config = config
        self._device = device
        self._input_size = config.input_size
        self._target_size = target_size if target_size is not None else config.target_size
        self._rank, self._world_size = rank, world_size
        self._ahead = dataset.device != device
        self._pool = ThreadPoolExecutor(max_workers=1) if self._ahead else None
        self._pending: dict[tuple[int, int], Future[_Gathered]] = {}

    def batch(self, step: int, micro_step: int = 0) -> tuple[Views, Views]:
        """Input views `[B, num_inputs]` and target views `[B, target_views]`, float32 in 0..1.

        The inputs carry depths when the data set does.
        """
        if self._pool is None:
            gathered = self._gather(step, micro_step)
        else:
            waiting = self._pending.pop((step, micro_step), None)
            gathered = waiting.result() if waiting is not None else self._gather(step, micro_step)
            following = self._following(step, micro_step)
            self._pending = {following: self._pool.submit(self._gather, *following)}
        on_device = [item.to(self._device, non_blocking=True) for item in gathered]
        images, world_to_camera, intrinsics = on_device[:3]
        depths = decode_levels(on_device[3], on_device[4]) if len(on_device) > 3 else None
        height, width = images.shape[-2:]
        floats = images.float().div_(255)
        count = self._config.sampling.num_inputs
        cameras = Cameras(world_to_camera[:, :count], intrinsics[:, :count], height, width)
        inputs = Views(floats[:, :count], cameras, depths)
        targets = Views(floats[:, count:], Cameras(world_to_camera[:, count:], intrinsics[:, count:], height, width))
        return _resized(inputs, self._input_size), _resized(targets, self._target_size)

    def draw(self, step: int, micro_step: int, generator: torch.Generator) -> tuple[Views, Views]:
        """The batch, augmented as the config says."""
        return augment(*self.batch(step, micro_step), self._config.augment, generator)

    def close(self) -> None:
        """Stops the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _following(self, step: int, micro_step: int) -> tuple[int, int]:
        return (step, micro_step + 1) if micro_step + 1 < self._config.accumulation else (step + 1, 0)

    def _gather(self, step: int, micro_step: int) -> _Gathered:
        choice = self._sampler.choose(step, self._rank, self._world_size, self._config.batch_size, micro_step)
        frames = torch.from_numpy(np.concatenate([choice.inputs, choice.targets], axis=1))  # [B, inputs + targets]
        where = torch.stack([torch.from_numpy(choice.objects)[:, None].expand_as(frames), frames])
        data = self._dataset
        if data.device.type == "cuda":
            where = where.pin_memory().to(data.device, non_blocking=True)
        index = (where[0], where[1])
        gathered = [data.images[index], data.world_to_camera[index], data.intrinsics[index]]
        if data.depths is not None:
            inputs = where[:, :, : choice.inputs.shape[1]]
            gathered += data.depths.gather(inputs[0, :, 0], inputs[1])
        if self._device.type == "cuda" and data.device.type == "cpu":
            gathered = [item.pin_memory() for item in gathered]
        return gathered


_Gathered = list[Tensor]
"""Images, world_to_camera, intrinsics, and with depth its levels and scales."""


def load_for_training(
    root: Path, split: str, device: torch.device, placement: Placement, *, input_depths: bool = False
) -> RenderedDataset:
    """Reads a split into GPU memory when it fits there ("auto"), or where `placement` says.

    Raises:
        FileFormatError, InvalidInputError: see `RenderedDataset.load`.
    """
    on_gpu = device.type == "cuda" and placement != "cpu"
    if on_gpu and placement == "auto":
        free, _ = torch.cuda.mem_get_info(device)
        on_gpu = expected_bytes(root, split, input_depths=input_depths) < GPU_SHARE * free
    return RenderedDataset.load(root, split, device=device if on_gpu else "cpu", input_depths=input_depths)


def expected_bytes(root: Path, split: str, *, input_depths: bool = False) -> int:
    """Size of the pictures (and input depths) of a split as tensors, judged by its first object; 0 where that cannot
    be read."""
    _, listed = read_index(root)
    chosen = [info for info in listed if info.split == split]
    if not chosen:
        return 0
    try:
        document = json.loads((root / chosen[0].id / "transforms.json").read_text("utf-8"))
        frames = document["frames"]
        bytes_per_pixel = 4 * len(frames)
        if input_depths:
            bytes_per_pixel += 2 * sum(frame["role"] == "input" for frame in frames)
        return len(chosen) * bytes_per_pixel * int(document["w"]) * int(document["h"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # loading reports what is wrong with the file


def _resized(views: Views, size: int | None) -> Views:
    return views if size is None else resize_views(views, size)
