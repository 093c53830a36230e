"""`maquette doctor`: finds what is there, notices what is broken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import maquette.raster
from maquette import doctor
from maquette.cli import main


def test_a_working_machine_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    status = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert report["healthy"] is True
    assert status["torch"] == status["numba"] == status["self-test cpu"] == "ok"
    assert main(["doctor"]) == 0
    assert "This machine can generate" in capsys.readouterr().out


def test_a_wrong_picture_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = maquette.raster.render_gaussians

    def shifted(*args: Any, **kwargs: Any) -> maquette.raster.RenderedGaussians:
        rendered = right(*args, **kwargs)
        return dataclasses.replace(rendered, color=rendered.color.roll(3, dims=-1))

    monkeypatch.setattr(maquette.raster, "render_gaussians", shifted)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "wrong picture" in shown
    assert "does not work fully here; see: self-test cpu" in shown


def test_a_check_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise ImportError("numba is broken")

    monkeypatch.setattr(doctor, "_numba", broken)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["numba"].status == "fail"
    assert "numba is broken" in findings["numba"].detail
    assert findings["self-test cpu"].status == "ok"


def test_missing_packages_and_old_torch_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "_OPTIONAL", {"no_such_package.part": "nothing", "json": "something"})
    monkeypatch.setattr(torch, "__version__", "2.3.1+cpu")
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["packages"].status == "note"
    assert "no_such_package.part" in findings["packages"].detail
    assert findings["torch"].status == "fail"
    assert "2.11 or newer" in findings["torch"].detail


def test_a_cache_that_is_a_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path / "file" / "below"))
    finding = next(finding for finding in doctor.examine() if finding.name == "cache")
    assert finding.status == "note" and "set MAQUETTE_CACHE" in finding.detail
