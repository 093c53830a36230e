"""The fused scan kernels: compiled and run on the CPU (no GPU needed), and on a GPU against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_on_cpu import run_on_cpu
from maquette.errors import InvalidInputError, MissingDependencyError
from maquette.nn.selective_scan import cuda, selective_scan
from maquette.nn.selective_scan.chunks import BACKWARD, FORWARD, MAX_CHUNKS, chunk_count
from maquette.raster import nvrtc
from test_selective_scan import NAMES, case

SEQUENCES = ("inputs", "delta", "into", "out_of", "gate")
OPTIONAL = ("skip", "gate", "delta_bias")
# Largest error over the largest value that counts as right, of values and of gradients.
TOLERANCES = {torch.float32: (1e-5, 4e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (8e-3, 1.6e-2)}


def has_nvrtc() -> bool:
    try:
        nvrtc.require_nvrtc()
    except MissingDependencyError:
        return False
    return True


@pytest.mark.skipif(not has_nvrtc(), reason="needs cuda-core and NVRTC: pip install 'maquette[cuda]'")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 16), (torch.float16, 1), (torch.bfloat16, 64)])
def test_kernels_compile(
    dtype: torch.dtype, size: int, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path))
    for source in cuda.SOURCES.values():
        options = cuda.kernel_options(dtype, size, softplus=size > 1, gated=size < 64)
        assert nvrtc.compile_cubin(source, arch, options)[:4] == b"\x7fELF"


# --- the kernels' own source on the CPU ------------------------------------------------------------------------------


@pytest.fixture
def kernels_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on_cpu(cuda, tmp_path, monkeypatch)
    monkeypatch.setattr(cuda, "processors", lambda _: 1)


def force_chunks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the length into so many chunks, or into as many as there are tiles."""
    monkeypatch.setattr(cuda, "chunk_count", lambda cost, blocks, tiles, processors: min(count, tiles))


def fused(values: dict[str, Tensor]) -> Tensor:
    given = {name: values.get(name) for name in NAMES}
    return cuda.scan(**given, delta_softplus=True)  # type: ignore[arg-type]


def on_gpu(values: dict[str, Tensor]) -> Tensor:
    return selective_scan(**values, delta_softplus=True, backend="cuda")


def compare(
    scan: Callable[[dict[str, Tensor]], Tensor],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    without: Sequence[str] = (),
) -> None:
    """Values and gradients against the float64 reference of the same, rounded, inputs."""
    given = {name: value for name, value in case(*shape).items() if name not in without}
    single = {
        name: value.detach().to(dtype if name in SEQUENCES else torch.float32).to(device).requires_grad_()
        for name, value in given.items()
    }
    exact = {name: value.detach().cpu().double().requires_grad_() for name, value in single.items()}
    upstream = torch.randn(shape[:3], generator=torch.Generator().manual_seed(5)).to(dtype)
    outputs, wanted = scan(single), selective_scan(**exact, delta_softplus=True, backend="reference")
    with torch.no_grad():
        assert torch.equal(scan(single), outputs)
    got = torch.autograd.grad(outputs, tuple(single.values()), upstream.to(device))
    right = torch.autograd.grad(wanted, tuple(exact.values()), upstream.double())
    tolerances = TOLERANCES[dtype]
    checks = [("output", outputs, wanted, tolerances[0])]
    checks += [(name, a, b, tolerances[1]) for name, a, b in zip(given, got, right, strict=True)]
    for name, a, b, tolerance in ((name, a.detach().cpu(), b.detach(), limit) for name, a, b, limit in checks):
        assert a.shape == b.shape and a.isfinite().all(), name
        assert (a - b).abs().max() < tolerance * max(1.0, float(b.abs().max())), name


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 33, 31, 5), (1, 40, 33, 16), (1, 2, 300, 12), (1, 3, 70, 17), (1, 2, 65, 64)]
)
@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_matches_the_reference(shape: tuple[int, int, int, int]) -> None:
    compare(fused, shape)


@pytest.mark.parametrize(("count", "shape"), [(2, (2, 33, 31, 5)), (2, (1, 40, 65, 16)), (7, (2, 3, 300, 16))])
@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_in_chunks(count: int, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    force_chunks(count, monkeypatch)
    compare(fused, shape)


@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_in_chunks_of_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    force_chunks(100, monkeypatch)
    compare(fused, (1, 3, 200, 40))
    compare(fused, (1, 5, 130, 16), torch.bfloat16)
    compare(fused, (2, 3, 100, 16), without=OPTIONAL)


@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_in_as_many_chunks_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "processors", lambda _: 4)
    assert all(chunk_count(cost, 1, 22, 4) > 1 for cost in (FORWARD, BACKWARD))
    compare(fused, (1, 3, 700, 16))


