"""What is rendered of an object: cameras, light, scale and textures of its variants."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maquette.data.layout import Role
from maquette.data.lighting import LIGHTINGS, Light, Lighting, make_light
from maquette.data.patterns import TextureAugmentation, random_augmentation
from maquette.data.reshape import Reshape, random_reshape
from maquette.errors import InvalidInputError

Plan = Literal["standard", "training", "sides", "custom"]
PLANS: tuple[Plan, ...] = ("standard", "training", "sides", "custom")
BOUNDING_RADIUS = 0.6
"""Radius of the sphere (about the centre of the bounding box) that holds the object: seen whole from radius 1.5."""

_INPUT_AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
_NOVEL_ELEVATIONS = (-10.0, 0.0, 10.0, 20.0, 30.0, 20.0, 10.0, 0.0)
_TRAINING_RADII = (0.5, 0.62)
_SIDES_RADII = (0.45, 0.62)
_NUM_VARIANTS = {"training": 3, "sides": 8}
_NUM_TRAINING_TARGETS = 12
_RESHAPE_STREAM, _ALIGN_STREAM = 1, 2  # keep these draws apart, so that all else looks the same with and without them


@dataclass(frozen=True)
class RenderOptions:
    """How objects are rendered.

    Attributes:
        plan: "standard" is the evaluation protocol orbit4-novel8, "training" random views and looks per variant,
            "sides" four views from around the object per variant, half of them with the true front first, "custom"
            every azimuth at every elevation.
        image_size: pictures are square, in pixels.
        lighting: None takes the plan's own: random for "training" and "sides" (variant 0 of which is in the studio),
            else studio.
        variants: None takes the plan's own: 3 for "training", 8 for "sides", else 1.
        azimuths_deg, elevations_deg: for "custom" only.
        radius: distance of the cameras from the origin, > 0.7 so that they stay outside of the object.
        fov_deg: field of view in degrees, in (0, 180).
        supersample: samples per pixel and axis, 1..4.
        geometry: also write depth and normals.
        augment_textures: random solid textures and colours; None: for "training" only.
        reshape_probability: share of the variants beyond 0 of "sides" and "training" whose object is turned and
            reshaped, 0..1; with a larger share the same variants change, and more.
        aligned_probability: share of the variants of "sides" and "training" that have the size and the input cameras of
            the evaluation protocol (the first looks at the object's front, all from its height), 0..1.
        seed: of everything random; results depend on it and the object's id alone.

    Raises:
        InvalidInputError: a value out of range, azimuths without the plan "custom", or reshaping for evaluation.
    """

    plan: Plan = "standard"
    image_size: int = 256
    lighting: Lighting | None = None
    variants: int | None = None
    azimuths_deg: tuple[float, ...] | None = None
    elevations_deg: tuple[float, ...] | None = None
    radius: float = 1.5
    fov_deg: float = 49.1
    supersample: int = 2
    geometry: bool = True
    augment_textures: bool | None = None
    reshape_probability: float = 0.0
    aligned_probability: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = [
            (self.plan in PLANS, f"plan must be one of {', '.join(PLANS)}, got {self.plan!r}"),
            (8 <= self.image_size <= 4096, f"image_size must lie in 8..4096 pixels, got {self.image_size}"),
            (
                self.lighting is None or self.lighting in LIGHTINGS,
                f"lighting must be one of {', '.join(LIGHTINGS)}, got {self.lighting!r}",
            ),
            (self.variants is None or 1 <= self.variants <= 1000, f"variants must lie in 1..1000, got {self.variants}"),
            (0.7 < self.radius <= 100, f"radius must lie in (0.7, 100], got {self.radius}"),
            (0 < self.fov_deg < 180, f"fov_deg must lie in (0, 180) degrees, got {self.fov_deg}"),
            (1 <= self.supersample <= 4, f"supersample must lie in 1..4, got {self.supersample}"),
            (self.seed >= 0, f"seed must be >= 0, got {self.seed}"),
            *self._share_checks("reshape_probability", self.reshape_probability),
            *self._share_checks("aligned_probability", self.aligned_probability),
            (
                all(-90 <= e <= 90 for e in self.elevations_deg or ()),
                f"elevations must lie in [-90, 90] degrees, got {self.elevations_deg}",
            ),
        ]
        for good, message in checks:
            if not good:
                raise InvalidInputError(message)
        given = self.azimuths_deg is not None or self.elevations_deg is not None
        if given and self.plan != "custom":
            raise InvalidInputError(f"azimuths and elevations need plan 'custom', the plan is {self.plan!r}")

    def _share_checks(self, name: str, share: float) -> tuple[tuple[bool, str], ...]:
        """What must hold for a share of the random variants, and what to say otherwise."""
        random = self.plan in ("sides", "training")
        return (
            (0 <= share <= 1, f"{name} must lie in 0..1, got {share}"),
            (not share or random, f"{name} needs plan 'sides' or 'training', the plan is {self.plan!r}"),
        )

    @property
    def resolved_lighting(self) -> Lighting:
        """The light that is used."""
        return self.lighting or ("random" if self.plan in ("training", "sides") else "studio")

    @property
    def num_variants(self) -> int:
        """The number of variants that is rendered."""
        return self.variants or _NUM_VARIANTS.get(self.plan, 1)

    @property
    def augments_textures(self) -> bool:
        """Whether textures are varied."""
        return self.plan == "training" if self.augment_textures is None else self.augment_textures

    def settings(self) -> dict[str, Any]:
        """What `dataset.json` says; two renderings with equal settings may share a folder."""
        settings: dict[str, Any] = {
            "image_size": self.image_size,
            "fov_deg": self.fov_deg,
            "radius": self.radius,
            "plan": self.plan,
            "lighting": self.resolved_lighting,
            "variants": self.num_variants,
            "supersample": self.supersample,
            "geometry": self.geometry,
            "augment_textures": self.augments_textures,
            "seed": self.seed,
        }
        if self.reshape_probability:
            settings["reshape_probability"] = self.reshape_probability
        if self.aligned_probability:
            settings["aligned_probability"] = self.aligned_probability
        if self.plan == "custom":
            settings["azimuths_deg"] = list(self.azimuths_deg or _INPUT_AZIMUTHS)
            settings["elevations_deg"] = list(self.elevations_deg or (0.0,))
        return settings


@dataclass(frozen=True)
class Frame:
    """One picture to take: azimuth and elevation in degrees, and what it is for."""

    azimuth_deg: float
    elevation_deg: float
    role: Role


_INPUT_FRAMES = tuple(Frame(azimuth, 0.0, "input") for azimuth in _INPUT_AZIMUTHS)


@dataclass(frozen=True)
class Variant:
    """One look of an object.

    Attributes:
        bounding_radius: radius of the sphere that the object is scaled to.
        light: fixed in the world.
        augmentation: of the textures.
        frames: pictures to take.
        reshape: how the object is turned and reshaped; None leaves it as it is.
    """

    bounding_radius: float
    light: Light
    augmentation: TextureAugmentation
    frames: tuple[Frame, ...]
    reshape: Reshape | None = None

    def settings(self) -> dict[str, object]:
        """What `transforms.json` says of it."""
        changed = {} if self.reshape is None else {"reshape": self.reshape.settings()}
        return {"bounding_radius": self.bounding_radius, "textures": self.augmentation.name, **changed}


def plan_variant(options: RenderOptions, object_id: str, realistic: bool, number: int) -> Variant:
    """The look and the cameras of variant `number`, from the seed and the object's id alone."""
    digest = int.from_bytes(hashlib.sha256(object_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng([options.seed, digest, number])
    frames = _sides(number, generator) if options.plan == "sides" else _frames(options, generator)
    alignment = np.random.default_rng([options.seed, digest, number, _ALIGN_STREAM])
    aligned = alignment.random() < options.aligned_probability
    if aligned:
        frames = (*_INPUT_FRAMES, *frames[len(_INPUT_FRAMES) :])
    plain = options.plan in ("standard", "custom") or (options.plan == "sides" and number == 0)
    radii = _SIDES_RADII if options.plan == "sides" else _TRAINING_RADII
    drawn_radius = BOUNDING_RADIUS if plain else float(generator.uniform(*radii))
    radius = BOUNDING_RADIUS if aligned else drawn_radius
    studio = options.plan == "sides" and number == 0 and options.lighting is None
    light = make_light("studio" if studio else options.resolved_lighting, generator)
    augmentation = TextureAugmentation()
    if options.augments_textures:
        augmentation = random_augmentation(generator, realistic=realistic)
    reshape = None
    if options.reshape_probability and number > 0:
        shapes = np.random.default_rng([options.seed, digest, number, _RESHAPE_STREAM])
        reshape = random_reshape(shapes) if shapes.random() < options.reshape_probability else None
        if reshape is not None and aligned:
            reshape = dataclasses.replace(reshape, turn_deg=0.0)
    return Variant(radius, light, augmentation, frames, reshape)


def _sides(number: int, generator: np.random.Generator) -> tuple[Frame, ...]:
    """Variants of even number start at the true front; variant 0 looks at it from the level of the standard plan."""
    offset, chance, level = float(generator.uniform(0, 360)), generator.random(), float(generator.uniform(-10, 30))
    offset = 0.0 if number % 2 == 0 else offset
    level = 0.0 if number == 0 or chance < 0.6 else level
    return tuple(Frame((offset + azimuth) % 360, level, "input") for azimuth in _INPUT_AZIMUTHS)


def _frames(options: RenderOptions, generator: np.random.Generator) -> tuple[Frame, ...]:
    if options.plan == "standard":
        novel = [Frame(22.5 + 45.0 * k, elevation, "target") for k, elevation in enumerate(_NOVEL_ELEVATIONS)]
        return (*_INPUT_FRAMES, *novel)
    if options.plan == "custom":
        azimuths, elevations = options.azimuths_deg or _INPUT_AZIMUTHS, options.elevations_deg or (0.0,)
        return tuple(Frame(azimuth, elevation, "input") for elevation in elevations for azimuth in azimuths)
    offset = float(generator.uniform(0, 360))
    level = 0.0 if generator.random() < 0.6 else float(generator.uniform(-10, 30))
    inputs = [Frame((offset + azimuth) % 360, level, "input") for azimuth in _INPUT_AZIMUTHS]
    places = zip(
        generator.uniform(0, 360, _NUM_TRAINING_TARGETS),
        generator.triangular(-30, 5, 60, _NUM_TRAINING_TARGETS),
        strict=True,
    )
    targets = [Frame(float(azimuth), float(elevation), "target") for azimuth, elevation in places]
    return (*inputs, *targets)
