"""Generators of views by name: models that make the four sides of an object from a sentence or a picture.

Their output goes into the reconstruction models of `maquette.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maquette.errors import InvalidInputError, WeightsError
from maquette.models.mvdream.params import IMAGEDREAM, MVDREAM, MVDREAM_MINI, MVDreamParams
from maquette.weights import find_weights

if TYPE_CHECKING:
    import torch

    from maquette.models.mvdream.pipeline import MultiViewPipeline


@dataclass(frozen=True)
class GeneratorEntry:
    """What is known about a generator without its weights.

    Attributes:
        name: registry name.
        params: configuration of its networks.
        num_parameters: of all its networks.
        license: of the weights.
        summary: one line.
        hub_repository: "owner/name" of the published folder on the Hugging Face Hub, or None. Revision and checksums
            of these folders are not known to us, so they are imported from a folder and not downloaded.
        family: folder under `maquette.models`.
        embedded: whether the weights are part of maquette.
    """

    name: str
    params: MVDreamParams
    num_parameters: int
    license: str
    summary: str
    hub_repository: str | None = None
    family: str = "mvdream"
    embedded: bool = False

    @property
    def how_to_get(self) -> str:
        """What to do when the weights are not on this machine."""
        if self.hub_repository is None:
            return (
                "they come with a release of maquette; or train them (docs/generators.md says how) and give the file: "
                "maquette generate --generator-weights FILE"
            )
        return (
            f"fetch the folder https://huggingface.co/{self.hub_repository} (git clone, or its own client), then run: "
            f"maquette models import {self.hub_repository.partition('/')[2]} --model {self.name}"
        )


_ENTRIES = (
    GeneratorEntry(
        "mvdream-mini",
        MVDREAM_MINI,
        9_824_852,
        "Apache-2.0",
        "Ours: four views from a sentence, a picture or both, small enough to ship.",
        embedded=True,
    ),
    GeneratorEntry(
        "mvdream",
        MVDREAM,
        1_291_613_867,
        "OpenRAIL (card of the converted files)",
        "Official MVDream: four views from a sentence.",
        hub_repository="ashawkey/mvdream-sd2.1-diffusers",
    ),
    GeneratorEntry(
        "imagedream",
        IMAGEDREAM,
        1_997_791_403,
        "OpenRAIL (card of the converted files)",
        "Official ImageDream, pixel controller: four views from a picture and a sentence.",
        hub_repository="ashawkey/imagedream-ipmv-diffusers",
    ),
)

GENERATORS: dict[str, GeneratorEntry] = {entry.name: entry for entry in _ENTRIES}
"""Name to entry, in the order to show them."""


def get_generator(name: str) -> GeneratorEntry:
    """The entry of a generator.

    Raises:
        InvalidInputError: no such generator; lists the valid names.
    """
    if name not in GENERATORS:
        raise InvalidInputError(f"no generator of views {name!r}: choose one of {', '.join(GENERATORS)}")
    return GENERATORS[name]


def load_generator(
    name: str,
    path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
) -> MultiViewPipeline:
    """A generator with its weights.

    Args:
        name: see `GENERATORS`.
        path: weights to use instead of those in the store or the package.
        device: None takes the GPU if there is one.
        dtype: of the weights; None is float32 on the CPU and float16 elsewhere.
        offload: keeps each network in the CPU's memory while another one computes.
        attention_slicing: computes attention in slices; slower, needs less memory.

    Raises:
        InvalidInputError: no such generator.
        WeightsError: the weights are missing, broken or do not fit; says what to do.
        MissingDependencyError: the extra `diffusion` is not installed.
    """
    from maquette.device import choose_device
    from maquette.models.mvdream.loading import load_pipeline

    entry = get_generator(name)
    source = Path(path) if path is not None else find_weights(name)
    if source is None:
        raise WeightsError(f"the weights of {name} are not on this machine: {entry.how_to_get}")
    return load_pipeline(
        entry.params,
        source,
        device=choose_device(device),
        dtype=dtype,
        offload=offload,
        attention_slicing=attention_slicing,
    )
