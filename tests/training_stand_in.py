"""A data set, a network and an objective so small that training tests take seconds; also a script for subprocesses."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.data.dataset import RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.nn.objective import ObjectiveResult
from maquette.training.checkpoint import list_checkpoints
from maquette.training.config import AugmentConfig, OptimizerConfig, SamplingConfig, TrainConfig
from maquette.training.loop import RunOptions, train
from maquette.training.schedule import ScheduleConfig
from maquette.training.tasks import Task
from maquette.views import Views


def make_dataset(num_objects: int = 5, variants: int = 2, size: int = 16, targets: int = 5) -> RenderedDataset:
    """Random soft blobs of one colour each; object 0 is realistic, objects 2 and up are one family."""
    generator = torch.Generator().manual_seed(3)
    frames = variants * (4 + targets)
    colors = torch.rand(num_objects, 1, 3, 1, 1, generator=generator).expand(-1, frames, -1, size, size)
    grid = torch.linspace(-1, 1, size)
    radius = (grid[:, None] ** 2 + grid[None] ** 2).sqrt()
    limits = torch.rand(num_objects, frames, 1, 1, 1, generator=generator) * 0.5 + 0.4
    alpha = ((limits - radius) * 4).clamp(0, 1)
    images = (torch.cat([colors, alpha], dim=2) * 255).round().byte()
    cameras = Cameras.orbit(torch.linspace(0, 350, frames), 10.0, height=size, width=size)
    one = [0] * 4 + [1] * targets
    infos = [
        ObjectInfo(f"o{i}", family="rock" if i >= 2 else f"f{i}", realistic=i == 0, split="train")
        for i in range(num_objects)
    ]
    return RenderedDataset(
        root=Path("nowhere"),
        images=images,
        world_to_camera=cameras.world_to_camera.expand(num_objects, -1, -1, -1).contiguous(),
        intrinsics=cameras.intrinsics.expand(num_objects, -1, -1, -1).contiguous(),
        roles=torch.tensor([one * variants] * num_objects, dtype=torch.uint8),
        variants=torch.tensor([[v for v in range(variants) for _ in one]] * num_objects),
        objects=tuple(infos),
        settings={"image_size": size},
    )


def write_dataset(dataset: RenderedDataset, root: Path) -> None:
    """Puts a data set on disk in the rendered layout."""
    infos = [dataclasses.asdict(info) for info in dataset.objects]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(
        json.dumps({"format": "maquette-rendered/1", **dataset.settings, "objects": infos})
    )
    height, width = dataset.images.shape[-2:]
    for index, info in enumerate(dataset.objects):
        (root / info.id / "rgb").mkdir(parents=True, exist_ok=True)
        cameras = Cameras(dataset.world_to_camera[index], dataset.intrinsics[index], height, width)
        frames = []
        for frame, pose in enumerate(cameras.opengl_poses().double().tolist()):
            name = f"rgb/{frame:03d}.png"
            Image.fromarray(dataset.images[index, frame].permute(1, 2, 0).numpy()).save(root / info.id / name)
            role = "input" if int(dataset.roles[index, frame]) == 0 else "target"
            variant = int(dataset.variants[index, frame])
            frames.append({"file_path": name, "transform_matrix": pose, "variant": variant, "role": role})
        matrix = dataset.intrinsics[index, 0]
        document = {
            "w": width,
            "h": height,
            "fl_x": float(matrix[0, 0]),
            "fl_y": float(matrix[1, 1]),
            "cx": float(matrix[0, 2]),
            "cy": float(matrix[1, 2]),
            "frames": frames,
        }
        (root / info.id / "transforms.json").write_text(json.dumps(document))


class ColorNetwork(nn.Module):
    """Guesses one colour per object from the mean of its inputs; has dropout, so that it draws random numbers."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        means = images.flatten(0, 0).mean(dim=(-1, -2)).flatten(1)
        return torch.sigmoid(self.out(self.dropout(self.norm(F.silu(self.hidden(means))))))


