"""Features in groups of three: the fast backends blend three channels at a time, whatever they mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS = 3
"""Channels that one pass of blending renders."""


def in_threes(features: Tensor | None) -> list[Tensor]:
    """Splits features `[B, N, C]` into groups `[B, N, 3]`, the last one filled up with zeros; none for None."""
    if features is None:
        return []
    missing = -features.shape[-1] % CHANNELS
    padded = torch.nn.functional.pad(features, (0, missing)) if missing else features
    return [group.contiguous() for group in torch.split(padded, CHANNELS, dim=-1)]


def joined(outputs: Sequence[Tensor], features: Tensor | None) -> tuple[Tensor, ...]:
    """Colour, depth, alpha and, of the images `[B, V, 3, H, W]` of the groups of `features`, one `[B, V, C, H, W]`."""
    if features is None:
        return tuple(outputs)
    return (*outputs[:3], torch.cat(tuple(outputs[3:]), dim=2)[:, :, : features.shape[-1]])
