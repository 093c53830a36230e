"""The Gamba networks against the official ones (goldens with stand-in weights), and ours for size and start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import golden_rules
from gamba_goldens import GOLDEN_MINI, PRESETS, golden, manifest, official_state, stand_in_inputs, stand_in_network
from gamba_small import SMALL, ball_views
from lgm_goldens import statistics
from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, WeightsError
from maquette.gaussians import Gaussians
from maquette.models.gamba.bench import Measurement, write_report
from maquette.models.gamba.inputs import front_cameras, network_inputs
from maquette.models.gamba.network import Gamba, _kept
from maquette.models.gamba.official import network_state, official_name
from maquette.models.gamba.params import GAMBA_MINI, GambaParams
from maquette.models.gamba.reconstructor import GambaReconstructor
from maquette.models.gamba.scans import scan_cells, scan_pixels
from maquette.nn.vit import VisionTransformer
from maquette.nn.vit_params import ViTParams
from maquette.raster import render_gaussians
from maquette.raster.bench_report import machine
from maquette.training.step import AutocastNetwork
from maquette.views import Views
from maquette.weights import load_strictly

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


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_is_the_manifest(preset: str) -> None:
    with torch.device("meta"):
        network = Gamba(PRESETS[preset])
    ours = {official_name(name): list(value.shape) for name, value in network.state_dict().items()}
    expected = {name: spec["shape"] for name, spec in manifest(preset)["tensors"].items()}
    assert expected.pop("model.decoder.coords") == [3, 21]
    assert ours == expected
    assert list(ours) == list(expected)
    assert sum(p.numel() for p in network.parameters()) == manifest(preset)["parameters"]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == manifest(preset)["parameters_without_dino"]


def test_official_state_is_taken_strictly() -> None:
    state = official_state("mini")
    perceptual = {"lpips_loss.lin0.model.1.weight": torch.zeros(1), "lpips_loss.scaling_layer.shift": torch.zeros(1)}
    ours = network_state({f"module.{name}": value for name, value in (state | perceptual).items()}, GOLDEN_MINI)
    assert len(ours) == len(state) - 1
    assert network_state(ours, GOLDEN_MINI) == ours  # our own names pass through
    with torch.device("meta"):
        network = Gamba(GOLDEN_MINI)
    missing = {name: value for name, value in state.items() if name != "model.transformer.norm_f.weight"}
    wrong = missing | {"model.triplane_processor.embeddings": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"transformer\.norm_f\.weight is missing.*triplane_processor"):
        load_strictly(network, network_state(wrong, GOLDEN_MINI), "file")
    half = network_state({"model.decoder.coords": state["model.decoder.coords"].bfloat16()}, GOLDEN_MINI)
    assert half == {}
    softmax_era = state | {"model.decoder.coords": torch.linspace(-0.5, 0.5, 21).repeat(3, 1)}
    with pytest.raises(WeightsError, match=r"not 21 values from -0\.4 to 0\.4"):
        network_state(softmax_era, GOLDEN_MINI)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_activates_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, inputs = Gamba(SMALL).eval(), (torch.randn(1, 10, 32, 32), torch.rand(1, 3, 32, 32))
    with torch.inference_mode():
        exact = network(*inputs)
        half = network.to(dtype)(*inputs)
    assert {getattr(half, field.name).dtype for field in dataclasses.fields(half)} == {torch.float32}
    assert float((half.colors - exact.colors).abs().mean()) < 0.02
    assert float((half.means - exact.means).abs().mean()) < 0.02


def test_autocast_keeps_the_scan_and_the_sum_in_float32() -> None:
    torch.manual_seed(0)
    network = Gamba(SMALL)
    seen: dict[str, torch.dtype] = {}

    def note(name: str, module: nn.Module, which: int | None = None) -> None:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            seen[name] = (output if which is None else output[which]).dtype

        module.register_forward_hook(hook)

    note("encoder", network.image_encoder.blocks[0].attn.qkv)
    note("in_proj", network.transformer.layers[0].mamba_block.mixer.in_proj)
    note("residual", network.transformer.layers[1], which=1)
    note("heads", network.decoder.gs_layer.xyz)
    inputs = (torch.rand(2, 10, 32, 32), torch.rand(2, 3, 32, 32))
    gaussians = AutocastNetwork(network, enabled=True)(*inputs)
    half, full = torch.bfloat16, torch.float32
    assert seen == {"encoder": half, "in_proj": half, "residual": full, "heads": full}
    values = [gaussians.means, gaussians.quats[..., 0], gaussians.scales, gaussians.opacities, gaussians.colors]
    torch.cat([value.flatten() for value in values]).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_scans_are_the_four_orders() -> None:
    cells = torch.arange(6.0).reshape(1, 1, 2, 3)
    tokens = scan_cells(cells)[0, :, 0].tolist()
    assert tokens == [*(0, 1, 2, 3, 4, 5), *(0, 3, 1, 4, 2, 5), *(2, 1, 0, 5, 4, 3), *(3, 0, 4, 1, 5, 2)]
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(scan_pixels(fine, 1), scan_cells(fine))
    assert scan_pixels(torch.cat([fine, -fine], dim=1), 2)[0, :8].tolist() == [
        [n, -n] for n in (0, 1, 4, 5, 2, 3, 6, 7)
    ]


@pytest.mark.parametrize("alternate", [False, True])
def test_tokens_see_what_comes_before_them_only(alternate: bool) -> None:
    """In the official network information flows in one direction; with alternating layers it reaches everybody."""
    torch.manual_seed(0)
    params = dataclasses.replace(SMALL, alternate_direction=alternate, num_layers=2)
    former = Gamba(params).transformer.eval()
    tokens, condition = torch.randn(1, params.num_tokens, 32), torch.randn(1, 5, 32)
    with torch.inference_mode():
        before = former(tokens, condition)
        changed = tokens.clone()
        changed[:, 20] = torch.randn(32)
        difference = (former(changed, condition) - before).abs().amax(dim=(0, 2))
    assert bool((difference[20:23] > 1e-4).all())
    assert bool((difference[:20] > 1e-5).any()) == alternate  # below that it is rounding, which moves with the memory


def test_stochastic_depth_drops_whole_samples() -> None:
    rates = [layer.drop_path for layer in Gamba(dataclasses.replace(SMALL, num_layers=14)).transformer.layers]
    np.testing.assert_allclose(rates, [0.0, *np.linspace(0, 0.1, 14)[:13]])
    torch.manual_seed(0)
    factors = _kept(torch.ones(4000, 2, 2), 0.25)
    kept = factors > 0
    assert factors.shape == (4000, 1, 1) and float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(factors, kept / 0.75)
    layer = Gamba(dataclasses.replace(SMALL, drop_path=1.0)).transformer.layers[-1]
    layer.drop_path = 1.0 - 1e-12  # everything is dropped but the sum of the layers before
    hidden, residual = torch.randn(2, 1, 8, SMALL.width)
    given = torch.randn(1, 3, SMALL.encoder.width)
    total = layer.train()(hidden, residual, given)[1]
    assert torch.equal(total, layer(torch.zeros_like(hidden), residual, given)[1])
    assert not torch.equal(total, layer.eval()(hidden, residual, given)[1])


def test_image_encoder_takes_other_sizes_and_has_no_registers_if_not_asked() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(ViTParams(width=16, depth=1, num_heads=2, patch_size=4, grid_size=4, num_registers=0))
    assert "register_tokens" not in encoder.state_dict()
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 17, 16)
    assert encoder(torch.rand(1, 3, 8, 24)).shape == (1, 13, 16)
    torch.testing.assert_close(encoder.positions(4, 4), encoder.pos_embed)
    with torch.no_grad():  # a linear ramp stays one
        encoder.pos_embed[0, 1:, 0] = torch.arange(4.0).repeat_interleave(4)
    columns = encoder.positions(8, 8)[0, 1:, 0].reshape(8, 8)
    torch.testing.assert_close(columns[3:5, 2], torch.tensor([1.25, 1.75]), atol=0.05, rtol=0)
    with pytest.raises(InvalidInputError, match=r"multiples of 4, got \[1, 3, 10, 16\]"):
        encoder(torch.rand(1, 3, 10, 16))


def test_mini_fits_the_budget_and_starts_sensibly() -> None:
    torch.manual_seed(0)
    network = Gamba(GAMBA_MINI).eval()
    assert 3.8e6 < sum(p.numel() for p in network.parameters()) <= 4.18e6
    cameras = front_cameras(1, 256, GAMBA_MINI)
    image = torch.rand(1, 3, 16, 16).repeat_interleave(16, -1).repeat_interleave(16, -2)
    with torch.inference_mode():
        gaussians = network(*network_inputs(image, cameras, GAMBA_MINI))[0].check_values()
    assert gaussians.num_gaussians == GAMBA_MINI.num_gaussians // 2 == 16_384
    assert float(gaussians.opacities.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(gaussians.scales.mean()) == pytest.approx(0.015, abs=0.002)
    # Each Gaussian projects into its own cell, shows the colour under it, and each scan starts at another depth.
    grid = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy")) * 4 + 2
    cells = scan_pixels(grid[None], 2)[0]
    local = gaussians.means @ cameras.world_to_camera[0, :3, :3].T + cameras.world_to_camera[0, :3, 3]
    pixel = (local @ cameras.intrinsics[0].T)[:, :2] / local[:, 2:]
    assert float((pixel - cells).abs().mean()) < 2.0
    under = scan_pixels(image[:, :, 2::4, 2::4], 2)[0]
    assert float((gaussians.colors - under).abs().mean()) < 0.06
    depths = local[:, 2].reshape(4, -1).mean(dim=1)
    assert bool((depths.diff() > 0.15).all())


def test_ours_works_on_smaller_pictures() -> None:
    torch.manual_seed(0)
    network = Gamba(SMALL).eval()
    whole = dataclasses.replace(SMALL, input_size=64, encoder_size=64)
    assert whole.at_input_size(32) == dataclasses.replace(SMALL, output_size=16)
    network.params = SMALL.at_input_size(16)
    assert (network.params.encoder_size, network.params.output_size, network.params.num_gaussians) == (16, 16, 64)
    cameras = front_cameras(1, 32, SMALL)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), (32, 32), mode="bicubic").clamp(0, 1)
    with torch.inference_mode():
        small = network(*network_inputs(image, cameras, network.params))
    assert small.means.shape == (1, 64, 3)
    with pytest.raises(InvalidInputError, match="64 px: its positions are learned for each token"):
        GOLDEN_MINI.at_input_size(64)
    with pytest.raises(InvalidInputError, match="multiple of patch_size"):
        SMALL.at_input_size(20)
    assert GOLDEN_MINI.at_input_size(128) is GOLDEN_MINI


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"\[B, 10, 32, 32\] and \[B, 3, 32, 32\], got \[1, 9, 16, 16\]"):
        Gamba(SMALL)(torch.zeros(1, 9, 16, 16), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 100}, "multiple of patch_size 8, got 100"),
        ({"cells_per_token": 3}, "divide patch_size"),
        ({"num_parts": 5}, "divide the 1024 tokens"),
        ({"encoder_size": 100}, "multiple of 14 px"),
        ({"drop_path": 1.5}, "drop_path"),
        ({"cells_per_token": 0, "width": 0}, "width, cells_per_token must be at least 1"),
        ({"lambda_radial": -1.0}, "lambda_radial"),
        ({"position_mode": "ray", "depth_spread": 2.0}, "depth_spread"),
        ({"encoder": ViTParams(32, 2, 2), "initial_opacity": 1.0}, "initial_opacity must lie inside"),
    ],
)
def test_params_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(GOLDEN_MINI, **changes)
    with pytest.raises(InvalidInputError, match="3 heads for 32"):
        ViTParams(32, 2, 3)


def small_reconstructor(params: GambaParams = SMALL) -> GambaReconstructor:
    torch.manual_seed(0)
    return GambaReconstructor(Gamba(params))


def test_reconstructor_takes_a_picture_a_view_or_a_batch() -> None:
    reconstruct = small_reconstructor()
    rgba = torch.rand(4, 4, 48, 48)
    cameras = Cameras.orbit([0.0, 90.0, 180.0, 270.0], height=48, width=48)
    one = reconstruct.picture(rgba[0])
    assert one.batch_shape == () and one.num_gaussians == SMALL.num_gaussians and not one.means.is_inference()
    torch.testing.assert_close(reconstruct(Views(rgba, cameras)).means, one.means, atol=1e-6, rtol=0)
    batch = Views(rgba[None].expand(2, -1, -1, -1, -1), Cameras.stack([cameras, cameras]))
    both = reconstruct(batch)
    assert both.batch_shape == (2,)
    torch.testing.assert_close(both[1].means, one.means, atol=1e-5, rtol=0)
    white = torch.cat([rgba[0, :3] * rgba[0, 3:] + 1 - rgba[0, 3:], torch.ones(1, 48, 48)])
    blind = small_reconstructor(dataclasses.replace(SMALL, mask_input=False))
    torch.testing.assert_close(blind.picture(white).means, blind.picture(rgba[0]).means, atol=1e-5, rtol=0)


@pytest.mark.parametrize("world", ["upright", "camera"])
@pytest.mark.parametrize("azimuth", [40.0, 180.0, 275.0])
def test_answers_turn_with_the_camera(world: str, azimuth: float) -> None:
    """The same picture from another side gives the same object, seen the same way from there."""
    reconstruct = small_reconstructor(dataclasses.replace(SMALL, world=world))
    rgba = ball_views(1, 1).images[0]
    pictures = []
    for turn in (0.0, azimuth):
        elevation = 20.0 if world == "upright" else 0.0
        cameras = Cameras.orbit([turn], elevation, height=32, width=32)
        gaussians = reconstruct(Views(rgba, cameras)).check_values()
        local = gaussians.means @ cameras.world_to_camera[0, :3, :3].T + cameras.world_to_camera[0, :3, 3]
        pictures.append((local, covariances(gaussians, cameras.world_to_camera[0, :3, :3])))
    for first, second in zip(*pictures, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def covariances(gaussians: Gaussians, rotation: Tensor) -> Tensor:
    w, x, y, z = gaussians.quats.unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    axes = rotation @ torch.stack(rows, -1).reshape(-1, 3, 3) * gaussians.scales[:, None]
    return axes @ axes.mT


@pytest.mark.parametrize("world", ["upright", "camera"])
def test_joined_with_the_mirrored_answer_both_hands_are_alike(world: str) -> None:
    """What is made of a mirrored view is the mirror image of what is made of the view, whatever the weights."""
    params = dataclasses.replace(SMALL, world=world, join_mirrored=True)
    alone, joined = (small_reconstructor(p) for p in (dataclasses.replace(params, join_mirrored=False), params))
    rgba = torch.rand(1, 4, 32, 32)
    cameras = Cameras.orbit([40.0], 15.0, height=32, width=32)
    cameras.intrinsics[..., 0, 2] += 1.5
    straight = joined(Views(rgba, cameras)).check_values()
    mirrored = joined(Views(rgba.flip(-1), cameras.mirrored()))
    seen = render_gaussians(straight, cameras)
    seen_mirrored = render_gaussians(mirrored, cameras.mirrored())
    torch.testing.assert_close(seen_mirrored.color.flip(-1), seen.color, atol=1e-4, rtol=0)
    assert float((seen.color.flip(-1) - seen.color).abs().mean()) > 1e-3  # not because it is symmetric itself
    one = alone(Views(rgba, cameras))
    assert straight.num_gaussians == params.num_gaussians == 2 * one.num_gaussians
    torch.testing.assert_close(straight.means[: one.num_gaussians], one.means, atol=1e-5, rtol=0)
    transparency = 1 - straight.opacities[: one.num_gaussians]
    torch.testing.assert_close(transparency**2, 1 - one.opacities, atol=1e-4, rtol=0)


def test_reconstructor_explains_what_does_not_fit() -> None:
    reconstruct = small_reconstructor()
    with pytest.raises(InvalidInputError, match=r"square RGBA picture.*\[3, 8, 8\]"):
        reconstruct.picture(torch.rand(3, 8, 8))
    with pytest.raises(InvalidInputError, match="square pictures"):
        reconstruct(Views(torch.rand(1, 4, 8, 16), Cameras.orbit([0.0], height=8, width=16)))
    with pytest.raises(InvalidInputError, match="a view per object"):
        reconstruct(Views(torch.rand(1, 1, 1, 4, 8, 8), Cameras.orbit([0.0], height=8, width=8).reshape(1, 1, 1)))
    with pytest.warns(UserWarning, match=r"2\.50"):
        reconstruct(Views(torch.rand(1, 4, 8, 8), Cameras.orbit([0.0], height=8, width=8, radius=2.5)))


def test_bench_report_names_every_network(tmp_path: Path) -> None:
    results = [
        Measurement("gamba", "bfloat16", 16_384, 21.0, 18.5, 900.0),
        Measurement("m", "float32", 5, 9, None, None),
    ]
    where = machine(torch.device("cpu"), "abc")
    paths = write_report(results, where, tmp_path, "gamba_cuda")
    text = paths[1].read_text()
    assert "| gamba | bfloat16 | 16,384 | 21.0 | 18.5 | 900 |" in text and "| m | float32 | 5 | 9.0 |  |  |" in text
    assert json.loads(paths[0].read_text())["networks"][1]["median_ms"] == 9


@pytest.mark.gpu
def test_gpu_gives_the_same_gaussians_and_gradients() -> None:
    torch.manual_seed(0)
    network, inputs = Gamba(SMALL).eval(), (torch.rand(2, 10, 32, 32), torch.rand(2, 3, 32, 32))
    results = []
    for device in ("cpu", "cuda"):
        network.to(device).zero_grad()
        gaussians = network(*(value.to(device) for value in inputs))
        gaussians.means.square().sum().backward()
        gradient = network.transformer.layers[0].mamba_block.mixer.A_log.grad
        # A copy: the gradient itself moves along with the network.
        results.append((gaussians.means.detach().cpu(), gradient.detach().cpu().clone()))
    torch.testing.assert_close(results[1][0], results[0][0], atol=5e-3, rtol=0)
    assert (results[1][1] - results[0][1]).norm() < 0.05 * results[0][1].norm()
