"""The Gamba networks against the official ones (goldens with stand-in weights), and ours for size and start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import golden_rules
from gamba_goldens import PRESETS, golden, manifest, official_state, stand_in_inputs, stand_in_network
from lgm_goldens import statistics
from maquette.errors import InvalidInputError, WeightsError
from maquette.gaussians import Gaussians
from maquette.models.gamba.network import Gamba
from maquette.models.gamba.official import network_state, official_name

ALL = [pytest.param(name, marks=pytest.mark.slow if name == "gamba" else []) for name in PRESETS]
HEADS = ("xyz", "opacity", "scale", "rgb")


@pytest.mark.parametrize("preset", ALL)
def test_network_matches_golden(preset: str) -> None:
    data = golden(f"golden_{preset}")
    network, inputs = stand_in_network(preset), stand_in_inputs(preset)
    for name, value in zip(("plucker", "dino"), inputs, strict=True):
        probe = value.flatten()[data[f"{name}_input_probe_indices"]]
        np.testing.assert_allclose(probe, data[f"{name}_input_probe_values"], atol=1e-6)
        np.testing.assert_allclose(statistics(value), data[f"{name}_input_all"], atol=1e-6)
    names = [str(name) for name in data["probe_names"]]
    probes = record_probes(network, names)
    with torch.inference_mode():
        gaussians = network(*inputs)
    rows = torch.from_numpy(data["gaussian_indices"])
    assert gaussians.num_gaussians == data["n_gaussians"]
    for head in HEADS:
        value = probes[f"model.decoder.gs_layer.{head}"]
        np.testing.assert_allclose(value[0, rows], data[f"head_{head}_subset"], atol=1e-4, err_msg=head)
    tensor = official_tensor(gaussians[0])
    np.testing.assert_allclose(tensor[rows], data["gaussians_subset"], atol=1e-4)
    np.testing.assert_allclose(tensor.double().mean(0), data["gaussians_channel_mean"], atol=1e-4)
    np.testing.assert_allclose(tensor.double().std(0, correction=0), data["gaussians_channel_std"], atol=1e-4)
    np.testing.assert_allclose(tensor.double().abs().amax(0), data["gaussians_channel_maxabs"], atol=1e-4)
    check_probes(probes, data)


def record_probes(network: Gamba, names: list[str]) -> dict[str, Tensor]:
    """Hooks that keep the outputs which the golden has, under its names."""
    recorded: dict[str, Tensor] = {}

    def recorder(*targets: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            recorded.update(zip(targets, output if isinstance(output, tuple) else (output,), strict=True))

        return record

    layers = {name.rsplit(".", 1)[0] for name in names if name.endswith((".hidden", ".residual"))}
    for layer in layers:
        module = network.get_submodule(layer.removeprefix("model."))
        module.register_forward_hook(recorder(f"{layer}.hidden", f"{layer}.residual"))
    for name in names:
        if name == "plucker_tokens":
            network.transformer.register_forward_pre_hook(lambda _m, given: recorded.update(plucker_tokens=given[0]))
        elif not name.endswith((".hidden", ".residual")):
            ours = name.removeprefix("model.")
            ours = "image_encoder" if ours == "map_image" else ours.replace("map_image.model.", "image_encoder.")
            network.get_submodule(ours).register_forward_hook(recorder(name))
    return recorded


def check_probes(probes: dict[str, Tensor], data: dict[str, Any]) -> None:
    assert set(probes) == {str(name) for name in data["probe_names"]}
    for index, name in enumerate(str(name) for name in data["probe_names"]):
        value = probes[name]
        shape = json.loads(str(data["probe_shapes"][index]))
        assert [size for size in value.shape if size > 1] == [size for size in shape if size > 1], name
        mean, std, largest = data["probe_stats"][index]
        got = statistics(value)
        np.testing.assert_allclose(got[:2], [mean, std], atol=1e-4 * std, err_msg=name)
        tolerance = 1e-4 * max(1.0, largest)
        np.testing.assert_allclose(got[2], largest, atol=tolerance, err_msg=name)
        flat = value.flatten()[golden_rules.probe_indices(name, value.numel(), 16)].double()
        np.testing.assert_allclose(flat, data["probe_values"][index][: len(flat)], atol=tolerance, err_msg=name)


def official_tensor(gaussians: Gaussians) -> Tensor:
    fields = [gaussians.means, gaussians.opacities[:, None], gaussians.scales, gaussians.quats, gaussians.colors]
    return torch.cat(fields, dim=-1)
