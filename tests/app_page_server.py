"""A server of the page whose jobs are quick: a rough ball, whatever is asked; seed 7 is done by the real models."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from edit_scenes import RADIUS, rough_ball, shell, textured
from maquette.app import page_edit
from maquette.app.jobs import Report
from maquette.app.page_server import build_site
from maquette.app.request import GenerateRequest
from maquette.app.server import bound_socket, serve
from maquette.io import write_gaussians, write_image, write_mesh, write_video
from maquette.io.atomic import atomic_write_text
from maquette.io.images import decode_image
from maquette.picture.prepare import prepare_picture

REAL_SEED = 7
SLOW, BROKEN = "slow", "broken"
"""Words of a prompt: the job takes half a minute; the job meets a bug."""


class Balls:
    """Work for the queue."""

    def __init__(self) -> None:
        self._real = None

    def __call__(self, request: GenerateRequest, folder: Path, report: Report) -> Sequence[str] | None:
        if request.seed == REAL_SEED:
            from maquette.app.service import GenerateService

            return GenerateService()(request, folder, report)
        if request.picture is not None:
            report("preparing the pictures", 0.1)
            prepare_picture(decode_image(request.picture, "the picture"))  # says what is wrong with it
        if BROKEN in request.prompt:
            raise RuntimeError("a bug")
        for step in range(300 if SLOW in request.prompt else 4):
            report("making four views", min(0.2 + 0.1 * step, 0.8))
            time.sleep(0.1)
        gaussians, picture = shell(RADIUS, 4000), torch.rand(3, 64, 256, generator=torch.Generator().manual_seed(0))
        write_gaussians(folder / "asset.ply", gaussians)
        write_gaussians(folder / "asset.splat", gaussians)
        write_mesh(folder / "asset.glb", textured(rough_ball()))
        write_video(folder / "asset.mp4", picture[None, :, :64, :64].repeat(8, 1, 1, 1), fps=8)
        write_image(folder / "asset-views.png", picture)
        atomic_write_text(folder / "report.json", '{"gaussians": 4000, "timings_s": {"reconstruct": 1.5}}')
        return [f"this is only a ball, not: {request.prompt}"] if request.prompt else []


def main() -> None:
    """Serves in a folder until the process is stopped, and prints where."""
    page_edit._REFINE_STEPS = 12
    listener = bound_socket()
    site, _ = build_site(Balls(), Path(sys.argv[1]))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    serve(site, listener)


if __name__ == "__main__":
    main()
