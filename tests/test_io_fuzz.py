"""Readers and arbitrary bytes: only the errors of the library come out, and memory stays bounded."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maquette.cameras import Cameras
from maquette.errors import MaquetteError
from maquette.gaussians import Gaussians
from maquette.io import read_gaussians, read_image, read_mesh, read_views, write_gaussians, write_image, write_mesh
from maquette.mesh import Material, Mesh
from maquette.views import Views

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def write_seed(path: Path) -> None:
    """A small valid file of the kind that the suffix names."""
    g = torch.Generator().manual_seed(0)
    if path.name.startswith("gaussians"):
        quats = torch.nn.functional.normalize(torch.randn(3, 4, generator=g), dim=1)
        colors = torch.randn(3, 4, 3, generator=g)
        scales = torch.rand(3, 3, generator=g) + 0.01
        write_gaussians(path, Gaussians(torch.randn(3, 3, generator=g), quats, scales, torch.full((3,), 0.5), colors))
    elif path.suffix in (".png", ".jpg", ".webp"):
        write_image(path, torch.rand(3, 8, 8, generator=g))
    else:
        texture = torch.rand(4, 4, 4, generator=g)
        mesh = Mesh(
            torch.rand(4, 3, generator=g),
            torch.tensor([[0, 1, 2], [0, 2, 3]]),
            uvs=torch.rand(4, 2, generator=g),
            vertex_colors=torch.rand(4, 4, generator=g),
            materials=(Material(base_color_texture=texture),),
        )
        write_mesh(path, mesh)


KINDS: dict[str, Callable[[Path], object]] = {
    "gaussians.ply": read_gaussians,
    "gaussians.splat": read_gaussians,
    "mesh.glb": read_mesh,
    "mesh.obj": read_mesh,
    "mesh.stl": read_mesh,
    "mesh.ply": read_mesh,
    "a.png": read_image,
    "a.jpg": read_image,
    "a.webp": read_image,
}


@functools.cache
def seed_bytes(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_seed(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def read_bytes(name: str, data: bytes) -> None:
    """Reads `data` as a file of that name; everything but the library's errors gets through."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            KINDS[name](path)
        except MaquetteError as error:
            assert str(error)


@pytest.mark.parametrize("name", KINDS)
@QUICK
@given(data=st.data())
def test_damaged_files(name: str, data: st.DataObject) -> None:
    content = bytearray(seed_bytes(name))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, len(content) // 2, len(content) - 5]))
    read_bytes(name, bytes(content[: len(content) - cut]))


@pytest.mark.parametrize("name", KINDS)
@QUICK
@given(body=st.binary(max_size=200), keep=st.integers(0, 120))
def test_random_bytes_after_a_good_beginning(name: str, body: bytes, keep: int) -> None:
    read_bytes(name, seed_bytes(name)[:keep] + body)


WORDS = st.sampled_from(
    [b"ply\n", b"format ascii 1.0\n", b"format binary_little_endian 1.0\n", b"element vertex 2\n", b"element face 1\n"]
    + [b"element vertex 99999999999999999999\n", b"property float x\n", b"property list uchar int i\n", b"\n", b"\r\n"]
    + [
        b"property list double double scale_0\n",
        b"property uchar opacity\n",
        b"comment\n",
        b"end_header\n",
        b"1 2 3 4 ",
    ]
    + [f"property float {n}\n".encode() for n in ("y", "z", "scale_0", "rot_0", "f_dc_0", "opacity", "f_rest_0")]
)


@QUICK
@given(lines=st.lists(WORDS, max_size=14))
def test_random_ply_headers(lines: list[bytes]) -> None:
    for name in ("gaussians.ply", "mesh.ply"):
        read_bytes(name, b"ply\n" + b"".join(lines))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["index", "x", "source"]), inner),
    max_leaves=8,
)


@QUICK
@given(data=st.data())
def test_glb_with_random_json_values(data: st.DataObject) -> None:
    content = seed_bytes("mesh.glb")
    length = int.from_bytes(content[12:16], "little")
    document: Any = json.loads(content[20 : 20 + length])
    node = document
    while isinstance(node, dict | list) and len(node):
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or data.draw(st.integers(0, 4)) == 0:
            node[key] = data.draw(JSON)
            break
        node = node[key]
    text = json.dumps(document).encode()
    rest = content[20 + length :]
    head = content[:8] + (20 + len(text) + len(rest)).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    read_bytes("mesh.glb", head + content[16:20] + text + rest)


@QUICK
@given(data=st.data())
def test_transforms_with_random_json_values(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image(folder / "a.png", torch.rand(4, 4, 4))
        identity = [[float(i == j) for j in range(4)] for i in range(4)]
        frame: dict[str, Any] = {"file_path": "a.png", "transform_matrix": identity}
        content: dict[str, Any] = {"fl_x": 5.0, "w": 4, "h": 4, "k1": 0, "camera_model": "PINHOLE", "frames": [frame]}
        target = data.draw(st.sampled_from([content, frame]))
        target[data.draw(st.sampled_from(sorted([*target, "cx", "camera_angle_y"])))] = data.draw(JSON)
        (folder / "transforms.json").write_text(json.dumps(content))
        try:
            views = read_views(folder)
        except MaquetteError:
            return
        assert isinstance(views, Views) and isinstance(views.cameras, Cameras)
        assert bool(torch.isfinite(views.cameras.world_to_camera).all())


LIMITED = """
import resource, sys
from pathlib import Path
import maquette.io.gaussian_ply, maquette.io.splat, maquette.io.glb, maquette.io.obj, maquette.io.stl
import maquette.io.mesh_ply, maquette.io.images, maquette.io.transforms
from maquette.errors import MaquetteError
from maquette.io import asset_kind, read_gaussians, read_image, read_mesh
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    reader = {".png": read_image, ".webp": read_image, ".jpg": read_image, ".splat": read_gaussians}.get(path.suffix)
    for read in [reader] if reader else [read_gaussians, read_mesh] if path.suffix == ".ply" else [read_mesh]:
        try:
            read(path)
        except MaquetteError as error:
            print(path.name, type(error).__name__)
        else:
            print(path.name, "READ")
"""


def png_bomb(size: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 24), 9)) + chunk(b"IEND", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="needs address space limits as Linux has them")
def test_lying_files_need_little_memory(tmp_path: Path) -> None:
    ply = seed_bytes("gaussians.ply")
    mesh = seed_bytes("mesh.ply")
    ascii_mesh = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
    files = {
        "billion.ply": ply.replace(b"vertex 3", b"vertex 1000000000"),
        "faces.ply": mesh.replace(b"face 2", b"face 2000000000"),
        "list.ply": ascii_mesh + b"element face 9\nproperty list uint int i\nend_header\n0 0 0\n4000000000 1 2",
        "comments.ply": b"ply\n" + b"comment x\n" * 2_000_000,
        "many.glb": b"glTF"
        + b"".join(n.to_bytes(4, "little") for n in (2, 3_000_022, 3_000_002))
        + b"JSON["
        + b"[]," * 10**6
        + b"]",
        "json.glb": b"glTF" + (2).to_bytes(4, "little") + (0xFFFFFFFF).to_bytes(4, "little") * 2 + b"JSON" + bytes(100),
        "claims.stl": bytes(80) + (4_000_000_000).to_bytes(4, "little") + bytes(50),
        "bomb.png": png_bomb(50_000),
        "nine.png": png_bomb(9_000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert len(lines) == len(files) + 4, lines
    assert all(line.endswith(("FileFormatError", "UnsupportedError")) for line in lines), lines
