"""Our own multi-view diffusion: its size, its tokenizer, its objectives, and a tiny one that learns two objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, WeightsError
from maquette.models.mvdream.cameras import camera_conditions, relative_conditions
from maquette.models.mvdream.encoders import from_planes, to_planes
from maquette.models.mvdream.loading import join_weights, load_pipeline
from maquette.models.mvdream.objective import AutoencoderObjective, DenoisingObjective, centered
from maquette.models.mvdream.official import build_components
from maquette.models.mvdream.params import MVDREAM_MINI, AutoencoderParams, NoiseParams
from maquette.models.mvdream.sampling import build_scheduler
from maquette.models.mvdream.tokenizer import build_tokenizer, letter_tokenizer, trained_tokenizer
from maquette.models.mvdream.training_networks import ConditionalDenoiser, LatentAutoencoder
from maquette.nn.posed_images import select_cameras
from maquette.picture.prepare import prepare_picture
from maquette.training.step import AutocastNetwork, Objective
from maquette.views import Views
from maquette.weights import write_weights
from mvdream_stand_ins import TINY_IMAGEDREAM, TINY_MVDREAM

SIZE = 32
TINY = dataclasses.replace(
    TINY_IMAGEDREAM,
    name="tiny-mini",
    autoencoder=AutoencoderParams(
        level_channels=(32, 32, 32), num_res_blocks=1, scaling_factor=1.0, image_channels=4, latent_channels=4
    ),
    text_encoder=dataclasses.replace(TINY_IMAGEDREAM.text_encoder, num_tokens=16),
    noise=NoiseParams(prediction="v_prediction", from_pure_noise=True),
    front_view=0,
    picture_optional=True,
)
CAPTIONS = ("red ball", "blue tower")


def cameras(batch: int, first_azimuth_deg: float = 0.0) -> Cameras:
    azimuths = [first_azimuth_deg + 90.0 * view for view in range(4)]
    return Cameras.stack([Cameras.orbit(azimuths, height=SIZE, width=SIZE)] * batch)


def two_objects() -> Views:
    """A red disc and a blue bar that moves to the side from view to view."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    images = torch.zeros(2, 4, 4, SIZE, SIZE)
    for view in range(4):
        ball = ((x**2 + y**2) < 0.4**2).float()
        tower = (((x - 0.15 * view).abs() < 0.25) & (y.abs() < 0.7)).float()
        images[0, view] = torch.cat([torch.tensor([0.9, 0.1, 0.1])[:, None, None] * ball, ball[None]])
        images[1, view] = torch.cat([torch.tensor([0.1, 0.1, 0.9])[:, None, None] * tower, tower[None]])
    return Views(images, cameras(2))


def test_mvdream_mini_is_small_enough_to_ship() -> None:
    with torch.device("meta"):
        components = build_components(MVDREAM_MINI)
        denoiser = ConditionalDenoiser(MVDREAM_MINI)
    total = sum(value.numel() for network in components.values() for value in network.state_dict().values())
    assert 2 * total < 19.5 * 2**20  # the tokenizer comes on top
    names = {f"{part}.{name}" for part, network in components.items() for name in network.state_dict()}
    with torch.device("meta"):
        trained = {*denoiser.state_dict(), *LatentAutoencoder(MVDREAM_MINI.autoencoder).state_dict()}
    assert trained == names


def test_schedule_starts_at_pure_noise_and_ends_clean() -> None:
    for sampler in ("ddim", "dpm++"):
        scheduler = build_scheduler(MVDREAM_MINI.noise, sampler)  # type: ignore[arg-type]
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 999 and scheduler.timesteps[-1] == 99
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    with pytest.raises(InvalidInputError, match="v_prediction"):
        NoiseParams(from_pure_noise=True)


