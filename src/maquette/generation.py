"""From one picture or a sentence to files: a generator makes four sides, then `maquette.pipelines` does the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import maquette
from maquette.cameras import Cameras
from maquette.contact_sheet import SheetRow, contact_sheet
from maquette.device import choose_device
from maquette.errors import InvalidInputError
from maquette.io import read_image, write_image, write_views
from maquette.io.atomic import atomic_write_text
from maquette.models.mvdream.encoders import to_planes
from maquette.picture.prepare import CutOutBy, PreparedPicture, prepare_picture
from maquette.pipelines import FORMATS, Reconstruct, Result, generate, output_folder, plain_name
from maquette.preparation import STANDARD_AZIMUTHS_DEG, STANDARD_FOV_DEG, STANDARD_RADIUS
from maquette.rendering import Turntable
from maquette.surface import SurfaceOptions
from maquette.surface.stages import Progress, Stages
from maquette.views import Views

if TYPE_CHECKING:
    from maquette.models.mvdream.pipeline import MultiViewPipeline

VIEWS_REPORT_NAME = "views-report.json"
MAX_SAMPLES = 64

_WHITE_MARGIN = 0.04
_LABELS = [f"azimuth {azimuth:g}°" for azimuth in STANDARD_AZIMUTHS_DEG]


@dataclass(frozen=True)
class ViewOptions:
    """How views are made.

    Attributes:
        prompt, negative_prompt: what to show, and what not; the first may be empty when there is a picture.
        seed: sample i is made from `seed + i`.
        steps, guidance, temperature: of the sampler; None takes the generator's own.
        num_samples: sets of views to make.
        elevation_deg: of the camera that took the picture, and of the views.
        cut_out_by: how to find the object in the picture, see `maquette.picture.prepare`.

    Raises:
        InvalidInputError: a value out of range.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    num_samples: int = 1
    elevation_deg: float = 0.0
    cut_out_by: CutOutBy | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise InvalidInputError(f"num_samples must lie in 1..{MAX_SAMPLES}, got {self.num_samples}")
        if not 0 <= self.seed < 2**32:
            raise InvalidInputError(f"seed must lie in 0..{2**32 - 1}, got {self.seed}")
        if not -30 <= self.elevation_deg <= 60:
            raise InvalidInputError(f"elevation must lie in -30..60 degrees, got {self.elevation_deg:g}")


@dataclass(frozen=True)
class MadeViews:
    """What `make_views` made.

    Attributes:
        folders: one folder of views per sample, as `maquette.generate` reads them.
        files: "prepared" (if there was a picture) and "views" (contact sheet) to their pictures.
        timings_s: stage to seconds, in order.
        warnings: what may spoil the result.
    """

    folders: tuple[Path, ...]
    files: dict[str, Path]
    timings_s: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class GeneratedAssets:
    """What `generate_from` made.

    Attributes:
        made: the views.
        results: one reconstruction per sample.
    """

    made: MadeViews
    results: tuple[Result, ...]


