"""One folder for everything that is kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from maquette.cache import cache_folder
from maquette.raster.nvrtc import cubin_folder
from maquette.weights import store_folder


def test_variables_choose_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MAQUETTE_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    assert (cubin_folder(), store_folder()) == (tmp_path / "own" / "cubins", tmp_path / "own" / "weights")
    monkeypatch.delenv("MAQUETTE_CACHE")
    assert cubin_folder() == tmp_path / "xdg" / "maquette" / "cubins"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert store_folder() == tmp_path / ".cache" / "maquette" / "weights"
