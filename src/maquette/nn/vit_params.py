"""Sizes of vision transformers; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from maquette.errors import InvalidInputError


@dataclass(frozen=True)
class ViTParams:
    """A vision transformer in the form of DINOv2 (Oquab et al., 2023; registers: Darcet et al., 2023).

    Attributes:
        width: token width.
        depth: number of blocks.
        num_heads: attention heads; divides `width`.
        patch_size: side of a patch, px.
        grid_size: side of the learned grid of positions, patches; other picture sizes interpolate it.
        num_registers: extra tokens without a position, whose outputs are dropped.
        grid_antialias: whether shrinking the grid filters it, as the models with registers do.

    Raises:
        InvalidInputError: a size is not positive, or the heads do not divide the width.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int = 14
    grid_size: int = 37
    num_registers: int = 4
    grid_antialias: bool = True

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.num_heads, self.patch_size, self.grid_size)
        if min(sizes) < 1 or self.num_registers < 0:
            raise InvalidInputError(f"sizes of a vision transformer must be positive, got {self}")
        if self.width % self.num_heads:
            raise InvalidInputError(f"num_heads must divide the width, got {self.num_heads} heads for {self.width}")

    def num_patches(self, image_size: int) -> int:
        """Patches of a square picture.

        Raises:
            InvalidInputError: `image_size` is not a multiple of the patch size.
        """
        if image_size < self.patch_size or image_size % self.patch_size:
            raise InvalidInputError(f"pictures must be a multiple of {self.patch_size} px, got {image_size}")
        return (image_size // self.patch_size) ** 2


DINOV2_BASE_REGISTERS = ViTParams(width=768, depth=12, num_heads=12)
"""DINOv2 ViT-B/14 with four registers: 86.6 M parameters."""
