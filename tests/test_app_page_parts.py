"""Parts of the page that need no browser: words, files that it keeps, examples, fields."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import pytest

from app_stand_ins import disc_picture
from maquette.app import page_words as words
from maquette.app.jobs import JobQueue, JobState
from maquette.app.limits import Limits, TooLargeError
from maquette.app.page_create import Fields, caption_of, follow, models_with_weights, request_of
from maquette.app.page_examples import find_examples
from maquette.app.page_shelf import Shelf
from maquette.errors import FileFormatError, InvalidInputError

EVIL = "<script>alert(1)</script>"


def state(**changes: object) -> JobState:
    values = {
        "id": "i",
        "status": "done",
        "stage": "making four views",
        "fraction": 0.254,
        "position": 0,
        "message": "",
        "warnings": (),
        "files": (),
        "created": 0.0,
        "finished": None,
    }
    return JobState(**{**values, **changes})  # type: ignore[arg-type]


def test_files_are_sorted_by_what_they_are() -> None:
    names = ["asset.ply", "asset.glb", "asset-views.png", "asset-prepared.png", "asset.png", "report.json"]
    files = words.ResultFiles.of(names)
    assert (files.ply, files.glb, files.splat) == ("asset.ply", "asset.glb", "")
    assert (files.views, files.prepared, files.sheet) == ("asset-views.png", "asset-prepared.png", "asset.png")


def test_nothing_from_outside_becomes_html() -> None:
    shown = [
        words.error_html(EVIL),
        words.note_html(EVIL),
        words.progress_html(state(status="running", stage=EVIL), 1),
        words.report_html(state(warnings=(EVIL,)), [{"timings_s": {EVIL: 1.0}}], 0),
        words.downloads_html(EVIL, words.ResultFiles(glb=EVIL), {}, EVIL),
        words.viewer_html(words.view_url(EVIL, EVIL), EVIL),
        words.picture_html(words.file_url(EVIL, '"><i>'), '"><i>'),
    ]
    assert not [text for text in shown if "<script" in text or '"><i>' in text]


def test_progress_and_report_in_words() -> None:
    running = words.progress_html(state(status="running"), 12.4)
    assert "Making four views" in running and "25% · 12 s" in running and 'aria-valuenow="25"' in running
    assert "2 jobs before" in words.progress_html(state(status="queued", position=2), 0)
    report = words.report_html(
        state(warnings=("it touches the border",)),
        [{"timings_s": {"make views": 3.21}}, {"gaussians": 1234, "mesh": {"triangles": 9876}, "timings_s": {}}],
        5,
    )
    for said in ("1,234 Gaussians", "9,876 triangles", "3.2 s of work", "seed 5", "it touches the border"):
        assert said in report
    assert [words.size_text(n) for n in (0, 999, 1000, 1_500_000)] == ["0 B", "999 B", "1.0 kB", "1.5 MB"]
    assert words.file_stem("a <red> chair/../x") == "a-red-chair-x" and words.file_stem("...") == "asset"


def test_broken_reports_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    (tmp_path / "views-report.json").write_text(json.dumps({"seed": 3}))
    assert words.read_reports(list(tmp_path.iterdir())) == [{"seed": 3}]


def test_shelf_keeps_the_latest_files_only(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "kept", capacity=2)
    made = []
    for index in range(3):
        key, path = shelf.new("a.glb")
        path.write_text(str(index))
        made.append(key)
    assert [shelf.file(key, "a.glb").read_text() for key in made[1:]] == ["1", "2"]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    (tmp_path / "secret").write_text("s")
    for key, name in ((made[0], "a.glb"), (made[1], "../a.glb"), (made[1], "b"), ("..", "secret"), ("", "secret")):
        with pytest.raises(InvalidInputError, match="not here any more"):
            shelf.file(key, name)


def test_examples_of_the_repository_and_without_it(tmp_path: Path) -> None:
    without = find_examples(tmp_path / "none", root=tmp_path / "missing")
    assert without.sentences and not without.pictures and not without.views
    found = find_examples(tmp_path / "found")
    assert len(found.pictures) == len(found.views) > 0
    with zipfile.ZipFile(found.views[0]) as archive:
        assert "transforms.json" in archive.namelist() and len(archive.namelist()) == 5


def test_fields_become_requests(tmp_path: Path) -> None:
    picture = tmp_path / "disc.png"
    picture.write_bytes(disc_picture((200, 30, 30)))
    limits = Limits(max_upload_bytes=100_000)
    fields = Fields(picture=str(picture), words=" a disc ", seed=5.0, quality="fitted", steps=0, guidance=None)
    request = request_of(fields, limits)
    assert request.picture == picture.read_bytes() and request.prompt == "a disc" and request.seed == 5
    assert request.fit_mesh and request.steps is None and request.guidance is None
    seeds = {request_of(Fields("sentence", sentence="a ball", random_seed=True), limits).seed for _ in range(4)}
    assert len(seeds) > 1
    assert caption_of(fields) == "a disc" and caption_of(Fields(picture=str(picture), words=None)) == "disc"
    assert "lgm-mini" in models_with_weights()


def test_fields_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    large, text = tmp_path / "large.png", tmp_path / "text.png"
    large.write_bytes(disc_picture((1, 2, 3)) + bytes(5000))
    text.write_text("no picture")
    limits = Limits(max_upload_bytes=5000)
    for fields, error, message in (
        (Fields(), InvalidInputError, "no picture yet"),
        (Fields("views"), InvalidInputError, "no views yet"),
        (Fields("sentence", sentence=None), InvalidInputError, "no sentence yet"),
        (Fields("sentence", sentence="a", seed=1.5), InvalidInputError, "whole number"),
        (Fields("sentence", sentence="a", seed=-1), InvalidInputError, "seed"),
        (Fields(picture=str(large)), TooLargeError, "at most 5,000"),
        (Fields(picture=str(text)), FileFormatError, "picture"),
    ):
        with pytest.raises(error, match=message):
            request_of(fields, limits)


def test_a_job_is_followed_to_its_end(tmp_path: Path) -> None:
    def work(request: object, folder: Path, report: object) -> list[str]:
        (folder / "asset.ply").write_text("x")
        return ["careful"]

    queue = JobQueue(work, tmp_path, capacity=2, timeout_s=10, keep_s=60)

    async def followed() -> list[JobState]:
        submitted = queue.submit(request_of(Fields("sentence", sentence="a ball"), Limits()))
        return [seen async for seen, _ in follow(queue, submitted.id)]

    states = asyncio.run(followed())
    queue.close()
    assert states[-1].status == "done" and states[-1].warnings == ("careful",) and states[-1].files == ("asset.ply",)
