"""Progress lines on stderr: redrawn in place on a terminal, one line per finished stage elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class StageLines:
    """Shows stages as they run; call it as a pipeline's `progress`.

    Attributes:
        stream: where the lines go.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _started: float = field(default=0.0, init=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports that `done` of `total` steps of a stage are finished."""
        if done == 0:
            self._started = time.perf_counter()
        if done >= total:
            self._write(f"{stage:<14} {time.perf_counter() - self._started:7.2f} s", end="\n")
        elif self.stream.isatty():
            self._write(f"{stage:<14} {f'{done}/{total}' if total > 1 else '...'}", end="")

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[2K" if self.stream.isatty() else ""
        self.stream.write(f"{start}{text}{end}")
        self.stream.flush()


def size_text(num_bytes: int) -> str:
    """A file size for people: `812 B`, `3.4 MB` (powers of 1000)."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
