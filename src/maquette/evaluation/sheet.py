"""The picture sheet of an evaluation: true and predicted novel views, row above row, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maquette.data.dataset import RenderedDataset
from maquette.evaluation.protocol import ObjectScores, Protocol, Reconstruct, predict, protocol_frames

TILE_PX = 128
CAPTION_PX = 22
MARGIN_PX = 6

UInt8Array = np.ndarray[Any, np.dtype[np.uint8]]


def draw_sheet(
    chosen: Sequence[tuple[str, ObjectScores]],
    protocol: Protocol,
    reconstruct: Reconstruct,
    dataset: RenderedDataset,
    device: torch.device | str = "cpu",
) -> UInt8Array:
    """RGB sheet `[H, W, 3]`; predicts the chosen objects again, so that an evaluation need not keep its pictures.

    Args:
        chosen: group name and object, top to bottom.
        protocol, reconstruct, dataset, device: as evaluated.
    """
    inputs, targets = protocol_frames(dataset, protocol)
    index_of = {info.id: index for index, info in enumerate(dataset.objects)}
    blocks = []
    for group, item in chosen:
        index = torch.tensor([index_of[item.info.id]])
        truth = dataset.views(index, targets[index]).to(device)
        given = dataset.views(index, inputs[index]).to(device)
        color, _ = predict(reconstruct, given, truth.cameras, protocol)
        scores = item.scores
        caption = (
            f"{group}: {item.info.id}   {scores.psnr:.2f} dB   SSIM {scores.ssim:.3f}   "
            f"alpha IoU {scores.alpha_iou:.3f}   (true above, predicted below)"
        )
        rows = [_row(truth.composited(protocol.background)[0]), _row(color[0])]
        blocks.append(_captioned(np.concatenate(rows, axis=0), caption))
    return np.concatenate(blocks, axis=0)


def _row(pictures: Tensor) -> UInt8Array:
    """`[V, 3, H, W]` in 0..1 to one row of tiles, uint8 `[TILE_PX, V * TILE_PX, 3]`."""
    tiles = F.interpolate(pictures.float(), size=(TILE_PX, TILE_PX), mode="bilinear", antialias=True)
    row = tiles.permute(2, 0, 3, 1).reshape(TILE_PX, -1, 3)
    result: UInt8Array = (row.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return result


def _captioned(picture: UInt8Array, caption: str) -> UInt8Array:
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + CAPTION_PX + MARGIN_PX), "white")
    canvas.paste(Image.fromarray(picture), (0, CAPTION_PX))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(canvas).text((4, 3), caption, fill="black", font=font)
    return np.asarray(canvas)
