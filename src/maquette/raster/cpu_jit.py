"""How the CPU kernels are compiled, and on how many threads they run.

Numba's cache on disk notices changes of a function's own file only, so a compiled function never calls one of another
file, and takes constants from elsewhere only where they are fixed by the semantics.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array = NDArray[Any]
F32 = np.float32
Scalar = Any
"""A float32 (or, in the backward projection, float64) inside compiled code."""

_FAST = {"contract", "reassoc", "nsz", "arcp"}  # not nnan and ninf: comparisons with NaN and infinities stay valid
_LOCK = threading.Lock()


def compiled(*, fast: bool = False, inline: bool = False, parallel: bool = False) -> Callable[[Function], Function]:
    """Decorator: compiles by Numba on the first call and keeps the result on disk (where a folder is writable).

    Args:
        fast: allows contraction and reordering of sums; results stay the same from run to run.
        inline: always inlined into its callers.
        parallel: `numba.prange` runs on threads, without the GIL.
    """
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "parallel": parallel, "nogil": True}
    options["fastmath"] = _FAST if fast else False
    options["inline"] = "always" if inline else "never"

    def decorate(function: Function) -> Function:
        try:
            return cast(Function, numba.njit(**options)(function))
        except RuntimeError:  # Numba found no writable folder for its cache
            return cast(Function, numba.njit(**(options | {"cache": False}))(function))

    return decorate


@contextmanager
def kernel_threads() -> Iterator[int]:
    """Runs kernels on as many threads as torch uses, one caller at a time; gives the number of threads.

    Some of Numba's threading layers abort the process when two Python threads enter them at once. Its OpenMP layer
    sets the number of threads of everybody else when it starts; torch gets its own back, since its sums depend on it.
    """
    with _LOCK:
        torch_threads, before = torch.get_num_threads(), numba.get_num_threads()
        threads = max(1, min(torch_threads, before))
        numba.set_num_threads(threads)
        try:
            yield threads
        finally:
            numba.set_num_threads(before)
            if torch.get_num_threads() != torch_threads:
                torch.set_num_threads(torch_threads)
