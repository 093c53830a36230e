"""Into how many chunks the CUDA scan cuts the length, so that short batches fill a GPU.

One chunk is walked in one pass. More of them keep more multiprocessors busy, at the price of a first pass that finds
the state at the end of each one. Which number is best follows from a model of the time with the constants of
`ScanCost`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

MAX_CHUNKS = 64
"""Most chunks of a length: every one reads the ends of those before it."""


@dataclass(frozen=True)
class ScanCost:
    """What a pass costs; the unit is the time per tile of a block on a multiprocessor with as many as it can work on.

    Attributes:
        first_pass: the pass over the chunks' ends, relative to the main pass.
        latency: per tile of a block that has a multiprocessor to itself.
        resident: blocks that a multiprocessor works on at once.
        start: what a block costs beside its tiles.
        launch: what one more kernel costs.
    """

    first_pass: float
    latency: float
    resident: int
    start: float = 2.0
    launch: float = 5.0

    def time(self, chunks: int, blocks: int, tiles: int, processors: int) -> float:
        """The model: the busiest multiprocessor's blocks, one set of resident ones after the other.

        Args:
            chunks: number of chunks.
            blocks: of the whole grid with one chunk.
            tiles: of the whole length.
            processors: multiprocessors of the GPU.
        """
        busiest = -(-blocks * chunks // processors)
        together = min(busiest, self.resident)
        per_tile = busiest / together * max(together, self.latency)
        once = (-(-tiles // chunks) + self.start) * per_tile
        return once if chunks == 1 else once * (1.0 + self.first_pass) + self.launch


FORWARD = ScanCost(first_pass=0.8, latency=2.2, resident=4)
"""Of the forward pass: from counts of the compiled instructions; the latency is an estimate, to be tuned."""

BACKWARD = ScanCost(first_pass=0.25, latency=2.0, resident=2)
"""Of the backward pass; as for `FORWARD`."""


@functools.cache
def chunk_count(cost: ScanCost, blocks: int, tiles: int, processors: int) -> int:
    """The number of chunks with the shortest time; the smallest such number. Arguments as of `ScanCost.time`."""
    return min(range(1, min(tiles, MAX_CHUNKS) + 1), key=lambda n: cost.time(n, blocks, tiles, processors))
