"""A rough ball as mesh and as Gaussians, to edit."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import trimesh
from scipy import spatial

from maquette.gaussians import Gaussians
from maquette.mesh import Material, Mesh
from maquette.surface.bake import chart_texels, dilate
from maquette.surface.fusion import smooth_normals
from maquette.surface.unwrap import unwrap

RADIUS = 0.5


def rough_ball(noise: float = 0.012, subdivisions: int = 4) -> trimesh.Trimesh:
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=RADIUS)
    factors = 1 + noise * np.random.default_rng(0).standard_normal(len(shape.vertices))
    return trimesh.Trimesh(shape.vertices * factors[:, None], shape.faces, process=False)


def textured(shape: trimesh.Trimesh, size: int = 128) -> Mesh:
    """Cut along seams, with a texture that is red on the right half of the object and blue on the left."""
    points, faces = np.asarray(shape.vertices), np.asarray(shape.faces, np.int64)
    cut = unwrap(points, faces, size)
    normals = torch.from_numpy(smooth_normals(points, faces)[cut.origins])
    colors = torch.tensor([[0.9, 0.1, 0.1, 1.0], [0.1, 0.1, 0.9, 1.0]])
    plain = Mesh(
        torch.from_numpy(points[cut.origins]).float(),
        torch.from_numpy(cut.faces),
        normals,
        torch.from_numpy(cut.uvs),
        materials=(Material(base_color_texture=torch.ones(size, size, 4)),),
    )
    painted = Mesh(
        torch.from_numpy(points).float(),
        torch.from_numpy(faces),
        vertex_colors=colors[(torch.from_numpy(points[:, 0]) > 0).long()],
    )
    return with_texture(plain, painted, size)


def with_texture(mesh: Mesh, colored: Mesh, size: int) -> Mesh:
    assert mesh.normals is not None and mesh.uvs is not None and colored.vertex_colors is not None
    charts = chart_texels(mesh.vertices, mesh.normals, mesh.uvs, mesh.faces, size)
    nearest = spatial.cKDTree(colored.vertices.numpy()).query(charts.points)[1]
    texture = np.ones((size, size, 4), np.float32)
    texture[charts.covered] = colored.vertex_colors.numpy()[nearest]
    material = Material(base_color_texture=torch.from_numpy(dilate(texture, charts.covered)))
    return dataclasses.replace(mesh, materials=(material,))


def shell(radius: float, count: int = 30_000) -> Gaussians:
    """Gaussians on a sphere."""
    index = torch.arange(count, dtype=torch.float64)
    height, turn = 1 - 2 * (index + 0.5) / count, index * (np.pi * (3 - 5**0.5))
    ring = (1 - height**2).sqrt()
    means = radius * torch.stack([ring * turn.cos(), height, ring * turn.sin()], dim=1).float()
    return Gaussians(
        means,
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count, 3), 0.012),
        torch.full((count,), 0.9),
        0.1 + 0.8 * (means > 0).float(),  # another colour in every octant
    )
