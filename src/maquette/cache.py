"""Where maquette keeps files between runs: downloaded weights and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder: `$MAQUETTE_CACHE`, else `$XDG_CACHE_HOME/maquette`, else `~/.cache/maquette`. It need not exist."""
    configured = os.environ.get("MAQUETTE_CACHE")
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "maquette"
