"""The real work of jobs, with stand-ins for the networks, and one run with the real ones."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from app_stand_ins import DiscGenerator, DiscModel, color_in_ply, color_of, disc_picture, zipped
from maquette.app.jobs import GenerateRequest, JobQueue
from maquette.app.limits import Limits, TooLargeError
from maquette.app.progress import plan_of
from maquette.app.service import GenerateService
from maquette.app.views_zip import MAX_FILES, check_views_zip, unpack_views
from maquette.errors import FileFormatError, InvalidInputError, MaquetteError, WeightsError
from maquette.io import read_gaussians, read_image
from maquette.pipelines import Reconstruct
from pipeline_scenes import ball_views, write_views_folder

ROOT = Path(__file__).parent.parent
LOADED: list[str] = []


def load_disc(name: str, device: torch.device) -> Reconstruct:
    LOADED.append(name)
    return DiscModel()


def service(limits: Limits | None = None) -> GenerateService:
    LOADED.clear()
    return GenerateService(
        limits or Limits(),
        device="cpu",
        load_model=load_disc,
        load_generator=lambda name, device: DiscGenerator(),  # type: ignore[arg-type, return-value]
    )


@pytest.fixture(scope="module")
def views_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posed") / "ball"
    write_views_folder(folder, ball_views())
    return folder


def test_a_picture_becomes_files_with_progress(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    request = GenerateRequest(picture=disc_picture((200, 100, 50)), formats=("ply", "splat", "png"))
    said = service()(request, tmp_path, lambda stage, fraction: heard.append((stage, fraction)))
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {
        "asset.ply", "asset.splat", "asset.png", "asset-views.png", "asset-prepared.png", "report.json",
        "views-report.json",
    }  # fmt: skip
    assert color_in_ply((tmp_path / "asset.ply").read_bytes()) == (200, 100, 50)
    assert all(isinstance(text, str) for text in said)
    reports = [json.loads((tmp_path / name).read_text()) for name in ("report.json", "views-report.json")]
    assert str(tmp_path.parent) not in str(reports) and reports[0]["model"] == "disc-model"
    stages = list(dict.fromkeys(stage for stage, _ in heard))
    assert stages[0] == "loading the models" and "making four views" in stages and "/" not in "".join(stages)
    fractions = [fraction for _, fraction in heard if fraction]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)
    making = [fraction for stage, fraction in heard if stage == "making four views"]
    assert len(set(making)) == 4  # its three steps move the bar


def test_a_sentence_and_its_seed_decide(tmp_path: Path) -> None:
    work = service()
    for seed in (0, 7):
        folder = tmp_path / str(seed)
        work(GenerateRequest(prompt=" a red chair ", seed=seed, formats=("ply",)), folder, lambda *_: None)
        assert color_in_ply((folder / "asset.ply").read_bytes()) == color_of("a red chair", seed)
    assert LOADED == ["lgm-mini"]  # loaded once


def test_another_model_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    work = service()
    for index, name in enumerate(["lgm-mini", "gamba-mini", "gamba-mini", "lgm-mini"]):
        request = GenerateRequest(picture=disc_picture((9, 99, 199)), model=name, formats=("ply",))
        work(request, tmp_path / str(index), lambda *_: None)
        assert color_in_ply((tmp_path / str(index) / "asset.ply").read_bytes()) == (9, 99, 199)
    assert LOADED == ["lgm-mini", "gamba-mini", "lgm-mini"]
    assert len(work._models) == 2  # a generator and one model
    assert not (tmp_path / "1" / "asset-views.png").exists()  # no views in between


@pytest.mark.parametrize("prefix", ["", "ball/"])
def test_posed_views_in_a_zip(tmp_path: Path, views_folder: Path, prefix: str) -> None:
    request = GenerateRequest(views=zipped(views_folder, prefix), formats=("ply",))
    Limits().check(request)
    service()(request, tmp_path, lambda *_: None)
    assert {path.name for path in tmp_path.iterdir()} == {"asset.ply", "report.json"}
    assert [name for name, _ in plan_of(request)] == ["read", "prepare", "reconstruct", "write .ply"]


def test_warnings_of_the_work_reach_the_client_and_errors_are_words(tmp_path: Path) -> None:
    work = service()
    said = work(GenerateRequest(picture=disc_picture((1, 2, 3), 40), formats=("ply",)), tmp_path, lambda *_: None)
    assert any("little detail" in text for text in said)
    empty = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(empty, "PNG")
    with pytest.raises(MaquetteError, match="shows no object"):
        work(GenerateRequest(picture=empty.getvalue()), tmp_path / "b", lambda *_: None)
    broken = disc_picture((1, 2, 3))[:-200]
    with pytest.raises(FileFormatError, match="truncated"):
        work(GenerateRequest(picture=broken), tmp_path / "c", lambda *_: None)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are a few bytes that unpack to nothing like it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerateRequest(picture=png_header(30_000, 30_000)), "pixels"),
        (GenerateRequest(picture=png_header(2**31 - 1, 2**31 - 1)), "(pixels|readable)"),
        (GenerateRequest(picture=b"GIF89a" + b"\0" * 100), "not a readable"),
        (GenerateRequest(picture=b""), "not a readable"),
        (GenerateRequest(prompt="a" * 1001), "1000 characters"),
        (GenerateRequest(prompt="a", negative_prompt="b" * 5000), "1000 characters"),
        (GenerateRequest(views=b"PK\3\4 not a zip"), "not a readable .zip"),
        (GenerateRequest(prompt="a", model="lgm-big"), "weights of lgm-big"),
    ],
)  # fmt: skip
def test_limits_refuse_from_the_header(
    request_: GenerateRequest, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with warnings.catch_warnings(), pytest.raises((InvalidInputError, FileFormatError, WeightsError), match=words):
        warnings.simplefilter("error")
        Limits().check(request_)


def test_bytes_are_limited_and_limits_are_checked() -> None:
    with pytest.raises(TooLargeError, match="at most 1,000"):
        Limits(max_upload_bytes=1000).check(GenerateRequest(picture=b"x" * 1001))
    with pytest.raises(InvalidInputError, match="keep_s"):
        Limits(keep_s=0)


def make_zip(*files: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return stream.getvalue()


CAMERAS = ("transforms.json", b"{}")


def wrong_length(length: int) -> bytes:
    """A .zip whose table of contents lies about the length of a file."""
    data = bytearray(make_zip(("a.png", b"x" * 100_000), CAMERAS))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", length)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(make_zip(("a.png", b"x"), CAMERAS))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (make_zip(("../../evil.png", b"x"), CAMERAS), "leads out"),
        (make_zip(("/etc/evil.png", b"x"), CAMERAS), "leads out"),
        (make_zip(("a\\..\\evil.png", b"x"), CAMERAS), "leads out"),
        (make_zip(("a.png", b"\0" * 20_000_000), CAMERAS), "unpacks to"),
        (wrong_length(4_000_000_000), "unpacks to"),
        (wrong_length(200_000), "broken"),
        (wrong_length(10), "broken"),
        (encrypted(), "encrypted"),
        (make_zip(("a.png", b"x"), CAMERAS, compression=zipfile.ZIP_LZMA), "packed in a way"),
        (make_zip(("a.png", b"x")), "0 files transforms.json"),
        (make_zip(CAMERAS, ("b/transforms.json", b"{}")), "2 files transforms.json"),
        (make_zip(CAMERAS, *((f"{i}.png", b"x") for i in range(MAX_FILES))), f"at most {MAX_FILES}"),
        (make_zip(CAMERAS, *((f"{i}.txt", b"") for i in range(1001))), "more than 1000 entries"),
        (make_zip(("a.png", b"x"), ("a.png/transforms.json", b"{}")), "(cannot be used|readable)"),
        (make_zip(("n" * 300 + ".png", b"x"), CAMERAS), "(cannot be used|readable)"),
        (make_zip(("a.png", png_header(30_000, 30_000)), CAMERAS), "pixels"),
        (make_zip(CAMERAS)[:-30], "not a readable .zip"),
    ],
)  # fmt: skip
def test_hostile_zips_write_nothing_outside_and_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with pytest.raises(FileFormatError, match=words):
        check_views_zip(data, max_bytes=10_000_000)
        unpack_views(data, target, max_bytes=10_000_000, max_pixels=1_000_000)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(target)]
    assert not outside


def test_other_files_in_a_zip_stay_there(tmp_path: Path, views_folder: Path) -> None:
    data = io.BytesIO(zipped(views_folder))
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("run.sh", "rm -rf /")
        archive.writestr("__MACOSX/rgb/000.png", "fork")
        archive.writestr(".hidden.png", "x")
    root = unpack_views(data.getvalue(), tmp_path / "v", max_bytes=10_000_000, max_pixels=1_000_000)
    assert root == tmp_path / "v"
    assert {path.name for path in root.rglob("*") if path.is_file()} == {
        "transforms.json", "000.png", "001.png", "002.png", "003.png"
    }  # fmt: skip


def test_a_bomb_inside_a_job_fails_in_words(tmp_path: Path) -> None:
    queue = JobQueue(service(), tmp_path, capacity=2, timeout_s=60, keep_s=60)
    try:
        job = queue.submit(GenerateRequest(picture=png_header(30_000, 30_000)))
        while (state := queue.state(job.id)).finished is None:
            time.sleep(0.01)
        assert state.status == "failed" and "pixels" in state.message and str(tmp_path) not in state.message
    finally:
        queue.close()


def test_a_cancelled_job_stops_in_the_middle_of_the_pipeline(tmp_path: Path) -> None:
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go.wait(30)

    work = service()
    work.load_generator = lambda name, device: DiscGenerator(hold)  # type: ignore[assignment, arg-type, return-value]
    queue = JobQueue(work, tmp_path, capacity=2, timeout_s=60, keep_s=60)
    try:
        job = queue.submit(GenerateRequest(prompt="a chair", formats=("ply",)))
        assert started.wait(30)
        assert queue.state(job.id).stage == "making four views"
        assert queue.cancel(job.id).status == "cancelled"
        go.set()
        after = queue.submit(GenerateRequest(prompt="a table", formats=("ply",)))
        while (state := queue.state(after.id)).finished is None:
            time.sleep(0.01)
        assert state.status == "done" and "asset.ply" in state.files and "asset-views.png" in state.files
        assert LOADED == ["lgm-mini"]  # once: the first job never got past its views
        assert not list(tmp_path.glob(f"*/{job.id}"))
    finally:
        queue.close()


@pytest.mark.slow
def test_the_embedded_models_do_a_job(tmp_path: Path) -> None:
    request = GenerateRequest(
        picture=(ROOT / "examples" / "taxi" / "rgb" / "000.png").read_bytes(),
        prompt="a taxi",
        formats=("ply",),
        steps=2,
    )
    Limits().check(request)
    GenerateService(device="cpu")(request, tmp_path, lambda *_: None)
    assert read_gaussians(tmp_path / "asset.ply").num_gaussians > 1000
    assert read_image(tmp_path / "asset-views.png").shape[0] == 4
