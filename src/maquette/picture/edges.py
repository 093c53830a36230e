"""Colours along the edge of a cut-out: what shines through from the old background is taken out."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_OPAQUE = 0.95
_EDGE_PX, _REACH_PX = 2.0, 4.0


def decontaminate(image: Tensor) -> Tensor:
    """Gives half-transparent edge pixels, and what is hidden behind, the colour of the nearest opaque pixel.

    Only colours change, not alpha. Half-transparent areas away from opaque ones (glass, smoke) keep their colour.
    Colours of fully transparent pixels, which no one should see but every resampling of straight alpha mixes in, are
    always replaced.

    Args:
        image: `[4, H, W]`, straight alpha, 0..1.
    """
    alpha = image[3].detach().cpu().numpy()
    opaque = alpha >= min(_OPAQUE, float(alpha.max()))
    distance, nearest = ndimage.distance_transform_edt(~opaque, return_indices=True)
    inner = image[:3].cpu()[:, torch.from_numpy(nearest[0]).long(), torch.from_numpy(nearest[1]).long()].to(image)
    near = ((_REACH_PX - distance) / (_REACH_PX - _EDGE_PX)).clip(0, 1)
    share = torch.from_numpy(np.where(opaque, 0, np.where(alpha <= 0, 1, near)).astype(np.float32)).to(image)
    return torch.cat([image[:3] + share * (inner - image[:3]), image[3:]])
