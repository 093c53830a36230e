"""Random solid textures and colour changes for training.

Low-poly game assets have flat colours; scanned and photographed things do not. A pattern is a function of the position
in space, so it needs no texture coordinates and is the same in all views.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maquette.data.color import srgb_to_linear

PatternKind = Literal["noise", "stripes", "checks", "cells", "wood", "marble", "speckles"]
KINDS: tuple[PatternKind, ...] = ("noise", "stripes", "checks", "cells", "wood", "marble", "speckles")
PatternMode = Literal["replace", "modulate", "overlay"]
MODES: tuple[PatternMode, ...] = ("replace", "modulate", "overlay")

_VOLUME_SIZE = 48
_LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True)
class Pattern:
    """One solid texture.

    Attributes:
        kind: what the scalar field looks like.
        mode: "replace" the base colour, "modulate" (multiply) it, or "overlay" it in patches.
        rotation: random axes, `[3, 3]`; offset: `[3]`.
        frequency: periods per world unit along the three axes, `[3]`.
        warp: how strongly noise bends the field.
        palette: linear RGB, `[C, 3]` (factors around 1 for "modulate").
        hard: palette steps instead of blends.
        coverage: share of the surface that an overlay covers, 0..1.
        materials: which materials get it (by number, repeating), `[8]` bool.
    """

    kind: PatternKind
    mode: PatternMode
    rotation: NDArray[np.float64]
    offset: NDArray[np.float64]
    frequency: NDArray[np.float64]
    warp: float
    palette: NDArray[np.float64]
    hard: bool
    coverage: float
    materials: NDArray[np.bool_]

    def apply(self, albedo: Tensor, positions: Tensor, materials: Tensor) -> Tensor:
        """New base colours: linear RGB `[P, 3]`, world positions `[P, 3]`, material numbers `[P]`."""
        color = self._colors(self.field(positions))
        if self.mode == "modulate":
            color = albedo * color
        elif self.mode == "overlay":
            patches = fractal_noise(positions @ _tensor(self.rotation, albedo) * 2.5, seed=3, octaves=3)
            mask = ((patches - (1 - self.coverage)) * 12 + 0.5).clamp(0, 1)
            color = torch.lerp(albedo, color, mask[:, None])
        chosen = torch.as_tensor(self.materials, device=albedo.device)[materials % len(self.materials)]
        return torch.where(chosen[:, None], color, albedo).clamp(0, 1)

    def field(self, positions: Tensor) -> Tensor:
        """Scalar in [0, 1] at world positions `[P, 3]`, `[P]`."""
        local = positions @ _tensor(self.rotation, positions) + _tensor(self.offset, positions)
        scaled = local * _tensor(self.frequency, positions)
        if self.kind == "noise":
            return fractal_noise(scaled, seed=0, octaves=4)
        if self.kind == "speckles":
            return fractal_noise(scaled * 2, seed=1, octaves=1) ** 3
        if self.kind == "checks":
            return torch.remainder(scaled.floor().sum(-1), 2.0)
        if self.kind == "cells":
            return _hash(scaled.floor())
        bend = self.warp * (fractal_noise(local * 3, seed=2, octaves=3) - 0.5)
        if self.kind == "wood":
            rings = scaled[:, :2].norm(dim=-1) + bend
            return torch.remainder(rings, 1.0)
        phase = scaled[:, 0] + bend
        if self.kind == "marble":
            return 0.5 + 0.5 * torch.sin(2 * math.pi * phase)
        return (torch.remainder(phase, 1.0) - 0.5).abs() * 2  # stripes

    def _colors(self, field: Tensor) -> Tensor:
        palette = _tensor(self.palette, field)
        count = palette.shape[0]
        if self.hard:
            return palette[(field * count).long().clamp(0, count - 1)]
        place = field.clamp(0, 1) * (count - 1)
        low = place.long().clamp(0, count - 2)
        return torch.lerp(palette[low], palette[low + 1], (place - low)[:, None])


@dataclass(frozen=True)
class ColorChange:
    """Per material a matrix on linear RGB: hue turned, saturation and brightness scaled.

    Attributes:
        matrices: `[8, 3, 3]`, repeating over the materials.
    """

    matrices: NDArray[np.float64]

    def apply(self, albedo: Tensor, materials: Tensor) -> Tensor:
        """New base colours, linear RGB `[P, 3]`; material numbers `[P]`."""
        matrices = _tensor(self.matrices, albedo)
        if self.is_uniform:
            return (albedo @ matrices[0].T).clamp(0, 1)
        return torch.einsum("pij,pj->pi", matrices[materials % len(matrices)], albedo).clamp(0, 1)

    @property
    def is_uniform(self) -> bool:
        """All materials change alike."""
        return bool((self.matrices == self.matrices[0]).all())


@dataclass(frozen=True)
class TextureAugmentation:
    """What one training variant does to the base colours: a colour change, a pattern, both or neither."""

    color_change: ColorChange | None = None
    pattern: Pattern | None = None

    def apply(self, albedo: Tensor, positions: Tensor, materials: Tensor) -> Tensor:
        """New base colours, linear RGB `[P, 3]`."""
        if self.color_change is not None:
            albedo = self.color_change.apply(albedo, materials)
        if self.pattern is not None:
            albedo = self.pattern.apply(albedo, positions, materials)
        return albedo

    @property
    def name(self) -> str:
        """Short description for metadata."""
        parts = ["color"] if self.color_change is not None else []
        if self.pattern is not None:
            parts.append(f"{self.pattern.mode}-{self.pattern.kind}")
        return "+".join(parts) or "none"


def random_augmentation(generator: np.random.Generator, *, realistic: bool) -> TextureAugmentation:
    """Draws an augmentation: 40 % of the variants (60 % of realistic objects) stay as they are.

    Realistic objects keep their textures recognisable: patterns never replace them and hues turn little.
    """
    if generator.random() < (0.6 if realistic else 0.4):
        return TextureAugmentation()
    with_pattern = generator.random() < (0.5 if realistic else 0.75)
    change = _random_color_change(generator, realistic) if not with_pattern or generator.random() < 0.4 else None
    pattern = _random_pattern(generator, realistic) if with_pattern else None
    return TextureAugmentation(change, pattern)


def _random_color_change(generator: np.random.Generator, realistic: bool) -> ColorChange:
    per_material = not realistic and generator.random() < 0.6
    matrices = [_color_matrix(generator, 25.0 if realistic else 180.0) for _ in range(8 if per_material else 1)]
    return ColorChange(np.stack(matrices if per_material else matrices * 8))


def _color_matrix(generator: np.random.Generator, max_hue_deg: float) -> NDArray[np.float64]:
    """Hue rotation about the grey axis (Rodrigues), then saturation about the luminance, then brightness."""
    angle = math.radians(generator.uniform(-max_hue_deg, max_hue_deg))
    k = 1 / math.sqrt(3)
    cross = np.array([[0, -k, k], [k, 0, -k], [-k, k, 0]])
    hue = np.eye(3) * math.cos(angle) + math.sin(angle) * cross + (1 - math.cos(angle)) / 3
    saturation = generator.uniform(0.4, 1.4)
    grey = np.tile(np.array(_LUMINANCE), (3, 1))
    saturate = grey + saturation * (np.eye(3) - grey)
    matrix: NDArray[np.float64] = generator.uniform(0.6, 1.35) * saturate @ hue
    return matrix


def _random_pattern(generator: np.random.Generator, realistic: bool) -> Pattern:
    kind = KINDS[generator.integers(len(KINDS))]
    mode = MODES[generator.choice(3, p=(0.0, 0.6, 0.4) if realistic else (0.4, 0.3, 0.3))]
    base = math.exp(generator.uniform(math.log(2.5), math.log(18.0)))
    stretch = np.exp(generator.normal(0, 0.4, 3)) if generator.random() < 0.5 else np.ones(3)
    count = int(generator.integers(2, 6))
    hard = kind in ("checks", "cells") or generator.random() < 0.4
    if mode == "modulate":
        depth = generator.uniform(0.15, 0.6)
        levels = 1 + depth * generator.uniform(-1, 0.6, (count, 1))
        palette = levels * np.exp(generator.normal(0, 0.08, (count, 3)))
    else:
        palette = _random_palette(generator, count)
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0] if generator.random() < 0.6 else np.eye(3)
    materials = generator.random(8) < 0.75
    materials[0] |= not materials.any()
    return Pattern(
        kind=kind,
        mode=mode,
        rotation=rotation,
        offset=generator.uniform(-3, 3, 3),
        frequency=base * stretch,
        warp=float(generator.uniform(0, 2.5)) if kind in ("wood", "marble", "stripes") else 0.0,
        palette=palette,
        hard=hard,
        coverage=float(generator.uniform(0.25, 0.6)),
        materials=materials if mode == "replace" else np.ones(8, np.bool_),
    )


def _random_palette(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Colours around one or two hues, drawn in HSV, as linear RGB `[count, 3]`."""
    hue = generator.random() + generator.normal(0, 0.06, count) + 0.5 * (generator.random(count) < 0.25)
    saturation = np.clip(generator.uniform(0, 0.85) + generator.normal(0, 0.15, count), 0, 1)
    value = np.clip(generator.uniform(0.3, 0.95) + generator.normal(0, 0.2, count), 0.08, 0.98)
    angle = (hue[:, None] * 6 + np.array([5.0, 3.0, 1.0])) % 6  # HSV to RGB, one channel a column
    rgb = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(angle, 4 - angle), 0, 1))
    palette: NDArray[np.float64] = srgb_to_linear(torch.from_numpy(rgb)).numpy()
    return palette


