"""Named protocols, and the measurement of any model that turns views into Gaussians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.dataset import INPUT, TARGET, RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.errors import InvalidInputError
from maquette.evaluation.metrics import alpha_iou, psnr
from maquette.gaussians import Gaussians
from maquette.nn.ssim import ssim
from maquette.raster import render_gaussians
from maquette.views import Views

Reconstruct = Callable[[Views], Gaussians]
"""Views `[B, V]` to Gaussians `[B, N]`, on one device."""


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        name: of the protocol.
        num_inputs: frames of role input given to the model, in order.
        num_targets: frames of role target compared.
        image_size: height and width of all pictures in pixels; the data set must have it.
        variant: of the rendered set that is used.
        background: behind true and predicted pictures, 0..1.
        alpha_threshold: coverage above which a pixel belongs to the object.
    """

    name: str
    num_inputs: int
    num_targets: int
    image_size: int
    variant: int = 0
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    alpha_threshold: float = 0.5


ORBIT4_NOVEL8 = Protocol("orbit4-novel8", num_inputs=4, num_targets=8, image_size=256)
"""Four inputs at azimuth 0, 90, 180, 270 and elevation 0; eight novel views between them at -10 to 30 degrees."""

PROTOCOLS = {ORBIT4_NOVEL8.name: ORBIT4_NOVEL8}


@dataclass(frozen=True)
class Scores:
    """Means over views (of an object) or over objects: PSNR in dB, SSIM, alpha IoU (the last two at most 1)."""

    psnr: float
    ssim: float
    alpha_iou: float


@dataclass(frozen=True)
class ObjectScores:
    """One object's result; `seconds` covers reconstruction and rendering, shared evenly within a batch."""

    info: ObjectInfo
    scores: Scores
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Results of a model on a data set.

    Attributes:
        protocol: that was followed.
        objects: per object, in the order of the data set.
        baselines: name to mean scores of answers that need no model, for context.
    """

    protocol: Protocol
    objects: tuple[ObjectScores, ...]
    baselines: dict[str, Scores]

    @property
    def mean(self) -> Scores:
        """Mean over all objects."""
        return mean_scores(item.scores for item in self.objects)

    def mean_where(self, keep: Callable[[ObjectInfo], bool]) -> Scores | None:
        """Mean over the objects that `keep` accepts; None when there are none."""
        chosen = [item.scores for item in self.objects if keep(item.info)]
        return mean_scores(chosen) if chosen else None


def mean_scores(items: Iterable[Scores]) -> Scores:
    """Mean of each measure."""
    chosen = list(items)
    return Scores(
        statistics.fmean(item.psnr for item in chosen),
        statistics.fmean(item.ssim for item in chosen),
        statistics.fmean(item.alpha_iou for item in chosen),
    )


def evaluate(
    reconstruct: Reconstruct,
    dataset: RenderedDataset,
    *,
    protocol: Protocol = ORBIT4_NOVEL8,
    device: torch.device | str = "cpu",
    batch_size: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a model.

    Args:
        reconstruct: the model, on `device`.
        dataset: rendered with the plan of the protocol.
        protocol: see `Protocol`.
        device: where views are given and pictures are compared.
        batch_size: objects at a time, >= 1.
        progress: called with the number of objects done.

    Raises:
        InvalidInputError: the data set does not have the frames or the image size of the protocol.
    """
    inputs, targets = protocol_frames(dataset, protocol)
    results: list[ObjectScores] = []
    baselines: dict[str, list[Scores]] = {"white image": [], "nearest input view": []}
    for first in range(0, len(dataset), batch_size):
        chosen = torch.arange(first, min(first + batch_size, len(dataset)))
        given = dataset.views(chosen, inputs[chosen]).to(device)
        truth = dataset.views(chosen, targets[chosen]).to(device)
        start = time.perf_counter()
        color, alpha = predict(reconstruct, given, truth.cameras, protocol)
        if color.device.type == "cuda":
            torch.cuda.synchronize(color.device)
        seconds = (time.perf_counter() - start) / len(chosen)
        scores = _score(color, alpha, truth, protocol)
        results += [ObjectScores(dataset.objects[first + i], score, seconds) for i, score in enumerate(scores)]
        for name, (guess, guess_alpha) in _baseline_answers(given, truth, protocol).items():
            baselines[name] += _score(guess, guess_alpha, truth, protocol)
        if progress is not None:
            progress(len(results))
    return Evaluation(protocol, tuple(results), {name: mean_scores(items) for name, items in baselines.items()})


