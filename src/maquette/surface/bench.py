"""Measures extractions of a surface: distance to the true asset, and look beside the Gaussians' own renders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.assets import open_assets
from maquette.data.dataset import INPUT, RenderedDataset
from maquette.data.render import bounding_sphere
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.raster.mesh import rasterize_mesh
from maquette.raster.shading import screen_points
from maquette.surface.captures import sphere_cameras
from maquette.surface.report import describe, likeness_to
from maquette.views import Views

Extract = Callable[[Gaussians], Mesh]
Reconstruct = Callable[[Views], Gaussians]

RADIUS = 0.6
"""Of the bounding sphere of an asset in the plan `standard` of `maquette data render`."""
DISTANCES = (0.01, 0.05)
"""Of the F-scores, in world units."""
_SAMPLES = 50_000
_DENSER = 20
_FAINT = 0.005
_VIEWS, _VIEW_SIZE, _TOLERANCE = 64, 512, 0.004
"""Views that tell what can be seen of a true asset, and how far behind the nearest surface counts."""


@dataclass(frozen=True)
class SurfaceScores:
    """One extraction of one object.

    Attributes:
        object_id, method: what was measured.
        gaussians, triangles: numbers.
        seconds: of the extraction.
        chamfer: mean of the mean distances from either surface to the other, world units.
        f_scores: harmonic mean of precision and recall at each of `DISTANCES`, 0..1.
        visible_chamfer, visible_f_scores: the same without what no view from outside sees of the true asset.
        psnr: in dB, of the unlit mesh against the Gaussians' renders, mean of 8 views of 512 px.
        psnr_limit: of the Gaussians' pictures cut out at half coverage, see `SurfaceReport`.
        watertight: closed and manifold.
    """

    object_id: str
    method: str
    gaussians: int
    triangles: int
    seconds: float
    chamfer: float
    f_scores: tuple[float, ...]
    visible_chamfer: float
    visible_f_scores: tuple[float, ...]
    psnr: float
    psnr_limit: float
    watertight: bool


def bench_surfaces(
    data: str | Path,
    assets: str | Path,
    reconstruct: Reconstruct,
    methods: Mapping[str, Extract],
    ids: Sequence[str],
) -> Iterator[SurfaceScores]:
    """Measures methods on Gaussians reconstructed from the input views of rendered objects.

    Args:
        data: rendered data set of the plan `standard`.
        assets: the assets it was rendered from.
        reconstruct: from views `[4]` to Gaussians `[N]`.
        methods: name to extraction; each is called once more before it is timed, for the compiler.
        ids: of the objects.

    Raises:
        InvalidInputError: the data set is not of the plan `standard`, or an id is unknown.
        FileFormatError: a file is broken.
    """
    dataset = RenderedDataset.load(data, ids=tuple(ids))
    if dataset.settings.get("plan") != "standard":
        raise InvalidInputError(f"{data} has the plan {dataset.settings.get('plan')!r}; render it with --plan standard")
    warm = False
    with open_assets(assets, ids=tuple(ids)) as listed:
        truths = {asset.info.id: asset for asset in listed.assets}
        for index, info in enumerate(dataset.objects):
            inputs = torch.nonzero(dataset.roles[index] == INPUT)[:, 0].tolist()
            with torch.inference_mode():
                made = reconstruct(dataset.views(index, inputs))
            gaussians = made.select(made.opacities >= _FAINT)
            truth = normalized(truths[info.id].read_mesh())
            for name, extract in methods.items():
                if not warm:
                    extract(gaussians)
                start = time.perf_counter()
                mesh = extract(gaussians)
                seconds = time.perf_counter() - start
                yield _scores(info.id, name, gaussians, mesh, truth, seconds)
            warm = True


def _scores(object_id: str, name: str, gaussians: Gaussians, mesh: Mesh, truth: Mesh, seconds: float) -> SurfaceScores:
    look, limit = likeness_to(gaussians, mesh, torch.zeros(3), RADIUS)
    return SurfaceScores(
        object_id,
        name,
        gaussians.num_gaussians,
        mesh.num_faces,
        seconds,
        *compare_surfaces(mesh, truth),
        *compare_surfaces(mesh, truth, visible=True),
        look,
        limit,
        describe(mesh, {}).watertight,
    )


def compare_surfaces(
    mesh: Mesh, truth: Mesh, *, samples: int = _SAMPLES, visible: bool = False
) -> tuple[float, tuple[float, ...]]:
    """Chamfer distance and F-scores at `DISTANCES` of points sampled evenly on both surfaces.

    Args:
        mesh: made.
        truth: true.
        samples: on each.
        visible: leave out points of the true surface that no view from outside sees: hidden insides of assets.
    """
    from scipy import spatial

    made, true = (sample_points(m, samples, seed).numpy() for seed, m in enumerate((mesh, truth)))
    to_true, _ = spatial.cKDTree(true).query(made)
    wanted = true[seen_from_outside(truth, true)] if visible else true
    to_made, _ = spatial.cKDTree(made).query(wanted)
    f_scores = []
    for distance in DISTANCES:
        precision, recall = float(np.mean(to_true < distance)), float(np.mean(to_made < distance))
        f_scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(to_true.mean() + to_made.mean()) / 2, tuple(f_scores)


def normal_consistency(mesh: Mesh, truth: Mesh, *, samples: int = _SAMPLES, visible: bool = False) -> float:
    """Mean absolute cosine of normals at points of either surface and at the nearest point of the other, both ways.

    Points are sampled evenly; the nearest one is looked for among 20 times as many, so that a surface reaches 0.99
    against itself (among as many, low-polygon assets reach 0.92 to 0.99). Arguments as for `compare_surfaces`.
    """
    _, made = normal_agreement(mesh, truth, samples=samples)
    points, true = normal_agreement(truth, mesh, samples=samples)
    if visible:
        true = true[seen_from_outside(truth, points)]
    return float(made.mean() + true.mean()) / 2


def normal_agreement(
    mesh: Mesh, other: Mesh, *, samples: int = _SAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points spread evenly over a mesh `[N, 3]`, and how far normals agree there with the nearest point of the other.

    That is the absolute cosine, `[N]`; see `normal_consistency`.
    """
    from scipy import spatial

    points, normals = _samples(mesh, samples, 0)
    others, other_normals = _samples(other, _DENSER * samples, 1)
    # Between points in few planes, queries of a compact tree take twenty times as long.
    tree = spatial.cKDTree(others, balanced_tree=False, compact_nodes=False)
    nearest = tree.query(points, workers=torch.get_num_threads())[1]
    return points, np.abs((normals * other_normals[nearest]).sum(axis=1))


