"""From one picture to files by a model that needs no other views of the object."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.io import read_image
from maquette.picture.prepare import CutOutBy, prepare_picture
from maquette.pipelines import FORMATS, Reconstruct, Result, generate
from maquette.preparation import PreparedViews
from maquette.registry import MODELS
from maquette.rendering import Turntable
from maquette.surface import SurfaceOptions
from maquette.surface.stages import Progress
from maquette.views import Views
from maquette.weights import read_metadata


def one_picture_model(model: str | Path) -> str | None:
    """Registry name of a model, or of a file of weights, if it makes an object of one picture; otherwise None."""
    name = str(model)
    if name not in MODELS and Path(model).is_file():
        name = read_metadata(Path(model)).get("model", "")
    return name if name in MODELS and MODELS[name].params.num_input_views == 1 else None


def generate_from_picture(
    picture: str | Path | Tensor,
    output: str | Path,
    *,
    model: str | Path = "gamba-mini",
    reconstruct: Reconstruct | None = None,
    elevation_deg: float = 0.0,
    cut_out_by: CutOutBy | None = None,
    formats: str | tuple[str, ...] = FORMATS,
    name: str | None = None,
    device: str | torch.device | None = None,
    turntable: Turntable | None = None,
    surface: SurfaceOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Turns one picture of an object into 3D files, without views in between.

    Args:
        picture: a file, or `[3|4, H, W]` in 0..1.
        output: folder for `<name>.<format>` and `report.json`, see `maquette.generate`.
        model: name of a model that takes one picture, or a file of its weights.
        reconstruct: that model, when it is loaded already.
        elevation_deg: of the camera that took the picture, -30..60; the object stands upright whatever it is.
        cut_out_by: how to find the object in the picture, see `maquette.picture.prepare`.
        formats, device, turntable, surface, progress: see `maquette.generate`.
        name: of the files; by default that of the picture, or "asset".

    Raises:
        InvalidInputError: the model takes more views, the picture shows no object that can be found, or a value is out
            of range.
        FileFormatError: the picture cannot be read.
        WeightsError: the model's weights are missing or broken.
    """
    known = one_picture_model(model)
    if known is None:
        able = [entry.name for entry in MODELS.values() if entry.params.num_input_views == 1]
        raise InvalidInputError(f"{model} needs more views than one picture: choose one of {', '.join(able)}")
    if not -30 <= elevation_deg <= 60:
        raise InvalidInputError(f"elevation must lie in -30..60 degrees, got {elevation_deg:g}")
    size = MODELS[known].params.input_size
    image = picture if isinstance(picture, Tensor) else read_image(picture)
    prepared = prepare_picture(image, size=size, cut_out_by=cut_out_by)
    camera = Cameras.orbit([0.0], elevation_deg, height=size, width=size)
    views = PreparedViews(
        views=Views(prepared.image[None], camera),
        order=(0,),
        transform=torch.eye(4),
        azimuths_deg=(0.0,),
        elevations_deg=(elevation_deg,),
        warnings=prepared.warnings,
    )
    if name is None and not isinstance(picture, Tensor):
        name = Path(picture).stem
    return generate(
        views,
        output,
        model=model if reconstruct is None else reconstruct,
        formats=formats,
        name=name,
        device=device,
        turntable=turntable,
        surface=surface,
        progress=progress,
    )