def fractal_noise(positions: Tensor, *, seed: int, octaves: int) -> Tensor:
    """Value noise summed over octaves at halving scales, spread about evenly over [0, 1]: `[P, 3]` -> `[P]`.

    Lattice values repeat (mirrored) every 48 cells.
    """
    volume = _volume(positions.device)[:, seed : seed + 1]
    total, power = torch.zeros_like(positions[:, 0]), 0.0
    for octave in range(octaves):
        place = positions * 2.0**octave + 11.7 * octave
        grid = (place * (2 / (_VOLUME_SIZE - 1)))[None, None, None]
        value = functional.grid_sample(volume, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
        total = total + value.flatten() * 0.5**octave
        power += 0.25**octave
    # Trilinear interpolation keeps about (2/3)^3 of the variance of the lattice values, on average.
    return 0.5 + 0.5 * torch.erf(total / math.sqrt(2 * power * (2 / 3) ** 3))


@functools.lru_cache(maxsize=4)
def _volume(device: torch.device) -> Tensor:
    """Standard normal lattice values, `[1, 4, D, D, D]`, always the same."""
    generator = torch.Generator().manual_seed(20250101)
    return torch.randn(1, 4, *(_VOLUME_SIZE,) * 3, generator=generator).to(device)


def _hash(cells: Tensor) -> Tensor:
    """A number in [0, 1) per integer cell `[P, 3]`."""
    mixed = cells.long() * torch.tensor([73856093, 19349663, 83492791], device=cells.device)
    value = (mixed[:, 0] ^ mixed[:, 1] ^ mixed[:, 2]) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    value = ((value ^ (value >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return ((value ^ (value >> 15)) & 0xFFFFFF).to(torch.float32) / 0x1000000


def _tensor(array: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device, torch.float32)
