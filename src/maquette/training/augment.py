"""Augmentation of training views, batched on the device, drawn from one `torch.Generator`.

Mirroring changes the whole object: pictures, cameras and depths. Colours change alike in all views of an object, inputs
and targets, so that the task stays well posed. The damage (alpha edges, softness, noise) touches input views only: the
network learns to answer with the clean object.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras
from maquette.training.config import AugmentConfig
from maquette.views import Views

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in grey (Rec. 709)."""


def augment(inputs: Views, targets: Views, config: AugmentConfig, generator: torch.Generator) -> tuple[Views, Views]:
    """Returns changed copies of `inputs` and `targets`, both `[B, V]`."""
    if config.mirror_probability > 0:
        drawn = torch.rand(inputs.images.shape[0], generator=generator, device=inputs.images.device)
        chosen = drawn < config.mirror_probability
        inputs, targets = mirror(inputs, chosen), mirror(targets, chosen)
    input_images, target_images = inputs.images, targets.images
    if config.color_probability > 0:
        batch = input_images.shape[0]
        matrix, offset, exponent = color_transforms(batch, config, generator, input_images.device)
        input_images = apply_color(input_images, matrix, offset, exponent)
        target_images = apply_color(target_images, matrix, offset, exponent)
    if config.edge_probability > 0 or config.blur_probability > 0 or config.noise > 0:
        input_images = damage(input_images, config, generator)
    return Views(input_images, inputs.cameras, inputs.depths), Views(target_images, targets.cameras, targets.depths)


def mirror(views: Views, chosen: Tensor) -> Views:
    """Views `[B, V]` of the mirror image, at the plane x = 0, of those objects that are `chosen` `[B]`."""
    cameras, mirrored = views.cameras, views.cameras.mirrored()
    matrices = torch.where(chosen[:, None, None, None], mirrored.world_to_camera, cameras.world_to_camera)
    intrinsics = torch.where(chosen[:, None, None, None], mirrored.intrinsics, cameras.intrinsics)
    images = torch.where(chosen[:, None, None, None, None], views.images.flip(-1), views.images)
    depths = views.depths
    if depths is not None:
        depths = torch.where(chosen[:, None, None, None], depths.flip(-1), depths)
    return Views(images, Cameras(matrices, intrinsics, cameras.height, cameras.width), depths)


def color_transforms(
    batch: int, config: AugmentConfig, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Random colour changes: matrices `[B, 3, 3]`, offsets `[B, 3]` and exponents `[B]`; unchanged objects get the
    identity."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, device=device)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)

    identity = torch.eye(3, device=device).expand(batch, 3, 3)
    luma = _constants(device)[0]
    saturation = torch.exp(normal() * config.saturation)
    saturation = torch.where(uniform() < config.grey_probability, 0.0, saturation)[:, None, None]
    hue = hue_rotation((uniform() * 2 - 1) * math.radians(config.hue_deg))
    gain = torch.exp(normal(3) * config.gain)
    contrast = torch.exp(normal() * config.contrast)[:, None]
    exponent = torch.exp(normal() * config.gamma)
    matrix = (saturation * identity + (1 - saturation) * luma) @ hue
    matrix = contrast[..., None] * gain[..., None] * matrix
    offset = 0.5 * (1 - contrast).expand(batch, 3)
    changed = uniform() < config.color_probability
    return (
        torch.where(changed[:, None, None], matrix, identity),
        torch.where(changed[:, None], offset, 0.0),
        torch.where(changed, exponent, 1.0),
    )


def hue_rotation(angles: Tensor) -> Tensor:
    """Rotations of RGB space about the grey axis by `angles` `[B]` in radians, `[B, 3, 3]` (Rodrigues' formula)."""
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    _, cross, identity = _constants(angles.device)
    return cos * identity + sin * cross + (1 - cos) / 3


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Luma rows `[3, 3]`, cross product with the grey axis `[3, 3]` and identity; kept, since a copy from the host
    would make it wait for the device in every step."""
    third = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -third, third], [third, 0.0, -third], [-third, third, 0.0]], device=device)
    return torch.tensor(LUMA, device=device).expand(3, 3), cross, torch.eye(3, device=device)


def apply_color(images: Tensor, matrix: Tensor, offset: Tensor, exponent: Tensor) -> Tensor:
    """Applies one colour change per object to RGBA `[B, V, 4, H, W]`; alpha stays, colours are clamped to 0..1."""
    color = torch.einsum("bij,bvjhw->bvihw", matrix, images[:, :, :3]) + offset[:, None, :, None, None]
    color = color.clamp(1e-6, 1.0) ** exponent[:, None, None, None, None]
    return torch.cat([color, images[:, :, 3:]], dim=2)


def damage(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Input-only damage of RGBA `[B, V, 4, H, W]`, drawn per view: alpha edge, softness, pixel noise."""
    flat = images.flatten(0, 1)  # [B*V, 4, H, W]
    count, device = flat.shape[0], images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    halo = uniform(3, 1, 1)
    kind = uniform(1, 1, 1) / max(config.edge_probability, 1e-9)  # below 1: damaged; thirds choose how
    flat = alter_edges(flat, kind, halo)
    softness = torch.where(uniform(1, 1, 1) < config.blur_probability, uniform(1, 1, 1), 0.0)
    flat = soften(flat, softness)
    if config.noise > 0:
        sigma = uniform(1, 1, 1) * config.noise
        noise = torch.randn(count, 3, *flat.shape[-2:], generator=generator, device=device)
        flat = torch.cat([(flat[:, :3] + sigma * noise).clamp(0, 1), flat[:, 3:]], dim=1)
    return flat.reshape(images.shape)


def alter_edges(images: Tensor, kind: Tensor, halo: Tensor) -> Tensor:
    """Alters alpha edges of `[N, 4, H, W]` as background removal does.

    `kind` `[N, 1, 1, 1]`: below 1/3 alpha is blurred, below 2/3 grown by a pixel, below 1 shrunk by one, else left.
    Pixels that become more opaque show the `halo` colour `[N, 3, 1, 1]`, as remains of a background would.
    """
    color, alpha = images[:, :3], images[:, 3:]
    blurred = F.avg_pool2d(alpha, 3, 1, 1, count_include_pad=False)
    grown = F.max_pool2d(alpha, 3, 1, 1)
    shrunk = -F.max_pool2d(-alpha, 3, 1, 1)
    changed = torch.where(kind < 1 / 3, blurred, torch.where(kind < 2 / 3, grown, shrunk))
    changed = torch.where(kind < 1, changed, alpha)
    kept = torch.where(changed > alpha, alpha / changed.clamp_min(1e-6), 1.0)  # share of the object's own colour
    return torch.cat([color * kept + halo * (1 - kept), changed], dim=1)


def soften(images: Tensor, amount: Tensor) -> Tensor:
    """Blends `[N, 4, H, W]` with a 5-pixel tent blur of itself by `amount` `[N, 1, 1, 1]` in 0..1; colours are
    blurred premultiplied, so that nothing bleeds in from transparent pixels."""
    alpha = images[:, 3:]
    stacked = torch.cat([images[:, :3] * alpha, alpha], dim=1)
    blurred = F.avg_pool2d(F.avg_pool2d(stacked, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    mixed = torch.lerp(stacked, blurred, amount.expand_as(stacked))
    color = torch.where(mixed[:, 3:] > 1e-3, mixed[:, :3] / mixed[:, 3:].clamp_min(1e-3), images[:, :3])
    softened = torch.cat([color.clamp(0, 1), mixed[:, 3:]], dim=1)
    return torch.where(amount > 0, softened, images)
