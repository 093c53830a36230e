"""Models by name: family, parameters, where their weights are. The one place that lists them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maquette.errors import InvalidInputError, WeightsError
from maquette.generators import GENERATORS
from maquette.hub import HubFile
from maquette.models.gamba.params import GAMBA, GAMBA_MINI, GambaParams
from maquette.models.lgm.params import LGM_BIG, LGM_LRM, LGM_MINI, LGM_SMALL, LGM_TINY, LGMParams
from maquette.weights import find_weights, load_strictly, read_metadata, read_weights

if TYPE_CHECKING:
    import torch

    from maquette.models.gamba.network import Gamba
    from maquette.models.gamba.reconstructor import GambaReconstructor
    from maquette.models.lgm.network import LGM
    from maquette.models.lgm.reconstructor import LGMReconstructor

    Network = LGM | Gamba
    Reconstructor = LGMReconstructor | GambaReconstructor


@dataclass(frozen=True)
class ModelEntry:
    """What is known about a model without its weights.

    Attributes:
        name: registry name.
        family: folder under `maquette.models`.
        params: configuration of the network.
        num_parameters: of the network.
        license: of the weights, or of what could be trained.
        summary: one line.
        hub_file: published weights, or None.
        embedded: whether the weights are part of maquette.
        published_as: where weights are that we do not fetch, and the name of the file; "" if there are none.
    """

    name: str
    family: str
    params: LGMParams | GambaParams
    num_parameters: int
    license: str
    summary: str
    hub_file: HubFile | None = None
    embedded: bool = False
    published_as: str = ""

    def build(self) -> Network:
        """The network with fresh weights."""
        return _build(self.params)

    @property
    def how_to_get(self) -> str:
        """What to do when the weights are not on this machine."""
        if self.hub_file is not None:
            return f"run: maquette models pull {self.name}   (without a network: {self.by_hand})"
        if self.embedded:
            return f"they come with a release of maquette; or train them: maquette train {self.name} --data DIR"
        if self.published_as:
            return f"fetch {self.published_as}, then run: {self.by_hand}"
        return (
            f"none are published; train them: maquette train {self.name} --data DIR, "
            f"or import yours: maquette models import FILE --model {self.name}"
        )

    @property
    def by_hand(self) -> str:
        """How to install published weights that were downloaded on another machine."""
        if self.hub_file is None:
            return f"maquette models import FILE --model {self.name}"
        name = self.hub_file.filename
        return f"fetch {self.hub_file.url} elsewhere, then run: maquette models import {name} --model {self.name}"


LGM_BIG_FILE = HubFile(
    repository="ashawkey/LGM",
    filename="model_fp16_fixrot.safetensors",
    revision="bc0097d24ffc5efc2e6a216edd579128f85f53ab",
    sha256="744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab",
    size_bytes=830_126_160,
)
"""The official weights of `lgm-big`, fine-tuned with the corrected rotation."""

_ENTRIES = (
    ModelEntry(
        "lgm-mini",
        "lgm",
        LGM_MINI,
        8_204_876,
        "Apache-2.0",
        "Ours: a Gaussian per pixel of four views, small enough to ship.",
        embedded=True,
    ),
    ModelEntry(
        "lgm-big",
        "lgm",
        LGM_BIG,
        415_042_848,
        "MIT",
        "Official LGM, the published one: 65,536 Gaussians.",
        hub_file=LGM_BIG_FILE,
    ),
    ModelEntry("lgm-small", "lgm", LGM_SMALL, 412_958_240, "none published", "Official preset: 16,384 Gaussians."),
    ModelEntry(
        "lgm-lrm", "lgm", LGM_LRM, 412_958_240, "none published", "Official defaults, the network of lgm-small."
    ),
    ModelEntry("lgm-tiny", "lgm", LGM_TINY, 59_743_360, "none published", "Official preset: 16,384 Gaussians."),
    ModelEntry(
        "gamba-mini",
        "gamba",
        GAMBA_MINI,
        4_008_220,
        "Apache-2.0",
        "Ours: 32,768 Gaussians from one picture, in one pass.",
        embedded=True,
    ),
    ModelEntry(
        "gamba",
        "gamba",
        GAMBA,
        124_611_142,
        "none stated",
        "Official Gamba: 16,384 Gaussians from one picture.",
        published_as="https://huggingface.co/florinshen/Gamba (gamba_ep399.pth)",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}
"""Registry name to entry, in the order to show them."""


def get_entry(name: str) -> ModelEntry:
    """The entry of a model.

    Raises:
        InvalidInputError: no such model; lists the valid names.
    """
    if name in GENERATORS:
        raise InvalidInputError(f"{name} makes views, not Gaussians: choose one of {', '.join(MODELS)}")
    if name not in MODELS:
        raise InvalidInputError(f"no model {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]


def _build(params: LGMParams | GambaParams) -> Network:
    """A network of any family with fresh weights."""
    from maquette.models.gamba.network import Gamba
    from maquette.models.lgm.network import LGM

    return Gamba(params) if isinstance(params, GambaParams) else LGM(params)


def build_network(name: str) -> Network:
    """The network of a model with fresh weights (torch's global generator).

    Raises:
        InvalidInputError: no such model.
    """
    return get_entry(name).build()


def load_network(
    name: str,
    path: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """A network with its weights, in evaluation mode.

    Args:
        name: registry name.
        path: weights to use instead of those in the store or the package.
        device: None is the CPU.
        dtype: of the weights; None is float32 on the CPU and float16 elsewhere.

    Raises:
        InvalidInputError: no such model, or a dtype that is not floating point.
        WeightsError: the weights are missing, broken or do not fit; says what to do.
    """
    import torch

    from maquette.device import choose_device

    if dtype is not None and not dtype.is_floating_point:
        raise InvalidInputError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {dtype}")
    entry = get_entry(name)
    source = Path(path) if path is not None else find_weights(name)
    if source is None:
        raise WeightsError(f"the weights of {name} are not on this machine: {entry.how_to_get}")
    state, metadata = read_weights(source)
    params = entry.params
    if isinstance(params, LGMParams) and metadata.get("rotation_axis") == "gaussians":
        params = dataclasses.replace(params, rotation_axis="gaussians")
    target = choose_device(device if device is not None else "cpu")
    with torch.random.fork_rng(devices=[]):  # building draws numbers that are thrown away
        network = _build(params)
    load_strictly(network, state, source)
    chosen = dtype or (torch.float32 if target.type == "cpu" else torch.float16)
    network = network.to(device=target, dtype=chosen).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim == 4:  # convolutions are faster in this order on CPUs and GPUs
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def load(
    name_or_path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Reconstructor:
    """A model as a function from views to Gaussians.

    Args:
        name_or_path: registry name, or a .safetensors file written by maquette (its metadata name the model).
        device: None takes the GPU if there is one.
        dtype: of the weights; None is float32 on the CPU and float16 elsewhere.

    Raises:
        InvalidInputError: neither a model nor a file, or a dtype that is not floating point.
        WeightsError: the weights are missing, broken or do not fit.
    """
    from maquette.device import choose_device

    device = choose_device(device)
    text = str(name_or_path)
    if text in GENERATORS:
        get_entry(text)  # says what it is instead
    if text in MODELS:
        return reconstructor_of(load_network(text, None, device, dtype))
    path = Path(name_or_path)
    if not path.is_file():
        raise InvalidInputError(f"{text!r} is neither a model ({', '.join(MODELS)}) nor a .safetensors file")
    model = read_metadata(path).get("model")
    if model not in MODELS:
        raise WeightsError(
            f"{path} does not say which model it is of (metadata 'model' is {model!r}); convert it first: "
            f"maquette models import {path} --model NAME"
        )
    return reconstructor_of(load_network(model, path, device, dtype))


def reconstructor_of(network: Network) -> Reconstructor:
    """A network of any family as a function from views to Gaussians."""
    from maquette.models.gamba.network import Gamba
    from maquette.models.gamba.reconstructor import GambaReconstructor
    from maquette.models.lgm.reconstructor import LGMReconstructor

    return GambaReconstructor(network) if isinstance(network, Gamba) else LGMReconstructor(network)
