"""Depth from normal maps: pieces of surface integrated within each view, and placed where the other views agree.

Within a view, normals that change slowly from pixel to pixel tell the shape of a piece of surface up to one number, its
distance. That is searched for: at the right one, the other views show the same normals where the piece projects. What
one view says another one has to confirm, else it is dropped.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maquette.cameras import Cameras
from maquette.raster.cpu_jit import kernel_threads
from maquette.raster.mesh import pinhole_parameters
from maquette.surface.carve_kernels import confirm
from maquette.surface.manifold import Doubles
from maquette.surface.normal_maps import NormalMaps

_SAME_PIECE = 0.985
"""Least cosine of neighbouring normals of one piece."""
_LEAST_SLOPE = 0.05
"""Cosine to the line of sight below which the depth of neighbours is not related."""
_COVERED, _LEAST_PIXELS = 0.9, 12
_POINTS = 300
"""Pixels of a piece that take part in the search, at most."""
_STEP, _REACH = 0.003, 0.6
"""Of the search, in the logarithm of depth, from the given surface inwards."""
_SURE, _LEAST_PEAK, _PEAKS, _APART = 0.8, 0.1, 4, 4
"""Distances worth a closer look: highest within so many steps, on the mean and on the share of sure pixels."""
_WINDOW, _PRIOR, _NEARLY, _LEAST_SCORE = 9, 1.0, 0.7, 0.45
"""A pixel looks at a window around it, adds what its whole piece says, and takes the nearest of what is nearly best."""
_NEAR = 0.02
"""Difference in depth, relative to it, up to which two views mean the same surface."""


@dataclass(frozen=True)
class _Views:
    """Normal maps prepared for look-ups, on the CPU: camera axes are OpenCV's."""

    cameras: Cameras
    positions: Tensor
    normals: Tensor
    covered: Tensor
    possible: Tensor
    rays: Tensor
    matrices: Tensor
    pinhole: Tensor


def depth_maps(maps: NormalMaps, front: Tensor) -> Tensor:
    """Depth along z of what the maps show, `[V, H, W]` float64; 0 where nothing certain is known.

    Args:
        maps: three or more, on the CPU; small ones (256 pixels) do.
        front: depth of a surface that nothing lies in front of, such as the visual hull's, `[V, H, W]`; 0 for none.
    """
    views = _prepared(maps)
    found = torch.zeros_like(front, dtype=torch.float64)
    turned = views.normals @ views.matrices[:, None, :3, :3].mT
    seen = zip(views.covered.numpy(), turned.numpy(), views.rays.numpy(), views.pinhole.tolist(), strict=True)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pieces = list(pool.map(_pieces, seen))
    for view, (piece, relative) in enumerate(pieces):
        _place(views, view, piece, relative, front[view].double(), found)
    return _agreeing(views, found)


def _prepared(maps: NormalMaps) -> _Views:
    cameras = maps.cameras
    pinhole = pinhole_parameters(cameras).double()
    column, row = torch.arange(cameras.width).double() + 0.5, torch.arange(cameras.height).double() + 0.5
    x = (column[None, :] - pinhole[:, 2, None]) / pinhole[:, 0, None]
    y = (row[None, :] - pinhole[:, 3, None]) / pinhole[:, 1, None]
    shape = (len(pinhole), cameras.height, cameras.width)
    rays = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape), torch.ones(shape).to(x)], dim=-1)
    possible = torch.nn.functional.max_pool2d((maps.alpha > 0)[:, None].float(), 3, 1, 1)[:, 0] > 0
    matrices, positions = cameras.world_to_camera.double(), cameras.positions.double()
    return _Views(cameras, positions, maps.normals.double(), maps.alpha > _COVERED, possible, rays, matrices, pinhole)


