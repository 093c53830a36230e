"""Connected parts of a volume on the CPU (Numba), by runs: neighbouring points along z on one side of 0."""

from __future__ import annotations

import numpy as np

from maquette.raster.cpu_jit import Array, Scalar, compiled


@compiled()
def find_runs(field: Array, positive: bool) -> tuple[Array, Array]:
    """Runs of a field `[X, Y, Z]` above 0, or of the others, column after column (y runs fastest).

    Returns:
        The first run of every column and the number of runs `[X Y + 1]`; start and end of every run along z `[R, 2]`.
    """
    size_x, size_y, size_z = field.shape
    firsts = np.zeros(size_x * size_y + 1, np.int64)
    for column in range(size_x * size_y):
        line = field[column // size_y, column % size_y]
        before, count = False, 0
        for z in range(size_z):
            now = (line[z] > 0) == positive
            count += now and not before
            before = now
        firsts[column + 1] = firsts[column] + count
    runs = np.empty((firsts[-1], 2), np.int64)
    for column in range(size_x * size_y):
        line = field[column // size_y, column % size_y]
        before, run = False, firsts[column]
        for z in range(size_z):
            now = (line[z] > 0) == positive
            if now and not before:
                runs[run, 0] = z
            elif before and not now:
                runs[run, 1] = z
                run += 1
            before = now
        if before:
            runs[run, 1] = size_z
    return firsts, runs


@compiled()
def root_of(parents: Array, run: Scalar) -> Scalar:
    """The smallest run of a part, as far as it is known; shortens the way there."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


@compiled()
def join_columns(
    runs: Array, parents: Array, one: Scalar, one_end: Scalar, other: Scalar, other_end: Scalar, gap: int
) -> None:
    """Joins the runs of two columns that overlap, or whose ends touch where `gap` is 1."""
    while one < one_end and other < other_end:
        if runs[one, 0] < runs[other, 1] + gap and runs[other, 0] < runs[one, 1] + gap:
            first, second = root_of(parents, one), root_of(parents, other)
            parents[max(first, second)] = min(first, second)
        if runs[one, 1] < runs[other, 1]:
            one += 1
        else:
            other += 1


@compiled()
def join_runs(firsts: Array, runs: Array, size_y: int, diagonal: bool) -> Array:
    """The first run of the part that every run belongs to, `[R]`.

    Args:
        firsts, runs: of `find_runs`; size_y: number of columns with one x.
        diagonal: points that touch at an edge or a corner are neighbours too.
    """
    parents = np.arange(len(runs))
    for column in range(len(firsts) - 1):
        y = column % size_y
        for step in range(4):  # back along y; back along x, with y one less, the same and one more
            other = column - 1 if step == 0 else column - size_y + step - 2
            aside = y - 1 if step == 0 else y + step - 2
            if other < 0 or aside < 0 or aside >= size_y or (step % 2 == 1 and not diagonal):
                continue
            join_columns(
                runs, parents, firsts[column], firsts[column + 1], firsts[other], firsts[other + 1], int(diagonal)
            )
    for run in range(len(runs)):
        parents[run] = parents[parents[run]]
    return parents


@compiled()
def fill_runs(field: Array, firsts: Array, runs: Array, chosen: Array, value: float) -> None:
    """Sets the points of the chosen runs `[R]` to a value."""
    size_y = field.shape[1]
    for column in range(len(firsts) - 1):
        line = field[column // size_y, column % size_y]
        for run in range(firsts[column], firsts[column + 1]):
            if chosen[run]:
                line[runs[run, 0] : runs[run, 1]] = value