def make_views(
    picture: str | Path | Tensor | None,
    output: str | Path,
    options: ViewOptions | None = None,
    *,
    generator: str | MultiViewPipeline = "mvdream-mini",
    generator_weights: str | Path | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> MadeViews:
    """Makes the four sides of an object from one picture of it, a sentence or both.

    The front of models whose picture is the front itself (`MVDreamParams.picture_is_front`) is the prepared picture.

    Args:
        picture: a file, or `[3|4, H, W]` in 0..1; None takes the sentence alone.
        output: folder for `<name>-views` (with `-1`, `-2`... when there are several samples), `<name>-prepared.png`,
            `<name>-views.png` and `views-report.json`. What is there under these names is replaced.
        options: how.
        generator: name of one (`maquette models list`), or a pipeline.
        generator_weights: file to use instead of the weights in the store or the package.
        name: of the files; by default that of the picture, or the prompt's first words.
        device: by default the GPU if there is one.
        progress: told about every stage.

    Raises:
        InvalidInputError: the picture shows no object that can be found, or a value is out of range.
        FileFormatError: the picture cannot be read.
        WeightsError: the generator's weights are missing or broken.
    """
    options = options or ViewOptions()
    name = plain_name(name if name is not None else default_name(picture, options.prompt))
    folder, place, stages = output_folder(output), choose_device(device), Stages(progress)
    files: dict[str, Path] = {}
    given = None
    if picture is not None:
        with stages.run("read picture"):
            given = picture if isinstance(picture, Tensor) else read_image(picture)
    with stages.run("load generator"):
        pipeline = _load(generator, generator_weights, place)
    prepared = None
    if given is not None:
        with stages.run("prepare"):
            prepared = prepare_picture(
                given,
                size=pipeline.params.image_size,
                border_ratio=pipeline.params.picture_border,
                cut_out_by=options.cut_out_by,
            )
        files["prepared"] = folder / f"{name}-prepared.png"
        write_image(files["prepared"], prepared.image)
    with stages.run("make views") as step:
        images = pipeline(
            options.prompt,
            None if prepared is None else prepared.image,
            negative_prompt=options.negative_prompt,
            seed=options.seed,
            num_samples=options.num_samples,
            steps=options.steps,
            guidance=options.guidance,
            temperature=options.temperature,
            elevation_deg=options.elevation_deg,
            progress=step,
        )
        if prepared is not None and pipeline.params.picture_is_front:
            images[:, 0] = prepared.image.to(images)
    with stages.run("write views"):
        folders = _write(images.cpu(), folder, name, options)
        files["views"] = folder / f"{name}-views.png"
        write_image(files["views"], _sheet(images.cpu(), prepared, options))
    made = MadeViews(folders, files, stages.timings_s, () if prepared is None else prepared.warnings)
    atomic_write_text(
        folder / VIEWS_REPORT_NAME, json.dumps(_report(made, picture, pipeline, options), indent=2) + "\n"
    )
    return made


def generate_from(
    picture: str | Path | Tensor | None,
    output: str | Path,
    options: ViewOptions | None = None,
    *,
    generator: str | MultiViewPipeline = "mvdream-mini",
    generator_weights: str | Path | None = None,
    model: str | Path | Reconstruct = "lgm-mini",
    formats: str | Sequence[str] = FORMATS,
    name: str | None = None,
    device: str | torch.device | None = None,
    turntable: Turntable | None = None,
    surface: SurfaceOptions | None = None,
    progress: Progress | None = None,
) -> GeneratedAssets:
    """Makes views (`make_views`), and of each set of them 3D files (`maquette.generate`): `<name>.<format>`, or
    `<name>-1.<format>`, `<name>-2.<format>`... when there are several samples. Arguments: see these two functions."""
    made = make_views(
        picture,
        output,
        options,
        generator=generator,
        generator_weights=generator_weights,
        name=name,
        device=device,
        progress=progress,
    )
    results = tuple(
        generate(
            folder,
            output,
            model=model,
            formats=formats,
            name="".join(folder.name.rsplit("-views", 1)),
            device=device,
            turntable=turntable,
            surface=surface,
            progress=progress,
        )
        for folder in made.folders
    )
    return GeneratedAssets(made, results)


def with_alpha(images: Tensor) -> Tensor:
    """RGBA `[..., 4, H, W]` of generated views.

    Models whose auto-encoder knows alpha give it; for others, which draw on white, everything whose darkest channel is
    not nearly white (0.96) belongs to the object.
    """
    if images.shape[-3] == 4:
        return images
    alpha = (images.amin(dim=-3, keepdim=True) < 1 - _WHITE_MARGIN).to(images.dtype)
    return torch.cat([images, alpha], dim=-3)


def default_name(picture: str | Path | Tensor | None, prompt: str) -> str:
    """Name of the files: the picture's, or up to five words of the prompt."""
    if isinstance(picture, (str, Path)):
        return Path(picture).stem
    words = ["".join(letter for letter in word if letter.isalnum()) for word in prompt.lower().split()]
    return "-".join(word for word in words if word)[:60].strip("-") or "asset"


def _load(generator: str | MultiViewPipeline, weights: str | Path | None, device: torch.device) -> MultiViewPipeline:
    if not isinstance(generator, str):
        return generator
    from maquette.generators import load_generator

    return load_generator(generator, weights, device=device)


def _write(images: Tensor, folder: Path, name: str, options: ViewOptions) -> tuple[Path, ...]:
    """Writes one folder of views per sample."""
    size = images.shape[-1]
    cameras = Cameras.orbit(
        STANDARD_AZIMUTHS_DEG,
        options.elevation_deg,
        radius=STANDARD_RADIUS,
        fov_deg=STANDARD_FOV_DEG,
        height=size,
        width=size,
    )
    folders = []
    for index, sample in enumerate(with_alpha(images)):
        number = f"-{index + 1}" if len(images) > 1 else ""
        folders.append(folder / f"{name}-views{number}")
        write_views(folders[-1], Views(sample, cameras), overwrite=True)
    return tuple(folders)


def _sheet(images: Tensor, prepared: PreparedPicture | None, options: ViewOptions) -> Tensor:
    rows = []
    if prepared is not None:
        rows.append(SheetRow("Picture, prepared", to_planes(prepared.image, 3)[None].cpu(), [""]))
    for index, sample in enumerate(images):
        title = f"Seed {options.seed + index}" + (f": {options.prompt}" if options.prompt else "")
        rows.append(SheetRow(title, to_planes(sample, 3), _LABELS))
    return contact_sheet(rows)


def _report(
    made: MadeViews, picture: str | Path | Tensor | None, pipeline: MultiViewPipeline, options: ViewOptions
) -> dict[str, Any]:
    params = pipeline.params
    has_picture, guidance, temperature = picture is not None, options.guidance, options.temperature
    guidance = params.guidance_for(has_picture) if guidance is None else guidance
    temperature = params.temperature_for(has_picture) if temperature is None else temperature
    return {
        "maquette": maquette.__version__,
        "torch": torch.__version__,
        "device": str(pipeline.device),
        "generator": params.name,
        "input": str(picture) if isinstance(picture, (str, Path)) else None,
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "seed": options.seed,
        "steps": options.steps if options.steps is not None else params.default_steps,
        "guidance": guidance,
        "temperature": temperature,
        "elevation_deg": options.elevation_deg,
        "views": [folder.name for folder in made.folders],
        "files": {kind: path.name for kind, path in made.files.items()},
        "timings_s": {stage: round(seconds, 3) for stage, seconds in made.timings_s.items()},
        "warnings": list(made.warnings),
    }
