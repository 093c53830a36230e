"""Measurement of generators of views: made from the front view alone, compared with the true sides of the object."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.dataset import INPUT, RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.errors import InvalidInputError
from maquette.evaluation.metrics import alpha_iou, psnr
from maquette.evaluation.protocol import ORBIT4_NOVEL8, Reconstruct, predict, protocol_frames
from maquette.gaussians import Gaussians
from maquette.views import Views

Answer = Callable[[Tensor, int], Tensor]
"""The front view of object i, RGBA `[4, H, W]`, and i, to its four sides, RGBA `[4, 4, H, W]`."""

_NEAREST_SIZE = 64


@dataclass(frozen=True)
class SideScores:
    """How well the four sides of one object were made, or a mean over objects.

    Attributes:
        psnr: mean over the four views, on white, dB.
        psnr_unseen: likewise without the front, which was given.
        alpha_iou: mean over the four views.
        alpha_iou_unseen: likewise without the front.
        psnr_novel: mean over the eight novel views after reconstruction, or NaN if there was none.
        seconds: to make the views.
    """

    psnr: float
    psnr_unseen: float
    alpha_iou: float
    alpha_iou_unseen: float
    psnr_novel: float
    seconds: float


@dataclass(frozen=True)
class SideEvaluation:
    """Results of one way to answer.

    Attributes:
        name: of the way.
        objects: in the order of the data set, with their scores.
    """

    name: str
    objects: tuple[tuple[ObjectInfo, SideScores], ...]

    @property
    def mean(self) -> SideScores:
        """Mean over the objects."""
        rows = [scores for _, scores in self.objects]
        return SideScores(
            *(statistics.fmean(getattr(row, field) for row in rows) for field in SideScores.__dataclass_fields__)
        )


def evaluate_sides(
    name: str,
    answer: Answer,
    dataset: RenderedDataset,
    *,
    reconstruct: Reconstruct | None = None,
    keep_front: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> SideEvaluation:
    """Measures one way to make the four sides of an object from its front.

    Args:
        name: of the way.
        answer: see `Answer`; its pictures may have another size, they are resized.
        dataset: rendered with `--plan standard`; its first input view is the front.
        reconstruct: model from the four views to Gaussians, whose novel views are compared as well.
        keep_front: reconstruct from the front that was given, not from the one that was made.
        device: where pictures are compared.
        progress: called with the number of objects done.

    Raises:
        InvalidInputError: the data set does not have the frames of the protocol.
    """
    inputs, targets = protocol_frames(dataset, ORBIT4_NOVEL8)
    results = []
    for index, info in enumerate(dataset.objects):
        truth = dataset.views(index, inputs[index]).to(device)
        novel = dataset.views(index, targets[index]).to(device)
        start = time.perf_counter()
        made = sized(answer(truth.images[0], index).to(device, torch.float32), ORBIT4_NOVEL8.image_size)
        seconds = time.perf_counter() - start
        scores = _scores(Views(made, truth.cameras), truth, novel, reconstruct, keep_front, seconds)
        results.append((info, scores))
        if progress is not None:
            progress(index + 1)
    return SideEvaluation(name, tuple(results))


def _scores(
    made: Views, truth: Views, novel: Views, reconstruct: Reconstruct | None, keep_front: bool, seconds: float
) -> SideScores:
    fidelity = psnr(made.composited(), truth.composited())
    overlap = alpha_iou(made.images[:, 3], truth.images[:, 3])
    after = float("nan")
    if reconstruct is not None:
        cameras = Cameras.stack([novel.cameras])
        images = torch.cat([truth.images[:1], made.images[1:]]) if keep_front else made.images
        color, _ = predict(reconstruct, _batched(Views(images, made.cameras)), cameras, ORBIT4_NOVEL8)
        after = float(psnr(color[0], novel.composited()).mean())
    return SideScores(
        float(fidelity.mean()),
        float(fidelity[1:].mean()),
        float(overlap.mean()),
        float(overlap[1:].mean()),
        after,
        seconds,
    )


def from_front(reconstruct: Reconstruct, answer: Answer, keep_front: bool) -> Reconstruct:
    """A way from views to Gaussians that looks at the first view of every object alone and has the others made.

    Args:
        reconstruct: from four views to Gaussians.
        answer: makes the views; its index is 0 for every object, so that a result depends on the object alone.
        keep_front: reconstruct from the front that was given, not from the one that was made.
    """

    def run(views: Views) -> Gaussians:
        made = []
        for images in views.images:
            four = sized(answer(images[0], 0).to(images.device, torch.float32), images.shape[-1])
            made.append(torch.cat([images[:1], four[1:]]) if keep_front else four)
        return reconstruct(Views(torch.stack(made), views.cameras))

    return run


def _batched(views: Views) -> Views:
    return Views(views.images[None], Cameras.stack([views.cameras]))


def sized(images: Tensor, size: int) -> Tensor:
    """Pictures `[V, C, H, W]` at another size, averaged over areas."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def repeat_front(front: Tensor, _: int) -> Tensor:
    """The baseline that shows the front on all sides."""
    return front.expand(4, -1, -1, -1)


class NearestObject:
    """The baseline that shows the sides of the training object whose front is nearest, by the squared error of colours
    on white and alpha at 64 px.

    Args:
        dataset: objects to choose from, with four input views of variant 0 whose first is the true front
            (`--plan standard` or `sides`).

    Raises:
        InvalidInputError: an object has other input views.
    """

    def __init__(self, dataset: RenderedDataset) -> None:
        chosen = (dataset.roles == INPUT) & (dataset.variants == 0)
        if not bool((chosen.sum(dim=1) == 4).all()):
            raise InvalidInputError(f"{dataset.root} needs four input views of variant 0 per object: --plan sides")
        self._frames = torch.stack([torch.nonzero(row).flatten() for row in chosen])
        self._dataset = dataset
        fronts = [dataset.views(index, self._frames[index, :1]).images for index in range(len(dataset))]
        self._features = torch.cat([_features(front) for front in fronts])

    def __call__(self, front: Tensor, _: int) -> Tensor:
        """See `Answer`."""
        distances = (self._features - _features(front[None]).to(self._features.device)).square().mean(dim=1)
        nearest = int(distances.argmin())
        return self._dataset.views(nearest, self._frames[nearest]).images


def _features(images: Tensor) -> Tensor:
    small = sized(images, _NEAREST_SIZE)
    alpha = small[:, 3:]
    return torch.cat([small[:, :3] * alpha + 1 - alpha, alpha], dim=1).flatten(1)


def markdown_sides(evaluations: Sequence[SideEvaluation]) -> str:
    """The means as a Markdown table."""
    lines = [
        f"Four sides from the front view, {len(evaluations[0].objects)} objects; in brackets without the front itself",
        "",
        "| views | PSNR dB | alpha IoU | novel views after reconstruction, dB | s per object |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for evaluation in evaluations:
        mean = evaluation.mean
        lines.append(
            f"| {evaluation.name} | {mean.psnr:.2f} ({mean.psnr_unseen:.2f}) | {mean.alpha_iou:.3f} "
            f"({mean.alpha_iou_unseen:.3f}) | {mean.psnr_novel:.2f} | {mean.seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"