def predict(reconstruct: Reconstruct, given: Views, cameras: Cameras, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Colour `[B, V, 3, H, W]` in 0..1 and alpha `[B, V, H, W]` of what a model makes of `given` `[B, 4]`."""
    with torch.no_grad():
        gaussians = reconstruct(given)
        rendered = render_gaussians(gaussians, cameras, background=protocol.background)
    return rendered.color.clamp(0, 1), rendered.alpha


def protocol_frames(dataset: RenderedDataset, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Indices of the input frames `[O, num_inputs]` and target frames `[O, num_targets]` of a protocol.

    Raises:
        InvalidInputError: the data set does not have them, or has another image size.
    """
    advice = "render one with `maquette data render ASSETS -o DIR --plan standard`"
    size = (int(dataset.images.shape[-2]), int(dataset.images.shape[-1]))
    if size != (protocol.image_size, protocol.image_size):
        raise InvalidInputError(
            f"protocol {protocol.name} needs pictures of {protocol.image_size} px, {dataset.root} has {size}: {advice}"
        )
    of_variant = dataset.variants == protocol.variant
    chosen = []
    for role, wanted, name in ((INPUT, protocol.num_inputs, "input"), (TARGET, protocol.num_targets, "target")):
        frames = [torch.nonzero(row).flatten() for row in of_variant & (dataset.roles == role)]
        counts = {len(row) for row in frames}
        if counts != {wanted}:
            raise InvalidInputError(
                f"protocol {protocol.name} needs {wanted} {name} frames of variant {protocol.variant} per object, "
                f"{dataset.root} has {sorted(counts)}: {advice}"
            )
        chosen.append(torch.stack(frames))
    return chosen[0], chosen[1]


def _score(color: Tensor, alpha: Tensor, truth: Views, protocol: Protocol) -> list[Scores]:
    """Scores of each object of a batch, means over its views."""
    reference = truth.composited(protocol.background)
    measures = [
        psnr(color, reference),
        ssim(color, reference),
        alpha_iou(alpha, truth.images[..., 3, :, :], protocol.alpha_threshold),
    ]
    rows: list[list[float]] = torch.stack([value.mean(dim=-1) for value in measures], dim=-1).tolist()
    return [Scores(*row) for row in rows]


def _baseline_answers(given: Views, truth: Views, protocol: Protocol) -> dict[str, tuple[Tensor, Tensor]]:
    """Answers without a model: an empty picture, and the input view whose camera is nearest."""
    reference = truth.composited(protocol.background)
    empty = torch.tensor(protocol.background, device=reference.device)[:, None, None].expand_as(reference)
    distances = torch.cdist(truth.cameras.positions, given.cameras.positions)  # [B, V, inputs]
    nearest = distances.argmin(dim=-1)
    rows = torch.arange(len(nearest), device=nearest.device)[:, None]
    return {
        "white image": (empty, torch.zeros_like(reference[:, :, 0])),
        "nearest input view": (given.composited(protocol.background)[rows, nearest], given.images[rows, nearest, 3]),
    }


def ranked(objects: Sequence[ObjectScores]) -> list[ObjectScores]:
    """Objects by PSNR, best first; ties by id."""
    return sorted(objects, key=lambda item: (-item.scores.psnr, item.info.id))