def _pieces(
    seen: tuple[NDArray[np.bool_], Doubles, Doubles, list[float]],
) -> tuple[NDArray[np.int64], Doubles]:
    """Number of every pixel's piece `[H, W]`, -1 for none, and its logarithm of depth up to a constant of the piece.

    Args:
        seen: a view's covered pixels `[H, W]`, their normals and rays in its axes `[H, W, 3]`, and fx, fy, cx, cy.
    """
    from scipy import sparse
    from scipy.sparse import csgraph
    from scipy.sparse.linalg import spsolve

    covered, normals, rays, pinhole = seen
    index = np.full(covered.shape, -1)
    count = int(covered.sum())
    index[covered] = np.arange(count)
    first, second, slope, change = [], [], [], []
    for axis, focal in ((1, pinhole[0]), (0, pinhole[1])):
        here, there = (
            tuple(np.take(a, range(s, a.shape[axis] - 1 + s), axis) for a in (covered, normals, rays, index))
            for s in (0, 1)
        )
        mean = (here[1] + there[1]) / 2
        along = (mean * (here[2] + there[2]) / 2).sum(axis=-1)
        linked = here[0] & there[0] & ((here[1] * there[1]).sum(axis=-1) > _SAME_PIECE) & (along < -_LEAST_SLOPE)
        first.append(here[3][linked])
        second.append(there[3][linked])
        slope.append(along[linked])
        change.append(-mean[..., 0 if axis == 1 else 1][linked] / focal)
    a, b, weight, wanted = (np.concatenate(part) for part in (first, second, slope, change))
    number, label = csgraph.connected_components(
        sparse.coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count)), directed=False
    )
    # Least squares of weight * (depth_b - depth_a) = wanted, by the normal equations.
    ends = np.concatenate([a, b])
    diagonal = np.bincount(ends, np.tile(weight**2, 2), count) + 1e-9
    off = sparse.coo_matrix((-(weight**2), (a, b)), shape=(count, count))
    system = (off + off.T + sparse.diags(diagonal)).tocsc()
    right = np.bincount(b, weight * wanted, count) - np.bincount(a, weight * wanted, count)
    solved = spsolve(system, right)
    solved -= (np.bincount(label, solved, number) / np.bincount(label, minlength=number))[label]
    piece, relative = np.full(covered.shape, -1, np.int64), np.zeros(covered.shape)
    piece[covered], relative[covered] = label, solved
    return piece, relative


