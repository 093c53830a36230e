"""Thin places of a closed mesh: found, and kept from shrinking to nothing.

Pictures do not say that a front and a back belong together: steps, smoothing and rounding move each on its own, and a
sheet or a rod that is thinner than a step crosses itself and is lost. So every move is limited: what is opposite before
stays at least a small distance away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maquette.raster.cpu_jit import kernel_threads
from maquette.surface import mesh_kernels, thickness_kernels
from maquette.surface.fusion import smooth_normals
from maquette.surface.manifold import Doubles, Faces, touching
from maquette.surface.remesh import Patch

_OPPOSED = 0.3
"""Least cosine between a way through the solid and the normal where it leaves."""
_CONFIRMED = 0.3
"""A place counts as shown by the maps from so much on."""
_LASTING = 0.8
"""A place counts as a sheet from so much on: it must have been thin, and shown, for several steps."""
_KNOWN = 0.1
"""A place was thin a while ago from so much on."""
_MOST_CELLS = 128
"""Along an axis of the grid."""
_REACH = 6.0
"""How far to look for the opposite side, in least thicknesses: a step of either side may be longer than one."""
_PASSES = 3
"""Of moving apart: what is pushed from one place may come too near at another."""


@dataclass(frozen=True)
class ThinPlaces:
    """What lies opposite of vertices, inside the solid.

    Attributes:
        faces: `[M, 3]`.
        normals: unit, of the vertices `[N, 3]`.
        hit: triangle opposite of every vertex `[N]`, -1 where none is near.
        weights: of its corners `[N, 3]`.
        least: thickness to keep, in world units.
    """

    faces: Faces
    normals: Doubles
    hit: NDArray[np.int64]
    weights: Doubles
    least: float

    def near(self) -> NDArray[np.bool_]:
        """Vertices at thin places: those with something opposite, the corners of that, and all around, `[N]`."""
        found = self.hit >= 0
        near = found.copy()
        near[self.faces[self.hit[found]].reshape(-1)] = True
        # One triangle more, for the normals at a rim lead along the sheet and meet nothing.
        near[self.faces[touching(self.faces, near)].reshape(-1)] = True
        return near

    def kept(self, points: Doubles, shift: Doubles, freedom: Doubles | float = 1.0) -> Doubles:
        """The shift `[N, 3]` of the points, changed where it would leave less than the least thickness.

        Args:
            points: `[N, 3]`; shift: `[N, 3]`.
            freedom: share of the change that a vertex may follow, `[N, 1]`.
        """
        start = points + shift
        shifted, sums, total = start.copy(), np.empty_like(points), np.empty(len(points))
        for _ in range(_PASSES):
            if not thickness_kernels.keep_apart(
                shifted, self.faces, self.normals, self.hit, self.weights, self.least, sums, total
            ):
                break
        changed: Doubles = shift + freedom * (shifted - start)
        return changed


def thin_places(
    points: Doubles, all_faces: Faces, normals: Doubles, chosen: NDArray[np.bool_], least: float
) -> ThinPlaces:
    """Finds what lies opposite of chosen vertices along their normals, inside the solid.

    Args:
        points: `[N, 3]`; all_faces: `[M, 3]`; normals: unit `[N, 3]`.
        chosen: `[N]`; what lies opposite must have one of them as a corner.
        least: thickness to keep, in world units; opposite sides are looked for up to six times as far.
    """
    looked_at = np.flatnonzero(touching(all_faces, chosen))
    faces = all_faces[looked_at]
    reach, crossed = _REACH * least, np.empty((len(faces), 3))
    mesh_kernels.cross(points, faces, crossed)
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    size = max(reach, float(extent.max()) / _MOST_CELLS)
    shape = np.floor(extent / size).astype(np.int64) + 1
    cells = int(shape.prod())
    starts, bounds = np.zeros(cells + 2, np.int32), np.empty((cells, 6), np.float32)
    thickness_kernels.count_cells(points, faces, crossed, low, size, shape, starts, bounds)
    starts = np.cumsum(starts, dtype=np.int32)
    listed = np.empty(int(starts[-1]), np.int32)
    thickness_kernels.list_cells(points, faces, low, size, shape, starts, listed)
    hit, weights = np.empty(len(points), np.int64), np.zeros((len(points), 3))
    grid = (low, size, shape, starts, listed, bounds)
    with kernel_threads():
        thickness_kernels.find_opposite(points, faces, crossed, normals, chosen, reach, _OPPOSED, *grid, hit, weights)
    hit[hit >= 0] = looked_at[hit[hit >= 0]]
    return ThinPlaces(all_faces, normals, hit, weights, least)


@dataclass(frozen=True)
class ThinGuard:
    """Keeps places thick enough while the vertices of a patch move.

    Only where the maps confirm both sides: a fin of the start that they do not show may shrink, and be cut out.

    Attributes:
        least: thickness to keep, in world units.
        freedom, shown, thin: columns of the state: share of the way that a vertex may move, 0..1, how well the maps
            show the surface there, from -1 for not at all to 1, and how surely the place is thin, 0..1.
    """

    least: float
    freedom: int
    shown: int
    thin: int

    def sheets(self, patch: Patch) -> NDArray[np.bool_]:
        """Vertices of thin places whose sides the maps confirm, `[N]`."""
        sheets: NDArray[np.bool_] = patch.state[:, self.thin] > _LASTING
        return sheets

    def limited(self, patch: Patch, shift: Doubles, *, everywhere: bool) -> tuple[Doubles, NDArray[np.bool_]]:
        """The shift without what would make confirmed places thinner than allowed, and the vertices at thin places.

        Args:
            patch: the surface before; shift: `[N, 3]`.
            everywhere: whether to look for thin places everywhere, or, in less time, where some were a while ago.
        """
        places = self.places(patch, everywhere=everywhere)
        if places is None:
            return shift, np.zeros(len(shift), bool)
        return places.kept(patch.points, shift, patch.state[:, self.freedom, None]), places.near()

    def places(self, patch: Patch, *, everywhere: bool = True) -> ThinPlaces | None:
        """Thin places whose sides the maps confirm, None where they confirm nothing; `everywhere` as for `limited`."""
        shown = patch.state[:, self.shown]
        confirmed = shown > _CONFIRMED
        if not everywhere:
            confirmed &= patch.state[:, self.thin] > _KNOWN
        if not confirmed.any():
            return None
        normals = smooth_normals(patch.points, patch.faces).astype(np.float64)
        places = thin_places(patch.points, patch.faces, normals, confirmed, self.least)
        met = (shown[patch.faces[places.hit]] * places.weights).sum(axis=1)
        places.hit[met <= _CONFIRMED] = -1
        return places
