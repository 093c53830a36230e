"""Words that options take, for modules that must know them before anything heavy is imported."""

from __future__ import annotations

from typing import Literal

FORMATS = ("ply", "splat", "glb", "mp4", "png")
"""What `maquette.pipelines.generate` can write: Gaussians twice, a mesh, a turntable video and a contact sheet."""

CutOutBy = Literal["alpha", "rembg", "plain"]
CUT_OUTS: tuple[CutOutBy, ...] = ("alpha", "rembg", "plain")
"""How `maquette.picture.prepare` can find the object, in the order in which it tries."""
