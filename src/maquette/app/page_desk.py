"""What the page works with: the queue that it shares with the HTTP API, and what this machine has."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maquette.app.page_create import models_with_weights
from maquette.app.page_examples import Examples

if TYPE_CHECKING:
    from maquette.app.jobs import JobQueue
    from maquette.app.limits import Limits
    from maquette.app.page_shelf import Shelf


@dataclass(frozen=True)
class Desk:
    """What the page works with.

    Attributes:
        queue: of the jobs, shared with the HTTP API.
        shelf: where edited meshes are kept.
        limits: of uploads.
        busy: held by whoever computes, so that edits and jobs do not run at once.
        examples: to start from.
        models: names to choose from.
    """

    queue: JobQueue
    shelf: Shelf
    limits: Limits
    busy: threading.Lock = field(default_factory=threading.Lock)
    examples: Examples = field(default_factory=Examples)
    models: tuple[str, ...] = field(default_factory=lambda: tuple(models_with_weights()))