def test_planes_keep_colors_and_alpha() -> None:
    images = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 3] = images[:, 3] * 0.9 + 0.1
    torch.testing.assert_close(from_planes(to_planes(images, 4)), images, atol=1e-5, rtol=0)
    assert from_planes(torch.ones(1, 4, 2, 2) * torch.tensor([1.0, 1, 1, 0])[:, None, None])[0, :3].min() == 1
    torch.testing.assert_close(to_planes(images, 3), images[:, :3] * images[:, 3:] + 1 - images[:, 3:])


def test_cameras_are_told_relative_to_the_first() -> None:
    expected = camera_conditions(4)[None].expand(2, -1, -1)
    torch.testing.assert_close(relative_conditions(cameras(2, 37.0)), expected, atol=1e-5, rtol=0)
    tilted = Cameras.stack([Cameras.orbit([20.0, 110.0, 200.0, 290.0], 15.0)])
    torch.testing.assert_close(relative_conditions(tilted)[0], camera_conditions(4, 15.0), atol=1e-5, rtol=0)


def test_prompt_pictures_are_centred_as_pictures_are_prepared() -> None:
    image = torch.zeros(4, 96, 96)
    image[:, 20:50, 50:90] = torch.tensor([0.2, 0.4, 0.6, 1.0])[:, None, None]
    found = centered(torch.stack([image, torch.zeros_like(image)]), torch.tensor([0.2, 0.2]))
    expected = prepare_picture(image, size=None).image
    both = (found[0, 3] > 0.5) & (expected[3] > 0.5)
    assert float(both.sum() / ((found[0, 3] > 0.5) | (expected[3] > 0.5)).sum()) > 0.94
    torch.testing.assert_close(found[0, :3, 48, 48], image[:3, 30, 60])
    assert not found[1].any()


def test_tokenizers_learn_words_from_captions() -> None:
    params = MVDREAM_MINI.text_encoder
    files = trained_tokenizer(["red ball", "blue ball", "red tower"] * 3, params)
    assert files == trained_tokenizer(["red tower", "blue ball", "red ball"] * 3, params)
    words = build_tokenizer(*files, params)
    assert words.tokenize("Red  ball") == ["red</w>", "ball</w>"]
    assert words.decode(words("a gnu: 5 €").input_ids, skip_special_tokens=True) == "a gnu : 5 €"
    ids = words("red").input_ids
    assert (ids[0], ids[-1]) == (params.vocabulary - 2, params.vocabulary - 1)
    with pytest.raises(InvalidInputError, match="514"):
        letter_tokenizer(dataclasses.replace(params, vocabulary=100))


def minimize(network: nn.Module, loss: Callable[[], Tensor], steps: int) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.95))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay.step()


def train_both(views: Views, prompts: Tensor, empty: Tensor) -> tuple[LatentAutoencoder, ConditionalDenoiser]:
    generator = torch.Generator().manual_seed(0)
    autoencoder, denoiser = LatentAutoencoder(TINY.autoencoder), ConditionalDenoiser(TINY)
    rebuild: Objective = AutoencoderObjective(TINY.autoencoder)
    first, last = (
        Views(views.images[:, part], select_cameras(views.cameras, part)) for part in (slice(0, 2), slice(2, 4))
    )
    minimize(autoencoder, lambda: rebuild(autoencoder, first, last, generator, True).loss, 40)
    denoise = DenoisingObjective(TINY, autoencoder, empty, drop_prompt=0.3, drop_picture=0.5)
    twice, prompts = Views(views.images.repeat(2, 1, 1, 1, 1), cameras(4)), prompts.repeat(2, 1)
    minimize(denoiser, lambda: denoise(denoiser, twice, twice, generator, True, prompts).loss, 200)
    return autoencoder, denoiser


