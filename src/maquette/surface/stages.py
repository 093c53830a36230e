"""Times the stages of a long way and passes progress on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all), at the start of a stage with 0 done."""


@dataclass
class Stages:
    """Runs stages one after the other.

    Attributes:
        progress: told about them.
        timings_s: stage to seconds, in order.
    """

    progress: Progress | None = None
    timings_s: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def run(self, stage: str, total: int = 1) -> Iterator[Callable[[int, int], None]]:
        """A stage; gives a function to call with (steps done, steps in all) while it runs."""
        self._tell(stage, 0, total)
        start = time.perf_counter()
        yield lambda done, steps: self._tell(stage, done, steps) if done < steps else None
        self.timings_s[stage] = time.perf_counter() - start
        self._tell(stage, total, total)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)
