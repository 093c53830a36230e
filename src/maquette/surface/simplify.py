"""Fewer triangles for a mesh that is given, and its sheets separated."""

from __future__ import annotations

import numpy as np
import torch

from maquette.errors import UnsupportedError
from maquette.mesh import Mesh
from maquette.surface.decimate import decimate
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import separate_sheets


def simplified(mesh: Mesh, num_faces: int | None) -> Mesh:
    """The shape with at most about a number of triangles; vertices at one position become one.

    Args:
        mesh: without textures; vertex colours are taken from the nearest old vertex.
        num_faces: at least 16, or None to keep the number: then only touching sheets are separated.

    Raises:
        UnsupportedError: the mesh has textures, which would not fit any more.
        InvalidInputError: the number is too small.
    """
    from scipy import spatial

    if mesh.uvs is not None and any(m.base_color_texture is not None for m in mesh.materials):
        raise UnsupportedError(
            "a mesh with textures cannot be simplified or closed, because its textures would not fit any more: convert "
            "it to .ply or .stl first, which drops them"
        )
    old = mesh.vertices.detach().double().cpu().numpy()
    points, index = np.unique(old, axis=0, return_inverse=True)
    points, faces = separate_sheets(points, index.reshape(-1)[mesh.faces.cpu().numpy()])
    if num_faces is not None:
        points, faces = decimate(points, faces, num_faces)
    colors = None
    if mesh.vertex_colors is not None:
        colors = mesh.vertex_colors.cpu()[torch.from_numpy(spatial.cKDTree(old).query(points)[1])]
    return Mesh(
        torch.from_numpy(points).float(),
        torch.from_numpy(faces),
        normals=torch.from_numpy(smooth_normals(points, faces)),
        vertex_colors=colors,
        materials=mesh.materials[:1],
    )
