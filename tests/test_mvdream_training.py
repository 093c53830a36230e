"""Our own multi-view diffusion: its size, its tokenizer, its objectives, and a tiny one that learns two objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.data.dataset import RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.data.plans import RenderOptions, plan_variant
from maquette.errors import InvalidInputError, UnsupportedError
from maquette.models.mvdream.cameras import camera_conditions, relative_conditions
from maquette.models.mvdream.encoders import from_planes, to_planes
from maquette.models.mvdream.loading import load_pipeline
from maquette.models.mvdream.objective import AutoencoderObjective, DenoisingBatch, DenoisingObjective
from maquette.models.mvdream.official import MERGES, VOCABULARY, build_components
from maquette.models.mvdream.params import MVDREAM_MINI, NoiseParams
from maquette.models.mvdream.sampling import build_scheduler
from maquette.models.mvdream.tokenizer import build_tokenizer, letter_tokenizer, trained_tokenizer
from maquette.models.mvdream.training_networks import ConditionalDenoiser, LatentAutoencoder
from maquette.training.config import AugmentConfig, TrainConfig
from maquette.training.latents import LatentFeed, sentences_about
from maquette.training.loop import RunOptions, train
from maquette.training.recipes import get_recipe
from maquette.training.step import AutocastNetwork
from maquette.training.tasks import autoencoder_task, build_task, denoiser_task
from maquette.views import Views
from maquette.weights import load_strictly, read_weights
from mvdream_stand_ins import TINY_MINI, TINY_MVDREAM

SIZE = 32
TINY = TINY_MINI
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


def rendered(views: Views) -> RenderedDataset:
    """Those views as a data set, one variant per object."""
    count = len(views.images)
    return RenderedDataset(
        root=Path("nowhere"),
        images=(views.images * 255).round().byte(),
        world_to_camera=views.cameras.world_to_camera,
        intrinsics=views.cameras.intrinsics,
        roles=torch.zeros(count, 4, dtype=torch.uint8),
        variants=torch.zeros(count, 4, dtype=torch.int64),
        objects=tuple(ObjectInfo(f"o{i}", caption, "thing", family=f"o{i}") for i, caption in enumerate(CAPTIONS)),
        settings={},
    )


def config(model: str, steps: int, **changes: object) -> TrainConfig:
    recipe = get_recipe(model)
    optimizer = dataclasses.replace(recipe.optimizer, lr=1.5e-3)
    schedule = dataclasses.replace(recipe.schedule, warmup_steps=5)
    settled = {"augment": AugmentConfig(), "latent_copies": 1, "ema_decay": 0.0, "precision": "fp32", "batch_size": 4}
    return dataclasses.replace(recipe, steps=steps, optimizer=optimizer, schedule=schedule, **{**settled, **changes})  # type: ignore[arg-type]


def options(folder: Path, **changes: object) -> RunOptions:
    return RunOptions(folder, device="cpu", quiet=True, tensorboard=False, picture_every=0, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def autoencoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    first = config("mvdream-mini-autoencoder", 40, batch_size=2)
    run = options(folder / "run", export=folder / "first.safetensors")
    train(first, run, rendered(two_objects()), build=lambda given: autoencoder_task(TINY, given))
    return folder / "first.safetensors"


def train_denoiser(autoencoder: Path, folder: Path, steps: int, **changes: object) -> Path:
    given = config("mvdream-mini", steps, autoencoder=str(autoencoder))
    target = folder / "whole.safetensors"
    run = options(folder / "run", export=target, **changes)
    train(given, run, rendered(two_objects()), build=lambda known: denoiser_task(TINY, known))
    return target


def test_a_tiny_model_learns_to_show_what_it_is_told(autoencoder_file: Path, tmp_path: Path) -> None:
    """Both stages through the training loop, then the exported file asked by sentence alone and by picture alone."""
    pipeline = load_pipeline(TINY, train_denoiser(autoencoder_file, tmp_path, 360))
    views, autoencoder = two_objects(), LatentAutoencoder(TINY.autoencoder)
    load_strictly(autoencoder, read_weights(autoencoder_file)[0], autoencoder_file)
    rebuilt = AutoencoderObjective(TINY.autoencoder)(autoencoder, views, views, torch.Generator(), False).pictures
    assert rebuilt is not None
    for index, caption in enumerate(CAPTIONS):
        front = views.images[index, 0]
        for made in (pipeline(caption, steps=6, guidance=2.0), pipeline("", front, steps=6, guidance=2.0)):
            assert made.shape == (1, 4, 4, SIZE, SIZE)
            right, wrong = (psnr(to_planes(made[0], 3), rebuilt[other]) for other in (index, 1 - index))
            assert right > 18 and right > wrong + 5, (caption, right, wrong)


def test_a_wrong_hue_costs_more_than_wrong_edges() -> None:
    objective = AutoencoderObjective(TINY.autoencoder)
    size = 64
    images = torch.full((1, 1, 4, size, size), 0.5)
    images[:, :, 3] = 1
    views = Views(images, Cameras.stack([Cameras.orbit([0.0], height=size, width=size)]))
    checks = (torch.arange(size)[:, None] + torch.arange(size)) % 2 * 2.0 - 1

    class Shifted(torch.nn.Module):
        def __init__(self, pattern: torch.Tensor) -> None:
            super().__init__()
            self.pattern = pattern

        def forward(self, planes: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rebuilt = planes.clone()
            rebuilt[:, 1] += 0.1 * self.pattern
            return rebuilt, torch.ones_like(noise), torch.zeros_like(noise)

    hue, edges = (
        objective(Shifted(p), views, views, torch.Generator(), False) for p in (torch.ones(size, size), checks)
    )
    assert hue.metrics["l1"] == pytest.approx(float(edges.metrics["l1"]))
    assert hue.metrics["color"] == pytest.approx(0.1 * 4 / 4) and edges.metrics["color"] < 1e-6


@torch.no_grad()
def test_hues_pass_the_auto_encoder_before_it_has_learned_anything() -> None:
    """With all weights zero it knows nothing but the shortcut: hues come back, brightness is a medium gray."""
    autoencoder = LatentAutoencoder(TINY.autoencoder)
    for parameter in autoencoder.parameters():
        parameter.zero_()
    planes = torch.rand(3, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, SIZE, SIZE)
    rebuilt, mean, _ = autoencoder(planes, torch.zeros(3, 4, SIZE // 4, SIZE // 4))
    colors = planes[:, :3]
    torch.testing.assert_close(rebuilt[:, :3], 0.5 + colors - colors.mean(dim=1, keepdim=True))
    assert not mean[:, :-2].any() and mean[:, -2:].abs().max() > 0.1
    assert not autoencoder(colors.mean(dim=1, keepdim=True).expand(-1, 4, -1, -1), mean)[1].abs().max() > 1e-5


def test_a_decoder_is_trained_on_alone(autoencoder_file: Path, tmp_path: Path) -> None:
    given = dataclasses.replace(config("mvdream-mini-autoencoder", 2), autoencoder=str(autoencoder_file))
    file = tmp_path / "tuned.safetensors"
    run = options(tmp_path / "run", export=file)
    train(given, run, rendered(two_objects()), build=lambda known: autoencoder_task(TINY, known))
    before, after = read_weights(autoencoder_file)[0], read_weights(file)[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in changed)


def test_every_frame_is_shown_the_picture_its_mirror_image_and_where_it_is() -> None:
    network = ConditionalDenoiser(TINY).unet
    size, channels = TINY.latent_size, TINY.unet.in_channels
    picture = torch.randn(1, channels, size, size)
    seen: list[Tensor] = []
    network.input_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.zeros(1, 4, TINY.unet.context_channels)
    network(torch.zeros(1, 5, channels, size, size), torch.tensor([10]), torch.zeros(1, 5, 16), tokens, tokens, picture)
    own, shown, mirrored, where = seen[0].split([channels, channels, channels, 2], dim=1)
    assert not own[:4].any() and torch.equal(own[4], picture[0])
    assert torch.equal(shown, picture.expand(5, -1, -1, -1)) and torch.equal(mirrored, shown.flip(-1))
    assert torch.equal(where[:, 0], where[:, 1].mT) and where[2, 0, 0].tolist() == torch.linspace(-1, 1, size).tolist()


def test_denoisers_resume_exactly_and_continue_from_their_exports(autoencoder_file: Path, tmp_path: Path) -> None:
    whole = train_denoiser(autoencoder_file, tmp_path / "whole", 4)
    train_denoiser(autoencoder_file, tmp_path / "parts", 4, max_seconds=0.0)
    parts = train_denoiser(autoencoder_file, tmp_path / "parts", 4)
    first, second = read_weights(whole)[0], read_weights(parts)[0]
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    more = train_denoiser(whole, tmp_path / "more", 1, init_from=whole)  # a whole model has an auto-encoder as well
    assert all(torch.equal(read_weights(more)[0][name], first[name]) for name in first if name.startswith("vae."))
    given = dataclasses.replace(config("mvdream-mini", 1), autoencoder=None)
    with pytest.raises(InvalidInputError, match="mvdream-mini-autoencoder"):
        denoiser_task(TINY, given)
    with pytest.raises(UnsupportedError, match="imagedream cannot be trained"):
        build_task(dataclasses.replace(given, model="imagedream"))


def feed(autoencoder: Path, rank: int, world_size: int, **changes: object) -> LatentFeed:
    task = denoiser_task(TINY, config("mvdream-mini", 1, autoencoder=str(autoencoder), **changes))
    assert task.feed is not None
    made = task.feed(
        rendered(two_objects()),
        torch.device("cpu"),
        SimpleNamespace(rank=rank, world_size=world_size),  # type: ignore[arg-type]
    )
    assert isinstance(made, LatentFeed)
    return made


def test_latents_come_with_their_captions_in_every_process(autoencoder_file: Path) -> None:
    whole = feed(autoencoder_file, 0, 1, batch_size=8)
    (batch,) = whole.draw(3, 0, torch.Generator().manual_seed(5))
    parts = [feed(autoencoder_file, rank, 2).draw(3, 0, torch.Generator().manual_seed(5))[0] for rank in (0, 1)]
    together = torch.cat([part.latents for part in parts])
    torch.testing.assert_close(batch.latents.mean(dim=1), together.mean(dim=1))  # any side may come first
    tokenizer = build_tokenizer(
        *(bytes(whole.exported[name].tolist()) for name in (VOCABULARY, MERGES)), TINY.text_encoder
    )
    colors = batch.pictures[:, 0].mean(dim=(-2, -1)) - batch.pictures[:, 2].mean(dim=(-2, -1))
    for ids, redness in zip(batch.prompts, colors, strict=True):
        said = tokenizer.decode(ids, skip_special_tokens=True)
        told = {"red", "ball"} if float(redness) > 0 else {"blue", "tower"}
        assert set(said.replace(",", "").strip("!").split()) <= {"a", "thing", *told}
    assert not tokenizer.decode(batch.silence, skip_special_tokens=True).strip("!")


def test_sentences_leave_words_out() -> None:
    info = ObjectInfo("o", "old red wooden chair", "furniture", family="o")
    words = np.random.default_rng(0)
    said = [sentence for _ in range(200) for sentence in sentences_about(info, words)]
    assert {"old red wooden chair", "a furniture", "old red wooden chair, furniture"} <= set(said)
    partial = [sentence.split() for sentence in said if "furniture" not in sentence and not sentence.startswith("a ")]
    assert all(kept and kept == [word for word in info.caption.split() if word in kept] for kept in partial)
    assert {"red chair", "chair", "wooden"} <= {" ".join(kept) for kept in partial}
    assert set(sentences_about(ObjectInfo("o", "", "tool", family="o"), words)) >= {"tool", "a tool"}


def test_changed_copies_go_without_words_and_may_be_turned(autoencoder_file: Path) -> None:
    changes = AugmentConfig(color_probability=0.5, mirror_probability=0.5)
    varied = feed(autoencoder_file, 0, 1, latent_copies=2, batch_size=64, augment=changes)
    (batch,) = varied.draw(0, 0, torch.Generator().manual_seed(1))
    assert 0.2 < float(batch.wordless.float().mean()) < 0.8
    torch.testing.assert_close(batch.cameras, camera_conditions(4)[None].expand(64, -1, -1), atol=1e-5, rtol=0)


def psnr(first: Tensor, second: Tensor) -> float:
    return -10 * float((first - second).square().mean().log10())


def batch_of(views: Views) -> DenoisingBatch:
    generator = torch.Generator().manual_seed(0)
    size = TINY.latent_size
    encoder = TINY.picture_encoder
    assert encoder is not None
    return DenoisingBatch(
        latents=torch.randn(2, 4, 4, size, size, generator=generator),
        cameras=relative_conditions(views.cameras),
        pictures=torch.rand(2, 3, encoder.image_size, encoder.image_size, generator=generator),
        prompts=torch.randint(0, 500, (2, 16), generator=generator),
        silence=torch.zeros(16, dtype=torch.long),
        wordless=torch.tensor([True, False]),
    )


def test_training_reports_pictures_and_metrics() -> None:
    views, autoencoder = two_objects(), LatentAutoencoder(TINY.autoencoder)
    result = DenoisingObjective(TINY)(
        ConditionalDenoiser(TINY), batch_of(views), torch.Generator().manual_seed(0), False
    )
    assert set(result.metrics) == {"error", "error_noisiest_fifth"}
    assert float(result.metrics["error"]) == pytest.approx(1.0, abs=0.5)
    rebuilt = AutoencoderObjective(TINY.autoencoder)(autoencoder, views, views, torch.Generator(), False)
    assert set(rebuilt.metrics) == {"l1", "color", "ssim", "psnr", "latent_power"} and rebuilt.pictures is not None


def test_both_stages_train_under_autocast_and_use_all_they_train() -> None:
    views, autoencoder, denoiser = two_objects(), LatentAutoencoder(TINY.autoencoder), ConditionalDenoiser(TINY)
    for parameter in denoiser.unet.out[-1].parameters():
        nn.init.normal_(parameter, std=0.05)
    rebuild = AutoencoderObjective(TINY.autoencoder)
    rebuild(AutocastNetwork(autoencoder, True), views, views, torch.Generator(), True).loss.backward()
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())
    denoise = DenoisingObjective(TINY)
    losses = [
        denoise(network, batch_of(views), torch.Generator().manual_seed(0), True).loss
        for network in (denoiser, AutocastNetwork(denoiser, True))
    ]
    torch.testing.assert_close(losses[1], losses[0], atol=0.01, rtol=0.01)
    losses[1].backward()
    trained = {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in denoiser.named_parameters() if parameter.grad is not None}


def test_wrong_objectives_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="takes no picture"):
        DenoisingObjective(TINY_MVDREAM)
    with pytest.raises(InvalidInputError, match="no picture encoder"):
        ConditionalDenoiser(TINY_MVDREAM)
    with pytest.raises(InvalidInputError, match=r"lie in 0\.\.1"):
        DenoisingObjective(TINY, drop_prompt=2.0)


def test_sides_start_at_the_true_front_in_half_of_the_variants() -> None:
    options = RenderOptions(plan="sides", geometry=False)
    variants = [plan_variant(options, "chair", False, number) for number in range(options.num_variants)]
    for number, variant in enumerate(variants):
        first = variant.frames[0].azimuth_deg
        assert (first == 0) == (number % 2 == 0)
        assert [round(frame.azimuth_deg - first) % 360 for frame in variant.frames] == [0, 90, 180, 270]
        assert len({frame.elevation_deg for frame in variant.frames}) == 1
    standard = plan_variant(RenderOptions(), "chair", False, 0)
    assert variants[0].frames == standard.frames[:4] and variants[0].light == standard.light
    assert variants[0].bounding_radius == standard.bounding_radius and not options.augments_textures
