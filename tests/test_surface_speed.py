"""The parts of a conversion that were written for speed, beside plain forms of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from skimage import measure
from torch.nn import functional

from cuda_on_cpu import run_on_cpu
from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.surface import SurfaceOptions, captures, gaussians_to_asset, sheet_kernels, tsdf, tsdf_cuda
from maquette.surface.bake import dilate
from maquette.surface.manifold import Faces, unique_edges
from maquette.surface.triangles import marching_cubes
from maquette.surface.volume import clean_volume


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fusion_on_the_gpu_is_the_same(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernels' own source, run on the CPU or on a GPU."""
    if device == "cpu":
        run_on_cpu(tsdf_cuda, tmp_path, monkeypatch)
    generator = torch.Generator().manual_seed(3)
    count, size, shape = 6, 40, (13, 11, 12)
    cameras = Cameras.orbit([60.0 * i for i in range(count)], 20.0, radius=3.0, height=size, width=size)
    depth = 2.8 + 0.4 * torch.rand(count, size, size, generator=generator)
    alpha, trust = torch.rand(2, count, size, size, generator=generator)
    color = torch.rand(count, size, size, 3, generator=generator)
    k = cameras.intrinsics
    pinhole = torch.stack([k[:, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], dim=1).float()
    matrices, positions = cameras.world_to_camera.float().contiguous(), cameras.positions.float()
    reliance = torch.linspace(0.1, 1, count)
    geometry, settings = torch.tensor([-0.8, -0.7, -0.75, 0.13]), torch.tensor([0.4, 0.5, 0.5, 0.04])
    given = [depth, alpha, trust, matrices, pinhole, reliance, geometry, settings]
    plain = np.empty(shape, np.float32)
    tsdf.integrate(*(value.numpy() for value in given), plain)
    difference = np.abs(tsdf_cuda.integrate([value.to(device) for value in given], shape).cpu().numpy() - plain)
    # A voxel on the border of two pixels may fall into either.
    assert np.quantile(difference, 0.99) < 1e-4
    points = torch.randn(500, 3, generator=generator) * 0.3
    normals = functional.normalize(points, dim=1)
    asked = [points, normals, color, depth, trust, matrices, pinhole, positions]
    sums = np.zeros((500, 4), np.float32)
    tsdf.gather_colors(*(value.numpy() for value in asked), 0.3, sums)
    got = tsdf_cuda.gather_colors([value.to(device) for value in asked], 0.3).cpu().numpy()
    assert np.allclose(got, sums, atol=1e-4)
    assert (sums[:, 3] > 0).mean() > 0.5


def test_captures_stay_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have a device and no values, and refuse to mix devices."""
    monkeypatch.setattr(captures, "_typical_coverage", lambda _: 0.9)
    with torch.device("meta"):
        views = Cameras(torch.zeros(2, 4, 4), torch.zeros(2, 3, 3), 8, 8)
        pictures = torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)
    seen = captures.Captures(views, *pictures)
    halved, cameras = seen.halved
    of_pictures = (seen.color, seen.trust, seen.color_trust, halved)
    of_cameras = (seen.matrices, seen.pinhole, seen.positions, cameras.intrinsics)
    assert all(value.is_meta for value in (*of_pictures, *of_cameras))
    assert halved.shape == (2, 4, 4, 3) and cameras.height == 4
    with pytest.raises(RuntimeError, match="device"):
        seen.alpha + torch.zeros(2, 8, 8)


def touching_boxes(seed: int) -> Faces:
    """Triangles of random cells of a small grid, in contact along edges and corners, some of them back to back."""
    import trimesh  # which a machine with a GPU need not have

    cells = np.argwhere(np.random.default_rng(seed).random((3, 3, 3)) < 0.5)
    boxes = [trimesh.creation.box(transform=trimesh.transformations.translation_matrix(cell)) for cell in cells]
    joined = trimesh.util.concatenate(boxes)
    _, index = np.unique(joined.vertices, axis=0, return_inverse=True)
    return index.reshape(-1)[joined.faces].astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_sides_are_matched_as_a_dictionary_does(seed: int) -> None:
    faces = touching_boxes(seed)
    edges: dict[frozenset[int], list[int]] = {}
    for side in range(faces.size):
        edges.setdefault(frozenset((faces[side // 3, side % 3], faces[side // 3, (side + 1) % 3])), []).append(side)
    partner, crowded = np.full(faces.size, -1), np.full(faces.size, -1)
    listed, numbers = unique_edges(faces)
    assert sheet_kernels.match_sides(faces, numbers, np.zeros(len(listed), np.int64), partner, crowded)
    for sides in edges.values():
        if len(sides) == 2:
            assert partner[sides].tolist() == sides[::-1] and (crowded[sides] == -1).all()
        else:
            assert (np.flatnonzero(crowded == crowded[sides[0]]) == sides).all() and crowded[sides[0]] >= 0
    listed, numbers = unique_edges(faces[1:])
    assert not sheet_kernels.match_sides(faces[1:], numbers, np.zeros(len(listed), np.int64), partner, crowded)
    kept, number = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    assert sheet_kernels.has_repeated_triangles(faces, int(faces.max()) + 1) == (len(kept) < len(faces))
    assert not sheet_kernels.has_repeated_triangles(faces[number], int(faces.max()) + 1)


def test_cycles_are_the_connected_parts_of_a_permutation() -> None:
    following = np.random.default_rng(7).permutation(300)
    links = sparse.coo_matrix((np.ones(300), (np.arange(300), following)))
    number, wanted = csgraph.connected_components(links, directed=False)
    labels = np.full(300, -1)
    assert sheet_kernels.label_cycles(following, labels) == number > 1
    assert (labels == wanted).all()


@pytest.mark.parametrize("seed", range(8))
def test_cleaned_volumes_are_those_of_labelled_images(seed: int) -> None:
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=random.integers(3, 14, 3)), 0.6).astype(np.float32)
    cleaned = clean_volume(field.copy(), 0.3)
    inside = np.zeros(field.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = field[1:-1, 1:-1, 1:-1] > 0
    labels, _ = ndimage.label(~inside)
    inside = labels != labels[0, 0, 0]  # cavities are solid
    parts, number = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    volumes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    kept = np.flatnonzero(volumes >= 0.3 * volumes.max(initial=0)) + 1
    assert np.array_equal(cleaned > 0, np.isin(parts, kept))
    assert np.abs(cleaned).min() > 0.9e-4
    unchanged = (cleaned > 0) == (field > 0)
    unchanged[0], unchanged[-1] = False, False
    unchanged[:, [0, -1]], unchanged[:, :, [0, -1]] = False, False
    assert np.allclose(cleaned[unchanged], field[unchanged], atol=1.1e-4)


def test_marching_cubes_faces_the_lower_side() -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(9, 11, 8)), 1.0).astype(np.float32)
    points, faces = marching_cubes(field, 0.01)
    wanted = measure.marching_cubes(field, 0.01, allow_degenerate=False)
    assert np.array_equal(points, wanted[0]) and np.array_equal(faces, wanted[1][:, ::-1])


@pytest.mark.parametrize("share", [0.002, 0.1, 0.8, 1.0])
def test_dilation_takes_a_nearest_texel_everywhere(share: float) -> None:
    random = np.random.default_rng(int(1000 * share))
    covered = random.random((37, 50)) < share
    covered[20, 30] = True
    rows, columns = np.indices(covered.shape)
    source = dilate(np.stack([rows, columns], axis=2).astype(np.float32), covered)
    assert covered[source[..., 0].astype(int), source[..., 1].astype(int)].all()
    distance = np.hypot(source[..., 0] - rows, source[..., 1] - columns)
    assert np.allclose(distance, ndimage.distance_transform_edt(~covered), atol=1e-4)
    assert (dilate(np.full((3, 2, 1), 4.0, np.float32), np.zeros((3, 2), bool)) == 4).all()


def test_a_conversion_by_the_gpu_kernels_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way as on a GPU, with the CUDA kernels' own source on the CPU."""
    points = functional.normalize(torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).expand(3000, 4), torch.full((3000, 3), 0.02)
    ball = Gaussians(points * 0.5, quats, scales, torch.full((3000,), 0.95), points.clamp(0, 1))
    options = SurfaceOptions(resolution=32, num_faces=500, texture_size=64, fast=True, fit_steps=2)
    monkeypatch.setattr("maquette.surface.convert._COLOR_SIZE", 128)
    plain = gaussians_to_asset(ball, options).report
    run_on_cpu(tsdf_cuda, tmp_path, monkeypatch)
    monkeypatch.setattr(captures.Captures, "on_gpu", True)
    monkeypatch.setattr("maquette.surface.fusion.integrate", None)
    monkeypatch.setattr("maquette.surface.bake.gather_colors", None)
    report = gaussians_to_asset(ball, options).report
    assert report.watertight and report.triangles == plain.triangles and report.psnr_db is not None
    assert report.psnr_db == pytest.approx(plain.psnr_db, abs=0.05)
    assert report.volume == pytest.approx(plain.volume, rel=1e-3)
