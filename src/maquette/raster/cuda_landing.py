"""Numbers that kernels leave in page-locked memory, where the host reads them without a call of the driver.

A copy and an event would cost the host 50 microseconds.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

NUMBERS = 8
"""How many numbers land at once; as in gaussian_common.cuh."""

_CELL = 16
"""64-bit words of a place to land: the numbers between two copies of the ticket, and padding."""
_CELLS = 1024
_POLLS = 10_000


@dataclass(frozen=True)
class Ticket:
    """For one kernel that leaves numbers.

    Attributes:
        number: what the kernel writes before and behind them.
        address: where.
        cell: the same memory.
    """

    number: int
    address: int
    cell: ctypes.Array[ctypes.c_int64]

    def wait(self, ask: Callable[[], list[int]]) -> list[int]:
        """The numbers, as soon as the kernel has left them. Other threads of Python may run meanwhile.

        Args:
            ask: gets the same numbers from the GPU; called when they do not land before long, or are written over
                because a thousand later kernels have had tickets.

        Raises:
            torch.AcceleratorError: a kernel failed.
        """
        for _ in range(_POLLS):
            if self.cell[NUMBERS + 1] == self.number:
                numbers = self.cell[1 : NUMBERS + 1]
                if self.cell[0] == self.number:  # no later kernel has begun to write there
                    return numbers
                break
            _let_others_run()
        return ask()


def new_ticket(device: torch.device) -> Ticket:
    """A place to land for one kernel on a device."""
    return _landing_on(device.type, device.index).new_ticket()


class _Landing:
    """Places to land, taken in turn. They are never let go, because a kernel may still be on its way."""

    def __init__(self, pinned: bool) -> None:
        self._memory = torch.zeros(_CELLS, _CELL, dtype=torch.int64, pin_memory=pinned)
        addresses = range(self._memory.data_ptr(), self._memory.data_ptr() + self._memory.nbytes, 8 * _CELL)
        cells = ctypes.c_int64 * (NUMBERS + 2)
        self._cells = [(address, cells.from_address(address)) for address in addresses]
        self._numbers = itertools.count(1)

    def new_ticket(self) -> Ticket:
        number = next(self._numbers)
        return Ticket(number, *self._cells[number % _CELLS])


@functools.cache
def _landing_on(device_type: str, index: int | None) -> _Landing:
    return _Landing(device_type == "cuda")


def _let_others_run() -> None:
    """Lets go of the interpreter for a moment."""
    if sys.platform == "win32":
        time.sleep(0)  # elsewhere it takes 80 microseconds
    else:
        os.sched_yield()