def seen_from_outside(mesh: Mesh, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points `[N, 3]` of the surface of a mesh in the sphere of radius `RADIUS` any of 64 views sees, `[N]`."""
    scale = 0.98 / RADIUS
    return seen_by(
        mesh.transformed(scale, (0.0, 0.0, 0.0)), points * scale, sphere_cameras(_VIEWS, _VIEW_SIZE), _TOLERANCE * scale
    )


def seen_by(
    mesh: Mesh, points: NDArray[np.float64], cameras: Cameras, tolerance: float = _TOLERANCE
) -> NDArray[np.bool_]:
    """Which points `[N, 3]` of the surface of a mesh any of the cameras sees, `[N]`.

    Args:
        mesh: what hides.
        points: on it; those outside the pictures count by the nearest pixel.
        cameras: `[V]`, with pictures of at least about 500 pixels.
        tolerance: how far behind what a pixel shows a point may lie, world units.
    """
    depth = rasterize_mesh(mesh.vertices.float().cpu(), mesh.faces.cpu(), cameras).depth
    screen = screen_points(torch.from_numpy(points), cameras)
    columns, rows = (screen[..., i].long().clamp(0, size - 1) for i, size in enumerate((cameras.width, cameras.height)))
    shown = depth[torch.arange(len(depth))[:, None], rows, columns]
    seen: NDArray[np.bool_] = ((shown > 0) & (screen[..., 2] - shown < tolerance)).any(dim=0).numpy()
    return seen


def normalized(mesh: Mesh) -> Mesh:
    """The asset as the plan `standard` places it: its bounding sphere at the origin, of radius `RADIUS`."""
    center, radius = bounding_sphere(mesh)
    scale = RADIUS / radius
    x, y, z = (-value * scale for value in center)
    return mesh.transformed(scale, (x, y, z))


def sample_points(mesh: Mesh, count: int, seed: int) -> Tensor:
    """Points `[count, 3]` (float64) spread over the triangles by area."""
    return torch.from_numpy(_samples(mesh, count, seed)[0])


def _samples(mesh: Mesh, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and unit normals of their triangles, `[count, 3]` each."""
    corners = mesh.vertices.cpu().double()[mesh.faces.cpu()]
    crossed = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = crossed.norm(dim=1)
    summed = torch.nan_to_num(area).cumsum(0)
    generator = torch.Generator().manual_seed(seed)
    picked, u, v = torch.rand(3, count, generator=generator, dtype=torch.float64)
    face = torch.searchsorted(summed, picked * summed[-1]).clamp_max(len(area) - 1)
    root = u.sqrt()
    barycentric = torch.stack([1 - root, root * (1 - v), root * v], dim=1)
    points = (corners[face] * barycentric[:, :, None]).sum(dim=1)
    return points.numpy(), torch.nn.functional.normalize(crossed[face], dim=1).numpy()


def means(scores: Sequence[SurfaceScores], method: str) -> dict[str, Any]:
    """Mean values of one method, as they stand in the report."""
    chosen = [score for score in scores if score.method == method]
    return {
        "objects": len(chosen),
        "chamfer": float(np.mean([s.chamfer for s in chosen])),
        **{f"f_{d:g}": float(np.mean([s.f_scores[i] for s in chosen])) for i, d in enumerate(DISTANCES)},
        "visible_chamfer": float(np.mean([s.visible_chamfer for s in chosen])),
        **{
            f"visible_f_{d:g}": float(np.mean([s.visible_f_scores[i] for s in chosen])) for i, d in enumerate(DISTANCES)
        },
        "psnr": float(np.mean([s.psnr for s in chosen])),
        "psnr_limit": float(np.mean([s.psnr_limit for s in chosen])),
        "watertight": sum(s.watertight for s in chosen),
        "seconds": float(np.mean([s.seconds for s in chosen])),
        "triangles": round(float(np.mean([s.triangles for s in chosen]))),
    }
