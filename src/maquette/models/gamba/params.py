"""Configurations of Gamba: the official preset and ours.

Source of the official values: Gamba (Shen et al., 2024, arXiv 2403.18795) and its released options; where the paper and
the released code differ the preset follows the code, so that the published weights fit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from maquette.errors import InvalidInputError
from maquette.nn.vit_params import DINOV2_BASE_REGISTERS, ViTParams

NUM_SCANS = 4
"""Ways in which the cells of the picture are read: rows, columns, rows backwards, columns backwards."""

PositionMode = Literal["bins", "ray"]
ColorMode = Literal["direct", "blend"]
WorldFrame = Literal["camera", "upright"]


@dataclass(frozen=True)
class GambaParams:
    """Everything that defines one Gamba: network, parametrisation of the Gaussians, objective.

    The defaults are the official preset's.

    Attributes:
        name: preset name.
        encoder: the image encoder, whose tokens are the condition.
        encoder_size: side of the square picture that the encoder sees, px.
        freeze_encoder: whether the encoder keeps its weights in training (official) or learns.
        input_size: side of the square picture, with its ray map, that becomes Gaussian tokens, px.
        patch_size: side of the cell behind one token, px.
        width: of the tokens.
        num_layers: state-space blocks.
        state_size: values of state per channel.
        num_parts: how often the condition is repeated before a part of the tokens; divides the number of tokens.
        alternate_direction: whether every second layer reads the Gaussian tokens from last to first (official: no).
        factorized_positions: one learned position per cell plus one per scan instead of one per token (official).
        local_features: whether the encoder's patch tokens are also added to the tokens of their place (official: no).
        mask_input: whether the network also sees the picture's alpha, and Gaussians of cells outside the object start
            nearly transparent (official: no).
        drop_path: rate of stochastic depth that the layers approach, 0..1.
        decoder_width: of the MLP before the heads.
        cells_per_token: side of the square of Gaussians that each token becomes; 1 is official.
        position_mode: "bins": a point of the box, by weights over equidistant values per axis (official); "ray": a
            distance along the ray of the Gaussian's own cell, and an offset in the image plane.
        num_bins: of the mode "bins".
        bin_limit: the values reach from minus to plus this, world units; their weights have unit length, so that
            positions reach further.
        depth_limit: with "ray", largest distance from the ray's point closest to the origin, world units.
        depth_spread: with "ray", the scans start between minus and plus this distance from that point.
        offset_limit: with "ray", largest offset along each image axis, world units.
        color_mode: "direct" (official), or "blend": mixed with the colour of the cell, the weight is one more output.
        predict_rotation: whether Gaussians are rotated; the official ones never are.
        initial_opacity: at initialisation, between 0 and 1.
        initial_scale: at initialisation, world units, > 0; None: the official start, 0.1 softplus(-1.8).
        world: what the Gaussians are relative to: "camera" makes the input camera the front camera (official);
            "upright" turns the world about its vertical axis only, until the input camera is in front.
        join_mirrored: whether the answer to the mirrored picture, mirrored back, is joined with the answer to the
            picture, both at lower opacity (official: no).
        output_size: side of the rendered pictures in training, px.
        fov_deg: field of view of the cameras, degrees.
        camera_radius: distance of the cameras from the origin.
        composite_twice: whether the reference pictures go over the background a second time, as in the official
            training; it lightens half-transparent edges.
        lambda_lpips: weight of LPIPS, when its weights are given.
        lambda_ssim: weight of the multi-scale SSIM term that stands in for LPIPS otherwise.
        lambda_fine_ssim: weight of a term of SSIM at full resolution; the official code has none.
        error_knee: mean squared error of a view from which on errors count by their logarithm, as in PSNR; 0, as in the
            official code, counts all alike.
        lambda_radial: weight of the paper's radial mask loss; the official code has none.
        random_background_prob: probability per object of a random colour behind the supervised pictures.
        first_view_prob: probability per object that training shows the first input view, otherwise a random one.

    Raises:
        InvalidInputError: sizes do not fit each other, or a value is out of its range.
    """

    name: str
    encoder: ViTParams = DINOV2_BASE_REGISTERS
    encoder_size: int = 336
    freeze_encoder: bool = True
    input_size: int = 512
    patch_size: int = 8
    width: int = 512
    num_layers: int = 14
    state_size: int = 16
    num_parts: int = 1
    alternate_direction: bool = False
    factorized_positions: bool = False
    local_features: bool = False
    mask_input: bool = False
    drop_path: float = 0.1
    decoder_width: int = 128
    cells_per_token: int = 1
    position_mode: PositionMode = "bins"
    num_bins: int = 21
    bin_limit: float = 0.4
    depth_limit: float = 0.9
    depth_spread: float = 0.3
    offset_limit: float = 0.5
    color_mode: ColorMode = "direct"
    predict_rotation: bool = False
    initial_opacity: float = 0.1
    initial_scale: float | None = None
    world: WorldFrame = "camera"
    join_mirrored: bool = False
    output_size: int = 512
    fov_deg: float = 49.1
    camera_radius: float = 1.5
    composite_twice: bool = True
    lambda_lpips: float = 0.5
    lambda_ssim: float = 0.5
    lambda_fine_ssim: float = 0.0
    error_knee: float = 0.0
    lambda_radial: float = 0.0
    random_background_prob: float = 0.0
    first_view_prob: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("patch_size", "width", "num_layers", "state_size", "decoder_width", "cells_per_token", "num_bins")
        small = [name for name in sizes if getattr(self, name) < 1]
        if small:
            raise InvalidInputError(f"{self.name}: {', '.join(small)} must be at least 1")
        if self.input_size < self.patch_size or self.input_size % self.patch_size:
            raise InvalidInputError(
                f"{self.name}: input_size must be a multiple of patch_size {self.patch_size}, got {self.input_size}"
            )
        if self.patch_size % self.cells_per_token:
            raise InvalidInputError(
                f"{self.name}: cells_per_token must divide patch_size {self.patch_size}, got {self.cells_per_token}"
            )
        if self.num_parts < 1 or self.num_tokens % self.num_parts:
            raise InvalidInputError(
                f"{self.name}: num_parts must divide the {self.num_tokens} tokens, got {self.num_parts}"
            )
        self.encoder.num_patches(self.encoder_size)
        for field in ("drop_path", "random_background_prob", "first_view_prob"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise InvalidInputError(f"{self.name}: {field} must lie in 0..1, got {value}")
        if not 0.0 < self.initial_opacity < 1.0:
            raise InvalidInputError(f"{self.name}: initial_opacity must lie inside 0..1, got {self.initial_opacity}")
        for field in ("lambda_lpips", "lambda_ssim", "lambda_fine_ssim", "error_knee", "lambda_radial", "depth_spread"):
            if not getattr(self, field) >= 0.0:
                raise InvalidInputError(f"{self.name}: {field} must be at least 0, got {getattr(self, field)}")
        if self.position_mode == "ray" and not self.depth_spread < self.depth_limit:
            raise InvalidInputError(
                f"{self.name}: depth_spread must be below depth_limit {self.depth_limit}, got {self.depth_spread}"
            )

    def at_input_size(self, size: int) -> GambaParams:
        """The same network on other pictures: input, encoder's picture and rendered pictures scale by one factor.

        All weights fit where positions are learned per cell, because those are interpolated.

        Args:
            size: side of the square input pictures, px.

        Raises:
            InvalidInputError: the positions are learned per token, or a size would not be a multiple of its patches.
        """
        if size == self.input_size:
            return self
        scaled = [self.encoder_size * size, self.output_size * size]
        if not self.factorized_positions or size < 1 or any(value % self.input_size for value in scaled):
            reason = "" if self.factorized_positions else ": its positions are learned for each token"
            raise InvalidInputError(f"{self.name} cannot work on pictures of {size} px{reason}; use {self.input_size}")
        encoder_size, output_size = (value // self.input_size for value in scaled)
        return dataclasses.replace(self, input_size=size, encoder_size=encoder_size, output_size=output_size)

    @property
    def num_input_views(self) -> int:
        """Input views per object."""
        return 1

    @property
    def input_channels(self) -> int:
        """Channels that become tokens: normalised RGB, ray moment, ray direction, and alpha if the network sees it."""
        return 10 if self.mask_input else 9

    @property
    def grid_size(self) -> int:
        """Cells per side of the picture that become tokens."""
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Gaussian tokens per object."""
        return NUM_SCANS * self.grid_size**2

    @property
    def num_gaussians(self) -> int:
        """Gaussians per object."""
        return self.num_tokens * self.cells_per_token**2 * (2 if self.join_mirrored else 1)

    @property
    def position_channels(self) -> int:
        """Outputs of the network behind each position."""
        return 3 * self.num_bins if self.position_mode == "bins" else 3


GAMBA = GambaParams(name="gamba")
"""The official preset, the one with published weights: 16,384 Gaussians, 125 M parameters with the encoder."""

GAMBA_MINI = GambaParams(
    name="gamba-mini",
    encoder=ViTParams(width=192, depth=4, num_heads=3, patch_size=16, grid_size=16, num_registers=0),
    encoder_size=256,
    freeze_encoder=False,
    input_size=256,
    width=160,
    num_layers=8,
    alternate_direction=True,
    factorized_positions=True,
    local_features=True,
    mask_input=True,
    drop_path=0.0,
    decoder_width=160,
    cells_per_token=2,
    position_mode="ray",
    color_mode="blend",
    predict_rotation=True,
    initial_opacity=0.5,
    initial_scale=0.015,
    world="upright",
    join_mirrored=True,
    output_size=256,
    composite_twice=False,
    lambda_ssim=0.05,
    error_knee=0.02,
    random_background_prob=0.5,
    first_view_prob=0.5,
)
"""Ours, small enough to ship in the repository: two times 16,384 Gaussians, 4.0 M parameters with its own encoder."""
