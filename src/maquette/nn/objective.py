"""What a training objective returns, for every model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ObjectiveResult:
    """One evaluation of a training objective.

    Attributes:
        loss: scalar to minimise.
        metrics: named scalars to log (detached).
        pictures: predictions to look at, `[B, V, 3, H, W]` in 0..1 (detached), or None.
        references: the true pictures beside them, same shape, or None.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    pictures: Tensor | None = None
    references: Tensor | None = None
