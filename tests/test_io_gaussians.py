"""Gaussian files: bytes of LGM's own exporter, files laid out by hand, round trips, malformed files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from maquette.errors import FileFormatError, InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io import asset_kind, read_gaussians, write_gaussians
from maquette.io.gaussian_ply import LGM_MIN_OPACITY

GOLDENS = Path(__file__).parent / "goldens" / "lgm"
COMMON = [*"xyz", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
COMMON += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def from_lgm(rows: np.ndarray) -> Gaussians:
    """LGM's tensor [N, 14]: position, opacity, scale, rotation, rgb."""
    t = torch.from_numpy(rows)
    return Gaussians(t[:, :3], t[:, 7:11], t[:, 4:7], t[:, 3], t[:, 11:14])


def to_lgm(g: Gaussians) -> np.ndarray:
    return torch.cat([g.means, g.opacities[:, None], g.scales, g.quats, g.colors], 1).numpy()


def random_gaussians(count: int, degree: int | None = None, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1)
    colors = torch.rand(count, 3, generator=g)
    if degree is not None:
        colors = torch.randn(count, (degree + 1) ** 2, 3, generator=g)
    return Gaussians(
        torch.randn(count, 3, generator=g),
        quats,
        torch.rand(count, 3, generator=g) * 0.1 + 1e-3,
        torch.rand(count, generator=g) * 0.98 + 0.01,
        colors,
    )


def assert_close(a: Gaussians, b: Gaussians, atol: float = 2e-6) -> None:
    for name in ("means", "quats", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=atol, rtol=2e-6, msg=name)


@pytest.mark.parametrize(("encoding", "name"), [("compatible", "compatible"), ("activated", "raw")])
def test_bytes_of_the_official_exporter(tmp_path: Path, encoding: str, name: str) -> None:
    golden = np.load(GOLDENS / "ply.npz")
    written = tmp_path / "a.ply"
    write_gaussians(written, from_lgm(golden["gaussians"][0]), encoding=encoding, min_opacity=LGM_MIN_OPACITY)
    ours, theirs = written.read_bytes(), (GOLDENS / f"export_{name}.ply").read_bytes()
    assert theirs == golden[f"bytes_{name}"].tobytes()
    assert ours == theirs


@pytest.mark.parametrize("name", ["compatible", "raw"])
def test_reads_the_official_export_in_both_encodings(name: str) -> None:
    expected = np.load(GOLDENS / "ply.npz")[f"loaded_{name}"]
    got = to_lgm(read_gaussians(GOLDENS / f"export_{name}.ply"))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def common_file(
    rows: np.ndarray, names: list[str], style: str = "binary_little_endian", kind: str = "float", comment: str = ""
) -> bytes:
    """A file as the documents of the format describe it, made without the library."""
    head = f"ply\nformat {style} 1.0\n{comment}element vertex {len(rows)}\n"
    head += "".join(f"property {kind} {n}\n" for n in names) + "end_header\n"
    if style == "ascii":
        return head.encode() + "\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows).encode() + b"\n"
    order = "<" if "little" in style else ">"
    return head.encode() + rows.astype(order + ("f4" if kind == "float" else "f8")).tobytes()


