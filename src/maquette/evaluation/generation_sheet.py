"""Picture sheet of generated sides: true views above made ones."""

from __future__ import annotations

from pathlib import Path

import torch

from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.data.dataset import RenderedDataset
from maquette.evaluation.generation import Answer, sized
from maquette.evaluation.protocol import ORBIT4_NOVEL8, protocol_frames
from maquette.io import write_image
from maquette.models.mvdream.encoders import to_planes

_SHOWN = 16


def write_sides_sheet(path: Path, dataset: RenderedDataset, answer: Answer, *, shown: int = _SHOWN) -> None:
    """Shows objects spread evenly over a data set: the four true views, then the four made from the first of them."""
    inputs, _ = protocol_frames(dataset, ORBIT4_NOVEL8)
    count = min(shown, len(dataset))
    labels = ["front, given", "90°", "180°", "270°", "made: 0°", "90°", "180°", "270°"]
    rows = []
    for number in range(count):
        index = number * len(dataset) // count
        truth = dataset.views(index, inputs[index])
        made = answer(truth.images[0], index).to(truth.images.device, torch.float32)
        pictures = torch.cat([truth.composited(), to_planes(sized(made, dataset.image_size), 3)]).cpu()
        info = dataset.objects[index]
        rows.append(SheetRow(f"{info.id}: {info.caption}", pictures, labels))
    write_image(path, contact_sheet(rows, tile_size=112, font_px=12))
