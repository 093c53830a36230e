"""Schedules, data order, augmentation, optimizer, checkpoints: each part of training on its own."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from maquette.cameras import Cameras
from maquette.errors import FileFormatError, InvalidInputError, WeightsError
from maquette.gaussians import Gaussians
from maquette.raster import render_gaussians
from maquette.training import augment as augmentation
from maquette.training.checkpoint import (
    clean_leftovers,
    init_tensors,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from maquette.training.config import AugmentConfig, OptimizerConfig, SamplingConfig, TrainConfig, differing_fields
from maquette.training.export import export_weights
from maquette.training.feed import BatchFeed, resize_views
from maquette.training.logs import picture_grid
from maquette.training.optimizer import AveragedWeights, NamedAdamW
from maquette.training.recipes import RECIPES, get_recipe
from maquette.training.sampling import ViewSampler, object_weights
from maquette.training.schedule import ScheduleConfig, StepValues, schedule_at
from maquette.views import Views
from training_stand_in import make_config, make_dataset

GOLDENS = Path(__file__).parent / "goldens" / "lgm"


@pytest.mark.parametrize("total", [20_000, 100_000])
def test_onecycle_golden(total: int) -> None:
    golden = np.load(GOLDENS / "schedule.npz")
    recipe = get_recipe("lgm-big")
    for step, lr, beta1 in zip(
        golden[f"lgm_onecycle_total{total}_step"],
        golden[f"lgm_onecycle_total{total}_lr"],
        golden[f"lgm_onecycle_total{total}_beta1"],
        strict=True,
    ):
        values = schedule_at(recipe.schedule, int(step), total, recipe.optimizer.lr)
        assert values.lr == pytest.approx(lr, rel=1e-9)
        assert values.beta1 == pytest.approx(beta1, rel=1e-9)


def test_onecycle_follows_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=(0.95, 0.95))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=90, pct_start=30 / 90)
    config = ScheduleConfig("onecycle", 30, 1 / 25, 1 / 25 / 1e4, beta1_range=(0.85, 0.95))
    for step in range(90):
        values = schedule_at(config, step, 90, 3e-3)
        assert values.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert values.beta1 == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-12)
        optimizer.step()
        if step < 89:
            scheduler.step()


def test_other_schedules_rise_hold_and_fall() -> None:
    cosine = [schedule_at(ScheduleConfig("cosine", 10, final_fraction=0.1), s, 100, 2.0).lr for s in range(100)]
    assert cosine[0] == pytest.approx(0.2)
    assert max(cosine) == pytest.approx(2.0)
    assert cosine[-1] == pytest.approx(0.2)
    assert all(np.diff(cosine[:10]) > 0)
    assert all(np.diff(cosine[10:]) < 0)
    flat = [schedule_at(ScheduleConfig("trapezoid", 10, decay_fraction=0.2), s, 100, 2.0).lr for s in range(100)]
    assert flat[10:79] == [2.0] * 69
    assert flat[-1] == pytest.approx(0.0)
    assert schedule_at(ScheduleConfig("constant", 0), 99, 100, 2.0) == StepValues(2.0, None)
    assert schedule_at(ScheduleConfig("onecycle", 3000, 0.04), 0, 1, 1.0).lr > 0  # a run of one step


def test_recipes_cover_the_presets_and_survive_json() -> None:
    diffusion = {"mvdream-mini", "mvdream-mini-autoencoder"}
    reconstruction = {"lgm-mini", "lgm-big", "lgm-small", "lgm-lrm", "lgm-tiny", "gamba-mini", "gamba"}
    assert set(RECIPES) == reconstruction | diffusion
    for name in RECIPES:
        recipe = get_recipe(name)
        assert TrainConfig.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    official = get_recipe("lgm-lrm")
    assert (official.batch_size, official.sampling.target_views, official.optimizer.betas) == (8, 12, (0.9, 0.95))
    assert official.optimizer.decay_vectors
    with pytest.raises(InvalidInputError, match="lgm-mini"):
        get_recipe("lgm-huge")


def test_config_rejects_what_cannot_work() -> None:
    with pytest.raises(InvalidInputError, match="batch_size"):
        make_config(batch_size=0)
    with pytest.raises(InvalidInputError, match="input_targets"):
        make_config(sampling=SamplingConfig(target_views=2, input_targets=3))
    with pytest.raises(InvalidInputError, match="unknown fields"):
        TrainConfig.from_json({"model": "x", "stepz": 3})
    with pytest.raises(InvalidInputError, match="steps"):
        TrainConfig.from_json({"model": "x", "steps": "3"})
    other = dataclasses.replace(make_config(), optimizer=OptimizerConfig(lr=1.0))
    assert differing_fields(make_config(), other) == ["optimizer.lr: 0.01 -> 1.0"]


def _sampler(config: SamplingConfig, seed: int = 0) -> ViewSampler:
    data = make_dataset(num_objects=6)
    return ViewSampler(
        [info.family for info in data.objects],
        [info.realistic for info in data.objects],
        data.variants.numpy(),
        data.roles.numpy() == 0,
        config,
        seed,
    )


def test_sampling_is_a_pure_function_and_splits_over_processes() -> None:
    config = SamplingConfig(target_views=4, input_targets=1)
    whole = _sampler(config).choose(7, 0, 1, 8)
    again = _sampler(config)
    again.choose(3, 0, 1, 8)
    halves = [again.choose(7, rank, 2, 4) for rank in (1, 0)][::-1]
    for name in ("objects", "inputs", "targets"):
        joined = np.concatenate([getattr(half, name) for half in halves])
        assert np.array_equal(joined, getattr(whole, name))
    assert not np.array_equal(whole.objects, _sampler(config, seed=1).choose(7, 0, 1, 8).objects)
    assert not np.array_equal(whole.targets, _sampler(config).choose(8, 0, 1, 8).targets)
    assert not np.array_equal(whole.targets, _sampler(config).choose(7, 0, 1, 8, micro_step=1).targets)


def test_sampled_views_belong_together() -> None:
    data = make_dataset(num_objects=6)
    variants, roles = data.variants.numpy(), data.roles.numpy()
    choice = _sampler(SamplingConfig(target_views=5, input_targets=2)).choose(0, 0, 1, 400)
    for index, inputs, targets in zip(choice.objects, choice.inputs, choice.targets, strict=True):
        assert len(set(variants[index, np.concatenate([inputs, targets])])) == 1
        assert list(inputs) == sorted(inputs)
        assert (roles[index, inputs] == 0).all()
        assert list(roles[index, targets]) == [0, 0, 1, 1, 1]
        assert len(set(targets)) == 5
        assert set(targets[:2]) <= set(inputs)
    assert set(variants[0, choice.inputs[:, 0]]) == {0, 1}
    many = _sampler(SamplingConfig(target_views=8, input_targets=1)).choose(0, 0, 1, 50)  # 7 wanted, 5 there are
    assert all(len(set(row[1:])) == 5 for row in many.targets)


def test_objects_are_drawn_by_family_and_realism() -> None:
    config = SamplingConfig(realistic_weight=3.0, family_exponent=0.5)
    families = ["a", "b", "b", "b", "b"]
    weights = object_weights(families, [False, True, False, False, False], config)
    assert weights == pytest.approx([1.0, 1.5, 0.5, 0.5, 0.5])
    choice = _sampler(config).choose(0, 0, 1, 20_000)
    counts = np.bincount(choice.objects, minlength=6) / 20_000
    expected = np.array([3.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    assert counts == pytest.approx(expected / expected.sum(), abs=0.012)


def test_sampler_names_missing_frames() -> None:
    data = make_dataset(num_objects=2)
    roles = np.ones_like(data.roles.numpy())
    with pytest.raises(InvalidInputError, match="input frames"):
        ViewSampler(["a", "b"], [False] * 2, data.variants.numpy(), roles == 0, SamplingConfig(), 0)
    with pytest.raises(InvalidInputError, match="no objects"):
        ViewSampler([], [], np.zeros((0, 3), np.int64), np.zeros((0, 3), bool), SamplingConfig(), 0)


def test_feed_gives_the_chosen_frames() -> None:
    data, config = make_dataset(), make_config(target_size=None)
    feed = BatchFeed(data, config, torch.device("cpu"))
    inputs, targets = feed.batch(4, 1)
    choice = ViewSampler(
        [info.family for info in data.objects],
        [info.realistic for info in data.objects],
        data.variants.numpy(),
        data.roles.numpy() == 0,
        config.sampling,
        config.seed,
    ).choose(4, 0, 1, 3, micro_step=1)
    expected = data.views(torch.from_numpy(choice.objects), torch.from_numpy(choice.targets))
    assert torch.equal(targets.images, expected.images)
    assert torch.equal(targets.cameras.world_to_camera, expected.cameras.world_to_camera)
    assert inputs.images.shape == (3, 4, 4, 16, 16)


def test_feed_prefetch_changes_nothing() -> None:
    data, config = make_dataset(), make_config()
    direct = BatchFeed(data, config, torch.device("cpu"))
    ahead = BatchFeed(data, config, torch.device("cpu"))
    ahead._ahead, ahead._pool = True, ThreadPoolExecutor(1)
    for step in (0, 1, 5):  # a jump is what a resumed run does
        for micro_step in (0, 1):
            for mine, theirs in zip(direct.batch(step, micro_step), ahead.batch(step, micro_step), strict=True):
                assert torch.equal(mine.images, theirs.images)
    ahead.close()


def test_resized_views_keep_colours_at_soft_edges() -> None:
    images = torch.zeros(1, 4, 8, 8)
    images[:, 0, :, :4] = 1.0  # red, opaque on the left; black and transparent on the right
    images[:, 3, :, :3] = 1.0
    views = Views(images, Cameras.orbit([0.0], height=8, width=8))
    small = resize_views(views, 4)
    assert small.images.shape == (1, 4, 4, 4)
    covered = small.images[0, 3] > 1e-3
    assert torch.allclose(small.images[0, 0][covered], torch.ones(()), atol=1e-5)
    assert small.cameras.intrinsics[0, 0, 0] == pytest.approx(float(views.cameras.intrinsics[0, 0, 0]) / 2)


def _random_views(count: int = 3, size: int = 12) -> Views:
    generator = torch.Generator().manual_seed(1)
    cameras = Cameras.orbit([0.0, 90.0], height=size, width=size)
    cameras = Cameras(
        cameras.world_to_camera.expand(count, 2, 4, 4), cameras.intrinsics.expand(count, 2, 3, 3), size, size
    )
    return Views(torch.rand(count, 2, 4, size, size, generator=generator), cameras)


def test_colour_augmentation_is_one_function_of_colour_per_object() -> None:
    views = _random_views()
    config = AugmentConfig(color_probability=1.0)
    first, second = augmentation.augment(views, views, config, torch.Generator().manual_seed(5))
    assert torch.equal(first.images, second.images)  # inputs and targets alike
    assert not torch.allclose(first.images[:, :, :3], views.images[:, :, :3], atol=0.02)
    assert torch.equal(first.images[:, :, 3], views.images[:, :, 3])
    repeated, _ = augmentation.augment(views, views, config, torch.Generator().manual_seed(5))
    assert torch.equal(first.images, repeated.images)
    same, _ = augmentation.augment(views, views, AugmentConfig(), torch.Generator().manual_seed(5))
    assert torch.equal(same.images, views.images)


def test_mirrored_views_show_the_mirrored_object() -> None:
    generator = torch.Generator().manual_seed(3)
    means = torch.rand(2, 12, 3, generator=generator) - 0.5
    turns = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 12, 4)
    look = (torch.full((2, 12, 3), 0.08), torch.full((2, 12), 0.3), torch.rand(2, 12, 3, generator=generator))
    ring = Cameras.orbit([20.0, 110.0, 230.0], 25.0, height=48, width=48)
    intrinsics = ring.intrinsics.clone()
    intrinsics[:, 0, 2] += 5.0
    cameras = Cameras.stack([Cameras(ring.world_to_camera, intrinsics, 48, 48)] * 2)

    def views_of(positions: torch.Tensor, seen_from: Cameras) -> Views:
        shown = render_gaussians(Gaussians(positions, turns, *look), seen_from, background=(0.0, 0.0, 0.0))
        return Views(torch.cat([shown.color, shown.alpha[:, :, None]], dim=2), seen_from, shown.depth)

    mirrored = augmentation.mirror(views_of(means, cameras), torch.tensor([True, False]))
    expected = views_of(means * torch.tensor([[[-1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]]), mirrored.cameras)
    assert torch.allclose(mirrored.images, expected.images, atol=1e-4)
    assert mirrored.depths is not None and expected.depths is not None
    assert torch.allclose(mirrored.depths, expected.depths, atol=1e-4)
    assert not torch.allclose(mirrored.images[0], views_of(means, cameras).images[0], atol=0.05)
    config = AugmentConfig(mirror_probability=1.0)
    first, second = augmentation.augment(mirrored, mirrored, config, torch.Generator().manual_seed(0))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.images, mirrored.images.flip(-1))


def test_colour_matrices_have_their_meaning() -> None:
    grey = torch.full((3, 1), 0.4)
    turned = augmentation.hue_rotation(torch.tensor([0.3, 2 * torch.pi / 3]))
    assert torch.allclose(turned @ grey, grey.expand(2, 3, 1), atol=1e-6)  # grey stays grey
    assert torch.allclose(turned[1] @ torch.eye(3)[:, 0], torch.eye(3)[:, 1], atol=1e-6)  # red to green
    assert torch.allclose(turned[0] @ turned[0].T, torch.eye(3), atol=1e-6)
    config = AugmentConfig(color_probability=1.0, gain=0, hue_deg=0, contrast=0, gamma=0, grey_probability=1.0)
    images, _ = augmentation.augment(_random_views(), _random_views(), config, torch.Generator().manual_seed(0))
    assert float(images.images[:, :, :3].std(dim=2).max()) < 1e-5
    luma = torch.einsum("c,bvchw->bvhw", torch.tensor(augmentation.LUMA), _random_views().images[:, :, :3])
    assert torch.allclose(images.images[:, :, 0], luma, atol=1e-5)


def test_damage_touches_inputs_only_and_stays_in_range() -> None:
    views = _random_views(count=16)
    config = AugmentConfig(edge_probability=1.0, noise=0.1, blur_probability=1.0)
    inputs, targets = augmentation.augment(views, views, config, torch.Generator().manual_seed(2))
    assert torch.equal(targets.images, views.images)
    assert float(inputs.images.min()) >= 0
    assert float(inputs.images.max()) <= 1
    assert bool((inputs.images != views.images).flatten(2).any(-1).all())


def test_edges_grow_with_a_halo_and_shrink() -> None:
    images = torch.zeros(3, 4, 7, 7)
    images[:, 0, 2:5, 2:5] = 1.0
    images[:, 3, 2:5, 2:5] = 1.0
    halo = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(3, 3, 1, 1)
    kind = torch.tensor([0.5, 0.9, 1.5]).view(3, 1, 1, 1)
    grown, shrunk, same = augmentation.alter_edges(images, kind, halo)
    assert int(grown[3].sum()) == 25
    assert grown[:3, 1, 1].tolist() == [0.0, 0.0, 1.0]
    assert grown[:3, 3, 3].tolist() == [1.0, 0.0, 0.0]
    assert int(shrunk[3].sum()) == 1
    assert torch.equal(same, images[2])


def test_softening_does_not_bleed() -> None:
    images = torch.zeros(1, 4, 9, 9)
    images[:, 1, 3:6, 3:6] = 1.0
    images[:, 3, 3:6, 3:6] = 1.0
    soft = augmentation.soften(images, torch.ones(1, 1, 1, 1))
    covered = soft[0, 3] > 0.01
    assert int(covered.sum()) > 9
    assert torch.allclose(soft[0, 1][covered], torch.ones(()), atol=1e-5)
    assert torch.equal(augmentation.soften(images, torch.zeros(1, 1, 1, 1)), images)


def test_optimizer_matches_adamw_and_skips_bad_gradients() -> None:
    torch.manual_seed(0)
    network, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(network.state_dict())
    mine = NamedAdamW(network, OptimizerConfig(lr=0.1, weight_decay=0.3, grad_clip=0.5))
    groups = [{"params": [twin.weight], "weight_decay": 0.3}, {"params": [twin.bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), fused=False, foreach=False)
    for step in range(5):
        torch.manual_seed(step)
        batch = torch.randn(8, 4)
        network(batch).square().sum().backward()
        if step == 2:
            before = {name: value.clone() for name, value in network.state_dict().items()}
            network.weight.grad[0, 0] = float("inf")
            norm, skipped = mine.step(StepValues(0.1, 0.9))
            assert float(skipped) == 1
            assert not torch.isfinite(norm)
            assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
            continue
        twin(batch).square().sum().backward()
        expected_norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        theirs.step()
        theirs.zero_grad()
        norm, skipped = mine.step(StepValues(0.1, 0.9))
        assert float(skipped) == 0
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-5)
    assert torch.allclose(network.weight, twin.weight, atol=1e-6)
    assert torch.allclose(network.bias, twin.bias, atol=1e-6)


def test_optimizer_state_round_trip_and_mismatch() -> None:
    network = nn.Linear(4, 3)
    optimizer = NamedAdamW(network, OptimizerConfig())
    assert optimizer.state_tensors() == {}
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step(StepValues(0.1, None))
    saved = {name: value.clone() for name, value in optimizer.state_tensors().items()}
    assert sorted(saved)[:3] == ["bias.exp_avg", "bias.exp_avg_sq", "bias.step"]
    fresh = NamedAdamW(network, OptimizerConfig())
    fresh.load_state_tensors(saved)
    assert all(torch.equal(value, saved[name]) for name, value in fresh.state_tensors().items())
    with pytest.raises(WeightsError, match=r"bias\.step"):
        fresh.load_state_tensors({name: value for name, value in saved.items() if name != "bias.step"})


def test_averaged_weights_follow_the_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average = AveragedWeights(network, 0.5)
    network.weight.data.fill_(1.0)
    average.update(0)  # decay 0.1
    assert float(average.state_tensors()["weight"]) == pytest.approx(0.9)
    network.weight.data.fill_(2.0)
    average.update(1000)  # decay 0.5
    assert float(average.state_tensors()["weight"]) == pytest.approx(1.45)


def test_checkpoint_round_trip_keeps_the_newest(tmp_path: Path) -> None:
    tensors = {"model": {"a": torch.arange(4.0).reshape(2, 2).T}, "optimizer": {}}
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, tensors, {"config": {"x": step}})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000030"]
    save_checkpoint(tmp_path, 30, tensors, {"config": {"x": 31}})  # again, over itself
    loaded = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert (loaded.step, loaded.state["config"]) == (30, {"x": 31})
    assert torch.equal(loaded.tensors["model"]["a"], tensors["model"]["a"])
    assert loaded.tensors["optimizer"] == {}
    (tmp_path / "checkpoints" / ".writing-step-00000040-1").mkdir()
    assert len(list_checkpoints(tmp_path)) == 2
    clean_leftovers(tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000020", "step-00000030"}


@pytest.mark.parametrize(
    "harm", ["truncate", "flip", "missing", "not json", "foreign", "huge state", "outside", "no files"]
)
def test_damaged_checkpoints_say_so(tmp_path: Path, harm: str) -> None:
    path = save_checkpoint(tmp_path, 5, {"model": {"a": torch.zeros(100)}}, {})
    weights, state = path / "model.safetensors", path / "state.json"
    data = bytearray(weights.read_bytes())
    if harm == "truncate":
        weights.write_bytes(data[:-7])
    elif harm == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif harm == "missing":
        weights.unlink()
    elif harm == "not json":
        state.write_text("{")
    elif harm == "foreign":
        state.write_text('{"epoch": 3}')
    elif harm == "huge state":
        state.write_text(" " * (2 << 20))
    elif harm == "no files":
        state.write_text('{"format": "maquette-checkpoint/1", "step": 3}')
    else:
        (tmp_path / "secret.safetensors").write_bytes(data)
        weights.unlink()
        document = json.loads(state.read_text())
        document["files"] = {"../../secret.safetensors": document["files"]["model.safetensors"]}
        state.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="remove"):
        load_checkpoint(path)


def test_init_from_file_folder_and_nonsense(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, {"model": {"a": torch.zeros(2)}, "ema": {"a": torch.ones(2)}}, {})
    assert torch.equal(init_tensors(path)["a"], torch.ones(2))
    assert torch.equal(init_tensors(path / "model.safetensors")["a"], torch.zeros(2))
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(FileFormatError, match="not a safetensors"):
        init_tensors(tmp_path / "bad.safetensors")
    with pytest.raises(InvalidInputError, match="no weights"):
        init_tensors(tmp_path / "none.safetensors")


def test_exported_weights_carry_their_story(tmp_path: Path) -> None:
    file = tmp_path / "out.safetensors"
    export_weights(file, {"a": torch.tensor([1.0, 0.1])}, make_config(), 7, {"data": {"objects": 5}}, "Apache-2.0")
    with safe_open(str(file), "pt") as opened:
        metadata, value = opened.metadata(), opened.get_tensor("a")
    assert value.dtype == torch.float16
    assert (metadata["model"], metadata["step"], metadata["license"]) == ("stand-in", "7", "Apache-2.0")
    assert TrainConfig.from_json(json.loads(metadata["config"])) == make_config()
    assert json.loads(metadata["training"])["data"]["objects"] == 5
    with pytest.raises(WeightsError, match="not finite"):
        export_weights(file, {"a": torch.tensor([1e30])}, make_config(), 7, {})


def test_picture_grid_puts_truth_beside_prediction() -> None:
    truth, guess = torch.zeros(2, 3, 3, 4, 5), torch.ones(2, 3, 3, 4, 5)
    grid = picture_grid(truth, guess)
    assert grid.shape == (8, 30, 3)
    assert grid[0, :5].max() == 0
    assert grid[0, 5:10].min() == 255
    assert grid[5, 10:15].max() == 0
