"""LPIPS with VGG-16 features (version 0.1), loadable from the published state dicts.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. No weights
come with maquette; a user who has them passes the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import WeightsError

_SLICES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
"""Convolutions of VGG-16 up to relu5_3: (index in torchvision's `features`, channels in, channels out)."""


class _Vgg16(nn.Module):
    """Features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3; names as in the published LPIPS."""

    def __init__(self) -> None:
        super().__init__()
        for number, layers in enumerate(_SLICES, start=1):
            convolutions = {str(index): nn.Conv2d(width, out, 3, padding=1) for index, width, out in layers}
            self.add_module(f"slice{number}", nn.ModuleDict(convolutions))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        for number, (_, convolutions) in enumerate(self.named_children()):
            if number:
                images = F.max_pool2d(images, 2)
            for convolution in convolutions.children():
                images = F.relu(convolution(images))
            features.append(images)
        return features


class _ScalingLayer(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class _Head(nn.Module):
    """A 1x1 convolution without bias, named as in the published weights; their dropout is left out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"1": nn.Conv2d(channels, 1, 1, bias=False)})

    def forward(self, difference: Tensor) -> Tensor:
        result: Tensor = self.model["1"](difference)
        return result


class LPIPS(nn.Module):
    """Perceptual distance of pictures; its parameters are frozen.

    The official LGM training leaves the dropout of the heads switched on; here there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _ScalingLayer()
        self.net = _Vgg16()
        for number, layers in enumerate(_SLICES):
            self.add_module(f"lin{number}", _Head(layers[-1][2]))
        self.requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances `[M]`, >= 0, of pictures `[M, 3, H, W]` in -1..1 (at least 16 pixels on each side)."""
        features_a = self.net(self.scaling_layer(first))
        features_b = self.net(self.scaling_layer(second))
        total = torch.zeros(len(first), dtype=first.dtype, device=first.device)
        for number, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
            difference = (_unit(a) - _unit(b)) ** 2
            total = total + self.get_submodule(f"lin{number}")(difference).mean(dim=(1, 2, 3))
        return total

    def load_official(self, state: Mapping[str, Tensor]) -> LPIPS:
        """Loads a published state dict (optionally prefixed by "lpips_loss.") strictly and returns self.

        Raises:
            WeightsError: an entry is missing, unexpected or of another shape.
        """
        names = {name.removeprefix("lpips_loss."): value for name, value in state.items()}
        kept = {name: value for name, value in names.items() if not name.startswith("lins.")}
        buffers = {f"scaling_layer.{name}": value for name, value in self.scaling_layer.named_buffers()}
        try:
            self.load_state_dict(buffers | kept)
        except RuntimeError as error:
            raise WeightsError(f"these are not the weights of LPIPS with VGG-16: {error}") from error
        return self


def load_lpips(path: str | Path) -> LPIPS:
    """LPIPS from a `.safetensors` file with the published names.

    Raises:
        WeightsError: the file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read LPIPS weights from {path}: {error}") from error
    return LPIPS().load_official(state)


def _unit(features: Tensor) -> Tensor:
    return features / (features.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10)
