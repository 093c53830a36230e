"""Colours of one mesh on another of nearly the same shape: what an edit of the shape keeps of the look."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy import spatial

from maquette.mesh import Material, Mesh
from maquette.surface.bake import Charts, chart_texels, dilate
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import Doubles, Faces
from maquette.surface.triangles import Floats
from maquette.surface.unwrap import unwrap

_NEAREST = 4
"""Texels that are mixed, by the inverse of their distance."""


def recolored(points: Doubles, faces: Faces, like: Mesh) -> Mesh:
    """A mesh with the colours that another one has at the nearest points: a new texture, or vertex colours.

    Args:
        points: vertices `[N, 3]`, without seams.
        faces: `[M, 3]`.
        like: the coloured mesh, in the same place; of several textures the first one counts, which must be square.

    Returns:
        On the CPU, with a texture of the size of the old one and new texture coordinates, or with vertex colours, or
        with the plain material where the other mesh has neither.
    """
    like = like.to("cpu")
    material = like.materials[0]
    texture = material.base_color_texture
    if texture is None or like.uvs is None:
        return _with_vertex_colors(points, faces, like)
    size = int(texture.shape[0])
    old = chart_texels(like.vertices, _normals(like), like.uvs, like.faces, size)
    unwrapped = unwrap(points, faces, size)
    normals = torch.from_numpy(smooth_normals(points, faces)[unwrapped.origins])
    vertices = torch.from_numpy(points[unwrapped.origins]).float()
    cut, uvs = torch.from_numpy(unwrapped.faces), torch.from_numpy(unwrapped.uvs)
    new = chart_texels(vertices, normals, uvs, cut, size)
    colors = np.ones((size, size, 4), np.float32)
    colors[new.covered] = _mixed(old, texture.float().numpy()[old.covered], new)
    baked = torch.from_numpy(dilate(colors, new.covered))
    return Mesh(vertices, cut, normals, uvs, materials=(dataclasses.replace(material, base_color_texture=baked),))


def _mixed(old: Charts, colors: Floats, new: Charts) -> Floats:
    """RGBA `[P, 4]` at new texels of old ones that lie near and face the same way."""
    # Normals in the distance keep the two sides of thin parts apart.
    reach = 0.02 * float(np.ptp(old.points, axis=0).max())
    tree = spatial.cKDTree(np.concatenate([old.points, reach * old.normals], axis=1))
    count = min(_NEAREST, len(old.points))
    distance, index = tree.query(np.concatenate([new.points, reach * new.normals], axis=1), k=count)
    weights = 1 / np.maximum(distance.reshape(-1, count), 1e-9)
    weights /= weights.sum(axis=1, keepdims=True)
    mixed: Floats = np.einsum("pk,pkc->pc", weights, colors[index.reshape(-1, count)]).astype(np.float32)
    return mixed


def _normals(mesh: Mesh) -> torch.Tensor:
    if mesh.normals is not None:
        return mesh.normals
    return torch.from_numpy(smooth_normals(mesh.vertices.double().numpy(), mesh.faces.numpy()))


def _with_vertex_colors(points: Doubles, faces: Faces, like: Mesh) -> Mesh:
    normals = torch.from_numpy(smooth_normals(points, faces))
    colors = None
    if like.vertex_colors is not None:
        nearest = spatial.cKDTree(like.vertices.double().numpy()).query(points)[1]
        colors = like.vertex_colors[torch.from_numpy(nearest)]
    material = dataclasses.replace(like.materials[0], base_color_texture=None)
    return Mesh(
        torch.from_numpy(points).float(),
        torch.from_numpy(faces),
        normals=normals,
        vertex_colors=colors,
        materials=(material if like.materials else Material(),),
    )
