"""GLB: against trimesh in both directions, files built by hand from the specification, malformed files."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.errors import FileFormatError, InvalidInputError, MaquetteError, UnsupportedError
from maquette.io import asset_kind, read_mesh, read_mesh_bytes, write_mesh
from maquette.mesh import Material, Mesh

POSITIONS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
INDICES = np.array([0, 1, 2, 0, 2, 3], "<u2")
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}


class Builder:
    """A GLB written by hand: one quad in the plane z = 0 that looks to +z."""

    def __init__(self) -> None:
        self.binary = b""
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "accessors": [],
            "bufferViews": [],
        }
        attributes = {"POSITION": self.accessor(POSITIONS)}
        self.primitive: dict[str, Any] = {"attributes": attributes, "indices": self.accessor(INDICES)}
        self.json["meshes"] = [{"primitives": [self.primitive]}]

    def view(self, data: bytes, **extra: Any) -> int:
        self.binary += bytes(-len(self.binary) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **extra})
        self.binary += data
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, **extra: Any) -> int:
        kind = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}"
        entry = {"bufferView": self.view(values.tobytes()), "count": len(values), "type": kind}
        self.json["accessors"].append(entry | {"componentType": COMPONENTS[values.dtype.str[1:]]} | extra)
        return len(self.json["accessors"]) - 1

    def texture(self, pixels: np.ndarray) -> int:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        self.json.setdefault("images", []).append({"bufferView": self.view(stream.getvalue()), "mimeType": "image/png"})
        self.json.setdefault("textures", []).append({"source": len(self.json["images"]) - 1})
        return len(self.json["textures"]) - 1

    def material(self, **entry: Any) -> None:
        self.json["materials"] = [entry]
        self.primitive["material"] = 0

    def build(self) -> bytes:
        text = json.dumps(self.json | {"buffers": [{"byteLength": len(self.binary)}]}).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + bytes(-len(self.binary) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
        return (
            head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        )


def test_quad_without_normals_is_flat() -> None:
    mesh = read_mesh_bytes(Builder().build())
    np.testing.assert_array_equal(mesh.vertices.numpy(), POSITIONS)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.normals is None and mesh.uvs is None and mesh.vertex_colors is None
    assert mesh.materials == (Material(),)


def test_node_transforms_compose() -> None:
    b = Builder()
    half = 0.5**0.5
    b.json["scenes"] = [{"nodes": [1]}]
    b.json["nodes"] = [
        {"mesh": 0, "rotation": [0, half, 0, half], "scale": [2, 3, 4], "translation": [10, 0, 0]},
        {"children": [0], "matrix": [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]},
    ]
    got = read_mesh_bytes(b.build()).vertices.numpy()
    # by hand for (1, 1, 0): scale (2, 3, 0); 90 degrees about y: (0, 3, -2); + (10, 0, 0);
    # the parent turns 90 degrees about z: (-3, 10, -2); + (5, 6, 7)
    np.testing.assert_allclose(got[2], [2, 16, 5], atol=1e-5)


def test_mirrored_node_keeps_outward_faces_and_normals() -> None:
    b = Builder()
    b.json["nodes"][0]["scale"] = [1, 1, -2]
    b.primitive["attributes"]["NORMAL"] = b.accessor(np.tile(np.array([[0, 0.6, 0.8]], "<f4"), (4, 1)))
    mesh = read_mesh_bytes(b.build())
    a, c, d = mesh.vertices[mesh.faces[0]]
    assert float(torch.linalg.cross(c - a, d - a)[2]) < 0
    assert mesh.normals is not None
    expected = np.array([0, 0.6, -0.8 / 2])
    np.testing.assert_allclose(mesh.normals[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_primitives_with_and_without_normals() -> None:
    b = Builder()
    tilted = np.tile(np.array([[0, 2.0, 0]], "<f4"), (4, 1))
    second = {"attributes": {"POSITION": 0, "NORMAL": b.accessor(tilted)}, "indices": 1}
    b.json["meshes"][0]["primitives"].append(second)
    mesh = read_mesh_bytes(b.build())
    assert mesh.normals is not None and mesh.num_faces == 4
    per_face = mesh.normals[mesh.faces]
    torch.testing.assert_close(per_face[:2], torch.tensor([0.0, 0, 1]).expand(2, 3, 3))
    torch.testing.assert_close(per_face[2:], torch.tensor([0.0, 1, 0]).expand(2, 3, 3))
    assert mesh.num_vertices == 6 + 4, "the flat primitive is split, the other one is not"


def test_strip_fan_and_no_indices() -> None:
    b = Builder()
    b.primitive |= {"mode": 5, "indices": b.accessor(np.array([0, 1, 3, 2], "<u1"))}
    assert read_mesh_bytes(b.build()).faces.tolist() == [[0, 1, 3], [2, 3, 1]]
    b.primitive |= {"mode": 6, "indices": b.accessor(np.array([0, 1, 2, 3], "<u4"))}
    fan = read_mesh_bytes(b.build())
    normal = torch.linalg.cross(*(fan.vertices[fan.faces[:, i]] - fan.vertices[fan.faces[:, 0]] for i in (1, 2)))
    assert fan.num_faces == 2 and bool((normal[:, 2] > 0).all())
    b = Builder()
    del b.primitive["indices"]
    assert read_mesh_bytes(b.build()).faces.tolist() == [[0, 1, 2]]


def test_colors_are_linear_in_the_file() -> None:
    b = Builder()
    b.primitive["attributes"]["COLOR_0"] = b.accessor(np.tile(np.array([[0, 128, 255]], "u1"), (4, 1)), normalized=True)
    b.material(pbrMetallicRoughness={"baseColorFactor": [0.2140411, 0.0, 1.0, 0.3], "metallicFactor": 0.25})
    mesh = read_mesh_bytes(b.build())
    assert mesh.vertex_colors is not None
    # IEC 61966-2-1: linear 0.2140411 is sRGB 0.5, linear 128/255 is sRGB 0.7366
    np.testing.assert_allclose(mesh.vertex_colors[0], [0, 0.736611, 1, 1], atol=1e-4)
    np.testing.assert_allclose(mesh.materials[0].base_color, [0.5, 0, 1, 1], atol=1e-5)
    assert (mesh.materials[0].metallic, mesh.materials[0].roughness) == (0.25, 1)


def test_a_texture_without_coordinates_is_read_and_written_again(tmp_path: Path) -> None:
    b = Builder()
    b.material(pbrMetallicRoughness={"baseColorTexture": {"index": b.texture(np.full((2, 3, 4), 200, np.uint8))}})
    mesh = read_mesh_bytes(b.build())
    assert mesh.uvs is None and mesh.materials[0].base_color_texture is not None
    for suffix in ("glb", "obj", "ply", "stl"):
        write_mesh(tmp_path / f"a.{suffix}", mesh)
        assert (tmp_path / f"a.{suffix}").stat().st_size > 0
    again = read_mesh(tmp_path / "a.glb")
    assert again.num_faces == mesh.num_faces and again.uvs is None


def test_texture_uv_set_transform_and_alpha_modes() -> None:
    b = Builder()
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = (255, 0, 51, 100)
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0.25, 0.5]], "<f4")
    b.primitive["attributes"] |= {"TEXCOORD_0": b.accessor(np.zeros((4, 2), "<f4")), "TEXCOORD_1": b.accessor(uvs)}
    info: dict[str, Any] = {"index": b.texture(pixels), "texCoord": 1}
    b.material(pbrMetallicRoughness={"baseColorTexture": info, "baseColorFactor": [1, 1, 1, 0.5]}, alphaMode="BLEND")
    mesh = read_mesh_bytes(b.build())
    texture = mesh.materials[0].base_color_texture
    assert mesh.uvs is not None and texture is not None and texture.shape == (2, 3, 4)
    np.testing.assert_array_equal(mesh.uvs.numpy(), uvs)
    np.testing.assert_allclose(texture[0, 0], np.array([255, 0, 51, 100]) / 255, atol=1e-6)
    assert mesh.materials[0].base_color[3] == 0.5
    info["extensions"] = {"KHR_texture_transform": {"offset": [0.1, 0.2], "scale": [2, 4], "rotation": np.pi / 2}}
    moved = read_mesh_bytes(b.build()).uvs
    # the specification's matrices: translation * rotation * scale, rotation counter-clockwise: (u, v) -> (v, -u)
    assert moved is not None
    np.testing.assert_allclose(moved[3], [0.1 + 4 * 0.5, 0.2 - 2 * 0.25], atol=1e-6)
    b.json["materials"][0] |= {"alphaMode": "MASK", "alphaCutoff": 0.15}
    masked = read_mesh_bytes(b.build()).materials[0]
    assert masked.base_color_texture is not None and masked.base_color[3] == 1
    assert masked.base_color_texture[:, :, 3].tolist() == [[1, 0, 0], [0, 0, 0]]
    del b.json["materials"][0]["alphaMode"]
    opaque = read_mesh_bytes(b.build()).materials[0]
    assert opaque.base_color_texture is not None and bool((opaque.base_color_texture[..., 3] == 1).all())


def test_quantized_positions_interleaved_and_embedded_data_uri() -> None:
    b = Builder()
    rows = np.zeros(4, np.dtype([("p", "<i2", 3), ("pad", "<i2"), ("n", "i1", 3), ("pad2", "i1")]))
    rows["p"] = POSITIONS * 32767
    rows["n"] = (0, 0, 127)
    view = b.view(rows.tobytes(), byteStride=12)
    common = {"bufferView": view, "count": 4, "type": "VEC3", "normalized": True}
    b.json["accessors"] += [common | {"componentType": 5122}, common | {"componentType": 5120, "byteOffset": 8}]
    b.primitive["attributes"] = {"POSITION": 2, "NORMAL": 3, "TEXCOORD_0": b.accessor(POSITIONS[:, :2].copy())}
    b.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    stream = io.BytesIO()
    Image.new("RGB", (1, 1), (0, 0, 255)).save(stream, "JPEG")
    b.json["images"] = [{"uri": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()}]
    b.json["textures"] = [{"source": 0}]
    b.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    mesh = read_mesh_bytes(b.build())
    np.testing.assert_allclose(mesh.vertices.numpy(), POSITIONS, atol=1e-6)
    assert mesh.normals is not None and mesh.normals[0].tolist() == [0, 0, 1]
    texture = mesh.materials[0].base_color_texture
    assert texture is not None and float(texture[0, 0, 2]) > 0.98


def broken() -> dict[str, bytes]:
    """Malformed files by what is wrong with them."""
    good = Builder().build()
    cases = {
        "empty": b"",
        "magic": b"x" + good[1:],
        "version 1": good[:4] + struct.pack("<I", 1) + good[8:],
        "truncated": good[:-9],
        "length lies": good[:8] + struct.pack("<I", 1 << 31) + good[12:],
        "chunk lies": good[:12] + struct.pack("<I", 0xFFFFFFF0) + good[16:],
        "json": good.replace(b'{"asset"', b'{"asset\xff'),
        "deep json": struct.pack("<4sIII4s", b"glTF", 2, 100_020, 100_000, b"JSON") + b"[" * 100_000,
    }

    def changed(name: str, change: Any) -> None:
        b = Builder()
        change(b)
        cases[name] = b.build()

    nan = POSITIONS.copy()
    nan[1, 1] = np.nan
    changed("a billion vertices", lambda b: b.json["accessors"][0].update(count=10**9))
    changed("10^400 vertices", lambda b: b.json["accessors"][0].update(count=10**400))
    changed("a billion indices", lambda b: b.json["accessors"][1].update(count=10**9))
    changed("negative count", lambda b: b.json["accessors"][0].update(count=-1))
    changed("no count", lambda b: b.json["accessors"][0].pop("count"))
    changed("view outside", lambda b: b.json["bufferViews"][0].update(byteLength=10**6))
    changed("view before", lambda b: b.json["bufferViews"][0].update(byteOffset=-4))
    changed("accessor offset", lambda b: b.json["accessors"][0].update(byteOffset=40))
    changed("stride", lambda b: b.json["bufferViews"][0].update(byteStride=4))
    changed("component", lambda b: b.json["accessors"][0].update(componentType=5130))
    changed("type", lambda b: b.json["accessors"][0].update(type="VEC9"))
    changed("position type", lambda b: b.json["accessors"][0].update(type="VEC2"))
    changed("float indices", lambda b: b.json["accessors"][1].update(componentType=5126, count=3))
    changed("index outside", lambda b: b.primitive.update(indices=b.accessor(np.array([0, 1, 4], "<u2"))))
    changed("NaN", lambda b: b.primitive["attributes"].update(POSITION=b.accessor(nan)))
    changed("normals short", lambda b: b.primitive["attributes"].update(NORMAL=b.accessor(POSITIONS[:3])))
    changed("no accessor", lambda b: b.primitive["attributes"].update(POSITION=99))
    changed("no mesh", lambda b: b.json["nodes"][0].update(mesh=3))
    changed("own ancestor", lambda b: b.json["nodes"][0].update(children=[0]))
    changed("no scene", lambda b: b.json.update(scene=7))
    changed("nothing", lambda b: b.json.update(nodes=[{}]))
    changed("points", lambda b: b.primitive.update(mode=0))
    changed("matrix", lambda b: b.json["nodes"][0].update(matrix=[1, 2, 3]))
    changed("huge matrix", lambda b: b.json["nodes"][0].update(scale=[1e29, 1e29, 10**400]))
    changed("zero rotation", lambda b: b.json["nodes"][0].update(rotation=[0, 0, 0, 0]))
    changed("texture", lambda b: b.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}}))
    changed("asset", lambda b: b.json.update(asset={"version": "1.0"}))
    changed("types", lambda b: b.json.update(meshes={"0": []}, nodes="abc"))

    def bomb(b: Builder) -> None:
        header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 6, 0, 0, 0) + bytes(4)
        b.json["images"] = [{"bufferView": b.view(header + bytes(100))}]
        b.json["textures"] = [{"source": 0}]
        b.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})

    def repeated(b: Builder) -> None:
        b.primitive["indices"] = b.accessor(np.zeros(30_000, "<u2"))
        b.json["nodes"] = [{"mesh": 0}] * 10_000
        b.json["scenes"] = [{"nodes": list(range(10_000))}]

    changed("texture bomb", bomb)
    changed("repeated beyond measure", repeated)
    return cases


@pytest.mark.parametrize("case", broken())
def test_malformed(case: str) -> None:
    with pytest.raises(FileFormatError, match=r"thing\.glb"):
        read_mesh_bytes(broken()[case], "thing.glb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "Draco"),
        ({"extensionsRequired": ["EXT_meshopt_compression"]}, "meshopt"),
        ({"extensionsRequired": ["ACME_magic"]}, "ACME_magic"),
        ({"images": [{"uri": "wood.png"}]}, "external file"),
        ({"images": [{"uri": "file:///etc/passwd"}]}, "external file"),
        ({"textures": [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]}, "KTX2"),
        ({"accessors": [{"count": 10**9, "componentType": 5126, "type": "VEC3", "sparse": {}}] * 2}, None),
    ],
)
def test_unsupported_is_named(change: dict[str, Any], message: str | None) -> None:
    b = Builder()
    b.json["textures"] = [{"source": 0}]
    b.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    b.json |= change
    with pytest.raises(MaquetteError if message is None else UnsupportedError, match=message):
        read_mesh_bytes(b.build())


def test_external_buffer_is_refused() -> None:
    data = Builder().build().replace(b'"buffers": [{"byteLength"', b'"buffers": [{"uri": "a.bin", "byteLength"')
    length = struct.unpack_from("<I", data, 12)[0] + 16
    data = data[:8] + struct.pack("<I", len(data)) + struct.pack("<I", length) + data[16:]
    with pytest.raises(UnsupportedError, match="outside the file"):
        read_mesh_bytes(data)


def textured() -> Mesh:
    g = torch.Generator().manual_seed(0)
    texture = torch.rand(4, 8, 4, generator=g)
    texture[..., 3] = 1
    return Mesh(
        torch.from_numpy(POSITIONS.astype(np.float32)),
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
        normals=torch.tensor([[0.0, 0, 1]]).expand(4, 3),
        uvs=torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]]),
        vertex_colors=torch.rand(4, 4, generator=g),
        materials=(Material((0.5, 0.25, 1.0, 1.0), texture, 0.1, 0.7), Material((1, 0, 0, 0.5))),
        face_materials=torch.tensor([0, 1]),
    )


def test_round_trip(tmp_path: Path) -> None:
    given = textured()
    path = tmp_path / "a.glb"
    write_mesh(path, given)
    got = read_mesh(path)
    assert asset_kind(path) == "mesh"
    # one primitive per material; compare corner by corner
    for name in ("vertices", "normals", "uvs", "vertex_colors"):
        a, b = getattr(given, name), getattr(got, name)
        tolerance = 1e-3 if name == "vertex_colors" else 1e-6
        torch.testing.assert_close(b[got.faces], a[given.faces], atol=tolerance, rtol=0)
    assert got.face_materials is not None and got.face_materials.tolist() == [0, 1]
    for a, b in zip(given.materials, got.materials, strict=True):
        np.testing.assert_allclose(a.base_color, b.base_color, atol=1e-5)
        assert (a.metallic, a.roughness) == (pytest.approx(b.metallic), pytest.approx(b.roughness))
    ours, back = given.materials[0].base_color_texture, got.materials[0].base_color_texture
    assert ours is not None and back is not None
    torch.testing.assert_close(back, ours, atol=0.5 / 255 + 1e-6, rtol=0)


def test_written_file_in_trimesh(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(subdivisions=2)
    vertices = torch.from_numpy(np.asarray(ball.vertices, np.float32))
    colors = torch.cat([vertices * 0.4 + 0.5, torch.ones(len(vertices), 1)], dim=1)
    faces = torch.from_numpy(np.asarray(ball.faces, np.int64))
    write_mesh(tmp_path / "a.glb", Mesh(vertices, faces, normals=vertices, vertex_colors=colors))
    (loaded,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    assert loaded.is_watertight and loaded.volume == pytest.approx(ball.volume, rel=1e-5)
    np.testing.assert_allclose(loaded.vertices, vertices, atol=1e-6)
    stored = np.asarray(loaded.visual.vertex_attributes["color"], np.float64)[:, :3]
    linear = stored / (65535 if stored.max() > 255 else 255)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb, colors[:, :3], atol=0.03)
    document = json.loads((tmp_path / "a.glb").read_bytes()[20:].split(b"\0")[0].split(b"BIN")[0][:-4])
    assert document["materials"][0]["doubleSided"] is False
    assert document["materials"][0]["pbrMetallicRoughness"]["roughnessFactor"] == 1


def test_file_of_trimesh(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box(extents=(1, 2, 3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    uvs = np.random.default_rng(1).random((len(box.vertices), 2))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, metallicFactor=0.0)
    box.visual = trimesh.visual.TextureVisuals(uv=uvs, material=material)
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.export(tmp_path / "a.glb")
    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.num_faces == 12 and mesh.uvs is not None
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([5.5, 1.0, 1.5]))
    texture = mesh.materials[0].base_color_texture
    assert texture is not None
    np.testing.assert_allclose(texture[..., :3] * 255, np.asarray(picture), atol=1e-3)
    # trimesh has v = 0 at the bottom, glTF at the top
    order = [
        int((mesh.vertices - torch.from_numpy(v + np.array([5, 0, 0])).float()).norm(dim=1).argmin())
        for v in box.vertices
    ]
    np.testing.assert_allclose(mesh.uvs[order], np.stack([uvs[:, 0], 1 - uvs[:, 1]], 1), atol=1e-6)


def test_writer_refuses(tmp_path: Path) -> None:
    given = textured()
    nothing = Mesh(given.vertices, given.faces[:0])
    with pytest.raises(InvalidInputError, match="no faces"):
        write_mesh(tmp_path / "a.glb", nothing)
    poisoned = given.vertices.clone()
    poisoned[0, 0] = torch.inf
    with pytest.raises(InvalidInputError, match="1 of 12"):
        write_mesh(tmp_path / "a.glb", Mesh(poisoned, given.faces))
    with pytest.raises(InvalidInputError, match=r"\.glb, \.obj"):
        write_mesh(tmp_path / "a.fbx", given)
    with pytest.raises(FileFormatError, match=r"\.glb, \.obj"):
        read_mesh(tmp_path / "a.fbx")
    assert list(tmp_path.iterdir()) == []