def test_a_tiny_model_learns_to_show_what_it_is_told(tmp_path: Path) -> None:
    """Trained, put into one weight file, loaded, and asked by sentence alone and by picture alone."""
    views, encoder = two_objects(), TINY.text_encoder
    files = trained_tokenizer(CAPTIONS, encoder)
    words = build_tokenizer(*files, encoder)
    ids = words([*CAPTIONS, ""], padding="max_length", max_length=encoder.num_tokens, return_tensors="pt").input_ids
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder, denoiser = train_both(views, ids[:2], ids[2])
    file, exports = tmp_path / "tiny.safetensors", (tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    for export, network in zip(exports, (autoencoder, denoiser), strict=True):
        write_weights(export, network.state_dict(), {"model": TINY.name})
    with pytest.raises(WeightsError, match="image_encoder"):
        join_weights(exports[:1], files, TINY, file, {})
    join_weights(exports, files, TINY, file, {"license": "Apache-2.0"})
    pipeline = load_pipeline(TINY, file)
    rebuilt = AutoencoderObjective(TINY.autoencoder)(autoencoder, views, views, torch.Generator(), False).pictures
    assert rebuilt is not None
    for index, caption in enumerate(CAPTIONS):
        shown = centered(views.images[index, :1], torch.tensor([0.2]))[0]
        for made in (pipeline(caption, steps=6, guidance=2.0), pipeline("", shown, steps=6, guidance=2.0)):
            assert made.shape == (1, 4, 4, SIZE, SIZE)
            right, wrong = (psnr(to_planes(made[0], 3), rebuilt[other]) for other in (index, 1 - index))
            assert right > 18 and right > wrong + 5, (caption, right, wrong)


def psnr(first: Tensor, second: Tensor) -> float:
    return -10 * float((first - second).square().mean().log10())


def test_training_reports_pictures_and_metrics() -> None:
    views, autoencoder = two_objects(), LatentAutoencoder(TINY.autoencoder)
    objective: Objective = DenoisingObjective(TINY, autoencoder, torch.zeros(16, dtype=torch.long))
    result = objective(ConditionalDenoiser(TINY), views, views, torch.Generator().manual_seed(0), False)
    assert result.pictures is not None and result.pictures.shape == (2, 4, 3, SIZE, SIZE)
    assert set(result.metrics) == {"error"} and float(result.metrics["error"]) == pytest.approx(1.0, abs=0.5)
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    rebuilt = AutoencoderObjective(TINY.autoencoder)(autoencoder, views, views, torch.Generator(), False)
    assert set(rebuilt.metrics) == {"l1", "ssim", "psnr", "latent_power"}


def test_both_stages_train_under_autocast_and_use_all_they_train() -> None:
    views, autoencoder, denoiser = two_objects(), LatentAutoencoder(TINY.autoencoder), ConditionalDenoiser(TINY)
    for parameter in denoiser.unet.out[-1].parameters():
        nn.init.normal_(parameter, std=0.05)
    prompts = torch.randint(0, 500, (2, 16), generator=torch.Generator().manual_seed(0))
    rebuild = AutoencoderObjective(TINY.autoencoder)
    rebuild(AutocastNetwork(autoencoder, True), views, views, torch.Generator(), True).loss.backward()
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())
    denoise = DenoisingObjective(TINY, autoencoder, torch.zeros(16, dtype=torch.long))
    losses = [
        denoise(network, views, views, torch.Generator().manual_seed(0), True, prompts).loss
        for network in (denoiser, AutocastNetwork(denoiser, True))
    ]
    torch.testing.assert_close(losses[1], losses[0], atol=0.01, rtol=0.01)
    losses[1].backward()
    trained = {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in denoiser.named_parameters() if parameter.grad is not None}


def test_wrong_objectives_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes no picture"):
        DenoisingObjective(TINY_MVDREAM, LatentAutoencoder(TINY.autoencoder), torch.zeros(1))
    with pytest.raises(InvalidInputError, match="no picture encoder"):
        ConditionalDenoiser(TINY_MVDREAM)
    with pytest.raises(InvalidInputError, match=r"lie in 0\.\.1"):
        DenoisingObjective(TINY, LatentAutoencoder(TINY.autoencoder), torch.zeros(1), drop_prompt=2.0)
