"""The training loop as a whole: exact resumption, several processes, stopping, divergence, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import training_stand_in
from maquette.errors import InvalidInputError, WeightsError
from maquette.nn.objective import ObjectiveResult
from maquette.training.checkpoint import list_checkpoints, load_checkpoint
from maquette.training.config import TrainConfig
from maquette.training.loop import RunOptions, TrainingDivergedError, train
from maquette.training.processes import StopSignal
from maquette.training.tasks import Task
from training_stand_in import ColorNetwork, ColorObjective, make_config, make_dataset, make_task, plain_config

SCRIPT = Path(__file__).parent / "training_stand_in.py"
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _options(output: Path, **changes: object) -> RunOptions:
    given = {"device": "cpu", "save_every": 4, "log_every": 4, "picture_every": 0, "quiet": True, "tensorboard": False}
    return RunOptions(output, **{**given, **changes})


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _same_files(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


def test_training_learns_logs_and_exports(tmp_path: Path) -> None:
    config = plain_config(steps=60)
    export = tmp_path / "weights.safetensors"
    options = _options(tmp_path / "run", log_every=20, picture_every=30, export=export, tensorboard=True)
    result = train(config, options, make_dataset(), build=make_task)
    assert (result.finished, result.reason, result.step) == (True, "finished", 60)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [20, 40, 60]
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert {"lr", "grad_norm", "psnr", "objects_per_second", "skipped_steps"} <= set(entries[0])
    assert Image.open(tmp_path / "run" / "pictures" / "step-00000060.png").size == (4 * 2 * 16, 3 * 16)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    ema = load_checkpoint(result.checkpoint).tensors["ema"]
    exported = load_file(export)
    assert set(exported) == set(ColorNetwork().state_dict())
    assert all(torch.equal(value, ema[name].half()) for name, value in exported.items())


def test_a_crashed_run_leaves_the_weights_of_its_last_checkpoint(tmp_path: Path) -> None:
    export = tmp_path / "weights.safetensors"
    run = tmp_path / "run"

    class Crash(Exception):
        pass

    def task(config: TrainConfig) -> Task:
        made, calls = make_task(config), 0
        objective = made.objective

        def failing(*arguments: Any) -> ObjectiveResult:
            nonlocal calls
            calls += 1
            if calls > 6:
                raise Crash
            return objective(*arguments)

        return dataclasses.replace(made, objective=failing)

    with pytest.raises(Crash):
        train(plain_config(steps=20), _options(run, export=export), make_dataset(), build=task)
    (checkpoint,) = list_checkpoints(run)
    ema = load_checkpoint(checkpoint).tensors["ema"]
    assert checkpoint.name.endswith("4")
    assert all(torch.equal(value, ema[name].half()) for name, value in load_file(export).items())


def test_interrupted_run_equals_uninterrupted_in_process(tmp_path: Path) -> None:
    whole = train(make_config(), _options(tmp_path / "whole"), make_dataset(), build=make_task)
    state = torch.get_rng_state()
    for _ in range(20):
        result = train(make_config(), _options(tmp_path / "parts", max_seconds=0.0), make_dataset(), build=make_task)
        if result.finished:
            break
        assert result.reason == "time"
    assert result.finished
    assert _same_files(whole.checkpoint, result.checkpoint)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are left alone
    other = train(make_config(seed=1), _options(tmp_path / "other"), make_dataset(), build=make_task)
    assert not _same_files(whole.checkpoint, other.checkpoint)


def test_kill_9_and_resume_equals_uninterrupted(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "killed", str(tmp_path / "killed"), "40", "2", "6", "14", "26"]
    assert subprocess.run(command, env=_environment(), timeout=120).returncode == 0
    training_stand_in.run_slow(str(tmp_path / "whole"), "40")
    final = [list_checkpoints(tmp_path / name)[-1] for name in ("whole", "killed")]
    assert [path.name for path in final] == ["step-00000040"] * 2
    assert _same_files(*final)
    entries = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert entries == sorted(set(entries))
    assert entries[-1] == 40
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_sigterm_saves_and_ends_well(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, str(SCRIPT), "slow", str(tmp_path), "100000"], env=_environment())
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]).step >= 2


def test_second_interrupt_is_obeyed_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--nnodes=1"]
    launcher += [f"--master-port={port}", "--master-addr=127.0.0.1"]
    pair = subprocess.Popen([*launcher, str(SCRIPT), "parallel", str(tmp_path / "two"), "6", "3"], env=_environment())
    single = [sys.executable, str(SCRIPT), "parallel", str(tmp_path / "one"), "6", "6"]
    assert subprocess.run(single, env=_environment(), timeout=90).returncode == 0
    assert pair.wait(90) == 0
    two, one = (list_checkpoints(tmp_path / name)[-1] for name in ("two", "one"))
    assert load_checkpoint(two).state["processes"] == 2
    for name in FILES:
        first, second = load_file(two / name), load_file(one / name)
        for key, value in first.items():
            assert torch.allclose(value, second[key], rtol=1e-4, atol=1e-6), (name, key)
    ranks = [load_file(tmp_path / "two" / f"rank-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0])


def test_bad_steps_are_skipped_and_too_many_stop_the_run(tmp_path: Path) -> None:
    def build(config: TrainConfig) -> Task:
        return Task(ColorNetwork(), ColorObjective(poison=range(4, 6)))

    result = train(make_config(accumulation=1), _options(tmp_path / "few"), make_dataset(), build=build)
    assert result.finished
    entries = [json.loads(line) for line in (tmp_path / "few" / "log.jsonl").read_text().splitlines()]
    assert [entry["skipped_steps"] for entry in entries] == [0, 2, 0]
    assert all(entry["loss"] == entry["loss"] for entry in entries)
    tensors = load_checkpoint(result.checkpoint).tensors
    assert all(bool(torch.isfinite(value).all()) for value in tensors["model"].values())
    assert float(tensors["optimizer"]["out.bias.step"]) == 10

    def build_broken(config: TrainConfig) -> Task:
        return Task(ColorNetwork(), ColorObjective(poison=range(4, 100)))

    config = make_config(accumulation=1, max_bad_steps=3, steps=100)
    with pytest.raises(TrainingDivergedError, match="--lr"):
        train(config, _options(tmp_path / "many"), make_dataset(), build=build_broken)
    last = load_checkpoint(list_checkpoints(tmp_path / "many")[-1])
    assert all(bool(torch.isfinite(value).all()) for value in last.tensors["model"].values())


def test_changed_settings_are_refused_or_taken_over(tmp_path: Path) -> None:
    train(make_config(steps=4), _options(tmp_path), make_dataset(), build=make_task)
    with pytest.raises(InvalidInputError, match="steps: 4 -> 8"):
        train(make_config(steps=8), _options(tmp_path), make_dataset(), build=make_task)
    with pytest.raises(InvalidInputError, match="objects"):
        train(make_config(steps=4), _options(tmp_path), make_dataset(num_objects=4), build=make_task)
    options = _options(tmp_path, allow_config_change=True)
    assert train(make_config(steps=8), options, make_dataset(), build=make_task).step == 8
    with pytest.raises(InvalidInputError, match="model"):
        train(make_config(steps=8, model="other"), options, make_dataset(), build=make_task)


def test_init_from_starts_there_and_names_what_does_not_fit(tmp_path: Path) -> None:
    first = train(make_config(steps=4), _options(tmp_path / "a"), make_dataset(), build=make_task)
    options = _options(tmp_path / "b", init_from=first.checkpoint)
    config = make_config(steps=1)
    result = train(config, options, make_dataset(), build=make_task)
    ema, now = load_checkpoint(first.checkpoint).tensors["ema"], load_checkpoint(result.checkpoint).tensors["model"]
    # One step of AdamW with lr 1e-2 moves no weight by more than about that.
    assert all(float((ema[name] - now[name]).abs().max()) < 0.03 for name in now)

    def build_other(config: TrainConfig) -> Task:
        return Task(nn.Linear(2, 2), ColorObjective())

    with pytest.raises(WeightsError, match=r"hidden\.bias"):
        train(config, _options(tmp_path / "d", init_from=first.checkpoint), make_dataset(), build=build_other)
