"""The selective scan: values and gradients of both backends."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maquette.errors import InvalidInputError
from maquette.nn.selective_scan import selective_scan
from maquette.nn.selective_scan.bench import BenchCase, bench_case, mamba_module
from maquette.nn.selective_scan.bench_report import write_report
from maquette.raster.bench_report import machine

NAMES = ("inputs", "delta", "decay", "into", "out_of", "skip", "gate", "delta_bias")
BACKENDS = ("cpu", "reference")


def case(batch: int, channels: int, length: int, size: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    values = {name: normal(batch, channels, length) for name in ("inputs", "delta", "gate")}
    values |= {name: normal(batch, size, length) for name in ("into", "out_of")}
    values |= {"decay": -normal(channels, size).exp(), "skip": normal(channels), "delta_bias": normal(channels) - 2}
    return {name: values[name].to(dtype).requires_grad_() for name in NAMES}


def run(values: dict[str, Tensor], backend: str) -> Tensor:
    return selective_scan(**values, delta_softplus=True, backend=backend)


def loop(values: dict[str, Tensor]) -> np.ndarray:
    """The recurrence once more, in numpy float64."""
    v = {name: value.detach().double().numpy() for name, value in values.items()}
    dt = np.log1p(np.exp(v["delta"] + v["delta_bias"][:, None]))
    state = np.zeros((*dt.shape[:2], v["decay"].shape[1]))
    out = np.empty_like(dt)
    for t in range(dt.shape[2]):
        drive = (dt * v["inputs"])[:, :, t, None] * v["into"][:, None, :, t]
        state = np.exp(dt[:, :, t, None] * v["decay"]) * state + drive
        out[:, :, t] = (state * v["out_of"][:, None, :, t]).sum(-1)
    gate = v["gate"] / (1 + np.exp(-v["gate"]))
    result: np.ndarray = (out + v["skip"][:, None] * v["inputs"]) * gate
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 127, 5), (1, 9, 129, 16), (3, 11, 300, 7), (1, 2, 20_000, 16)])
def test_values_match_an_independent_loop(shape: tuple[int, int, int, int], backend: str) -> None:
    values = case(*shape, dtype=torch.float32)
    with torch.no_grad():
        got = run(values, backend).double().numpy()
    wanted = loop(values)
    assert np.abs(got - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())


def test_reference_gradients_match_finite_differences() -> None:
    values = case(2, 3, 6, 2)
    assert torch.autograd.gradcheck(
        lambda *v: run(dict(zip(NAMES, v, strict=True)), "reference"), tuple(values.values())
    )


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 11, 129, 5), (1, 9, 300, 16), (1, 2, 20_000, 4), (1, 3, 40, 33)])
def test_cpu_gradients_match_the_reference_in_float64(shape: tuple[int, int, int, int]) -> None:
    exact, single = case(*shape), case(*shape, dtype=torch.float32)
    upstream = torch.randn(shape[:3], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted = torch.autograd.grad(run(exact, "reference"), tuple(exact.values()), upstream)
    got = torch.autograd.grad(run(single, "cpu"), tuple(single.values()), upstream.float())
    again = torch.autograd.grad(run(single, "cpu"), tuple(single.values()), upstream.float())
    for name, a, b, c in zip(NAMES, got, wanted, again, strict=True):
        assert (a - b).abs().max() < 2e-5 * max(1.0, float(b.abs().max())), name
        assert torch.equal(a, c), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_channel_and_behind_its_position(backend: str) -> None:
    values = case(2, 5, 140, 3, dtype=torch.float32)
    clean = run(values, backend)
    with torch.no_grad():
        values["inputs"][1, 2, 70] = math.nan
    bad = torch.zeros(clean.shape, dtype=torch.bool)
    bad[1, 2, 70:] = True
    got = run(values, backend)
    assert torch.equal(got.isnan(), bad)
    assert torch.equal(got[~bad], clean[~bad])
    (gradient,) = torch.autograd.grad(got.sum(), values["inputs"])
    assert gradient[0].isfinite().all() and gradient[1, [0, 1, 3, 4]].isfinite().all()


def test_wrong_arguments_are_named() -> None:
    values = case(1, 2, 3, 4)
    with pytest.raises(InvalidInputError, match="into must be"):
        run(values | {"into": values["into"][:, :2]}, "cpu")
    with pytest.raises(InvalidInputError, match="unknown backend 'gpu'"):
        run(values, "gpu")
    with pytest.raises(InvalidInputError, match="skip is"):
        run(values | {"skip": values["skip"].float()}, "cpu")


def test_bench_measures_and_reports(tmp_path: Path) -> None:
    result = bench_case(BenchCase("tiny", 1, 4, 40, 3), torch.device("cpu"), runs=1)
    assert [m.backend for m in result.measurements] == ["cpu", "reference"]
    assert set(result.differences) == {"output", *NAMES} and max(result.differences.values()) < 1e-4
    assert result.speedups() is not None
    where = machine(torch.device("cpu"), "abc")
    paths = write_report([result], where, tmp_path, "scan_cpu")
    assert [path.suffix for path in paths] == [".json", ".md", ".png"]
    assert "| tiny (1 x 4 x 40, 3 states, float32) | cpu |" in paths[1].read_text()
    assert json.loads(paths[0].read_text())["cases"][0]["case"]["dtype"] == "float32"


def test_bench_names_a_folder_without_the_module(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no selective_scan_cuda"):
        mamba_module(tmp_path)
