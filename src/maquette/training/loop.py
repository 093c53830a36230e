"""The training loop of every model family: one process or many, resumed exactly, stopped politely."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.data.dataset import RenderedDataset
from maquette.errors import InvalidInputError, MaquetteError
from maquette.nn.objective import ObjectiveResult
from maquette.training.checkpoint import (
    Checkpoint,
    clean_leftovers,
    init_tensors,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    versions,
)
from maquette.training.clock import CHECK_STEPS, Clock
from maquette.training.config import TrainConfig, differing_fields
from maquette.training.export import export_weights
from maquette.training.feed import BatchFeed, Placement, load_for_training
from maquette.training.logs import RunLog, format_seconds
from maquette.training.processes import Processes, StopSignal
from maquette.training.schedule import schedule_at
from maquette.training.step import StepRunner
from maquette.training.tasks import Task, build_task
from maquette.weights import load_strictly


class TrainingDivergedError(MaquetteError):
    """Too many successive steps had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class RunOptions:
    """What a run does besides computing: none of this changes the numbers.

    Attributes:
        output: run folder, for checkpoints, logs and pictures.
        split: split of the data set to train on.
        device: "cpu", "cuda" or None for the best there is.
        data_device: where the pictures are kept: "gpu", "cpu" or "auto" (GPU if they take at most half of it).
        compile: compile the network with torch.compile.
        channels_last: keep weights and features in channels-last order.
        max_seconds: stop with a checkpoint after this time, counted from the start of the process's training; None:
            no limit.
        save_every, log_every, picture_every: steps between checkpoints, log entries and picture grids (0: none).
        keep: checkpoints kept.
        init_from: weights to start from, a .safetensors file or a checkpoint folder; ignored when resuming.
        export: where to write the (averaged) weights as fp16 with every checkpoint and at the end, or None.
        license: put into the exported file's metadata.
        allow_config_change: resume although the config, data or number of processes differs.
        quiet: show nothing on the terminal.
        tensorboard: write TensorBoard events.
    """

    output: Path
    split: str = "train"
    device: str | None = None
    data_device: Placement = "auto"
    compile: bool = False
    channels_last: bool = False
    max_seconds: float | None = None
    save_every: int = 1000
    log_every: int = 50
    picture_every: int = 1000
    keep: int = 2
    init_from: Path | None = None
    export: Path | None = None
    license: str = ""
    allow_config_change: bool = False
    quiet: bool = False
    tensorboard: bool = True


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done in all.
        finished: whether that is all of them.
        reason: "finished", "time", or "signal".
        checkpoint: folder of the last checkpoint.
        seconds: training time of all processes' runs up to here.
    """

    step: int
    finished: bool
    reason: str
    checkpoint: Path
    seconds: float


def train(
    config: TrainConfig,
    options: RunOptions,
    data: Path | RenderedDataset,
    *,
    build: Callable[[TrainConfig], Task] = build_task,
) -> TrainResult:
    """Trains until the steps are done, the time is up, or SIGTERM or Ctrl-C arrives; continues a run in `output`.

    Started by torchrun or `accelerate launch` in several processes it trains data-parallel.

    Args:
        config: what to compute.
        options: where and how.
        data: rendered data set, or its folder.
        build: makes network and objective; by default from the registry.

    Raises:
        InvalidInputError: the options, data or an earlier run in `output` do not fit the config.
        FileFormatError: a checkpoint or the data set is damaged.
        WeightsError: weights do not fit the network.
        TrainingDivergedError: too many successive steps were not finite.
    """
    start = time.monotonic()
    processes = Processes(options.device)
    devices = [processes.device] if processes.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), StopSignal() as stop:
            return _Run(config, options, data, build, processes, stop, start).run()
    finally:
        processes.end()


class _Run:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        data: Path | RenderedDataset,
        build: Callable[[TrainConfig], Task],
        processes: Processes,
        stop: StopSignal,
        start: float,
    ) -> None:
        self.config, self.options, self.processes, self.stop, self.start = config, options, processes, stop, start
        if processes.is_first:
            clean_leftovers(options.output)
        processes.wait()
        self.checkpoint = self._find_checkpoint()
        device = processes.device
        torch.manual_seed(config.seed)
        task = build(config)
        dataset = self._load(data, task.needs_depth)
        self.data_summary = {"objects": len(dataset), "frames": dataset.num_frames, "settings": dataset.settings}
        self.feed = (
            task.feed(dataset, device, processes)
            if task.feed is not None
            else BatchFeed(dataset, config, device, processes.rank, processes.world_size, task.target_size)
        )
        del dataset  # a feed that keeps something else should not hold its memory
        self.network = task.network.to(device).train()
        if isinstance(task.objective, torch.nn.Module):
            task.objective.to(device)
        if options.channels_last:
            for parameter in self.network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if options.init_from is not None and self.checkpoint is None:
            tensors = init_tensors(options.init_from)
            tensors = {name: value for name, value in tensors.items() if name not in self.feed.exported}
            load_strictly(self.network, tensors, options.init_from)
        if options.compile:
            self.network.compile()
        wrapped = processes.wrap(self.network, bf16=config.precision == "bf16")
        self.runner = StepRunner(
            config,
            self.network,
            wrapped,
            task.objective,
            self.feed,
            processes.rank,
            processes.backward,
            lambda: processes.no_sync(wrapped),
        )
        self.step, self.earlier_seconds = 0, 0.0
        self.clock = Clock(
            config.steps, config.schedule_seconds, processes.maximum if processes.world_size > 1 else int
        )
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
            self.checkpoint = None  # its tensors are no longer needed
        self.first_step = self.step

    def _load(self, data: Path | RenderedDataset, needs_depth: bool) -> RenderedDataset:
        if not isinstance(data, RenderedDataset):
            options, device = self.options, self.processes.device
            return load_for_training(data, options.split, device, options.data_device, input_depths=needs_depth)
        if needs_depth and data.depths is None:
            raise InvalidInputError("the model learns from true depth: RenderedDataset.load(..., input_depths=True)")
        return data

    def run(self) -> TrainResult:
        """Runs the steps that are left."""
        log = self._open_log()
        reason = "finished"
        log_time, log_step = time.monotonic(), self.step
        try:
            self.clock.start(self.step)
            while self.clock.position < self.config.steps:
                result = self.runner.run(self.step, self.clock.position)
                self.step += 1
                self.clock.advance(self.step)
                if log is not None:
                    log.advance(self.step)
                over = self.clock.position >= self.config.steps
                if _due(self.step, self.options.log_every) or over:
                    steps_per_second = (self.step - log_step) / max(time.monotonic() - log_time, 1e-9)
                    self._log(log, steps_per_second)
                    log_time, log_step = time.monotonic(), self.step
                if _due(self.step, self.options.picture_every):
                    self._log_pictures(log, result)
                why = self._should_stop()
                if why is not None and not over:
                    reason = why
                    break
                if _due(self.step, self.options.save_every) and not over:
                    self._save()
            return self._finish(log, reason)
        finally:
            self.feed.close()
            if log is not None:
                log.close()

    def _finish(self, log: RunLog | None, reason: str) -> TrainResult:
        target = self._save()
        finished = self.clock.position >= self.config.steps
        seconds = self.earlier_seconds + time.monotonic() - self.start
        if log is not None:
            log.say(f"{reason} at step {self.step}/{self.config.steps} after {format_seconds(seconds)}: {target}")
            if not finished:
                log.say("run the same command again to continue")
        self.processes.wait()
        return TrainResult(self.step, finished, reason, target, seconds)

    def _open_log(self) -> RunLog | None:
        if not self.processes.is_first:
            return None
        options, config = self.options, self.config
        log = RunLog(options.output, config.steps, self.step, options.quiet, options.tensorboard)
        parameters = sum(p.numel() for p in self.network.parameters())
        objects = config.batch_size * config.accumulation * self.processes.world_size
        log.say(
            f"training {config.model} ({parameters / 1e6:.2f} M parameters) on {self.data_summary['objects']} objects, "
            f"{objects} per step, {self.processes.world_size} x {self.processes.device.type}, {config.precision}, "
            f"from step {self.step} to {config.steps}"
        )
        return log

    def _log(self, log: RunLog | None, steps_per_second: float) -> None:
        """Fetches the metrics (the only regular wait for the device) and checks that the run is healthy."""
        values = self.runner.metrics.fetch(self.processes.mean)
        streak = int(self.runner.bad_streak.item())
        if streak >= self.config.max_bad_steps:
            raise TrainingDivergedError(
                f"the last {streak} steps up to step {self.step} had a loss or gradient that is not finite; the "
                f"checkpoints in {self.options.output} are from before or during that. Resume with a lower --lr and "
                "--allow-config-change, or look at the data"
            )
        if log is None:
            return
        position = self.clock.position - 1
        schedule = schedule_at(self.config.schedule, position, self.config.steps, self.config.optimizer.lr)
        values["lr"] = schedule.lr
        values["objects_per_second"] = (
            steps_per_second * self.config.batch_size * self.config.accumulation * self.processes.world_size
        )
        if self.processes.device.type == "cuda":
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.processes.device) / 2**30
        values["steps_per_second"] = steps_per_second
        log.scalars(self.step, values, self.clock.seconds_left(steps_per_second))

    def _log_pictures(self, log: RunLog | None, result: ObjectiveResult) -> None:
        if log is not None and result.pictures is not None and result.references is not None:
            log.pictures(self.step, result.references, result.pictures)

    def _should_stop(self) -> str | None:
        limit = self.options.max_seconds
        late = limit is not None and time.monotonic() - self.start >= limit
        code = 2 if self.stop.requested else 1 if late else 0
        if self.processes.world_size > 1:
            if self.step % CHECK_STEPS:
                return None
            code = self.processes.maximum(code)
        return (None, "time", "signal")[code]

    def _save(self) -> Path:
        path = self.options.output / "checkpoints" / f"step-{self.step:08d}"
        if self.processes.is_first:
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": self.network.state_dict(),
                "optimizer": self.runner.optimizer.state_tensors(),
            }
            if self.runner.average is not None:
                tensors["ema"] = self.runner.average.state_tensors()
            state: dict[str, Any] = {
                "config": self.config.to_json(),
                "processes": self.processes.world_size,
                "data": {"objects": self.data_summary["objects"], "frames": self.data_summary["frames"]},
                "bad_streak": self.runner.bad_streak.item(),
                "seconds": self.earlier_seconds + time.monotonic() - self.start,
                "schedule_seconds": self.clock.seconds,
                "versions": versions(),
            }
            path = save_checkpoint(self.options.output, self.step, tensors, state, self.options.keep)
            if self.options.export is not None:
                self._export(self.options.export)
        return path

    def _export(self, path: Path) -> None:
        average = self.runner.average
        tensors = average.state_tensors() if average is not None else self.network.state_dict()
        seconds = self.earlier_seconds + time.monotonic() - self.start
        facts = {"seconds": round(seconds, 1), "processes": self.processes.world_size, "data": self.data_summary}
        tensors = {**tensors, **self.feed.exported}
        export_weights(path, tensors, self.config, self.step, facts, self.options.license)

    def _find_checkpoint(self) -> Checkpoint | None:
        existing = list_checkpoints(self.options.output)
        if not existing:
            return None
        checkpoint = load_checkpoint(existing[-1])
        before = TrainConfig.from_json(checkpoint.state.get("config", {}))
        changes = differing_fields(before, self.config)
        if checkpoint.state.get("processes") != self.processes.world_size:
            changes.append(f"processes: {checkpoint.state.get('processes')} -> {self.processes.world_size}")
        if before.model != self.config.model or (changes and not self.options.allow_config_change):
            raise InvalidInputError(
                f"{self.options.output} holds a run with other settings ({'; '.join(changes)}): choose another -o, "
                "repeat its settings, or add --allow-config-change to continue it with the new ones"
            )
        return checkpoint

    def _restore(self, checkpoint: Checkpoint) -> None:
        data = {"objects": self.data_summary["objects"], "frames": self.data_summary["frames"]}
        if checkpoint.state.get("data") != data and not self.options.allow_config_change:
            raise InvalidInputError(
                f"{checkpoint.path} was trained on {checkpoint.state.get('data')}, this data set has {data}: give the "
                "same --data, or add --allow-config-change"
            )
        load_strictly(self.network, checkpoint.tensors.get("model", {}), checkpoint.path)
        self.runner.optimizer.load_state_tensors(checkpoint.tensors.get("optimizer", {}))
        if self.runner.average is not None:
            averages = checkpoint.tensors.get("ema") or checkpoint.tensors["model"]
            self.runner.average.load_state_tensors(averages)
        self.runner.bad_streak.fill_(float(checkpoint.state.get("bad_streak", 0.0)))
        self.step = checkpoint.step
        self.earlier_seconds = float(checkpoint.state.get("seconds", 0.0))
        self.clock.earlier = float(checkpoint.state.get("schedule_seconds", 0.0))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
