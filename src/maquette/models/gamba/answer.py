"""What a Gamba network answers to pictures: alone, or joined with its answer to the mirrored pictures (ours)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.models.gamba.inputs import mirrored_gaussians, network_inputs
from maquette.models.gamba.params import GambaParams

Network = Callable[[Tensor, Tensor], Gaussians]
"""Maps `[B, 9 or 10, S, S]` and `[B, 3, E, E]` to Gaussians `[B, N]`."""

_LEAST_LIGHT = 1e-8
"""Smallest share of light that counts as passing a Gaussian: below it the root has no useful gradient."""


def answer(network: Network, seen: Tensor, cameras: Cameras, params: GambaParams) -> Gaussians:
    """Gaussians `[B, N]` of pictures, in the world in which the cameras stand in front.

    With `params.join_mirrored` half of them are the answer to the mirrored pictures, mirrored back.

    Args:
        network: called once.
        seen: RGB on white and alpha, 0..1, `[B, 4, S, S]`.
        cameras: of the pictures, `[B]`, in that world.
        params: of the network.
    """
    if not params.join_mirrored:
        return network(*network_inputs(seen[:, :3], cameras, params, seen[:, 3:]))
    both = torch.cat([seen, seen.flip(-1)])
    both_cameras = Cameras.stack([cameras, cameras.mirrored()]).reshape(-1)
    answers = network(*network_inputs(both[:, :3], both_cameras, params, both[:, 3:]))
    straight, back = answers[: len(seen)], mirrored_gaussians(answers[len(seen) :])
    joined = Gaussians.stack([straight, back]).map(lambda value: value.transpose(0, 1).flatten(1, 2))
    # Two in one place let as much light through as one did: (1 - opacity)^(1/2) each.
    passing = (1 - joined.opacities).clamp_min(_LEAST_LIGHT)
    return dataclasses.replace(joined, opacities=1 - passing.sqrt())
