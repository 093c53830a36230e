"""Where a run stands in its schedule: by its steps, or by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

CHECK_STEPS = 10
"""How often several processes agree on the time and on whether to stop."""


class Clock:
    """Position in a schedule of `steps` steps.

    Without a time limit the position is the step. With one it is the larger of the step and of the same share of
    `steps` as has passed of the time; the run is over when either is.

    Args:
        steps: of the whole schedule.
        limit: training time in seconds, or None.
        agree: makes one integer of those of all processes, so that all are at the same position.

    Attributes:
        position: steps of the schedule that are over.
        earlier: training time of earlier calls, seconds.
    """

    def __init__(self, steps: int, limit: float | None, agree: Callable[[int], int]) -> None:
        self.position = 0
        self.earlier = 0.0
        self._steps, self._limit, self._agree = steps, limit, agree
        self._lead = 0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Training time of all calls."""
        return self.earlier + (time.monotonic() - self._began if self._began is not None else 0.0)

    def start(self, step: int) -> None:
        """Starts counting, with `step` steps done."""
        self._began = time.monotonic()
        self._read(step)

    def advance(self, step: int) -> None:
        """Moves on: `step` steps are done. The time is read every `CHECK_STEPS` steps."""
        if step % CHECK_STEPS == 0:
            self._read(step)
        else:
            self.position = step + self._lead

    def seconds_left(self, steps_per_second: float) -> float:
        """Expected time until the run is over."""
        by_steps = (self._steps - self.position) / max(steps_per_second, 1e-9)
        return by_steps if self._limit is None else min(by_steps, max(self._limit - self.seconds, 0.0))

    def _read(self, step: int) -> None:
        if self._limit is not None:
            share = self.seconds / self._limit
            self._lead = max(self._agree(int(share * self._steps)) - step, 0)
        self.position = step + self._lead
