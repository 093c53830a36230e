"""The multi-view U-Net, its cameras and its samplers against the official numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maquette.errors import InvalidInputError
from maquette.models.mvdream.cameras import camera_conditions
from maquette.models.mvdream.network import MultiViewUNet, timestep_embedding
from maquette.models.mvdream.params import IMAGEDREAM, MVDREAM, MVDreamParams, ResamplerParams, UNetParams
from maquette.models.mvdream.sampling import SAMPLERS, build_scheduler, guided, sample_latents
from mvdream_goldens import UNETS, Inputs, golden, manifest, noise, stand_in_inputs, stand_in_unet

DOUBLE_LIMIT = 2e-6
STAT_LIMIT = 2e-5


def largest_difference(value: Tensor, expected: Any) -> float:
    return float((value.double() - torch.from_numpy(np.asarray(expected)).double()).abs().max())


@pytest.mark.parametrize("params", [MVDREAM, IMAGEDREAM], ids=lambda params: params.name)
def test_names_shapes_and_order_are_the_official_ones(params: MVDreamParams) -> None:
    with torch.device("meta"):
        network = MultiViewUNet(params.unet)
    found = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert list(found.items()) == list(manifest(params.name).items())


@pytest.mark.parametrize("name", ["mvdream_tiny", "imagedream_tiny"])
def test_tiny_networks_reproduce_the_official_outputs(name: str) -> None:
    stored = golden(name)
    network, inputs = stand_in_unet(UNETS[name]), stand_in_inputs(name, stored)
    assert largest_difference(inputs.predict(network), stored["output"]) < 3e-5
    assert largest_difference(inputs.predict(network.double()), stored["output_f64run"]) < DOUBLE_LIMIT


@pytest.mark.parametrize("name", ["mvdream_tiny", "imagedream_tiny"])
def test_every_block_reproduces_its_statistics(name: str) -> None:
    stored = golden(name)
    network, inputs = stand_in_unet(UNETS[name]), stand_in_inputs(name, stored)
    seen = watch(network, lambda: inputs.predict(network))
    watched = [key.removeprefix("stat/") for key in stored if key.startswith("stat/")]
    assert set(watched) - set(seen) == set()
    for key in watched:
        expected = stored[f"stat/{key}"][0]
        worst = float(np.abs(statistics(seen[key]) - expected).max())
        assert worst < STAT_LIMIT * max(1.0, float(np.abs(expected).max())), key


def watch(network: MultiViewUNet, run: Callable[[], object]) -> dict[str, Tensor]:
    """Outputs of the blocks that the goldens name, per frame."""
    modules: dict[str, nn.Module] = {"middle_block": network.middle_block, "camera_embed": network.camera_embed}
    modules["time_embed"] = network.time_embed
    if network.params.resampler is not None:
        modules["image_embed"] = network.image_embed
    for part in ("input_blocks", "output_blocks"):
        modules |= {f"{part}.{index}": block for index, block in enumerate(getattr(network, part))}
    first = network.input_blocks[1][1].transformer_blocks[0]
    modules |= {f"first_block.{part}": getattr(first, part) for part in ("attn1", "attn2", "ff")}
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, key=key: seen.__setitem__(key, output))
        for key, module in modules.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    frames = seen["camera_embed"].shape[1]
    for key in {"time_embed", "image_embed"} & set(seen):  # the official network computes them once per frame
        seen[key] = seen[key].repeat_interleave(frames, dim=0)
    return seen


def statistics(value: Tensor) -> np.ndarray:
    flat = value.double().flatten().numpy()
    numbers = [flat.mean(), flat.std(), flat.min(), flat.max(), np.sqrt((flat**2).sum())]
    return np.concatenate([numbers, flat[:: max(1, flat.size // 64)][:64]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvdream_full", "imagedream_full"])
def test_full_networks_reproduce_the_official_outputs(name: str) -> None:
    stored = golden(name)
    network, inputs = stand_in_unet(UNETS[name]), stand_in_inputs(name, stored)
    assert largest_difference(inputs.predict(network), stored["output"]) < 1e-4
    assert largest_difference(inputs.predict(network.double()), stored["output_f64run"]) < DOUBLE_LIMIT


def tiny(name: str = "imagedream_tiny") -> tuple[MultiViewUNet, Inputs]:
    return stand_in_unet(UNETS[name]), stand_in_inputs(name, golden(name))


def test_sliced_attention_changes_nothing() -> None:
    network, inputs = tiny()
    whole = inputs.predict(network)
    network.slice_attention()
    torch.testing.assert_close(inputs.predict(network), whole, atol=1e-5, rtol=0)
    network.slice_attention(False)
    assert torch.equal(inputs.predict(network), whole)


def test_views_see_each_other_but_objects_do_not() -> None:
    network, inputs = tiny("mvdream_tiny")
    before = inputs.predict(network).unflatten(0, (2, 4))
    inputs.latents[0, 2] += 1.0
    after = inputs.predict(network).unflatten(0, (2, 4))
    changed = (after - before).abs().amax(dim=(2, 3, 4))
    assert float(changed[0].min()) > 1e-3 and torch.equal(after[1], before[1])


def test_the_frame_of_the_picture_is_overwritten() -> None:
    network, inputs = tiny()
    before = inputs.predict(network)
    inputs.latents[:, -1] = 7.0
    assert torch.equal(inputs.predict(network), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    network, inputs = tiny()
    expected = inputs.predict(network)
    found = inputs.predict(network.to(dtype))
    assert found.dtype == dtype
    assert float((found.float() - expected).square().mean().sqrt()) < 0.03 * float(expected.std())


def test_wrong_inputs_are_refused() -> None:
    network, inputs = tiny()
    arguments = (inputs.timesteps, inputs.cameras, inputs.text)
    with pytest.raises(InvalidInputError, match="needs picture tokens"):
        network(inputs.latents, *arguments)
    with pytest.raises(InvalidInputError, match=r"multiples of 2.*7"):
        stand_in_unet(UNETS["mvdream_tiny"])(inputs.latents[..., :7], *arguments)
    with pytest.raises(InvalidInputError, match="norm_groups, 32"):
        UNetParams(base_channels=40)
    with pytest.raises(InvalidInputError, match="does not divide"):
        UNetParams(head_channels=48)
    with pytest.raises(InvalidInputError, match="picture encoder needs a resampler"):
        MVDreamParams("wrong", unet=UNetParams(resampler=ResamplerParams()))


def test_cameras_are_the_official_ones() -> None:
    stored = golden("parts")
    for elevation in (0, 5, 15, 30):
        expected = stored[f"mvdream_camera_el{elevation}"]
        assert largest_difference(camera_conditions(4, elevation), expected) < 1e-6
    with_picture = camera_conditions(with_picture=True)
    assert largest_difference(with_picture, stored["imagedream_camera_el0"]) < 1e-6
    assert largest_difference(camera_conditions(8, 10.0), stored["mvdream_camera_8views"]) < 1e-6


def test_timestep_embedding_is_the_official_one() -> None:
    timesteps = torch.tensor([0, 1, 21, 500, 981, 999])
    found = timestep_embedding(timesteps, 320)
    error = (found - torch.from_numpy(golden("parts")["timestep_embedding_320"])).abs().amax(dim=1)
    # The last bit of a frequency depends on the processor's exponential; an angle then moves by t * 2^-24.
    assert bool((error < 2e-6 + timesteps * 2.0**-24).all())


@pytest.mark.parametrize("steps", [20, 30, 40, 50])
def test_ddim_visits_the_official_timesteps(steps: int) -> None:
    scheduler = build_scheduler(MVDREAM.noise)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == golden("parts")[f"mvdream_ddim_t_{steps}"].tolist()


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("timestep", [981, 501, 1])
def test_ddim_steps_are_the_official_ones(timestep: int, eta: int) -> None:
    stored = golden("parts")[f"ddim_step_eta{eta}_t{timestep}"]
    scheduler = build_scheduler(MVDREAM.noise)
    scheduler.set_timesteps(50)
    latents, prediction, fresh = (noise(f"ddim_{part}", *stored.shape) for part in ("x", "eps", "noise"))
    given = fresh if eta else None
    step = scheduler.step(prediction, timestep, latents, eta=float(eta), variance_noise=given).prev_sample
    assert largest_difference(step, stored) < 2e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_end_at_the_known_solution(sampler: Any) -> None:
    """If the data are a single point, the exact path is a mixture of it and of one noise that never changes."""
    point, start = noise("point", 1, 4, 4, 8, 8), noise("start", 1, 4, 4, 8, 8)
    scheduler = build_scheduler(MVDREAM.noise, sampler)
    scheduler.set_timesteps(12)
    alphas = scheduler.alphas_cumprod

    def noise_in(latents: Tensor, timestep: Tensor) -> Tensor:
        alpha = alphas[int(timestep)]
        result: Tensor = (latents - alpha.sqrt() * point) / (1 - alpha).sqrt()
        return result

    calls: list[tuple[int, int]] = []
    found = sample_latents(
        noise_in, start, MVDREAM.noise, 12, sampler=sampler, progress=lambda done, total: calls.append((done, total))
    )
    last = float(alphas[0]) if sampler == "ddim" else 1.0  # official DDIM stops at the first noise level
    expected = last**0.5 * point + (1 - last) ** 0.5 * noise_in(start, scheduler.timesteps[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert calls == [(index + 1, 12) for index in range(12)]


def test_fresh_noise_of_ddim_follows_its_generator() -> None:
    def run(eta: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        start = noise("start", 1, 4, 4, 8, 8)
        return sample_latents(lambda x, t: 0.9 * x, start, MVDREAM.noise, 5, eta=eta, generator=generator)

    assert torch.equal(run(1.0, 3), run(1.0, 3)) and not torch.equal(run(1.0, 3), run(1.0, 4))
    assert torch.equal(run(0.0, 3), run(0.0, 4))


def test_wrong_sampling_is_refused() -> None:
    start = noise("start", 1, 4, 4, 8, 8)
    for options, message in (
        ({"steps": 0}, r"1\.\.1000, got 0"),
        ({"steps": 5, "eta": 2.0}, "eta must lie"),
        ({"steps": 5, "eta": 0.5, "sampler": "dpm++"}, "0 for other samplers"),
        ({"steps": 5, "sampler": "euler"}, "ddim, dpm"),
    ):
        arguments: dict[str, Any] = dict(options)
        with pytest.raises(InvalidInputError, match=message):
            sample_latents(lambda x, t: x, start, MVDREAM.noise, **arguments)


def test_guidance_moves_away_from_the_unconditional_prediction() -> None:
    without, with_condition = torch.tensor([1.0]), torch.tensor([3.0])
    assert guided(without, with_condition, 5.0).item() == 11.0
    assert guided(without, with_condition, 1.0).item() == 3.0