@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_in_bfloat16_and_without_optional_tensors() -> None:
    compare(fused, (2, 5, 40, 16), torch.bfloat16)
    compare(fused, (1, 3, 40, 3), without=OPTIONAL)


@pytest.mark.usefixtures("kernels_on_cpu")
def test_states_are_kept_for_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    run = cuda.launch

    def launch(kernel: Any, blocks: int, threads: int, *args: Any) -> None:
        kept.append(args[-4] is not None)  # before three sizes
        run(kernel, blocks, threads, *args)

    monkeypatch.setattr(cuda, "launch", launch)
    values = case(1, 2, 40, 4, torch.float32)
    fused(values)
    with torch.no_grad():
        fused(values)
    fused({name: value.detach() for name, value in values.items()})
    assert kept == [True, False, False]


@pytest.mark.usefixtures("kernels_on_cpu")
def test_kernel_source_reads_views() -> None:
    values = case(2, 6, 37, 4, dtype=torch.float32)
    wide = torch.cat([values[name].detach().mT for name in ("inputs", "gate")], dim=2)
    views = values | dict(zip(("inputs", "gate"), wide.mT.chunk(2, dim=1), strict=True))
    assert torch.equal(fused(views), fused(values))


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 33, 31, 5),
        (1, 64, 32, 16),
        (3, 40, 33, 16),
        (2, 100, 300, 12),
        (1, 3, 70, 17),
        (2, 7, 129, 64),
    ],
)
def test_gpu_matches_the_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    compare(on_gpu, shape, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("length", [2, 63, 1000, 4097, 16_961, 20_000])
def test_gpu_matches_the_reference_at_every_length(length: int) -> None:
    compare(on_gpu, (1, 5, length, 16), device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 40, 1000, 16), torch.float32),
        ((1, 33, 129, 64), torch.float32),
        ((1, 64, 4099, 16), torch.bfloat16),
        ((3, 5, 50, 20), torch.float16),
    ],
)
def test_gpu_in_chunks(
    shape: tuple[int, int, int, int], dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_chunks(count, monkeypatch)
    compare(on_gpu, shape, dtype, "cuda")


@pytest.mark.gpu
def test_gpu_without_optional_tensors() -> None:
    compare(on_gpu, (2, 34, 50, 16), device="cuda", without=OPTIONAL)


@pytest.mark.gpu
def test_gpu_memory_is_linear_in_length() -> None:
    peaks = []
    for length in (2048, 4096, 8192):
        values = {
            name: value.detach().cuda().requires_grad_()
            for name, value in case(1, 256, length, 16, torch.float32).items()
        }
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        on_gpu(values).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.1 * peaks[0] and peaks[2] < 2.1 * peaks[1]


@pytest.mark.gpu
def test_gpu_keeps_nan_in_its_channel_and_behind_its_position() -> None:
    values = {name: value.detach().cuda() for name, value in case(2, 40, 140, 16, torch.float32).items()}
    clean = on_gpu(values)
    values["inputs"][1, 2, 70] = math.nan
    bad = torch.zeros(clean.shape, dtype=torch.bool, device="cuda")
    bad[1, 2, 70:] = True
    got = on_gpu(values)
    assert torch.equal(got.isnan(), bad) and torch.equal(got[~bad], clean[~bad])


# --- the number of chunks --------------------------------------------------------------------------------------------


def test_small_grids_are_cut_and_large_ones_are_not() -> None:
    for cost in (FORWARD, BACKWARD):
        assert chunk_count(cost, 256, 531, 132) == 1  # 8 items of 1,024 channels fill 132 multiprocessors
        assert 32 * chunk_count(cost, 32, 531, 132) > 132  # one item: more blocks than multiprocessors
        assert chunk_count(cost, 1, 2, 132) == 1  # nothing to gain
        assert chunk_count(cost, 1, 100_000, 132) == MAX_CHUNKS


def test_cuda_refuses_what_it_cannot_take() -> None:
    values = case(1, 2, 3, 4, torch.float32)
    with pytest.raises(InvalidInputError, match="'cuda' takes"):
        selective_scan(**values, backend="cuda")
