"""Binary glTF 2.0: the public functions of the format. Parsing and building need numpy and Pillow only."""

from __future__ import annotations

from pathlib import Path

from maquette.io.atomic import atomic_write_bytes
from maquette.io.glb_build import build_glb
from maquette.io.glb_scene import read_scene
from maquette.io.regular import read_limited
from maquette.mesh import Mesh

_MAX_FILE_BYTES = 1 << 30


def read_file(path: str | Path) -> Mesh:
    """Reads a `.glb` of at most 1 GiB; see `read_glb_bytes`."""
    return read_glb_bytes(read_limited(path, "a .glb file", _MAX_FILE_BYTES), str(path))


def read_glb_bytes(data: bytes, name: str = "mesh.glb") -> Mesh:
    """Reads the default scene as one mesh: triangles, normals, uv, colours, one material per glTF material.

    Node transforms are applied. A primitive without normals is flat-shaded: when no primitive has normals the
    mesh has none, otherwise its faces get vertices of their own with face normals. Colours become sRGB-encoded.
    Skins (rest pose is taken), animations, morph targets, cameras and lights are left out; of a material the base
    colour stays, and metallic and roughness where no texture governs them (else 0 and 1).

    Args:
        data: the whole file.
        name: stands in error messages.

    Raises:
        FileFormatError: not a GLB, truncated, or ranges, counts, sizes or values that cannot be.
        UnsupportedError: Draco or meshopt compression, KTX2 textures, sparse accessors, external files.
    """
    return read_scene(data, name)


def write_file(path: str | Path, mesh: Mesh) -> None:
    """Writes a `.glb`, atomically: one primitive per material, colours linear as glTF wants them.

    Raises:
        InvalidInputError: no faces, or non-finite values.
    """
    atomic_write_bytes(path, build_glb(mesh))