@pytest.mark.parametrize("style", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_common_layout_with_normals_and_harmonics(tmp_path: Path, style: str, degree: int) -> None:
    rest = 3 * ((degree + 1) ** 2 - 1)
    names = COMMON[:9] + [f"f_rest_{i}" for i in range(rest)] + COMMON[9:]
    rng = np.random.default_rng(degree)
    rows = rng.normal(size=(5, len(names))).astype(np.float32)
    path = tmp_path / "a.ply"
    path.write_bytes(common_file(rows, names, style, comment="comment by a trainer\n"))
    got = read_gaussians(path)
    column = {n: rows[:, i] for i, n in enumerate(names)}
    np.testing.assert_allclose(got.means.numpy(), rows[:, :3], rtol=1e-6)
    np.testing.assert_allclose(got.opacities.numpy(), 1 / (1 + np.exp(-column["opacity"])), rtol=1e-5)
    np.testing.assert_allclose(got.scales.numpy()[:, 1], np.exp(column["scale_1"]), rtol=1e-5)
    norm = np.sqrt(sum(column[f"rot_{i}"] ** 2 for i in range(4)))
    np.testing.assert_allclose(got.quats.numpy()[:, 2], column["rot_2"] / norm, rtol=1e-5)
    if degree == 0:
        dc = got.colors[:, 0] if got.sh_degree == 0 else (got.colors - 0.5) / 0.28209479177387814
        np.testing.assert_allclose(dc.numpy()[:, 1], column["f_dc_1"], rtol=1e-5, atol=1e-5)
        return
    assert got.sh_degree == degree
    per_channel = rest // 3
    for channel in range(3):
        np.testing.assert_allclose(got.colors[:, 0, channel], column[f"f_dc_{channel}"], rtol=1e-6)
        for k in range(per_channel):
            np.testing.assert_allclose(got.colors[:, 1 + k, channel], column[f"f_rest_{channel * per_channel + k}"])


def test_order_extra_columns_doubles_and_foreign_elements(tmp_path: Path) -> None:
    names = [*reversed(COMMON), "label", "red"]
    rows = np.random.default_rng(0).normal(size=(4, len(names))) * 0.3
    plain, shuffled = tmp_path / "plain.ply", tmp_path / "shuffled.ply"
    body = common_file(rows, names, kind="double")
    body = body.replace(b"element vertex", b"element camera 2\nproperty uchar id\nproperty float f\nelement vertex")
    end = body.index(b"end_header\n") + 11
    shuffled.write_bytes(body[:end] + bytes(10) + body[end:])
    order = [names.index(n) for n in COMMON]
    plain.write_bytes(common_file(rows[:, order], COMMON))
    assert_close(read_gaussians(shuffled), read_gaussians(plain))


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_ply_round_trip(tmp_path: Path, degree: int | None) -> None:
    given = random_gaussians(50, degree)
    write_gaussians(tmp_path / "a.ply", given)
    assert_close(read_gaussians(tmp_path / "a.ply"), given)
    assert asset_kind(tmp_path / "a.ply") == "gaussians"


def test_written_harmonics_are_channel_major(tmp_path: Path) -> None:
    given = random_gaussians(1, 1)
    write_gaussians(tmp_path / "a.ply", given)
    data = (tmp_path / "a.ply").read_bytes()
    row = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4")
    np.testing.assert_array_equal(row[6:15].reshape(3, 3), given.colors[0, 1:].T.numpy())


def test_splat_bytes_and_order(tmp_path: Path) -> None:
    quats = torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0]])
    small_and_large = Gaussians(
        torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
        quats,
        torch.tensor([[0.1, 0.1, 0.1], [0.5, 0.5, 0.5]]),
        torch.tensor([1.0, 0.4]),
        torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.2]]),
    )
    path = tmp_path / "a.splat"
    write_gaussians(path, small_and_large)
    data = path.read_bytes()
    assert len(data) == 64
    assert struct.unpack("<6f8B", data[:32]) == (4, 5, 6, 0.5, 0.5, 0.5, 255, 0, 51, 102, 128, 0, 128, 128)
    assert struct.unpack("<6f8B", data[32:])[6:] == (0, 128, 255, 255, 255, 128, 128, 128)
    back = read_gaussians(path)
    torch.testing.assert_close(back.means, small_and_large.means.flip(0))
    torch.testing.assert_close(back.colors, small_and_large.colors.flip(0), atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.quats, quats.flip(0), atol=1e-2, rtol=0)


def test_splat_keeps_rotations_to_8_bits(tmp_path: Path) -> None:
    given = random_gaussians(200)
    write_gaussians(tmp_path / "a.splat", given)
    back = read_gaussians(tmp_path / "a.splat")
    nearest = torch.cdist(given.means, back.means).argmin(1)
    assert len(set(nearest.tolist())) == 200
    assert float((given.quats * back.quats[nearest]).sum(1).min()) > 0.999
    importance = back.scales.prod(1) * back.opacities
    assert bool((importance[1:] <= importance[:-1] * 1.5).all()), "most important first, up to the 8 bits of opacity"


def test_zero_quaternion_is_the_identity(tmp_path: Path) -> None:
    rows = np.zeros((1, len(COMMON)), np.float32)
    (tmp_path / "a.ply").write_bytes(common_file(rows, COMMON))
    got = read_gaussians(tmp_path / "a.ply", encoding="compatible")
    assert got.quats.tolist() == [[1, 0, 0, 0]]
    assert got.opacities.tolist() == [0.5] and got.scales.tolist() == [[1, 1, 1]]


