"""What the rasterizer benchmark renders: scenes of fixed seeds, and Gaussians that `lgm-mini` makes of the examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians

FAINT_SHARE = 0.4
EXAMPLES = Path(__file__).parents[3] / "examples"
ASSETS = ("taxi", "cactus")
ASSET_MODEL = "lgm-mini"
ASSET_VIEWS, ASSET_SIZE, ASSET_ELEVATION_DEG = 8, 512, 20.0


@dataclass(frozen=True)
class BenchScene:
    """A batch to render.

    Attributes:
        name: key in the results.
        items, views, count: sets of Gaussians, views of each, Gaussians in each.
        image_size: height and width in pixels.
        scale: median standard deviation in world units; made objects have a radius of about 0.4.
    """

    name: str
    items: int
    views: int
    count: int
    image_size: int
    scale: float

    @property
    def title(self) -> str:
        """Name and sizes in words."""
        return f"{self.name} ({self.items}x{self.views} views, {self.count:,} Gaussians, {self.image_size} px)"


GPU_SCENES = (
    BenchScene("lgm_big", 8, 8, 65_536, 512, 0.008),
    BenchScene("gamba", 8, 8, 16_384, 512, 0.016),
    BenchScene("geolrm", 1, 4, 524_288, 512, 0.004),
    BenchScene("one", 1, 1, 65_536, 512, 0.008),
)
CPU_SCENES = (BenchScene("small", 1, 1, 16_384, 256, 0.016), BenchScene("one", 1, 1, 65_536, 512, 0.008))


def make_scene(scene: BenchScene, device: torch.device) -> tuple[Gaussians, Cameras]:
    """Gaussians on a bumpy closed surface, 40 % of them nearly transparent, and cameras around them; fixed seeds."""
    generator = torch.Generator().manual_seed(0)
    size = (scene.items, scene.count)
    directions = torch.nn.functional.normalize(torch.randn(*size, 3, generator=generator), dim=-1)
    radius = 0.35 + 0.15 * torch.sin(15 * directions[..., :1]) * torch.cos(4 * directions[..., 1:2])
    means = directions * radius + 0.01 * torch.randn(*size, 3, generator=generator)
    scales = scene.scale * torch.exp(0.5 * torch.randn(*size, 3, generator=generator))
    quats = torch.nn.functional.normalize(torch.randn(*size, 4, generator=generator), dim=-1)
    opacities = torch.sigmoid(2 * torch.randn(*size, generator=generator) + 1)
    faint = torch.rand(*size, generator=generator) < FAINT_SHARE
    opacities = torch.where(faint, torch.full_like(opacities, 0.002), opacities)
    colors = torch.rand(*size, 3, generator=generator)
    elevations = torch.rand(scene.items, scene.views, generator=torch.Generator().manual_seed(1)) * 60 - 30
    rigs = []
    for item in range(scene.items):
        azimuths = [360 * view / scene.views + math.degrees(0.3 * item) for view in range(scene.views)]
        side = scene.image_size
        rigs.append(Cameras.orbit(azimuths, elevations[item], radius=1.5, fov_deg=49.1, height=side, width=side))
    gaussians = Gaussians(means, quats, scales, opacities, colors)
    return gaussians.map(lambda value: value.contiguous().to(device)), Cameras.stack(rigs).to(device)


def asset_scene(name: str, device: torch.device, folder: Path = EXAMPLES) -> tuple[BenchScene, Gaussians, Cameras]:
    """What `lgm-mini` makes of the four views in `folder/name`, as it is written to files, and eight cameras around it.

    Raises:
        WeightsError: the weights are not on this machine or do not fit.
        ImportError: a package is missing.
        OSError: the views are not there.
    """
    from maquette.io import read_views
    from maquette.io.gaussian_ply import LGM_MIN_OPACITY
    from maquette.registry import load

    made = load(ASSET_MODEL, device)(read_views(folder / name))
    gaussians = made.select(made.opacities >= LGM_MIN_OPACITY).map(lambda value: value[None].contiguous())
    scale = float(gaussians.scales.median())
    scene = BenchScene(f"{name} ({ASSET_MODEL})", 1, ASSET_VIEWS, gaussians.num_gaussians, ASSET_SIZE, scale)
    azimuths = [360 * view / ASSET_VIEWS for view in range(ASSET_VIEWS)]
    cameras = Cameras.orbit(azimuths, ASSET_ELEVATION_DEG, height=ASSET_SIZE, width=ASSET_SIZE)
    return scene, gaussians, Cameras.stack([cameras]).to(device)
