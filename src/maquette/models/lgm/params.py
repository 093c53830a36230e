"""Configurations of LGM: the official presets and ours.

Source of the official values: LGM (Tang et al., ECCV 2024, arXiv 2402.05054) and its released options.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from maquette.errors import InvalidInputError

NUM_GROUPS = 32
"""Groups of every group norm; block widths are multiples of it."""

Parametrization = Literal["world", "hull"]
RotationAxis = Literal["last", "gaussians"]


@dataclass(frozen=True)
class LGMParams:
    """Everything that defines one LGM: network, parametrisation of the Gaussians, objective.

    Attributes:
        name: preset name.
        down_channels: width of each down block, from full resolution downwards (halved between blocks).
        down_attention: whether each down block attends across the views.
        up_channels: width of each up block, from the coarsest resolution upwards (doubled between blocks).
        up_attention: whether each up block attends across the views.
        mid_attention: whether the middle block attends across the views.
        down_layers: residual layers per down block (official: 2); up blocks have one more.
        mid_layers: attention slots of the middle block, each between two residual layers (official: 1).
        input_size: side of the square input pictures, px.
        splat_size: side of the output grid; one Gaussian per view and cell.
        output_size: side of the rendered pictures in training, px.
        num_input_views: input views; the attention mixes exactly this many.
        num_heads: attention heads.
        fov_deg: field of view of the cameras, degrees.
        camera_radius: distance of the standard cameras from the origin.
        patch_size: side of the square of input pixels that the network takes as one, and of the square of Gaussians
            that each cell of its output gives (official: 1).
        parametrization: "world" predicts coordinates in -1..1, sizes and colours (official). "hull" needs the alpha of
            the input pictures: the network also sees it and what `plane_sweep` finds; one Gaussian per input pixel
            starts where the pixel's ray enters the visual hull, with the pixel's size, colour and alpha, and the
            network predicts what to change.
        sweep_planes: with "hull", depths that the plane sweep looks at.
        rotation_axis: "last" normalises quaternions; "gaussians" reproduces the checkpoints published before
            2024-04-03, which were trained with the norm taken over all Gaussians.
        normalize_poses: whether cameras are re-expressed so that view 0 is the front camera (official).
        composite_twice: whether the reference pictures go over the background a second time, as in the official
            training; it lightens half-transparent edges.
        lambda_lpips: weight of LPIPS, when its weights are given.
        lambda_ssim: weight of the multi-scale SSIM term that stands in for LPIPS otherwise.
        lambda_fine_ssim: weight of a term of SSIM at full resolution; the official code has none.
        lambda_depth: weight of the distance along z between each Gaussian and the true surface of its cell; needs
            data with depth. 0 in the official presets, which know pictures only.
        error_knee: mean squared error of a view from which on errors count by their logarithm, as in PSNR; 0, as in the
            official presets, counts them as they are. See `RenderedLoss`.
        grid_distortion_prob: probability per object of distorting input views 1..3, 0..1.
        camera_jitter_prob: probability per object of turning the cameras of input views 1..3, 0..1.
        random_background_prob: probability per object of a random colour behind the supervised pictures.

    Raises:
        InvalidInputError: sizes do not fit each other, a probability lies outside 0..1, or a weight is negative.
    """

    name: str
    down_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_channels: tuple[int, ...]
    up_attention: tuple[bool, ...]
    splat_size: int
    output_size: int
    mid_attention: bool = True
    down_layers: int = 2
    mid_layers: int = 1
    input_size: int = 256
    num_input_views: int = 4
    num_heads: int = 16
    fov_deg: float = 49.1
    camera_radius: float = 1.5
    patch_size: int = 1
    parametrization: Parametrization = "world"
    sweep_planes: int = 32
    rotation_axis: RotationAxis = "last"
    normalize_poses: bool = True
    composite_twice: bool = True
    lambda_lpips: float = 1.0
    lambda_ssim: float = 0.5
    lambda_fine_ssim: float = 0.0
    lambda_depth: float = 0.0
    error_knee: float = 0.0
    grid_distortion_prob: float = 0.5
    camera_jitter_prob: float = 0.5
    random_background_prob: float = 0.0

    def __post_init__(self) -> None:
        if len(self.down_channels) != len(self.down_attention) or len(self.up_channels) != len(self.up_attention):
            raise InvalidInputError(f"{self.name}: channels and attention flags must have the same length")
        if min(self.down_layers, self.mid_layers, self.patch_size) < 1 or self.sweep_planes < 2:
            raise InvalidInputError(
                f"{self.name}: down_layers, mid_layers and patch_size must be at least 1, sweep_planes at least 2"
            )
        if not 1 <= len(self.up_channels) <= len(self.down_channels):
            raise InvalidInputError(f"{self.name}: needs 1..{len(self.down_channels)} up blocks")
        if self.up_channels != self.down_channels[::-1][: len(self.up_channels)]:
            raise InvalidInputError(
                f"{self.name}: up blocks take skips of their own width, so up_channels must be the first "
                f"{len(self.up_channels)} of {self.down_channels[::-1]}, got {self.up_channels}"
            )
        wrong = [width for width in (*self.down_channels, *self.up_channels) if width % NUM_GROUPS]
        if wrong:
            raise InvalidInputError(f"{self.name}: widths must be multiples of {NUM_GROUPS}, got {wrong}")
        coarsest = self.input_size // self.stride
        produced = coarsest * 2 ** (len(self.up_channels) - 1) * self.patch_size
        if produced != self.splat_size or self.input_size % self.splat_size:
            raise InvalidInputError(
                f"{self.name}: splat_size must be what the blocks produce and divide input_size "
                f"{self.input_size}: {produced}, got {self.splat_size}"
            )
        if self.parametrization == "hull":
            self._check_hull()
        for field in ("grid_distortion_prob", "camera_jitter_prob", "random_background_prob"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise InvalidInputError(f"{self.name}: {field} must lie in 0..1, got {value}")
        for field in ("lambda_lpips", "lambda_ssim", "lambda_fine_ssim", "lambda_depth", "error_knee"):
            if not getattr(self, field) >= 0.0:
                raise InvalidInputError(f"{self.name}: {field} must be at least 0, got {getattr(self, field)}")

    def _check_hull(self) -> None:
        if self.splat_size != self.input_size:
            raise InvalidInputError(
                f"{self.name}: the hull needs one Gaussian per pixel, splat_size {self.input_size}, got "
                f"{self.splat_size}"
            )
        if self.grid_distortion_prob or self.camera_jitter_prob:
            raise InvalidInputError(
                f"{self.name}: the hull needs exact views: grid_distortion_prob and camera_jitter_prob must be 0"
            )

    def at_input_size(self, size: int) -> LGMParams:
        """The same network on other pictures: input, output grid and rendered pictures scale by one factor.

        All weights fit: the network is convolutional and its attention knows no positions.

        Args:
            size: side of the square input pictures, px; a multiple of the network's total stride.

        Raises:
            InvalidInputError: `size` is not such a multiple, or not positive.
        """
        stride = self.stride
        scaled = [self.splat_size * size, self.output_size * size]
        if size < stride or size % stride or any(value % self.input_size for value in scaled):
            raise InvalidInputError(
                f"{self.name} cannot work on pictures of {size} px: use {self.input_size} or a fraction of it that is "
                f"a multiple of {stride}, such as {max(self.input_size // 2, stride)}"
            )
        splat_size, output_size = (value // self.input_size for value in scaled)
        return dataclasses.replace(self, input_size=size, splat_size=splat_size, output_size=output_size)

    @property
    def stride(self) -> int:
        """Input pixels per cell of the coarsest features, along each axis."""
        return int(self.patch_size * 2 ** (len(self.down_channels) - 1))

    @property
    def needs_depth(self) -> bool:
        """Whether training needs data with depth."""
        return self.lambda_depth > 0

    @property
    def num_gaussians(self) -> int:
        """Gaussians per object."""
        return self.num_input_views * self.splat_size**2

    @property
    def out_channels(self) -> int:
        """Output channels per Gaussian before activation."""
        return 14 + (self.parametrization == "hull")


_LARGE_DOWN = (64, 128, 256, 512, 1024, 1024)
_LARGE_DOWN_ATTENTION = (False, False, False, True, True, True)

LGM_LRM = LGMParams(
    name="lgm-lrm",
    down_channels=_LARGE_DOWN,
    down_attention=_LARGE_DOWN_ATTENTION,
    up_channels=(1024, 1024, 512, 256),
    up_attention=(True, True, True, False),
    splat_size=64,
    output_size=256,
)
"""The official defaults: 16,384 Gaussians, 413 M parameters."""

LGM_SMALL = LGMParams(
    name="lgm-small",
    down_channels=_LARGE_DOWN,
    down_attention=_LARGE_DOWN_ATTENTION,
    up_channels=(1024, 1024, 512, 256),
    up_attention=(True, True, True, False),
    splat_size=64,
    output_size=256,
)
"""The official preset "small": the same network as `LGM_LRM`."""

LGM_BIG = LGMParams(
    name="lgm-big",
    down_channels=_LARGE_DOWN,
    down_attention=_LARGE_DOWN_ATTENTION,
    up_channels=(1024, 1024, 512, 256, 128),
    up_attention=(True, True, True, False, False),
    splat_size=128,
    output_size=512,
)
"""The official preset "big", the one with published weights: 65,536 Gaussians, 415 M parameters."""

LGM_TINY = LGMParams(
    name="lgm-tiny",
    down_channels=(32, 64, 128, 256, 512),
    down_attention=(False, False, False, False, True),
    up_channels=(512, 256, 128),
    up_attention=(True, False, False),
    splat_size=64,
    output_size=256,
)
"""The official preset "tiny": 16,384 Gaussians, 60 M parameters."""

LGM_MINI = LGMParams(
    name="lgm-mini",
    down_channels=(64, 128, 160),
    down_attention=(False, False, True),
    up_channels=(160, 128, 64),
    up_attention=(True, False, False),
    splat_size=256,
    output_size=256,
    down_layers=1,
    mid_layers=6,
    num_heads=5,
    patch_size=2,
    parametrization="hull",
    normalize_poses=False,
    lambda_ssim=0.02,
    lambda_depth=0.03,
    error_knee=2e-3,
    composite_twice=False,
    grid_distortion_prob=0.0,
    camera_jitter_prob=0.0,
    random_background_prob=0.5,
)
"""Ours, small enough to ship in the repository: up to 262,144 Gaussians, one for each pixel of the object."""
