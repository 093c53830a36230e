"""One step of the optimizer of refinement on the CPU (Numba)."""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, compiled

_MAX_GRADIENT = 10.0
"""No gradient counts more than so many times the mean of those before."""
_WANTED_SPEED, _GAIN = 0.3, 0.1
_SMOOTHING = 0.05


@compiled()
def advance(
    state: Array, gradient: Array, pull: float, mean: float, middle: Array, normals: Array, parts: Array, pace: float,
    low: float, high: float, shift: Array,
) -> None:  # fmt: skip
    """Updates what the optimizer knows of every vertex, and says how far it should move.

    Args:
        state: position (3), mean of squares, speed, mean gradient (3), freedom, two that are not read here, and wanted
            edge length, `[N, 12]`; all but the position, the freedom and these two is changed.
        gradient: `[N, 3]`; mean: of its absolute values; pull: to the middle of the neighbours, per speed and distance,
            relative to that mean.
        middle: of the neighbours `[N, 3]`; normals: unit `[N, 3]`.
        parts: shares of the new gradient in its mean, and of its square in theirs, `[2]`; 1 in the first step.
        pace: of the step, in edge lengths.
        low, high: bounds of the wanted edge length.
        shift: result `[N, 3]`.
    """
    way = np.empty(3)
    for vertex in range(len(state)):
        here, squares, along = state[vertex], 0.0, 0.0
        for axis in range(3):
            across = here[axis] - middle[vertex, axis]
            value = gradient[vertex, axis] + pull * here[4] * across * mean
            if parts[0] < 1.0:
                limit = _MAX_GRADIENT * abs(here[5 + axis]) + 1e-30
                value = min(max(value, -limit), limit)
            here[5 + axis] += parts[0] * (value - here[5 + axis])
            squares += value * value
            along -= across * normals[vertex, axis]
        here[3] += parts[1] * (squares - here[3])
        size, total = np.sqrt(here[3]) + 1e-30, 0.0
        for axis in range(3):
            velocity = here[5 + axis] / size
            total += velocity * velocity
            # Tangential smoothing evens the triangles out without shrinking the shape.
            level = (middle[vertex, axis] - here[axis]) - along * normals[vertex, axis]
            way[axis] = -pace * here[11] * velocity + _SMOOTHING * level
        for axis in range(3):
            shift[vertex, axis] = here[8] * way[axis]
        here[4] = np.sqrt(total)
        here[11] = min(max(here[11] * (1 + _GAIN * (here[4] - _WANTED_SPEED)), low), high)