class ColorObjective:
    """Mean squared error of a flat colour where the object is; noise on the inputs from the generator."""

    def __init__(self, noise: float = 0.01, poison: range = range(0)) -> None:
        self.noise = noise
        self.calls = 0
        self.poison = poison  # the calls whose loss is not a number

    def __call__(
        self, network: nn.Module, inputs: Views, targets: Views, generator: torch.Generator, training: bool
    ) -> ObjectiveResult:
        noise = torch.randn(inputs.images.shape, generator=generator) * self.noise
        colors = network(inputs.images + noise)
        truth, alpha = targets.images[:, :, :3], targets.images[:, :, 3:]
        pictures = colors[:, None, :, None, None].expand_as(truth)
        errors = ((pictures - truth).square() * alpha).flatten(1).mean(1)
        loss = (errors / alpha.flatten(1).mean(1)).mean()
        if self.calls in self.poison:
            loss = loss * float("nan")
        self.calls += 1
        return ObjectiveResult(loss, {"psnr": -10 * loss.detach().log10()}, pictures.detach(), truth)


def make_task(config: TrainConfig, dropout: float = 0.1, noise: float = 0.01) -> Task:
    del config
    return Task(ColorNetwork(dropout), ColorObjective(noise))


def make_config(**changes: object) -> TrainConfig:
    config = TrainConfig(
        model="stand-in",
        steps=12,
        batch_size=3,
        accumulation=2,
        ema_decay=0.9,
        optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(kind="onecycle", warmup_steps=4, start_fraction=0.04, beta1_range=(0.85, 0.95)),
        sampling=SamplingConfig(num_inputs=4, target_views=4, input_targets=1, realistic_weight=3.0),
        augment=AugmentConfig(color_probability=0.5, edge_probability=0.5, noise=0.05, blur_probability=0.5),
    )
    return dataclasses.replace(config, **changes)


def plain_config(**changes: object) -> TrainConfig:
    """Nothing random but the data order, so that process counts can be compared."""
    return make_config(augment=AugmentConfig(), accumulation=1, **changes)


class SlowObjective(ColorObjective):
    """Leaves time to kill the run in the middle."""

    def __call__(self, *args: Any) -> ObjectiveResult:
        time.sleep(0.02)
        return super().__call__(*args)


def run_slow(output: str, steps: str) -> None:
    """The full stand-in: accumulation, augmentation, dropout, averaged weights, beta1 cycling."""
    options = RunOptions(Path(output), device="cpu", save_every=2, log_every=5, quiet=True, tensorboard=False)
    train(make_config(steps=int(steps)), options, make_dataset(), build=lambda _: Task(ColorNetwork(), SlowObjective()))


def run_killed(output: str, steps: str, *kill_after: str) -> None:
    """The same in child processes, each killed (SIGKILL) soon after a checkpoint of the steps given; the last not."""
    import accelerate  # noqa: F401  (once here instead of once in each child)

    statuses = []
    for wanted in (*map(int, kill_after), None):
        child = os.fork()
        if child == 0:
            run_slow(output, steps)
            os._exit(0)
        if wanted is not None:
            while max((int(path.name[-8:]) for path in list_checkpoints(Path(output))), default=0) < wanted:
                time.sleep(0.002)
            time.sleep(0.013 * len(statuses))  # another phase of the step each time
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitpid(child, 0)[1])
    assert statuses == [signal.SIGKILL] * len(kill_after) + [0], statuses


def run_parallel(output: str, steps: str, batch_size: str) -> None:
    """Nothing random but the data order; each process leaves its final weights."""
    config = plain_config(steps=int(steps), batch_size=int(batch_size))
    tasks: list[Task] = []

    def build(task_config: TrainConfig) -> Task:
        tasks.append(make_task(task_config, dropout=0.0, noise=0.0))
        return tasks[0]

    options = RunOptions(Path(output), device="cpu", quiet=True, tensorboard=False)
    train(config, options, make_dataset(), build=build)
    rank = os.environ.get("RANK", "0")
    save_file(tasks[0].network.state_dict(), Path(output) / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    {"slow": run_slow, "killed": run_killed, "parallel": run_parallel}[sys.argv[1]](*sys.argv[2:])