def malformed() -> dict[str, bytes]:
    rows = np.random.default_rng(0).normal(size=(3, len(COMMON))).astype(np.float32)
    good = common_file(rows, COMMON)
    poisoned = rows.copy()
    poisoned[1, 0] = np.nan
    huge = rows.copy()
    huge[2, COMMON.index("scale_0")] = 1000
    return {
        "a billion points": good.replace(b"vertex 3", b"vertex 1000000000"),
        "10^30 points": good.replace(b"vertex 3", b"vertex 1" + b"0" * 30),
        "ascii that lies": common_file(rows, COMMON, "ascii").replace(b"vertex 3", b"vertex 3000000"),
        "ascii words": common_file(rows, COMMON, "ascii")[:-8] + b"abcdefg\n",
        "truncated body": good[:-1],
        "truncated header": good[:100],
        "no magic": b"x" + good,
        "empty": b"",
        "negative": good.replace(b"vertex 3", b"vertex -3"),
        "no vertices": good.replace(b"vertex 3", b"vertex 0"),
        "missing column": good.replace(b"property float rot_3\n", b""),
        "twice": good.replace(b"float nx", b"float x"),
        "odd f_rest": good.replace(b"float nx", b"float f_rest_0"),
        "NaN": common_file(poisoned, COMMON),
        "infinite scale": common_file(huge, COMMON),
        "type": good.replace(b"property float nx", b"property quad nx"),
        "endless header": b"ply\nformat ascii 1.0\n" + b"comment x\n" * 100_000,
    }


@pytest.mark.parametrize("case", malformed())
def test_malformed_ply(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.ply"
    path.write_bytes(malformed()[case])
    with pytest.raises(FileFormatError, match=r"bad\.ply"):
        read_gaussians(path)


def test_messages_count_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "bad.ply"
    path.write_bytes(malformed()["NaN"])
    with pytest.raises(FileFormatError, match="position of 1 of 3 Gaussians is NaN"):
        read_gaussians(path)
    path.write_bytes(malformed()["a billion points"])
    with pytest.raises(FileFormatError, match="1,000,000,000 x 68 bytes"):
        read_gaussians(path)


def test_other_things_than_gaussians(tmp_path: Path) -> None:
    cloud = tmp_path / "cloud.ply"
    cloud.write_bytes(common_file(np.zeros((2, 3), np.float32), ["x", "y", "z"]))
    with pytest.raises(FileFormatError, match="point cloud"):
        read_gaussians(cloud)
    assert asset_kind(cloud) == "mesh"
    packed = tmp_path / "packed.ply"
    packed.write_bytes(common_file(np.zeros((2, 1), np.float32), ["packed_position"]))
    with pytest.raises(UnsupportedError, match="compressed"):
        read_gaussians(packed)
    with pytest.raises(FileFormatError, match=r"\.ply, \.splat"):
        read_gaussians(tmp_path / "a.spz")
    with pytest.raises(FileNotFoundError):
        read_gaussians(tmp_path / "none.ply")
    with pytest.raises(FileFormatError, match="folder"):
        (tmp_path / "dir.ply").mkdir()
        read_gaussians(tmp_path / "dir.ply")
    with pytest.raises(FileFormatError, match="3D asset"):
        asset_kind(tmp_path / "a.txt")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_malformed_splat_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.splat").write_bytes(bytes(size))
    with pytest.raises(FileFormatError):
        read_gaussians(tmp_path / "a.splat")


def test_malformed_splat_values(tmp_path: Path) -> None:
    (tmp_path / "a.splat").write_bytes(struct.pack("<6f8B", 0, 0, float("inf"), 1, 1, 1, *bytes(8)) + bytes(32))
    with pytest.raises(FileFormatError, match="1 of 2"):
        read_gaussians(tmp_path / "a.splat")


def test_writers_refuse_what_cannot_be_read_back(tmp_path: Path) -> None:
    good = random_gaussians(4)
    path = tmp_path / "a.ply"
    write_gaussians(path, good)
    before = path.read_bytes()
    broken = good.map(torch.clone)
    broken.means[2, 1] = torch.nan
    for bad, message in [
        (broken, "1 of 12 values"),
        (Gaussians.stack([good, good]), "batch"),
        (good.select(torch.zeros(4, dtype=torch.bool)), "no Gaussians"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            write_gaussians(path, bad)
    with pytest.raises(InvalidInputError, match="spherical"):
        write_gaussians(path, random_gaussians(2, 1), encoding="activated")
    with pytest.raises(InvalidInputError, match="suffix"):
        write_gaussians(tmp_path / "a.xyz", good)
    with pytest.raises(InvalidInputError, match=r"\.splat has no encoding"):
        write_gaussians(tmp_path / "a.splat", good, encoding="activated")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"], "no temporary files are left"


def test_half_precision_and_gradients_are_written(tmp_path: Path) -> None:
    given = random_gaussians(6).map(lambda t: t.to(torch.float64).requires_grad_())
    write_gaussians(tmp_path / "a.ply", given)
    assert_close(read_gaussians(tmp_path / "a.ply"), given.detach().to(torch.float32))
