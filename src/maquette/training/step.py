"""One optimizer step: batch, augmentation, forward, backward, update, averaged weights. The host never waits here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from maquette.gaussians import Gaussians
from maquette.nn.objective import ObjectiveResult
from maquette.training.config import TrainConfig
from maquette.training.optimizer import AveragedWeights, NamedAdamW
from maquette.training.schedule import schedule_at

Objective = Callable[..., ObjectiveResult]
"""objective(network, *batch, generator, training) -> `ObjectiveResult`; the batch is what the feed draws, mostly input
and target views."""


class Feed(Protocol):
    """Where batches come from.

    Attributes:
        exported: tensors that belong into the exported weights beside the network's.
    """

    exported: Mapping[str, Tensor]

    def draw(self, step: int, micro_step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """This process's batch, augmented: a function of the arguments and the generator's state alone."""
        ...

    def close(self) -> None:
        """Ends what runs in the background."""
        ...


class AutocastNetwork(nn.Module):
    """A network run under bf16 autocast, with Gaussians and tensors given back in float32.

    Only the network runs in half precision; rendering and losses, which come after it, stay in float32.
    """

    def __init__(self, network: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.network = network
        self._enabled = enabled

    def forward(self, *inputs: Tensor) -> Any:
        """Runs the network."""
        if not self._enabled:
            return self.network(*inputs)
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            output = self.network(*inputs)
        return _to_float(output)


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Gaussians):
        return value.to(torch.float32)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: _to_float(getattr(value, f.name)) for f in fields if f.init})
    if isinstance(value, (tuple, list)):
        return type(value)(_to_float(item) for item in value)
    return value


class MetricSums:
    """Sums of named scalars on the device, fetched together once in a while."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, values: dict[str, Tensor], valid: Tensor) -> None:
        """Adds one step's scalars; where `valid` is 0 they count as nothing (they may be NaN)."""
        self._steps += 1
        for name, value in {**values, "valid": valid}.items():
            addend = torch.where(valid > 0, value.detach().float(), 0.0)
            self._sums[name] = self._sums[name] + addend if name in self._sums else addend

    def fetch(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, averaged over processes by `reduce`; waits for the device."""
        names, steps = list(self._sums), self._steps
        if not names:
            return {}
        totals = reduce(torch.stack([self._sums[name] for name in names])).tolist()
        self._sums, self._steps = {}, 0
        sums = dict(zip(names, totals, strict=True))
        valid = sums.pop("valid")
        means = {name: total / max(valid, 1e-9) for name, total in sums.items()}
        return {**means, "skipped_steps": steps - valid}


class StepRunner:
    """Runs optimizer steps; all state that changes is `network`, `optimizer`, `average` and `bad_streak`.

    Args:
        config: of the run.
        network: the bare network, on its device.
        wrapped: what the objective calls: the network under autocast, possibly in DistributedDataParallel.
        objective: training objective of the model's family.
        feed: batches of this process.
        rank: this process among all.
        backward: backward pass of a loss.
        no_sync: context in which gradients are not exchanged, for all but the last forward pass of a step.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        wrapped: nn.Module,
        objective: Objective,
        feed: Feed,
        rank: int,
        backward: Callable[[Tensor], None],
        no_sync: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self._config = config
        self._wrapped = wrapped
        self._objective = objective
        self._feed = feed
        self._rank = rank
        self._backward = backward
        self._no_sync = no_sync
        self.device = next(network.parameters()).device
        self.optimizer = NamedAdamW(network, config.optimizer)
        self.average = AveragedWeights(network, config.ema_decay) if config.ema_decay > 0 else None
        self.metrics = MetricSums()
        self.bad_streak = torch.zeros((), device=self.device)
        self._generator = torch.Generator(device=self.device)

    def run(self, step: int, position: int | None = None) -> ObjectiveResult:
        """Runs step `step` (0-based) and returns the result of its last forward pass.

        `position` is the step at which the schedule is, when that runs ahead.
        """
        config = self._config
        seed = step_seed(config.seed, step, self._rank)
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # for layers that draw from the global generator; the caller restores it
        for micro_step in range(config.accumulation):
            batch = self._feed.draw(step, micro_step, self._generator)
            last = micro_step == config.accumulation - 1
            with contextlib.nullcontext() if last else self._no_sync():
                result = self._objective(self._wrapped, *batch, self._generator, True)
                # A loss that is not finite makes every gradient NaN, in every process, and so skips the step.
                factor = torch.where(torch.isfinite(result.loss.detach()), 1.0 / config.accumulation, torch.nan)
                self._backward(result.loss * factor)
        values = schedule_at(config.schedule, step if position is None else position, config.steps, config.optimizer.lr)
        norm, skipped = self.optimizer.step(values)
        self.bad_streak = (self.bad_streak + 1) * skipped
        if self.average is not None:
            self.average.update(step)
        self.metrics.add({"loss": result.loss, "grad_norm": norm, **result.metrics}, 1 - skipped)
        return result


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one process's random numbers in one step (63 bits)."""
    words = np.random.SeedSequence((seed, step, rank, 0x73746570)).generate_state(1, np.uint64)
    return int(words[0]) & ((1 << 63) - 1)
