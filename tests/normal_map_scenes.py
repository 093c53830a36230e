"""Normal maps of meshes, for tests of what starts from them."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from torch.nn import functional

from maquette.cameras import Cameras
from maquette.raster.mesh import rasterize_mesh
from maquette.surface.normal_maps import NormalMaps


def maps_of(shape: trimesh.Trimesh, cameras: Cameras) -> NormalMaps:
    """Normals of the triangles, as the cameras see them."""
    fragments = rasterize_mesh(
        torch.tensor(np.asarray(shape.vertices)).float(), torch.tensor(np.asarray(shape.faces)).long(), cameras
    )
    normals = torch.tensor(np.asarray(shape.face_normals)).float()[fragments.triangle_id.clamp_min(0).long()]
    seen = fragments.triangle_id >= 0
    return NormalMaps(cameras, functional.normalize(normals, dim=-1) * seen[..., None], seen.float())
