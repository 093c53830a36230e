"""Small assets and posed pictures for the tests of pipelines and command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.views import Views


def ball_of_gaussians(count: int = 300, radius: float = 0.45, scale: float = 0.05) -> Gaussians:
    """Opaque blobs on a sphere: red in front (+Z), green on top, blue elsewhere; one blob is invisible."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    y = 1 - 2 * index / count
    angle = index * 2.399963229728653
    ring = (1 - y * y).sqrt()
    normals = torch.stack([ring * angle.sin(), y, ring * angle.cos()], dim=-1).float()
    colors = torch.tensor([0.1, 0.2, 0.9]).repeat(count, 1)
    colors[normals[:, 2] > 0.4] = torch.tensor([0.9, 0.1, 0.1])
    colors[normals[:, 1] > 0.8] = torch.tensor([0.1, 0.8, 0.1])
    opacities = torch.full((count,), 0.95)
    opacities[0] = 0.001
    return Gaussians(
        normals * radius,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        torch.full((count, 3), scale),
        opacities,
        colors,
    )


def ball_views(image_size: int = 64, azimuths: tuple[float, ...] = (0, 90, 180, 270)) -> Views:
    """Pictures of a shaded sphere on a transparent background."""
    cameras = Cameras.orbit(azimuths, 0.0, height=image_size, width=image_size)
    origins, directions = cameras.rays()
    miss = torch.linalg.cross(origins, directions).norm(dim=-1)
    alpha = ((0.5 - miss) * image_size / 2 + 0.5).clamp(0, 1)
    shade = (1 - miss).clamp(0, 1)
    color = torch.stack([shade, 0.6 * shade, 0.2 * shade], dim=1)
    return Views(torch.cat([color, alpha[:, None]], dim=1), cameras)


def write_views_folder(folder: Path, views: Views, mode: str = "RGBA") -> dict[str, object]:
    """A nerfstudio folder, written here independently of the library's writer; returns the JSON content."""
    (folder / "rgb").mkdir(parents=True)
    frames = []
    poses = torch.linalg.inv(views.cameras.world_to_camera.double()) * torch.tensor([1.0, -1.0, -1.0, 1.0])
    for index, (image, pose) in enumerate(zip(views.images, poses, strict=True)):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / "rgb" / f"{index:03d}.png")
        frames.append({"file_path": f"rgb/{index:03d}.png", "transform_matrix": pose.tolist()})
    focal = float(views.cameras.intrinsics[0, 0, 0])
    width, height = views.cameras.width, views.cameras.height
    content: dict[str, object] = {
        "w": width, "h": height, "fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "frames": frames
    }  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(content))
    return content
