"""`Gaussians`: a set of anisotropic 3D Gaussians with activated values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maquette.errors import InvalidInputError

MAX_SH_DEGREE = 3


@dataclass(frozen=True)
class Gaussians:
    """A (batch of) set(s) of 3D Gaussians. All values are activated; encodings live in file readers.

    Attributes:
        means: centres in world units, `[..., N, 3]`.
        quats: rotations as unit quaternions (w, x, y, z), `[..., N, 4]`.
        scales: standard deviations along the rotated axes in world units, > 0, `[..., N, 3]`.
        opacities: 0..1, `[..., N]`.
        colors: sRGB-encoded 0..1, `[..., N, 3]`, or spherical-harmonics coefficients `[..., N, K, 3]` with
            K = (degree + 1)^2, degree 0..3, in the 3DGS convention (colour = 0.5 + sum of basis * coefficient).

    Raises:
        InvalidInputError: shapes, dtypes or devices disagree. Values are not inspected here (that would
            synchronise a GPU); `check_values` does that.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        lead = tuple(self.means.shape[:-1])
        if self.means.ndim < 2 or self.means.shape[-1] != 3:
            raise InvalidInputError(f"means must be [..., N, 3], got {list(self.means.shape)}")
        expected = {"quats": (*lead, 4), "scales": (*lead, 3), "opacities": lead}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise InvalidInputError(f"{name} must be {list(shape)} to fit means, got {list(got)}")
        self._check_colors(lead)
        for field in dataclasses.fields(self):
            value: Tensor = getattr(self, field.name)
            if not value.is_floating_point():
                raise InvalidInputError(f"{field.name} must be a floating-point tensor, got {value.dtype}")
            if value.device != self.means.device:
                raise InvalidInputError(
                    f"{field.name} is on {value.device}, means on {self.means.device}: move them to one device"
                )

    def _check_colors(self, lead: tuple[int, ...]) -> None:
        shape = tuple(self.colors.shape)
        valid_sh = {(degree + 1) ** 2 for degree in range(MAX_SH_DEGREE + 1)}
        if shape == (*lead, 3):
            return
        if len(shape) == len(lead) + 2 and shape[:-2] == lead and shape[-1] == 3 and shape[-2] in valid_sh:
            return
        raise InvalidInputError(
            f"colors must be {[*lead, 3]} or {[*lead, 'K', 3]} with K in {sorted(valid_sh)}, got {list(shape)}"
        )

    @property
    def num_gaussians(self) -> int:
        """Number of Gaussians per set (N)."""
        return int(self.means.shape[-2])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions before N."""
        return tuple(self.means.shape[:-2])

    @property
    def sh_degree(self) -> int | None:
        """Degree of the spherical harmonics, or None when `colors` are plain colours."""
        if self.colors.ndim == self.means.ndim:
            return None
        return math.isqrt(self.colors.shape[-2]) - 1

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.means.device

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        """Applies `function` to every tensor."""
        return Gaussians(**{f.name: function(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def to(self, target: torch.device | torch.dtype | str) -> Gaussians:
        """Moves to a device or casts to a floating-point dtype."""
        return self.map(lambda t: t.to(target))

    def detach(self) -> Gaussians:
        """The same values without gradient history."""
        return self.map(Tensor.detach)

    def __getitem__(self, index: int | slice) -> Gaussians:
        """Indexes the first batch dimension."""
        if not self.batch_shape:
            raise InvalidInputError("these Gaussians have no batch dimension to index; use select() for a subset")
        return self.map(lambda t: t[index])

    def select(self, keep: Tensor) -> Gaussians:
        """Keeps the Gaussians of one unbatched set by boolean mask `[N]` or indices `[M]`."""
        if self.batch_shape:
            raise InvalidInputError(f"select() needs one unbatched set, these have batch {self.batch_shape}")
        return self.map(lambda t: t[keep])

    def check_values(self) -> Gaussians:
        """Returns self after checking that every value is finite and in range.

        Raises:
            InvalidInputError: names the field, the number of bad Gaussians and the valid range.
        """
        checks: list[tuple[str, Tensor, str]] = [
            (f.name, torch.isfinite(getattr(self, f.name)), "finite") for f in dataclasses.fields(self)
        ]
        checks.append(("scales", self.scales > 0, "> 0"))
        checks.append(("opacities", (self.opacities >= 0) & (self.opacities <= 1), "in 0..1"))
        norm = self.quats.norm(dim=-1)
        checks.append(("quats", (norm - 1).abs() < 1e-3, "of unit length"))
        for name, good, what in checks:
            if not bool(good.all()):
                bad = int((~good).sum())
                raise InvalidInputError(f"{name} must be {what}: {bad} of {good.numel()} values are not")
        return self

    @staticmethod
    def stack(items: Sequence[Gaussians]) -> Gaussians:
        """Stacks sets of equal N along a new first dimension.

        Raises:
            InvalidInputError: no items, or sets of different size.
        """
        if not items:
            raise InvalidInputError("stack() needs at least one set of Gaussians")
        if len({item.means.shape for item in items}) != 1 or len({item.colors.shape for item in items}) != 1:
            sizes = [item.num_gaussians for item in items]
            raise InvalidInputError(f"stack() needs sets of one size and colour type, got N = {sizes}")
        names = [f.name for f in dataclasses.fields(Gaussians)]
        return Gaussians(**{name: torch.stack([getattr(i, name) for i in items]) for name in names})
