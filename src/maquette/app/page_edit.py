"""What happens behind the "Edit" tab: a session of edits of one mesh, from painted pixels to files."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from maquette.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    from maquette.app.editing import EditHistory, EditView
    from maquette.gaussians import Gaussians

Kind = Literal["smooth", "refine"]
Tell = Callable[[float, str], None]
"""Told the fraction that is done, 0..1, and what is being done."""

VIEW_SIZE = 512
_PAINTED = 10
"""A pixel counts as painted from this opacity on, of 255."""
_REFINE_STEPS = 40


@dataclass(frozen=True)
class EditSession:
    """Edits of the mesh of one job.

    Attributes:
        job_id: of the job.
        history: of the mesh.
        gaussians: that it was made of.
        view: that is shown and painted on.
        name: of the files to save.
    """

    job_id: str
    history: EditHistory
    gaussians: Gaussians
    view: EditView
    name: str

    def turned(self, view: EditView) -> EditSession:
        """Seen from elsewhere."""
        return dataclasses.replace(self, view=view)

    def undone(self) -> EditSession:
        """Without the last edit.

        Raises:
            InvalidInputError: there is none.
        """
        return dataclasses.replace(self, history=self.history.undone())


def start_session(job_id: str, mesh_file: Path, gaussians_file: Path) -> EditSession:
    """Reads what a job made.

    Raises:
        FileFormatError: a file is missing or broken.
    """
    from maquette.app.editing import EditHistory, EditView
    from maquette.io import read_gaussians, read_mesh

    mesh, gaussians = read_mesh(mesh_file), read_gaussians(gaussians_file)
    return EditSession(job_id, EditHistory((mesh,)), gaussians, EditView(image_size=VIEW_SIZE), mesh_file.stem)


def view_of(azimuth: float, elevation: float, shows: str) -> EditView:
    """The view that the fields of the tab ask for.

    Raises:
        InvalidInputError: a value is out of range.
    """
    from maquette.app.editing import EditView

    return EditView(float(azimuth), float(elevation), "color" if shows == "color" else "normals", VIEW_SIZE)


def picture_of(session: EditSession) -> NDArray[np.uint8]:
    """What the session's view shows, `[H, W, 3]`."""
    from maquette.app.editing import view_picture

    shown = view_picture(session.history.mesh, session.view)
    pixels: NDArray[np.uint8] = shown.permute(1, 2, 0).mul(255).round().byte().numpy()
    return pixels


def painted_region(painting: dict[str, Any] | None, size: int = VIEW_SIZE) -> Tensor:
    """What the brush left on a picture, `[size, size]`, 0 or 1.

    Args:
        painting: value of the page's editor: "layers" are RGBA arrays `[H, W, 4]`.
        size: of the picture that was painted on.

    Raises:
        InvalidInputError: nothing is painted.
    """
    import torch
    from torch.nn import functional

    layers = [np.asarray(layer) for layer in (painting or {}).get("layers") or [] if layer is not None]
    painted = [layer[..., 3] > _PAINTED for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    if not any(mask.any() for mask in painted):
        raise InvalidInputError("nothing is painted yet: paint over the part of the picture that should change")
    region = torch.zeros(size, size)
    for mask in painted:
        pixels = torch.from_numpy(mask.astype(np.float32))[None, None]
        region = torch.maximum(region, functional.interpolate(pixels, (size, size), mode="nearest")[0, 0])
    return region


def edited(
    session: EditSession, kind: Kind, region: Tensor, strength: int, busy: threading.Lock, tell: Tell
) -> EditSession:
    """Does one edit, when no job runs.

    Args:
        session: before it.
        kind: what to do.
        region: where, as `painted_region` gives it.
        strength: of smoothing, 1..10.
        busy: held by whoever computes.
        tell: told about every step.

    Raises:
        InvalidInputError: the mesh is not seen in the region, or an argument is out of range.
    """
    from maquette.app.editing import refine_region, smooth_region

    mesh = session.history.mesh
    if not busy.acquire(blocking=False):
        tell(0.0, "waiting for the job that runs")
        busy.acquire()
    try:
        if kind == "smooth":
            changed = smooth_region(mesh, region, session.view, strength=strength)
        else:
            changed = refine_region(
                mesh,
                session.gaussians,
                region,
                session.view,
                steps=_REFINE_STEPS,
                progress=lambda done, steps: tell(done / steps, "refining"),
            )
    finally:
        busy.release()
    return dataclasses.replace(session, history=session.history.edited(changed))


def change_words(before: EditSession, after: EditSession) -> str:
    """What the last edit did."""
    old, new = before.history.mesh, after.history.mesh
    if old.num_vertices == new.num_vertices and old.num_faces == new.num_faces:
        shift = (new.vertices - old.vertices).norm(dim=1)
        moved = int((shift > 1e-6).sum())
        size = float((old.vertices.amax(dim=0) - old.vertices.amin(dim=0)).max())
        most = 100 * float(shift.max()) / max(size, 1e-12)
        return f"Smoothed: {moved:,} of {len(shift):,} vertices moved, at most by {most:.1f} % of the object's size."
    return f"Refined: {old.num_faces:,} triangles became {new.num_faces:,}; the colours were carried over."
