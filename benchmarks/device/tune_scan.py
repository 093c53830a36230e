"""Times the CUDA scan with the length in 1, 2, ... chunks, beside the number that the model of `chunks` would take.

For setting the constants `FORWARD` and `BACKWARD` in `maquette.nn.selective_scan.chunks`: the marked number should be
(close to) the fastest in every row. About 20 s.

    PYTHONPATH=src python3 benchmarks/device/tune_scan.py
"""

from __future__ import annotations

import statistics

import torch

from maquette.nn.selective_scan import chunks, cuda, selective_scan
from maquette.nn.selective_scan.bench import BenchCase, make_case
from maquette.raster.bench import time_gpu

COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
CASES = (
    BenchCase("gamba", 8, 1024, 16_961, 16, torch.bfloat16),
    BenchCase("gamba", 2, 1024, 16_961, 16, torch.bfloat16),
    BenchCase("one picture", 1, 1024, 16_961, 16, torch.bfloat16),
    BenchCase("gamba-mini", 16, 320, 4353, 16, torch.bfloat16),
    BenchCase("gamba-mini", 1, 320, 4353, 16, torch.bfloat16),
)


def measure(case: BenchCase, count: int) -> tuple[float, float]:
    """Milliseconds of the forward and of the backward pass with so many chunks."""
    cuda.chunk_count = lambda cost, blocks, tiles, processors: min(count, tiles)
    values = make_case(case, torch.device("cuda"), token_major=True)
    upstream = torch.randn_like(values["inputs"])
    inputs = tuple(values.values())

    def forward() -> None:
        with torch.no_grad():
            selective_scan(**values, delta_softplus=True)

    outputs = selective_scan(**values, delta_softplus=True)

    def backward() -> None:
        torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)

    return statistics.median(time_gpu(forward, 10)), statistics.median(time_gpu(backward, 10))


def main() -> None:
    """Prints two rows for each size, forward and backward."""
    chosen = chunks.chunk_count
    processors = cuda.processors(torch.device("cuda"))
    for case in CASES:
        times = [measure(case, count) for count in COUNTS]
        blocks, tiles = case.batch * -(-case.channels // 32), -(-case.length // 32)
        for index, (name, cost) in enumerate((("forward", chunks.FORWARD), ("backward", chunks.BACKWARD))):
            row = "  ".join(f"{count}: {t[index]:.3f}" for count, t in zip(COUNTS, times, strict=True))
            print(f"{case.title}, {name} ms [{chosen(cost, blocks, tiles, processors)}]  {row}")


if __name__ == "__main__":
    main()
