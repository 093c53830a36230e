"""The work behind the queue: a request to files, with models that stay loaded. Nothing here needs a network."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import maquette
from maquette.app.jobs import Report
from maquette.app.limits import Limits
from maquette.app.progress import StageFractions, plan_of
from maquette.app.request import GenerateRequest
from maquette.app.views_zip import unpack_views
from maquette.device import choose_device
from maquette.direct_generation import generate_from_picture
from maquette.generation import ViewOptions, generate_from
from maquette.generators import load_generator
from maquette.io.atomic import atomic_write_text
from maquette.io.images import decode_image
from maquette.pipelines import Reconstruct, Result, generate
from maquette.surface import SurfaceOptions

if TYPE_CHECKING:
    from maquette.models.mvdream.pipeline import MultiViewPipeline

NAME = "asset"
"""Files are called `asset.ply`, `asset-views.png`..., whatever the upload was called."""


def _load_model(name: str, device: torch.device) -> Reconstruct:
    reconstruct: Reconstruct = maquette.load(name, device=device)
    return reconstruct


def _load_generator(name: str, device: torch.device) -> MultiViewPipeline:
    return load_generator(name, device=device)


@dataclass
class GenerateService:
    """Does the jobs of a `JobQueue`, one at a time.

    One reconstruction model and one generator of views are kept; another model takes the place of the one before.

    Attributes:
        limits: for what is unpacked and decoded.
        device: where models run; None takes the GPU if there is one.
        generator: of views, for pictures and prompts.
        load_model, load_generator: name and device to the loaded model.
    """

    limits: Limits = field(default_factory=Limits)
    device: str | None = None
    generator: str = "mvdream-mini"
    load_model: Callable[[str, torch.device], Reconstruct] = _load_model
    load_generator: Callable[[str, torch.device], MultiViewPipeline] = _load_generator
    _models: dict[str, tuple[str, Any]] = field(default_factory=dict, init=False)

    def __call__(self, request: GenerateRequest, folder: Path, report: Report) -> tuple[str, ...]:
        """Makes the files of a request and returns what may have spoilt them, as sentences.

        Besides `asset.<format>` and `report.json` there are `asset-views.png` (contact sheet of the generated views),
        `asset-prepared.png` and `views-report.json` when views were generated.

        Raises:
            MaquetteError: the request cannot be done; says why.
        """
        progress = StageFractions(report, plan_of(request))
        progress.loading()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is in the results
            if request.views is not None:
                said = self._from_views(request, request.views, folder, progress)
            elif request.takes_one_picture:
                said = self._from_one_picture(request, folder, progress)
            else:
                said = self._from_picture_or_prompt(request, folder, progress)
        for path in folder.glob("*report.json"):  # where the folder is, is nobody's business
            atomic_write_text(path, path.read_text("utf-8").replace(f"{folder}/", ""))
        return said

    def _from_views(
        self, request: GenerateRequest, views: bytes, folder: Path, progress: StageFractions
    ) -> tuple[str, ...]:
        unpacked = folder / "views"
        limits = self.limits
        source = unpack_views(views, unpacked, max_bytes=limits.max_unpacked_bytes, max_pixels=limits.max_pixels)
        try:
            return generate(
                source, folder, name=NAME, model=self._model(request), **self._how(request, progress)
            ).warnings
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)

    def _from_one_picture(self, request: GenerateRequest, folder: Path, progress: StageFractions) -> tuple[str, ...]:
        picture = self._picture(request)
        assert picture is not None  # the request has seen to it
        result: Result = generate_from_picture(
            picture,
            folder,
            name=NAME,
            model=request.model,
            reconstruct=self._model(request),
            cut_out_by=request.cut_out_by,
            **self._how(request, progress),
        )
        return result.warnings

    def _from_picture_or_prompt(
        self, request: GenerateRequest, folder: Path, progress: StageFractions
    ) -> tuple[str, ...]:
        options = ViewOptions(
            prompt=request.prompt.strip(),
            negative_prompt=request.negative_prompt.strip(),
            seed=request.seed,
            steps=request.steps,
            guidance=request.guidance,
            cut_out_by=request.cut_out_by,
        )
        made = generate_from(
            self._picture(request),
            folder,
            options,
            generator=self._kept("generator", self.generator, self.load_generator),
            name=NAME,
            model=self._model(request),
            **self._how(request, progress),
        )
        return (*made.made.warnings, *(warning for result in made.results for warning in result.warnings))

    def _how(self, request: GenerateRequest, progress: StageFractions) -> dict[str, Any]:
        """Arguments that every way takes."""
        return {
            "formats": request.formats,
            "device": self.device,
            "surface": SurfaceOptions(fast=not request.fit_mesh),
            "progress": progress,
        }

    def _picture(self, request: GenerateRequest) -> Tensor | None:
        if request.picture is None:
            return None
        return decode_image(request.picture, "the picture", max_pixels=self.limits.max_pixels)

    def _model(self, request: GenerateRequest) -> Reconstruct:
        model: Reconstruct = self._kept("model", request.model, self.load_model)
        return model

    def _kept(self, kind: str, name: str, load: Callable[[str, torch.device], Any]) -> Any:
        """The model of this kind, loaded unless it was the last one."""
        if kind not in self._models or self._models[kind][0] != name:
            self._models.pop(kind, None)
            gc.collect()
            self._models[kind] = (name, load(name, choose_device(self.device)))
        return self._models[kind][1]
