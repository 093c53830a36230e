"""Where maquette meets the published MVDream and ImageDream: their folders, file names and tensor names.

Published as folders of diffusers components (`ashawkey/mvdream-sd2.1-diffusers`, `ashawkey/imagedream-ipmv-diffusers`
on the Hugging Face Hub), which are conversions of the original checkpoints; the U-Net keeps the names of the original,
there below `model.diffusion_model.`. Our weight file holds the tensors of all components under the same names, each
below the name of its folder, and the two files of the tokenizer as bytes; that of our own model also what guesses the
subject of a sentence (`maquette.models.mvdream.subjects`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from maquette.errors import WeightsError
from maquette.models.mvdream.encoders import build_autoencoder_network, build_picture_network, build_text_network
from maquette.models.mvdream.network import MultiViewUNet
from maquette.models.mvdream.params import MVDreamParams
from maquette.weights import check_state, read_weights

ORIGINAL_PREFIX = "model.diffusion_model."
"""Before the names of the U-Net in the original checkpoints."""

VOCABULARY, MERGES = "tokenizer.vocab", "tokenizer.merges"
"""Names of the tokenizer's files in our weight file, uint8 vectors."""

SUBJECTS = "subjects"
"""Before the names of what guesses subjects, in weight files of our own models."""

_WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
)
_COMPUTED = "position_ids"
_TOWERS = {"text_encoder": "text_model.", "image_encoder": "vision_model."}
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def component_names(params: MVDreamParams) -> tuple[str, ...]:
    """Folders with weights, as published."""
    names = ("unet", "vae", "text_encoder")
    return (*names, "image_encoder") if params.takes_picture else names


def build_components(params: MVDreamParams) -> dict[str, nn.Module]:
    """All networks of a model with fresh weights, by the name of their folder; fast under `torch.device("meta")`.

    Raises:
        MissingDependencyError: diffusers or transformers is not installed.
    """
    components: dict[str, nn.Module] = {
        "unet": MultiViewUNet(params.unet),
        "vae": build_autoencoder_network(params.autoencoder),
        "text_encoder": build_text_network(params.text_encoder),
    }
    if params.picture_encoder is not None:
        components["image_encoder"] = build_picture_network(params.picture_encoder)
    return components


def read_folder(folder: str | Path, params: MVDreamParams) -> dict[str, Tensor]:
    """Everything in a published folder, under the names of our weight file.

    Raises:
        WeightsError: a component or a file of the tokenizer is missing or broken.
    """
    folder = Path(folder)
    state: dict[str, Tensor] = {}
    for component in component_names(params):
        files = [folder / component / name for name in _WEIGHT_FILES if (folder / component / name).is_file()]
        if not files:
            raise WeightsError(
                f"{folder / component} holds none of {', '.join(_WEIGHT_FILES)}: give the whole published folder "
                f"({', '.join(component_names(params))}, tokenizer)"
            )
        tensors = component_state(component, read_weights(files[0])[0])
        state |= {f"{component}.{name}": value for name, value in tensors.items()}
    for name, file in ((VOCABULARY, "vocab.json"), (MERGES, "merges.txt")):
        path = folder / "tokenizer" / file
        if not path.is_file():
            raise WeightsError(f"{path} is missing: give the whole folder, with the tokenizer")
        state[name] = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    return state


def component_state(component: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of one component under its official names of today.

    Takes off the original checkpoints' prefix, the index tables that CLIP's towers compute themselves, and the names
    that attention layers of auto-encoders had in old files.
    """
    if component == "unet" and any(name.startswith(ORIGINAL_PREFIX) for name in state):
        return {
            name.removeprefix(ORIGINAL_PREFIX): value
            for name, value in state.items()
            if name.startswith(ORIGINAL_PREFIX)
        }
    result = {name: value for name, value in state.items() if not name.endswith(_COMPUTED)}
    if component != "vae":
        return result
    renamed = {}
    for name, value in result.items():
        for old, new in _OLD_ATTENTION.items():
            if old in name:
                name = name.replace(old, new)
                value = value.reshape(len(value), -1) if name.endswith("weight") else value
        renamed[name] = value
    return renamed


def split_state(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors of a weight file by component."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        component, _, rest = name.partition(".")
        parts.setdefault(component, {})[rest] = value
    return parts


def load_component(component: str, network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Gives a network (which may be on the meta device) its weights after a strict check of names and shapes.

    The tensors are taken over, not copied.

    Raises:
        WeightsError: they do not fit; lists the first differences.
    """
    named = _named_as(network, component, state)
    check_state(network, named, f"{component} of {source}")
    network.load_state_dict(named, strict=True, assign=True)
    for module in network.modules():
        table = getattr(module, _COMPUTED, None)
        if isinstance(table, Tensor) and table.is_meta:
            module.register_buffer(_COMPUTED, torch.arange(table.shape[-1])[None], persistent=False)


def check_components(params: MVDreamParams, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that a weight file has all tensors of a model and no others.

    Raises:
        WeightsError: lists the first differences.
    """
    parts = split_state(state)
    with torch.device("meta"):
        components = build_components(params)
    expected = {*components, "tokenizer"} | ({SUBJECTS} if params.subject_shares is not None else set())
    if set(parts) != expected:
        raise WeightsError(
            f"{source} holds {', '.join(sorted(parts))}; {params.name} has {', '.join(sorted(expected))}"
        )
    if set(parts["tokenizer"]) != {VOCABULARY.partition(".")[2], MERGES.partition(".")[2]}:
        raise WeightsError(f"{source} must hold {VOCABULARY} and {MERGES}, and nothing else of the tokenizer")
    for name, network in components.items():
        check_state(network, _named_as(network, name, parts[name]), f"{name} of {source}")


def _named_as(network: nn.Module, component: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names as the installed version of transformers spells them (some lack the tower's prefix)."""
    tower = _TOWERS.get(component)
    if tower is None or any(name.startswith(tower) for name in network.state_dict()):
        return dict(state)
    return {name.removeprefix(tower): value for name, value in state.items()}
