"""Benchmark of the training step: every stage is found, in order, and the step is the true one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from maquette.models.lgm.network import LGM
from maquette.models.lgm.params import LGMParams
from maquette.raster import cpu
from maquette.raster.bench_report import machine
from maquette.training.bench import CASES, STAGES, StageClock, StepCase, bench_step, write_report
from maquette.training.config import SamplingConfig, TrainConfig

CPU = torch.device("cpu")
PARAMS = LGMParams(
    name="lgm-step",
    down_channels=(32, 32),
    down_attention=(False, False),
    up_channels=(32,),
    up_attention=(False,),
    mid_attention=False,
    down_layers=1,
    input_size=32,
    splat_size=16,
    output_size=32,
)
CONFIG = TrainConfig(model="lgm-step", batch_size=2, sampling=SamplingConfig(target_views=2, input_targets=0))


def test_every_stage_is_measured(tmp_path: Path) -> None:
    original = cpu.rasterize
    results, notes = bench_step(CPU, PARAMS, CONFIG, steps=2, warmup_steps=1)
    assert cpu.rasterize is original and not notes and [result.case for result in results] == list(CASES)
    for result in results:
        assert set(result.stages_ms) == set(STAGES) and min(result.stages_ms.values()) > 0
        assert sum(result.stages_ms.values()) == pytest.approx(result.total_ms), "medians of two steps are means"
        assert 0 < result.rasterizer_percent < 100
    paths = write_report(results, machine(CPU, "abc"), PARAMS, CONFIG, tmp_path, "step_cpu", ["x: left out"])
    text, document = paths[1].read_text(), json.loads(paths[0].read_text())
    assert all(f"| {stage} | {results[0].stages_ms[stage]:.2f} |" in text for stage in STAGES)
    assert f"| {results[0].rasterizer_percent:.1f} % |" in text and "SSIM" in text and "x: left out" in text
    assert document["cases"][2]["stages_ms"] == results[2].stages_ms and document["machine"]["commit"] == "abc"


@pytest.mark.parametrize("slow", ["rasterizer forward", "rasterizer backward", "network forward", "network backward"])
def test_time_is_counted_where_it_is_spent(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause put into one stage shows in that stage."""
    pause_s = 0.2
    part, _, direction = slow.partition(" ")

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            time.sleep(pause_s if direction == "forward" else 0)
            return value.view_as(value)

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            time.sleep(pause_s if direction == "backward" else 0)
            return gradient

    if part == "rasterizer":
        original = cpu.rasterize
        monkeypatch.setattr(cpu, "rasterize", lambda means, *rest, **more: original(Slow.apply(means), *rest, **more))
    else:
        network = LGM.raw_gaussians
        monkeypatch.setattr(LGM, "raw_gaussians", lambda *inputs: Slow.apply(network(*inputs)))
    case = StepCase("one", trained_sizes=True, channels_last=False)
    (result,), _ = bench_step(CPU, PARAMS, CONFIG, cases=[case], steps=1, warmup_steps=1)
    assert result.stages_ms[slow] >= 1000 * pause_s and result.stages_ms[slow] == max(result.stages_ms.values())


def test_stages_that_come_twice_are_summed() -> None:
    clock = StageClock(CPU)
    for _ in range(2):
        clock.mark("")
        for stage, pause_s in (("a", 0.02), ("b", 0.0), ("a", 0.02)):
            time.sleep(pause_s)
            clock.mark(stage)
    steps = clock.steps()
    assert [list(step) for step in steps] == [["a", "b"]] * 2
    assert all(step["a"] >= 40 > step["b"] for step in steps)
