"""The loop with the real family: LGM's objective, Gaussians, rasterizer; and the command line's options."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file

from maquette.cli.train import Args, make_config, make_options
from maquette.errors import InvalidInputError, WeightsError
from maquette.models.gamba.objective import GambaObjective
from maquette.models.gamba.params import GAMBA_MINI
from maquette.models.lgm.network import LGM
from maquette.models.lgm.objective import LGMObjective
from maquette.models.lgm.params import LGM_MINI, LGMParams
from maquette.nn.lpips import LPIPS
from maquette.training.config import AugmentConfig, OptimizerConfig, SamplingConfig, TrainConfig
from maquette.training.loop import RunOptions, train
from maquette.training.recipes import get_recipe
from maquette.training.schedule import ScheduleConfig
from maquette.training.step import AutocastNetwork
from maquette.training.tasks import Task, build_task
from training_stand_in import make_dataset

PARAMS = LGMParams(
    name="lgm-test",
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32, 32),
    up_attention=(False, False),
    splat_size=32,
    output_size=32,
    input_size=32,
    num_heads=2,
    patch_size=2,
    parametrization="hull",
    sweep_planes=8,
    grid_distortion_prob=0.0,
    camera_jitter_prob=0.0,
    normalize_poses=False,
    random_background_prob=0.5,
)
CONFIG = TrainConfig(
    model="lgm-test",
    steps=12,
    batch_size=2,
    ema_decay=0.9,
    optimizer=OptimizerConfig(lr=2e-3),
    schedule=ScheduleConfig("cosine", warmup_steps=2),
    sampling=SamplingConfig(target_views=2, input_targets=1),
    augment=AugmentConfig(color_probability=0.5, edge_probability=0.2, noise=0.02, blur_probability=0.2),
)


def _build(config: TrainConfig) -> Task:
    return Task(LGM(PARAMS), LGMObjective(PARAMS))


def _options(output: Path, **changes: object) -> RunOptions:
    given = {"device": "cpu", "save_every": 0, "log_every": 3, "picture_every": 0, "quiet": True, "tensorboard": False}
    return RunOptions(output, **{**given, **changes})


def test_lgm_learns_and_resumes_exactly(tmp_path: Path) -> None:
    data = make_dataset(num_objects=3, variants=1, size=32)
    whole = train(CONFIG, _options(tmp_path / "whole", picture_every=12), data, build=_build)
    entries = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < 0.9 * entries[0]["loss"]
    assert entries[-1]["skipped_steps"] == 0
    assert (tmp_path / "whole" / "pictures" / "step-00000012.png").is_file()
    result = train(CONFIG, _options(tmp_path / "parts", max_seconds=0.0), data, build=_build)
    assert not result.finished
    result = train(CONFIG, _options(tmp_path / "parts"), data, build=_build)
    assert result.finished
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (whole.checkpoint / name).read_bytes() == (result.checkpoint / name).read_bytes()


def test_autocast_gives_float_gaussians() -> None:
    network = AutocastNetwork(LGM(PARAMS), enabled=True)
    seen: list[torch.dtype] = []
    network.network.unet.conv_in.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    gaussians = network(torch.rand(1, 4, 11, 32, 32), torch.rand(1, 4, 24, 16, 16))
    assert seen == [torch.bfloat16]
    assert {getattr(gaussians, f.name).dtype for f in dataclasses.fields(gaussians)} == {torch.float32}


def test_tasks_come_from_the_registry() -> None:
    task = build_task(dataclasses.replace(get_recipe("lgm-mini"), target_size=128))
    assert isinstance(task.network, LGM)
    assert task.network.params == LGM_MINI
    assert isinstance(task.objective, LGMObjective)
    assert task.objective.params == dataclasses.replace(LGM_MINI, output_size=128)
    config = dataclasses.replace(get_recipe("gamba-mini"), input_size=128, lambda_ssim=0.3, lambda_fine_ssim=0.1)
    gamba = build_task(config)
    assert isinstance(gamba.objective, GambaObjective)
    changed = dataclasses.replace(GAMBA_MINI.at_input_size(128), lambda_ssim=0.3, lambda_fine_ssim=0.1)
    assert gamba.objective.params == changed
    assert (gamba.target_size, gamba.needs_depth) == (128, False)


def test_command_line_overrides_the_recipe(tmp_path: Path) -> None:
    line = "lgm-mini --data D -o O --lr 2e-3 --batch-size 4 --target-views 6 --target-size 128 --steps 9 --seed 3"
    line += " --schedule trapezoid --warmup-steps 1 --no-augment --device cpu --max-seconds 5 --channels-last"
    args = tyro.cli(Args, args=line.split())
    config, options, recipe = make_config(args), make_options(args), get_recipe("lgm-mini")
    assert (config.optimizer.lr, config.batch_size, config.steps, config.seed) == (2e-3, 4, 9, 3)
    assert (config.sampling.target_views, config.target_size) == (6, 128)
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("trapezoid", 1)
    assert config.augment == AugmentConfig()
    assert config.precision == "fp32"
    assert config.ema_decay == recipe.ema_decay
    assert config.optimizer.weight_decay == recipe.optimizer.weight_decay
    assert (options.output, options.max_seconds, options.channels_last) == (Path("O"), 5.0, True)
    plain = tyro.cli(Args, args=["lgm-mini", "--data", "D", "--device", "cpu"])
    assert make_config(plain) == dataclasses.replace(recipe, precision="fp32")
    assert make_options(plain).output == Path("runs/lgm-mini")
    with pytest.raises(InvalidInputError, match="lgm-tiny"):
        make_config(dataclasses.replace(plain, name="lgm-x"))
    with pytest.raises(InvalidInputError, match="target_views"):
        make_config(dataclasses.replace(plain, target_views=0))


def test_command_line_surface_is_frozen() -> None:
    """Scripts depend on these names: removing one needs a line in the change log."""
    assert {field.name for field in dataclasses.fields(Args)} >= {
        "name", "data", "output", "split", "steps", "batch_size", "accumulation", "lr", "schedule", "warmup_steps",
        "weight_decay", "ema_decay", "target_views", "input_targets", "target_size", "seed", "augment", "precision",
        "max_seconds", "init_from", "export", "license", "device", "data_device", "compile", "channels_last",
        "save_every", "log_every", "picture_every", "allow_config_change", "quiet", "tensorboard",
    }  # fmt: skip


def test_lpips_weights_of_the_user_are_taken(tmp_path: Path) -> None:
    save_file(LPIPS().state_dict(), tmp_path / "lpips.safetensors")
    args = tyro.cli(Args, args=["lgm-tiny", "--data", "d", "--lpips", str(tmp_path / "lpips.safetensors")])
    objective = build_task(make_config(args)).objective
    assert isinstance(objective, LGMObjective) and objective.lpips is not None
    loaded = objective.lpips.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in load_file(tmp_path / "lpips.safetensors").items())
    with pytest.raises(WeightsError, match=r"missing\.safetensors"):
        build_task(dataclasses.replace(make_config(args), lpips=str(tmp_path / "missing.safetensors")))
