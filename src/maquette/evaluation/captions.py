"""Whether views made from captions show what they name, in the eyes of an independent classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.data.dataset import RenderedDataset
from maquette.evaluation.classifier import ViewClassifier
from maquette.evaluation.protocol import ORBIT4_NOVEL8, protocol_frames
from maquette.io import write_image
from maquette.models.mvdream.encoders import to_planes

_SHOWN = 25


@dataclass(frozen=True)
class CaptionResult:
    """One caption: the true category, and what the classifier saw in made and in true views."""

    id: str
    caption: str
    category: str
    seen_in_made: str
    seen_in_true: str


@dataclass(frozen=True)
class CaptionEvaluation:
    """Results, in the order of the data set."""

    objects: tuple[CaptionResult, ...]

    @property
    def share_made(self) -> float:
        """Share of captions whose made views are recognised."""
        return sum(item.seen_in_made == item.category for item in self.objects) / len(self.objects)

    @property
    def share_true(self) -> float:
        """Share of objects whose true renders are recognised."""
        return sum(item.seen_in_true == item.category for item in self.objects) / len(self.objects)


def evaluate_captions(
    make: Callable[[str, int], Tensor],
    dataset: RenderedDataset,
    classifier: ViewClassifier,
    *,
    sheet: Path | None = None,
) -> CaptionEvaluation:
    """Makes views of the caption of every object of a data set and has them judged.

    Args:
        make: caption and index to the four views `[4, 3|4, H, W]`.
        dataset: rendered with `--plan standard`, with captions and categories.
        classifier: the judge.
        sheet: picture to write with the views of the first 25 captions.
    """
    inputs, _ = protocol_frames(dataset, ORBIT4_NOVEL8)
    device = next(classifier.parameters()).device
    results, rows = [], []
    for index, info in enumerate(dataset.objects):
        made = make(info.caption, index).to(device, torch.float32)
        seen = classifier.recognise(made)
        truth = classifier.recognise(dataset.views(index, inputs[index]).images.to(device))
        results.append(CaptionResult(info.id, info.caption, info.category, seen, truth))
        if index < _SHOWN:
            title = f"{info.caption} ({info.category}), seen as {seen}"
            rows.append(SheetRow(title, to_planes(made, 3).cpu(), [""] * len(made)))
    if sheet is not None:
        write_image(sheet, contact_sheet(rows, tile_size=96, font_px=12))
    return CaptionEvaluation(tuple(results))


def markdown_captions(evaluation: CaptionEvaluation) -> str:
    """The shares as text."""
    return (
        f"Captions: the classifier recognises the category in {evaluation.share_made:.0%} of "
        f"{len(evaluation.objects)} sets of views made from captions, and in {evaluation.share_true:.0%} of the true "
        "renders.\n"
    )
