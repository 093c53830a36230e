"""`maquette data render` end to end: sources, resuming, failures, and the reader of what it wrote."""

from __future__ import annotations

import csv
import io
import json
import lzma
import os
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.cameras import Cameras
from maquette.data import batch
from maquette.data.assets import Asset, open_assets
from maquette.data.batch import RenderReport, render_set
from maquette.data.dataset import INPUT, TARGET, RenderedDataset
from maquette.data.layout import ObjectInfo, family_of, read_index
from maquette.data.plans import RenderOptions
from maquette.data.png import decode_rgba
from maquette.errors import FileFormatError, InvalidInputError
from maquette.io import write_mesh
from maquette.mesh import Material, Mesh

SMALL = RenderOptions(image_size=16, supersample=1)


def pyramid(color: tuple[float, float, float]) -> Mesh:
    vertices = torch.tensor([[-1.0, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1], [0, 1.5, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [3, 2, 4], [2, 1, 4], [1, 0, 4], [0, 3, 4]])
    return Mesh(vertices, faces, materials=(Material(base_color=(*color, 1.0)),))


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Three GLBs, one of them broken, with an index."""
    folder = tmp_path / "assets"
    write_mesh(folder / "pack-tent_1.glb", pyramid((1, 0, 0)))
    write_mesh(folder / "pack-tent_2.glb", pyramid((0, 0, 1)))
    (folder / "pack-broken.glb").write_bytes(b"glTF nonsense")
    with (folder / "index.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "caption", "category", "source", "license", "split"])
        writer.writerow(["pack-tent_1", "red tent", "building", "osrf/gazebo_models", "CC0", "train"])
        writer.writerow(["pack-tent_2", "blue tent", "building", "games", "CC0", "test"])
        writer.writerow(["pack-broken", "", "", "games", "CC0", "train"])
    return folder


def archive(folder: Path, target: Path) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"../../deep/{path.name}")
    data = buffer.getvalue()
    target.write_bytes(lzma.compress(data) if target.suffix == ".xz" else data)
    return target


def render(source: Path, output: Path, options: RenderOptions = SMALL, **kwargs: object) -> RenderReport:
    return render_set(source, output, options, device="cpu", workers=1, **kwargs)  # type: ignore[arg-type]


def test_broken_assets_cost_only_themselves(assets: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    report = render(assets, tmp_path / "out", progress=lambda *counts: calls.append(counts))
    assert (report.rendered, report.skipped, report.failed) == (2, 0, 1)
    assert calls[0] == (0, 0, 3) and calls[-1] == (2, 1, 3)
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())["failures"]
    assert [entry["id"] for entry in failures] == ["pack-broken"] and "FileFormatError" in failures[0]["reason"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "contact.png",
        "dataset.json",
        "failures.json",
        "pack-tent_1",
        "pack-tent_2",
    ]
    settings, objects = read_index(tmp_path / "out")
    assert settings["plan"] == "standard" and settings["image_size"] == 16
    assert objects[0] == ObjectInfo(
        "pack-tent_1", "red tent", "building", "osrf/gazebo_models", "CC0", "train", "pack-tent", True
    )


def test_files_follow_the_layout(assets: Path, tmp_path: Path) -> None:
    render(assets, tmp_path / "out", ids=("pack-tent_1",))
    folder = tmp_path / "out" / "pack-tent_1"
    document = json.loads((folder / "transforms.json").read_text())
    frame = document["frames"][5]
    assert frame["file_path"] == "rgb/005.png" and frame["role"] == "target" and frame["variant"] == 0
    expected = Cameras.orbit([67.5], [0.0]).opengl_poses()[0]
    torch.testing.assert_close(torch.tensor(frame["transform_matrix"]), expected, atol=1e-6, rtol=0)
    with Image.open(folder / frame["depth_file_path"]) as image:
        depth = np.asarray(image).astype(float) / 65535 * document["depth_scale"]
    with Image.open(folder / frame["file_path"]) as image:
        assert image.mode == "RGBA" and image.size == (16, 16)
        covered = np.asarray(image)[..., 3] > 0
    assert ((depth > 0) == covered).all() and 0.9 < depth[covered].min() < depth[covered].max() < 2.1
    with Image.open(folder / frame["normal_file_path"]) as image:
        normal = np.asarray(image)[covered] / 127.5 - 1
    assert np.abs(np.linalg.norm(normal, axis=-1) - 1).max() < 0.02


def test_finished_objects_are_kept_and_leftovers_replaced(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(assets, out)
    first = (out / "pack-tent_2" / "rgb" / "000.png").read_bytes()
    stamp = (out / "pack-tent_1" / "transforms.json").stat().st_mtime_ns
    (out / "pack-tent_2").rename(out / ".pack-tent_2.part")  # as if killed while rendering it
    (out / ".pack-tent_2.part" / "transforms.json").unlink()
    report = render(assets, out)
    assert (report.rendered, report.skipped, report.failed) == (1, 1, 1)
    assert (out / "pack-tent_1" / "transforms.json").stat().st_mtime_ns == stamp
    assert (out / "pack-tent_2" / "rgb" / "000.png").read_bytes() == first
    assert not (out / ".pack-tent_2.part").exists()
    with pytest.raises(InvalidInputError, match="image_size: 16 there, 24 now"):
        render(assets, out, RenderOptions(image_size=24, supersample=1))


def test_splits_add_up_in_one_folder(assets: Path, tmp_path: Path) -> None:
    render(assets, tmp_path / "out", split="train")
    render(assets, tmp_path / "out", split="test")
    assert [info.id for info in read_index(tmp_path / "out")[1]] == ["pack-tent_1", "pack-tent_2"]
    with pytest.raises(InvalidInputError, match="its splits are test, train"):
        render(assets, tmp_path / "out", split="val")


@pytest.mark.parametrize("name", ["set.tar", "set.tar.xz"])
def test_archives_equal_folders_and_write_nowhere_else(assets: Path, tmp_path: Path, name: str) -> None:
    packed = archive(assets, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with open_assets(packed, split="train") as listed:
        assert [asset.info.id for asset in listed.assets] == ["pack-broken", "pack-tent_1"]
        assert sorted(tmp_path.rglob("*")) == before
        mesh = listed.assets[1].read_mesh()
        assert mesh.num_faces == 6 and mesh.materials[0].base_color[:3] == pytest.approx((1, 0, 0))
    render(packed, tmp_path / "a", split="test")
    render(assets, tmp_path / "b", split="test")
    picture = Path("pack-tent_2/rgb/007.png")
    assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()


def test_damaged_archives_and_indexes_are_errors(assets: Path, tmp_path: Path) -> None:
    for name, keep in (("set.tar", 2000), ("cut.tar.xz", 300)):
        packed = archive(assets, tmp_path / name)
        packed.write_bytes(packed.read_bytes()[:keep])
        with pytest.raises(FileFormatError, match=r"truncated|unexpected end"), open_assets(packed):
            pass
    (tmp_path / "noise.tar").write_bytes(os.urandom(4096))
    with pytest.raises(FileFormatError, match="readable tar"), open_assets(tmp_path / "noise.tar"):
        pass
    (assets / "index.csv").write_text("name,colour\na,b\n")
    with pytest.raises(FileFormatError, match="column 'id'"), open_assets(assets):
        pass


def test_what_cannot_be_rendered_is_said(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a"):
        render(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"no \.glb"):
        render(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InvalidInputError, match="no assets"):
        render(assets, tmp_path / "out", ids=("pack-tent_9",))
    with pytest.raises(InvalidInputError, match="valid: cpu, cuda"):
        render_set(assets, tmp_path / "out", SMALL, device="meta")
    (assets / "sub").mkdir()
    (assets / "sub" / "x.glb").write_bytes(b"")
    (assets / "sub-x.glb").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="'sub-x'"):
        render(assets, tmp_path / "out")


def test_listed_but_missing_assets_are_failures(assets: Path, tmp_path: Path) -> None:
    (assets / "pack-tent_2.glb").unlink()
    report = render(assets, tmp_path / "out")
    assert (report.rendered, report.failed) == (1, 2)
    assert "no such .glb" in (tmp_path / "out" / "failures.json").read_text()


@dataclass(frozen=True)
class Killer(Asset):
    """Ends the process that reads it, as running out of memory would."""

    def read_mesh(self) -> Mesh:
        os._exit(3)


def test_a_dying_worker_costs_one_asset(assets: Path, tmp_path: Path) -> None:
    good = [Asset(ObjectInfo(f"pack-tent_{i}"), assets / f"pack-tent_{i}.glb") for i in (1, 2)]
    jobs = [Killer(ObjectInfo("killer"), assets / "index.csv"), *good]
    (tmp_path / "out").mkdir()
    outcomes = {o.info.id: o.failure for o in batch._render_all(jobs, tmp_path / "out", SMALL, "cpu", 2)}
    assert outcomes.keys() == {"killer", "pack-tent_1", "pack-tent_2"}
    assert outcomes["pack-tent_1"] is None and outcomes["pack-tent_2"] is None
    assert "died" in str(outcomes["killer"])


def test_reader_returns_the_written_pictures(assets: Path, tmp_path: Path) -> None:
    options = RenderOptions(plan="training", image_size=16, variants=2, geometry=False, supersample=1)
    render(assets, tmp_path / "out", options)
    data = RenderedDataset.load(tmp_path / "out")
    assert len(data) == 2 and data.num_frames == 32 and data.image_size == 16
    assert data.images.shape == (2, 32, 4, 16, 16) and data.images.dtype == torch.uint8
    with Image.open(tmp_path / "out" / "pack-tent_2" / "rgb" / "019.png") as image:
        assert np.array_equal(data.images[1, 19].permute(1, 2, 0).numpy(), np.asarray(image))
    assert data.variants[0].tolist() == [0] * 16 + [1] * 16
    assert data.roles[0].tolist() == ([INPUT] * 4 + [TARGET] * 12) * 2
    views = data.views(torch.tensor([1, 0]), torch.tensor([[0, 1, 2], [16, 17, 18]]))
    assert views.images.shape == (2, 3, 4, 16, 16) and float(views.images.max()) <= 1
    torch.testing.assert_close(views.images[0, 2] * 255, data.images[1, 2].float())
    distances = data.views(0, [3, 4]).cameras.positions.norm(dim=-1)
    torch.testing.assert_close(distances, torch.full((2,), 1.5), atol=1e-4, rtol=0)
    only = RenderedDataset.load(tmp_path / "out", split="test")
    assert [info.id for info in only.objects] == ["pack-tent_2"] and torch.equal(only.images[0], data.images[1])
    with pytest.raises(InvalidInputError, match=r"\[B, V\]"):
        data.views(torch.tensor([0, 1]), [0, 1])


def test_reader_names_damaged_files(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(assets, out)
    with pytest.raises(InvalidInputError, match="'val'"):
        RenderedDataset.load(out, split="val")
    with pytest.raises(InvalidInputError, match="nobody"):
        RenderedDataset.load(out, ids=["nobody"])
    picture = out / "pack-tent_1" / "rgb" / "003.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"003\.png"):
        RenderedDataset.load(out)
    picture.unlink()
    with pytest.raises(FileFormatError, match=r"003\.png is missing"):
        RenderedDataset.load(out)
    Image.new("RGBA", (20, 20)).save(picture)
    with pytest.raises(FileFormatError, match="20 x 20 pixels, expected 16 x 16"):
        RenderedDataset.load(out)
    Image.new("RGB", (16, 16)).save(picture)
    with pytest.raises(FileFormatError, match="not an 8-bit RGBA PNG"):
        RenderedDataset.load(out)
    transforms = out / "pack-tent_1" / "transforms.json"
    document = json.loads(transforms.read_text())
    transforms.write_text(json.dumps({**document, "frames": document["frames"][:5]}))
    with pytest.raises(FileFormatError, match=r"mixes objects of \[5, 12\] frames"):
        RenderedDataset.load(out)
    document["frames"][0]["file_path"] = "../../secret.png"
    transforms.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="outside"):
        RenderedDataset.load(out)
    (out / "dataset.json").write_text('{"format": "other/2"}')
    with pytest.raises(FileFormatError, match="other/2"):
        RenderedDataset.load(out)
    with pytest.raises(FileFormatError, match="maquette data render"):
        RenderedDataset.load(tmp_path)


def test_png_decoder_equals_pillow_for_every_filter() -> None:
    generator = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 20 * 24 * 4).reshape(20, 24, 4)
    noisy = (smooth + generator.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    for kind in range(5):
        rows = _filtered(noisy.astype(int), kind)
        data = _png(24, 20, zlib.compress(rows))
        target = np.zeros((4, 20, 24), np.uint8)
        decode_rgba(data, target)
        assert np.array_equal(target.transpose(1, 2, 0), noisy)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), noisy)


def _filtered(pixels: np.ndarray, kind: int) -> bytes:  # type: ignore[type-arg]
    padded = np.pad(pixels, ((1, 0), (1, 0), (0, 0)))
    left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    estimate = left + up - corner
    distances = np.stack([abs(estimate - left), abs(estimate - up), abs(estimate - corner)])
    paeth = np.choose(distances.argmin(0), [left, up, corner])
    guess = [0 * left, left, up, (left + up) // 2, paeth][kind]
    return b"".join(
        bytes([kind]) + ((row - g) & 255).astype(np.uint8).tobytes() for row, g in zip(pixels, guess, strict=True)
    )


def _png(width: int, height: int, content: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", content[:100]), chunk(b"IDAT", content[100:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("content", [b"\x05" + bytes(16 * 4), b"\0" + bytes(16 * 4 - 1), bytes(1 << 24)])
def test_png_decoder_refuses_wrong_content(content: bytes) -> None:
    with pytest.raises(FileFormatError, match="damaged"):
        decode_rgba(_png(16, 1, zlib.compress(content)), np.zeros((4, 1, 16), np.uint8))
    with pytest.raises(FileFormatError, match="damaged"):
        decode_rgba(_png(16, 1, b"not zlib" * 20), np.zeros((4, 1, 16), np.uint8))


def test_command_line(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maquette.cli.data import COMMANDS

    tyro = pytest.importorskip("tyro")
    kind, run = COMMANDS["render"]
    words = f"{assets} -o {tmp_path / 'out'} --plan custom --azimuths 0 45 --elevations 10 --image-size 16"
    arguments = tyro.cli(kind, args=[*words.split(), "--workers", "1", "--device", "cpu", "--no-geometry"])
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "2 objects rendered" in captured.out and "1 failed" in captured.err
    data = RenderedDataset.load(tmp_path / "out")
    expected = Cameras.orbit([0, 45], 10.0, height=16, width=16)
    torch.testing.assert_close(data.world_to_camera[0], expected.world_to_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.intrinsics[0], expected.intrinsics)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("pack-houses_secondage_1_level2", "pack-houses"),
        ("pack-key10", "pack-key"),
        ("pack-rock_single_d", "pack-rock_single"),
        ("pack-jar_b_medium", "pack-jar"),
        ("42", "42"),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family
