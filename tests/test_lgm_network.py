"""The LGM networks against the official ones (goldens with stand-in weights), and ours for shape and start."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import golden_rules
from lgm_goldens import GOLDEN_MINI, PRESETS, golden, manifest, stand_in_inputs, stand_in_network, statistics
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.lgm.activation import activate_gaussians
from maquette.models.lgm.inputs import default_cameras, model_inputs
from maquette.models.lgm.network import LGM
from maquette.models.lgm.params import LGM_MINI
from maquette.nn.posed_images import network_inputs, normalize_images
from maquette.views import Views

FAST = ["mini", "tiny"]
ALL = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PRESETS]
PARAMETERS = {"mini": 3_612_032, "tiny": 59_743_360, "small": 412_958_240, "lrm": 412_958_240, "big": 415_042_848}


def test_rules_reproduce_their_check_values() -> None:
    """The published check values of the rules: first numbers and sums."""
    conv = golden_rules.weight("public", "conv.weight", (14, 14, 1, 1))
    np.testing.assert_allclose(conv.flatten()[:3], [0.19264823, -0.41842744, -0.10394374], atol=1e-6)
    assert float(conv.astype(np.float64).sum()) == pytest.approx(4.287002310913522, abs=1e-6)
    norm = golden_rules.weight("public", "unet.norm_out.weight", (128,))
    assert float(norm.astype(np.float64).sum()) == pytest.approx(128.92614924907684, abs=1e-6)
    images = golden_rules.image_batch("public", "lgm_mini", 4, 64, 64)
    assert float(images.astype(np.float64).sum()) == pytest.approx(24565.908998714294, abs=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_is_the_manifest(preset: str) -> None:
    with torch.device("meta"):
        state = LGM(PRESETS[preset]).state_dict()
    expected = {name: spec["shape"] for name, spec in manifest(preset)["tensors"].items()}
    assert {name: list(value.shape) for name, value in state.items()} == expected
    assert list(state) == list(expected)
    assert sum(value.numel() for value in state.values()) == PARAMETERS[preset]


@pytest.mark.parametrize("preset", ALL)
def test_network_matches_golden(preset: str) -> None:
    data = golden(f"golden_{preset}")
    network, inputs = stand_in_network(preset), stand_in_inputs(preset)
    probes = _record_probes(network, [str(name) for name in data["probe_names"]])
    probe = inputs.flatten()[data["input_probe_indices"]].numpy()
    np.testing.assert_allclose(probe, data["input_probe_values"], atol=1e-6)
    with torch.inference_mode():
        raw = network.raw_gaussians(inputs)
        gaussians = network(inputs)
    rows = torch.from_numpy(data["gaussian_indices"])
    assert gaussians.num_gaussians == data["n_gaussians"]
    np.testing.assert_allclose(raw[0, rows].numpy(), data["raw_subset"], atol=1e-4)
    np.testing.assert_allclose(statistics(raw[0]), data["raw_all"], atol=1e-4)
    rotation = np.s_[:, 7:11]
    tensor = _official_tensor(gaussians[0])
    np.testing.assert_allclose(tensor[rows].numpy()[rotation], data["gaussians_subset"][rotation], atol=2e-4)
    tensor_subset = tensor[rows].numpy()
    tensor_subset[rotation] = data["gaussians_subset"][rotation]
    np.testing.assert_allclose(tensor_subset, data["gaussians_subset"], atol=1e-4)
    np.testing.assert_allclose(tensor.double().mean(0), data["gaussians_channel_mean"], atol=1e-4)
    np.testing.assert_allclose(tensor.double().std(0, correction=0), data["gaussians_channel_std"], atol=1e-4)
    _check_probes(probes, data)


def _record_probes(network: LGM, names: list[str]) -> dict[str, Tensor]:
    recorded: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            recorded[name] = output[0] if isinstance(output, tuple) else output

        return record

    for name in names:
        network.get_submodule(name).register_forward_hook(recorder(name))
    return recorded


def _check_probes(probes: dict[str, Tensor], data: dict[str, Any]) -> None:
    for index, name in enumerate(str(name) for name in data["probe_names"]):
        value = probes[name]
        assert list(value.shape) == json.loads(str(data["probe_shapes"][index]))
        mean, std, largest = data["probe_stats"][index]
        got = statistics(value)
        np.testing.assert_allclose(got[:2], [mean, std], atol=1e-4 * std, err_msg=name)
        tolerance = 1e-4 * max(1.0, largest)
        np.testing.assert_allclose(got[2], largest, atol=tolerance, err_msg=name)
        flat = value.flatten()[golden_rules.probe_indices(name, value.numel(), 16)].double().numpy()
        np.testing.assert_allclose(flat, data["probe_values"][index][: len(flat)], atol=tolerance, err_msg=name)


def _official_tensor(gaussians: Gaussians) -> Tensor:
    fields = [gaussians.means, gaussians.opacities[:, None], gaussians.scales, gaussians.quats, gaussians.colors]
    return torch.cat(fields, dim=-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_activates_in_float32(dtype: torch.dtype) -> None:
    network, inputs = stand_in_network("mini"), stand_in_inputs("mini")
    with torch.inference_mode():
        exact = network(inputs)
        half = network.to(dtype)(inputs)
    assert half.means.dtype == torch.float32
    assert float((half.colors - exact.colors).abs().mean()) < 0.03
    torch.testing.assert_close(half.quats.norm(dim=-1), torch.ones(1, exact.num_gaussians))


def test_old_checkpoints_normalise_rotations_over_all_gaussians() -> None:
    network, inputs = stand_in_network("mini"), stand_in_inputs("mini")
    network.params = dataclasses.replace(GOLDEN_MINI, rotation_axis="gaussians")
    with torch.inference_mode():
        quats = network(inputs).quats
    torch.testing.assert_close(quats.norm(dim=1), torch.ones(1, 4))


def test_views_are_mixed_and_ordered() -> None:
    """Exchanging views 1 and 3 (pictures and rays) exchanges their blocks of Gaussians and nothing else."""
    network, inputs = stand_in_network("mini"), stand_in_inputs("mini")
    order = [0, 3, 2, 1]
    with torch.inference_mode():
        raw = network.raw_gaussians(inputs).reshape(4, -1, 14)
        swapped = network.raw_gaussians(inputs[:, order]).reshape(4, -1, 14)
        changed = inputs.clone()
        changed[:, 1] = 0
        other = network.raw_gaussians(changed).reshape(4, -1, 14)
    torch.testing.assert_close(swapped, raw[order], atol=1e-4, rtol=0)
    assert float((other[0] - raw[0]).abs().max()) > 1e-3


def test_mini_fits_the_budget_and_starts_on_the_pixels() -> None:
    torch.manual_seed(0)
    network = LGM(LGM_MINI).eval()
    assert 7.5e6 < sum(p.numel() for p in network.parameters()) * 2 <= 16 * 2**20
    cameras = default_cameras(10.0)
    colors = torch.rand(4, 3, 16, 16).repeat_interleave(16, -1).repeat_interleave(16, -2)
    y, x = torch.meshgrid(torch.arange(256.0) - 127.5, torch.arange(256.0) - 127.5, indexing="ij")
    alpha = (y.square() + x.square() < 60**2).float().expand(4, 1, 256, 256)
    views = Views(torch.cat([colors, alpha], dim=1)[None], cameras.reshape(1, 4))
    with torch.inference_mode():
        gaussians = network(*model_inputs(views, LGM_MINI))[0].check_values()
    assert gaussians.num_gaussians == 4 * 256 * 256
    by_view = gaussians.map(lambda value: value.reshape(4, -1, *value.shape[1:]))
    inside = alpha[0, 0].flatten() > 0.5
    near = (y.square() + x.square()).flatten() < 67**2
    assert float(by_view.opacities[:, inside].min()) > 0.6
    assert float(by_view.opacities[:, ~near].max()) == 0.0
    pixels = torch.stack(torch.meshgrid(torch.arange(256) + 0.5, torch.arange(256) + 0.5, indexing="xy"), -1)
    for view in range(4):
        local = by_view.means[view] @ cameras.world_to_camera[view, :3, :3].T + cameras.world_to_camera[view, :3, 3]
        pixel = (local @ cameras.intrinsics[view].T)[:, :2] / local[:, 2:]
        assert float((pixel - pixels.reshape(-1, 2))[inside].abs().mean()) < 2.0
        under = colors[view].permute(1, 2, 0).reshape(-1, 3)
        assert float((by_view.colors[view] - under)[inside].abs().mean()) < 0.1


def test_hull_positions_sizes_and_colors_without_any_change_are_those_of_the_pixels() -> None:
    params = LGM_MINI.at_input_size(64)
    cameras = default_cameras(20.0, 64)
    rays = network_inputs(torch.zeros(4, 3, 64, 64), cameras, 64)[:, 3:]
    alpha, entry = torch.full((4, 1, 64, 64), 0.25), torch.full((4, 1, 64, 64), -0.2)
    color = torch.tensor([0.2, 0.4, 0.8])[:, None, None].expand(4, 3, 64, 64)
    white = normalize_images(color * alpha + (1 - alpha))  # what a quarter-covered pixel looks like on white
    pictures = torch.cat([white, rays, alpha, entry], dim=1)[None]
    raw = torch.zeros(1, params.num_gaussians, 15)
    raw[..., 0], raw[..., 14] = 0.5, -20.0
    gaussians = activate_gaussians(raw, pictures, params)[0]
    origins, directions = cameras.rays()
    means = gaussians.means.reshape(4, 64, 64, 3)
    assert float(torch.linalg.cross(means - origins, directions).norm(dim=-1).max()) < 1e-4
    closest = origins - directions * (origins * directions).sum(-1, keepdim=True)
    along = ((means - closest) * directions).sum(-1)
    torch.testing.assert_close(along, torch.full_like(along, -0.2 + 0.9 * math.tanh(0.5 / 3)), atol=1e-4, rtol=0)
    pixel = 1.5 / float(cameras.intrinsics[0, 0, 0])
    torch.testing.assert_close(gaussians.scales, torch.full_like(gaussians.scales, 0.6 * pixel), atol=1e-6, rtol=0)
    torch.testing.assert_close(gaussians.colors, color[0, :, 0, 0].expand(len(gaussians.colors), 3), atol=1e-3, rtol=0)
    opacity = 1 / (1 + math.exp(2.0))
    torch.testing.assert_close(gaussians.opacities, torch.full_like(gaussians.opacities, opacity), atol=1e-5, rtol=0)


def test_hull_networks_want_a_profile_and_others_none() -> None:
    params = LGM_MINI.at_input_size(64)
    with pytest.raises(InvalidInputError, match="needs a profile"):
        LGM(params)(torch.zeros(1, 4, 11, 64, 64))
    with pytest.raises(InvalidInputError, match="takes no profile"):
        LGM(GOLDEN_MINI)(torch.zeros(1, 4, 9, 64, 64), torch.zeros(1, 4, 96, 32, 32))
    with pytest.raises(InvalidInputError, match="one Gaussian per pixel"):
        dataclasses.replace(LGM_MINI, splat_size=128, up_channels=(160, 128), up_attention=(True, False))
    with pytest.raises(InvalidInputError, match="exact views"):
        dataclasses.replace(LGM_MINI, camera_jitter_prob=0.5)


def test_wrong_shapes_are_named() -> None:
    network = LGM(GOLDEN_MINI)
    with pytest.raises(InvalidInputError, match=r"\[4, 9, 64, 64\].*got \[1, 3, 9, 64, 64\]"):
        network(torch.zeros(1, 3, 9, 64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splat_size": 64}, "splat_size"),
        ({"up_channels": (64, 64)}, "up_channels"),
        ({"down_channels": (16, 64, 128)}, "multiples of 32"),
        ({"down_attention": (True,)}, "same length"),
        ({"camera_jitter_prob": 1.5}, "camera_jitter_prob"),
    ],
)
def test_params_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(GOLDEN_MINI, **changes)


def test_reconstructor_takes_one_object_or_a_batch() -> None:
    from maquette.models.lgm.reconstructor import LGMReconstructor

    reconstruct = LGMReconstructor(stand_in_network("mini"))
    rgba = torch.rand(4, 4, 96, 96)
    views = Views(rgba, default_cameras(0.0, 96))
    one = reconstruct(views)
    assert one.batch_shape == () and one.num_gaussians == 4096
    batch = Views(rgba[None].expand(2, -1, -1, -1, -1), default_cameras(0.0, 96).reshape(1, 4)[[0, 0]])
    both = reconstruct(batch)
    assert both.batch_shape == (2,)
    torch.testing.assert_close(both[1].means, one.means, atol=1e-4, rtol=0)
    transparent = rgba.clone()
    transparent[:, :3] = torch.where(rgba[:, 3:] == 0, 0.0, rgba[:, :3])
    white = torch.cat([views.composited(), torch.ones(4, 1, 96, 96)], dim=1)
    torch.testing.assert_close(reconstruct(Views(white, views.cameras)).means, one.means, atol=1e-4, rtol=0)


def test_reconstructor_refuses_three_views_and_warns_about_the_radius() -> None:
    from maquette.models.lgm.reconstructor import LGMReconstructor

    reconstruct = LGMReconstructor(stand_in_network("mini"))
    with pytest.raises(InvalidInputError, match="exactly 4 views"):
        reconstruct(Views(torch.rand(3, 4, 64, 64), default_cameras(0.0, 64)[:3]))
    with pytest.warns(UserWarning, match=r"2\.50"):
        reconstruct(Views(torch.rand(4, 4, 64, 64), default_cameras(0.0, 64, radius=2.5)))


def test_layer_counts_are_parameters() -> None:
    params = dataclasses.replace(
        LGM_MINI,
        input_size=64,
        splat_size=64,
        down_channels=(32, 64, 96),
        up_channels=(96, 64, 32),
        num_heads=3,
        down_layers=1,
        mid_layers=3,
    )
    network = LGM(params)
    attending = {name.split(".attn.")[0] for name in network.state_dict() if ".attn." in name}
    assert len(attending) == 1 + 3 + 2  # coarsest down block, middle, both layers of the coarsest up block
    gaussians = network(torch.rand(2, 4, 11, 64, 64), torch.rand(2, 4, 96, 32, 32))
    assert gaussians.means.shape == (2, 4 * 64 * 64, 3)
    (gaussians.means.sum() + gaussians.colors.sum() + gaussians.opacities.sum()).backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert unused == []
