"""The page of `maquette app` in a real browser, with a live server."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maquette.io import read_gaussians, read_mesh
from maquette.io.video import read_video_info

pytest.importorskip("gradio", reason="needs maquette[app]")

from app_page_server import BROKEN, REAL_SEED, SLOW
from conftest import FAILED
from viewer_scenes import chromium

ROOT = Path(__file__).parent.parent
FRONT = ROOT / "examples" / "taxi" / "rgb" / "000.png"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
WAIT_MS = 120_000
REAL_WAIT_MS = 300_000


@contextlib.contextmanager
def server(*command: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process and its address, once the page is up."""
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.match(r"http://\S+", line)
        assert url, line
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(url[0], timeout=10) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
        yield url[0], process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    with server(str(ROOT / "tests" / "app_page_server.py"), str(folder)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Callable[[dict[str, int]], Any]]:
    """Opens the page in a window of a size; at the end nothing may have asked another machine for anything.

    What the page says is printed when the test fails.
    """
    contexts, elsewhere = [], []

    def opened(size: dict[str, int]) -> Any:
        contexts.append(browser.new_context(viewport=size, accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else elsewhere.append(r.url))
        page.goto(url)
        page.wait_for_selector("#mq-generate")
        return page

    yield opened
    for context in contexts:
        if FAILED in request.node.stash:
            print(context.pages[0].inner_text("body"))
        context.close()
    assert not elsewhere


def fill(page: Any, field: str, value: str) -> None:
    """Types a value; what is typed while Gradio still fills the fields that it just showed is overwritten by it."""
    page.wait_for_selector(field)
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        page.fill(field, value)
        page.keyboard.press("Tab")
        page.wait_for_timeout(400)
        if page.input_value(field) == value:
            return
        assert time.monotonic() < deadline, f"{field} does not keep {value!r}"


def say(page: Any, sentence: str) -> None:
    """Fills the sentence in and presses the button."""
    page.get_by_role("tab", name="Sentence", exact=True).click()
    fill(page, "#mq-sentence textarea", sentence)
    page.click("#mq-generate")


def give(page: Any, picture: bytes | Path) -> None:
    """Gives a picture."""
    page.get_by_role("tab", name="Picture", exact=True).click()
    data = picture.read_bytes() if isinstance(picture, Path) else picture
    page.set_input_files("#mq-picture input[type=file]", {"name": "p.png", "mimeType": "image/png", "buffer": data})
    page.wait_for_selector("#mq-picture img")


def choose_seed(page: Any, seed: int) -> None:
    page.get_by_role("button", name="Seed, model and more").click()
    fill(page, "#mq-seed input", str(seed))


def wait_for_result(page: Any, timeout_ms: int = WAIT_MS) -> None:
    page.wait_for_selector("#mq-result", timeout=timeout_ms)
    page.wait_for_selector("#mq-gallery img", timeout=timeout_ms)


def pixels(frame: Any) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB")).astype(np.int16)


def steady(page: Any, part: str) -> tuple[Any, NDArray[np.int16]]:
    """The frame of a 3D view and its pixels, once it stands still and shows something in its middle."""
    frame = page.locator(f"{part} iframe")
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        page.frame_locator(f"{part} iframe").locator("html[data-state=ready]").wait_for()
        frame.scroll_into_view_if_needed()
        before = pixels(frame)
        page.wait_for_timeout(400)
        now = pixels(frame)
        height, width = now.shape[:2]
        middle = now[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        shows = (np.abs(middle - now[height // 2, 4]).max(axis=-1) > 24).mean() > 0.1
        if shows and middle.std(axis=(0, 1)).max() > 8 and np.array_equal(before, now):
            return frame, now
        assert time.monotonic() < deadline, f"{part} shows nothing, or never stands still"


def check_turns(page: Any, part: str) -> None:
    """The 3D view shows something in its middle, and something else after a drag (one that loads anew misses it)."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        frame, before = steady(page, part)
        box = frame.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 130, y + 40, steps=6)
        page.mouse.up()
        _, after = steady(page, part)
        if before.shape == after.shape and (np.abs(after - before).max(axis=-1) > 24).mean() > 0.02:
            return
        assert time.monotonic() < deadline, f"a drag turns nothing in {part}"


def save(page: Any, link: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        link.click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def check_width(page: Any, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_picture_in_and_everything_out_with_the_real_models(
    open_page: Callable[[dict[str, int]], Any], tmp_path: Path
) -> None:
    page = open_page(DESKTOP)
    give(page, FRONT)
    choose_seed(page, REAL_SEED)
    page.click("#mq-generate")
    page.wait_for_selector("#mq-state [role=progressbar]")
    wait_for_result(page, REAL_WAIT_MS)
    assert f"seed {REAL_SEED}" in page.inner_text("#mq-report")
    check_turns(page, "#mq-gaussians")
    page.get_by_role("tab", name="Mesh", exact=True).click()
    check_turns(page, "#mq-mesh")
    page.get_by_role("tab", name="Views", exact=True).click()
    sheet = page.locator("#mq-sheet img")
    sheet.wait_for()
    assert sheet.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    files = {path.suffix: path for link in page.locator("a.mq-download").all() if (path := save(page, link, tmp_path))}
    assert set(files) == {".ply", ".splat", ".glb", ".mp4"}
    gaussians = read_gaussians(files[".ply"])
    assert gaussians.num_gaussians == read_gaussians(files[".splat"]).num_gaussians > 1000
    mesh = read_mesh(files[".glb"])
    assert mesh.num_faces > 1000 and mesh.materials[0].base_color_texture is not None
    assert read_video_info(files[".mp4"]).num_frames > 8
    report = page.inner_text("#mq-report")
    assert f"{gaussians.num_gaussians:,} Gaussians" in report and f"{mesh.num_faces:,} triangles" in report
    page.get_by_text("Seconds per stage").click()
    assert "Make views" in page.inner_text("#mq-report")


def test_sentence_in_and_results_of_the_session(open_page: Callable[[dict[str, int]], Any], tmp_path: Path) -> None:
    page = open_page(DESKTOP)
    evil = "a ball <img src=x onerror='window.hacked=1'>"
    say(page, evil)
    wait_for_result(page)
    check_turns(page, "#mq-gaussians")
    assert evil in page.inner_text("#mq-report")  # the stand-in's warning repeats it
    assert page.evaluate("window.hacked") is None
    first = page.get_attribute("#mq-downloads a", "href")
    assert "a-ball-img-src-x" in page.get_attribute("#mq-downloads a", "download")
    page.evaluate("document.querySelector('#mq-gaussians iframe').dataset.old = 1")
    say(page, "another ball")
    page.wait_for_function("document.querySelectorAll('#mq-gallery img').length == 2")
    assert page.get_attribute("#mq-downloads a", "href") != first
    page.locator("#mq-gallery button:has(img)").nth(1).click()  # the older one
    page.wait_for_function(f"document.querySelector('#mq-downloads a').getAttribute('href') == {first!r}")


def test_the_chosen_tab_counts_without_an_answer_of_the_server(open_page: Callable[[dict[str, int]], Any]) -> None:
    page = open_page(DESKTOP)
    page.route("**/gradio_api/**", lambda route: route.abort())
    page.get_by_role("tab", name="Sentence", exact=True).click()
    fill(page, "#mq-sentence textarea", "a ball")
    page.unroute("**/gradio_api/**")
    page.click("#mq-generate")
    wait_for_result(page)


def test_examples_fill_the_inputs(open_page: Callable[[dict[str, int]], Any]) -> None:
    page = open_page(DESKTOP)
    page.locator("button.gallery-item").first.click()
    page.wait_for_function("document.querySelector('#mq-picture img')?.naturalWidth == 256")
    page.get_by_role("tab", name="Four views", exact=True).click()
    page.get_by_role("button", name="taxi.zip").click()
    page.wait_for_function("document.querySelector('#mq-views').innerText.includes('taxi')")
    page.get_by_role("tab", name="Sentence", exact=True).click()
    page.get_by_role("button", name="a pine tree").click()
    page.wait_for_function("document.querySelector('#mq-sentence textarea').value == 'a pine tree'")


def test_cancel(open_page: Callable[[dict[str, int]], Any]) -> None:
    page = open_page(DESKTOP)
    say(page, SLOW)
    page.wait_for_selector("#mq-state [aria-valuenow='80']")
    assert "Making four views" in page.inner_text("#mq-state")
    page.click("#mq-cancel")
    page.wait_for_function("document.querySelector('#mq-state').innerText.includes('was cancelled')")
    page.wait_for_selector("#mq-cancel", state="hidden")
    assert page.is_enabled("#mq-generate")


def white(size: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), "white").save(stream, "PNG")
    return stream.getvalue()


def test_errors_are_told_in_words(open_page: Callable[[dict[str, int]], Any]) -> None:
    page = open_page(DESKTOP)

    def told() -> str:
        page.wait_for_selector("#mq-state [role=alert]")
        text: str = page.inner_text("#mq-state")
        assert "Traceback" not in text and "Error" not in text.replace("RuntimeError", "")
        page.evaluate("document.querySelector('#mq-state [role=alert]').remove()")
        return text

    page.click("#mq-generate")
    assert "there is no picture yet" in told()
    give(page, white())
    page.click("#mq-generate")
    assert "no object" in told() or "stands out" in told()
    say(page, "   ")
    assert "there is no sentence yet" in told()
    page.get_by_role("tab", name="Four views", exact=True).click()
    page.set_input_files(
        "#mq-views input[type=file]", {"name": "v.zip", "mimeType": "application/zip", "buffer": b"PK not a zip"}
    )
    page.wait_for_selector("#mq-views a[download]")
    page.click("#mq-generate")
    assert "zip" in told()
    say(page, BROKEN)
    assert "the server's log says more" in told()
    page.get_by_role("tab", name="Edit", exact=True).click()
    page.click("#mq-smooth")
    page.wait_for_selector("#mq-edit-message [role=alert]")
    assert "There is no mesh yet" in page.inner_text("#mq-edit-message")


def settle(page: Any) -> None:
    """Waits until the page has asked the server for nothing for a second."""
    asked: list[Any] = []

    def listener(request: Any) -> None:
        asked.append(request)

    page.on("request", listener)
    deadline = time.monotonic() + WAIT_MS / 1000
    before = -1
    while len(asked) != before:
        assert time.monotonic() < deadline, "the page never comes to rest"
        before = len(asked)
        page.wait_for_timeout(1000)
    page.remove_listener("request", listener)


def paint(page: Any) -> None:
    """A stroke over the middle of the picture; one that met the picture while it was loading is repeated."""
    canvas = page.locator("#mq-painting canvas").first
    canvas.wait_for()
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        settle(page)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before = pixels(canvas)
        page.mouse.move(x - 40, y - 30)
        page.mouse.down()
        for to_x, to_y in ((40, -30), (40, 30), (-40, 30)):
            page.mouse.move(x + to_x, y + to_y, steps=3)
        page.mouse.up()
        page.mouse.move(1, 1)  # the brush's outline would count as paint
        settle(page)
        after = pixels(canvas)
        if after.shape == before.shape and (np.abs(after - before).max(axis=-1) > 24).mean() > 0.01:
            return
        assert time.monotonic() < deadline, "no stroke arrives"


def look_from(page: Any, side: str) -> None:
    """Turns the picture to paint on, and waits until it has changed and stands still."""
    canvas = page.locator("#mq-painting canvas").first
    settle(page)
    canvas.scroll_into_view_if_needed()
    front = before = pixels(canvas)
    page.get_by_role("button", name=side).click()
    deadline = time.monotonic() + WAIT_MS / 1000
    while True:
        page.wait_for_timeout(400)
        now = pixels(canvas)
        if now.shape == front.shape and not np.array_equal(now, front) and np.array_equal(now, before):
            return
        before = now
        assert time.monotonic() < deadline, f"the picture is never seen from the side {side!r}"


def message(page: Any, words: str) -> str:
    page.wait_for_function("words => document.querySelector('#mq-edit-message').innerText.includes(words)", arg=words)
    text: str = page.inner_text("#mq-edit-message")
    return text


def test_edit_smooths_what_is_painted_and_undoes_it(open_page: Callable[[dict[str, int]], Any], tmp_path: Path) -> None:
    page = open_page(DESKTOP)
    say(page, "a ball")
    wait_for_result(page)
    page.get_by_role("tab", name="Edit", exact=True).click()
    message(page, "Paint over")
    page.click("#mq-smooth")
    message(page, "nothing is painted yet")
    link = page.locator("#mq-edit-download a")
    start = read_mesh(save(page, link, tmp_path))
    paint(page)
    page.click("#mq-smooth")
    message(page, "Smoothed")
    edited = read_mesh(save(page, link, tmp_path))
    shift = (edited.vertices - start.vertices).norm(dim=1)
    middle = start.vertices[:, :2].norm(dim=1)
    front = start.vertices[:, 2] > 0
    assert edited.num_faces == start.num_faces
    assert int((shift > 1e-3).sum()) > 20 and float(shift[(middle < 0.05) & front].mean()) > 1e-3
    assert float(shift[(middle > 0.3) | ~front].max()) < 1e-4
    check_turns(page, "#mq-edit-viewer")
    page.click("#mq-undo")
    message(page, "undone")
    again = read_mesh(save(page, link, tmp_path))
    assert float((again.vertices - start.vertices).abs().max()) == 0
    page.wait_for_selector("#mq-undo[disabled]")


def test_edit_refines_from_another_side(open_page: Callable[[dict[str, int]], Any], tmp_path: Path) -> None:
    page = open_page(DESKTOP)
    say(page, "a ball")
    wait_for_result(page)
    page.get_by_role("tab", name="Edit", exact=True).click()
    message(page, "Paint over")
    link = page.locator("#mq-edit-download a")
    start = read_mesh(save(page, link, tmp_path))
    look_from(page, "Left")
    paint(page)
    page.click("#mq-refine")
    assert "triangles became" in message(page, "Refined")
    refined = read_mesh(save(page, link, tmp_path))
    from scipy import spatial

    distance, _ = spatial.cKDTree(refined.vertices.numpy()).query(start.vertices.numpy())
    aside = start.vertices[:, 0].numpy() < 0.3  # the left side looks at +X
    assert distance[aside].max() < 1e-4 and distance[~aside].max() > 1e-3


def test_phone_sized_window(open_page: Callable[[dict[str, int]], Any]) -> None:
    page = open_page(PHONE)
    check_width(page, PHONE["width"])
    say(page, "a ball")
    wait_for_result(page)
    check_width(page, PHONE["width"])
    check_turns(page, "#mq-gaussians")
    for name in ("Mesh", "Views", "Video", "Edit"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(400)
        check_width(page, PHONE["width"])
    message(page, "Paint over")
    check_width(page, PHONE["width"])


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_this_machine_only_and_loads_models_later(
    stop: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with server("-m", "maquette", "app", "--port", "0") as (address, process):
        assert address.startswith("http://127.0.0.1:")
        libraries = Path(f"/proc/{process.pid}/maps")
        if libraries.exists():  # Linux
            assert "libtorch" not in libraries.read_text()
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            assert seconds < 5  # of processor time: what it takes on a machine that does nothing else
        with urllib.request.urlopen(address + "api/health", timeout=10) as answer:
            assert b'"ok"' in answer.read()
        assert list(tmp_path.glob("maquette-app-*"))
        process.send_signal(stop)
        assert process.wait(60) == 0
    assert not list(tmp_path.glob("maquette-app-*"))