@dataclass(frozen=True)
class _Piece:
    """Pixels of a piece, their logarithms of depth up to a constant, its least value, and some of the pixels."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    shape: Doubles
    lowest: float
    some: NDArray[np.int64]


def _place(views: _Views, view: int, piece: NDArray[np.int64], relative: Doubles, front: Tensor, found: Tensor) -> None:
    """Finds the distance of every piece of a view and writes the depth of what the other views confirm to `found`.

    What looks like one piece can be two, one behind the other, with the same normal: every pixel chooses among the
    distances that suit many of them, by what is confirmed around it.
    """
    pieces = _listed(piece, relative, front.log().numpy())
    candidates = _candidates(views, view, pieces) if pieces else []
    listed = [(p, np.exp(p.shape + offsets[:, None])) for p, offsets in zip(pieces, candidates, strict=True)]
    listed = [(p, depths) for p, depths in listed if len(depths)]
    if not listed:
        return
    ends = np.cumsum([len(p.rows) for p, _ in listed])
    together = np.full((max(len(depths) for _, depths in listed), ends[-1]), np.nan)
    for (_, depths), end in zip(listed, ends, strict=True):
        together[: len(depths), end - depths.shape[1] : end] = depths
    rows, columns = (np.concatenate([getattr(p, name) for p, _ in listed]) for name in ("rows", "columns"))
    answers = _confirmed(views, view, rows, columns, together)
    for (p, depths), end in zip(listed, ends, strict=True):
        confirmed = answers[: len(depths), end - depths.shape[1] : end]
        around = _around(confirmed, p.rows, p.columns)
        total = around + _PRIOR * confirmed.mean(axis=1)[:, None]
        # A farther piece with the same normal, hidden here, is confirmed as well: the nearest one is seen.
        best = (total >= _NEARLY * total.max(axis=0)).argmax(axis=0)
        each = np.arange(len(p.rows))
        good = (around[best, each] > _LEAST_SCORE) & (confirmed[best, each] > 0)
        found.numpy()[view, p.rows[good], p.columns[good]] = depths[best, each][good]


def _listed(piece: NDArray[np.int64], relative: Doubles, start: Doubles) -> list[_Piece]:
    """The pieces that are large enough, as far as a surface (`start`, the logarithm of its depth) lies before them."""
    generator = np.random.default_rng(0)
    order = np.argsort(piece, axis=None, kind="stable")
    sizes = np.bincount(piece.reshape(-1) + 1)
    ends = np.cumsum(sizes)
    pieces = []
    for number in np.flatnonzero(sizes[1:] >= _LEAST_PIXELS):
        rows, columns = np.unravel_index(order[ends[number] : ends[number + 1]], piece.shape)
        inside = np.isfinite(start[rows, columns])
        if inside.sum() < _LEAST_PIXELS:
            continue
        rows, columns = rows[inside], columns[inside]
        shape = relative[rows, columns]
        lowest = float(np.quantile(start[rows, columns] - shape, 0.1)) - 2 * _STEP
        pieces.append(_Piece(rows, columns, shape, lowest, generator.permutation(len(rows))[:_POINTS]))
    return pieces


def _around(values: Doubles, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Doubles:
    """Mean of values `[K, P]` at pixels over those of the same piece in a window around each."""
    from scipy import ndimage

    row, column = rows - rows.min(), columns - columns.min()
    picture = np.zeros((len(values) + 1, int(row.max()) + 1, int(column.max()) + 1))
    picture[:-1, row, column], picture[-1, row, column] = values, 1
    sums = ndimage.uniform_filter(picture, (0, _WINDOW, _WINDOW), mode="constant")[:, row, column]
    mean: Doubles = sums[:-1] / sums[-1]
    return mean


def _candidates(views: _Views, view: int, pieces: list[_Piece]) -> list[Doubles]:
    """Offsets of the logarithm of depth at which the other views agree with a piece, or with much of it, for each."""
    from scipy import ndimage

    offsets = [p.lowest + _STEP * np.arange(int(_REACH / _STEP), dtype=np.float64) for p in pieces]
    depths = [np.exp(o[:, None] + p.shape[p.some]) for p, o in zip(pieces, offsets, strict=True)]
    rows, columns = np.concatenate([(p.rows[p.some], p.columns[p.some]) for p in pieces], axis=1)
    answers = _confirmed(views, view, rows, columns, np.concatenate(depths, axis=1))
    ends, chosen = np.cumsum([len(p.some) for p in pieces]), []
    for own, p, end in zip(offsets, pieces, ends, strict=True):
        confirmed = np.ascontiguousarray(answers[:, end - len(p.some) : end])
        peaks = np.zeros(len(own), bool)
        for curve in (confirmed.mean(axis=1), (confirmed > _SURE).mean(axis=1)):
            highest = ndimage.maximum_filter1d(curve, 2 * _APART + 1, mode="nearest")
            peak = (curve >= highest) & (curve >= _LEAST_PEAK)
            if peak.any():
                peaks |= peak & (curve >= np.sort(curve[peak])[-_PEAKS:][0])
        chosen.append(own[peaks])
    return chosen


def _confirmed(
    views: _Views, view: int, rows: NDArray[np.int64], columns: NDArray[np.int64], depths: Doubles
) -> Doubles:
    """How far the other views confirm supposed depths `[K, P]` of a view's pixels, `[K, P]`; see `confirm`."""
    confirmed = np.empty(depths.shape)
    pixels = (views.rays.numpy()[view, rows, columns], views.normals.numpy()[view, rows, columns])
    cameras = (views.matrices.numpy(), views.positions.numpy(), views.pinhole.numpy())
    with kernel_threads():
        confirm(view, *pixels, depths, *cameras, views.possible.numpy(), views.normals.numpy(), confirmed)
    return confirmed


def _projected(views: _Views, view: int, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Column and row of the pixels, clamped, of points `[..., 3]`, whether they lie in the picture, and their depth."""
    local = points @ views.matrices[view, :3, :3].T + views.matrices[view, :3, 3]
    fx, fy, cx, cy = views.pinhole[view]
    depth = local[..., 2].clamp_min(1e-6)
    column, row = (fx * local[..., 0] / depth + cx).floor().long(), (fy * local[..., 1] / depth + cy).floor().long()
    width, height = views.cameras.width, views.cameras.height
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return column.clamp(0, width - 1), row.clamp(0, height - 1), inside, depth


def _agreeing(views: _Views, found: Tensor) -> Tensor:
    """The depths that another view's depth confirms, and fewer see past than confirm."""
    kept = torch.zeros_like(found)
    for view in range(len(found)):
        at = (found[view] > 0).nonzero(as_tuple=True)
        rotation, shift = views.matrices[view, :3, :3], views.matrices[view, :3, 3]
        points = (views.rays[view][at] * found[view][at][:, None] - shift) @ rotation
        support, against = torch.zeros(len(points)).to(found), torch.zeros(len(points)).to(found)
        for other in range(len(found)):
            if other == view:
                continue
            column, row, inside, depth = _projected(views, other, points)
            there = torch.where(inside, found[other][row, column], 0.0)
            support += (there > 0) & ((there / depth - 1).abs() < _NEAR)
            against += (there > 0) & (there / depth - 1 > _NEAR)
        good = support > against
        kept[view][tuple(a[good] for a in at)] = found[view][at][good]
    return kept
