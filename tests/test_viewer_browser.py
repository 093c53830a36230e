"""The viewer's pages in a real browser: headless Chromium with software WebGL."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import maquette
from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.mesh import Mesh
from maquette.viewer import ViewerOptions, export_html, viewer_html
from viewer_scenes import (
    READY_MS,
    chromium,
    cube_mesh,
    picture_of,
    picture_of_bytes,
    psnr,
    smooth_gaussians,
    surface_gaussians,
)

Open = Callable[..., Any]
HEIGHT, WIDTH = 240, 320
EVIL = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'> & co"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of an object from the disk, without a network; at the end nothing may have gone wrong."""
    contexts, complaints, requests = [], [], []

    def show(asset: Gaussians | Mesh, address: str = "", title: str = "object", init: str = "", **settings: Any) -> Any:
        options = settings.pop("options", None)
        context = browser.new_context(**{"viewport": {"width": 480, "height": 360}, **settings})
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(READY_MS)
        page.add_init_script(init)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        file = export_html(asset, tmp_path / f"page{len(contexts)}.html", title=title, options=options)
        page.goto(f"file://{file}{address}")
        page.wait_for_selector("html[data-state=ready]", timeout=READY_MS)
        return page

    yield show
    for context in contexts:
        context.close()
    assert not complaints
    assert not [url for url in requests if not url.startswith(("file:", "blob:", "data:"))]


def look(page: Any, **camera: float) -> NDArray[np.float64]:
    """The view, after moving the camera if angles are given, `[H, W, 4]`."""
    if camera:
        page.evaluate("camera => maquetteViewer.setCamera(camera)", camera)
    return picture_of(page.evaluate(f"maquetteViewer.snapshot({{width: {WIDTH}, height: {HEIGHT}}})"))


def wait_until(page: Any, condition: str, value: float = 0.0) -> None:
    """Waits for a condition in JavaScript with `value` (the page's own policy forbids `wait_for_function`)."""
    deadline = time.monotonic() + READY_MS / 1000
    while not page.evaluate(f"value => {condition}", value):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def settle(page: Any) -> dict[str, Any]:
    """The camera, which follows softly, once it has stood still for a while and some frames."""
    before: dict[str, Any] = {}
    deadline = time.monotonic() + READY_MS / 1000
    while True:
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        now: dict[str, Any] = page.evaluate(f"{frames}.then(() => ({{...maquetteViewer.camera}}))")
        if now == before:
            return now
        assert time.monotonic() < deadline, "the camera never stands still"
        before = now
        page.wait_for_timeout(400)


def screen(page: Any) -> NDArray[np.float64]:
    """What is on the screen, with buttons."""
    settle(page)
    return picture_of_bytes(page.screenshot())


def change(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(("count", "scale"), [(20_000, 0.005), (1000, 0.03)])
def test_gaussians_look_like_the_rasterizers(open_page: Open, count: int, scale: float) -> None:
    gaussians = surface_gaussians(count, scale)
    gaussians.colors[: count // 10] *= 2  # harmonics can be brighter than white; the sum of all is cut
    page = open_page(gaussians, address="#controls=0", viewport={"width": 200, "height": 150})
    for azimuth, elevation, radius, fov in (
        (0.0, 0.0, 1.5, 49.1),
        (130.0, 35.0, 1.2, 60.0),
        (250.0, -60.0, 0.75, 49.1),
    ):
        shown = look(page, azimuth=azimuth, elevation=elevation, radius=radius, fov=fov, target=[0.1, 0, 0])
        camera = Cameras.orbit(
            [azimuth], [elevation], radius=radius, fov_deg=fov, height=HEIGHT, width=WIDTH, target=(0.1, 0, 0)
        )
        wanted = maquette.render(gaussians, camera)[0].permute(1, 2, 0).numpy()
        assert psnr(shown[..., :3], wanted) > 45
        assert (shown[..., 3] == 1).all()
    wanted = maquette.render(gaussians, camera.resized(150, 200))[0].permute(1, 2, 0).numpy()
    assert psnr(screen(page)[..., :3], wanted) > 45  # and what is on the screen


@pytest.mark.parametrize(
    ("init", "least"),
    [
        ("window.Worker = class { constructor() { throw new Error('not here'); } };", 45),
        ("WebGL2RenderingContext.prototype.getExtension = () => null;", 28),
        ("delete Uint8Array.fromBase64; Object.defineProperty(window, 'devicePixelRatio', { value: 3 });", 45),
    ],
    ids=["no worker", "no float pictures", "older browser"],
)
def test_browsers_that_offer_less(open_page: Open, init: str, least: float) -> None:
    gaussians = surface_gaussians(1500, 0.02)
    page = open_page(gaussians, init=init, viewport={"width": 200, "height": 150})
    shown = look(page, azimuth=70, elevation=20, radius=1.5, target=[0, 0, 0])
    wanted = maquette.render(gaussians, Cameras.orbit([70.0], [20.0], height=HEIGHT, width=WIDTH))[0]
    assert psnr(shown[..., :3], wanted.permute(1, 2, 0).numpy()) > least


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_the_unit_of_length_does_not_matter(open_page: Open, factor: float) -> None:
    gaussians, mesh = smooth_gaussians(500, 0.03), cube_mesh()
    large = dataclasses.replace(gaussians, means=gaussians.means * factor, scales=gaussians.scales * factor)
    for usual, other in ((gaussians, large), (mesh, mesh.transformed(factor))):
        pictures = [look(open_page(asset, viewport={"width": 200, "height": 150})) for asset in (usual, other)]
        assert psnr(*pictures) > 35
        assert np.ptp(pictures[0]) > 0.5


def test_one_gaussian(open_page: Open) -> None:
    page = open_page(smooth_gaussians(10, 0.03).select(torch.tensor([3])))
    assert page.locator("#count").inner_text() == "1 Gaussian"
    assert np.ptp(look(page)[..., :3]) > 0.3


def test_transparent_snapshots_and_splat_size(open_page: Open) -> None:
    gaussians = smooth_gaussians(1500, 0.015)
    options = ViewerOptions(background="transparent", radius=1.5)
    page = open_page(gaussians, options=options, viewport={"width": 200, "height": 150})
    camera = Cameras.orbit([40.0], [10.0], height=HEIGHT, width=WIDTH)
    for scale in (1.0, 0.5):
        page.evaluate(f"maquetteViewer.setSplatScale({scale})")
        shown = look(page, azimuth=40, elevation=10, target=[0, 0, 0])
        wanted = maquette.render_gaussians(gaussians, camera, background=(0, 0, 0), scale_modifier=scale)
        assert psnr(shown[..., 3], wanted.alpha[0].numpy()) > 40
        assert psnr(shown[..., :3] * shown[..., 3:], wanted.color[0].permute(1, 2, 0).numpy()) > 40
    assert (shown[0, 0] == 0).all()


@pytest.mark.parametrize("textured", [True, False])
@pytest.mark.parametrize("lighting", ["studio", "unlit"])
def test_meshes_look_like_the_rasterizers(open_page: Open, textured: bool, lighting: Any, tmp_path: Path) -> None:
    mesh = cube_mesh(textured)
    maquette.write_mesh(tmp_path / "cube.glb", mesh)
    page = open_page(maquette.read_mesh(tmp_path / "cube.glb"), options=ViewerOptions(lighting=lighting))
    for azimuth, elevation in ((30.0, 25.0), (215.0, -35.0)):
        shown = look(page, azimuth=azimuth, elevation=elevation, radius=1.7, target=[0, 0, 0])
        camera = Cameras.orbit([azimuth], [elevation], radius=1.7, height=HEIGHT, width=WIDTH)
        wanted = maquette.render(mesh, camera, lighting=lighting)[0].permute(1, 2, 0).numpy()
        assert psnr(shown[..., :3], wanted) > 33
        assert 0.1 < (np.abs(shown[..., :3] - 1).max(-1) > 0.02).mean() < 0.6


def test_flat_shading_and_files_of_other_formats(open_page: Open, tmp_path: Path) -> None:
    maquette.write_mesh(tmp_path / "cube.stl", cube_mesh())
    bare = maquette.read_mesh(tmp_path / "cube.stl")
    assert bare.normals is None
    page = open_page(bare)
    shown = look(page, azimuth=40, elevation=30, radius=1.7, target=[0, 0, 0])
    wanted = maquette.render(bare, Cameras.orbit([40.0], [30.0], radius=1.7, height=HEIGHT, width=WIDTH))[0]
    assert psnr(shown[..., :3], wanted.permute(1, 2, 0).numpy()) > 33


def test_dragging_scrolling_and_keys_move_the_camera(open_page: Open) -> None:
    page = open_page(smooth_gaussians(1500, 0.02), options=ViewerOptions(azimuth_deg=0, elevation_deg=0))
    camera = lambda: page.evaluate("maquetteViewer.camera")  # noqa: E731
    before, first = screen(page), camera()
    assert (np.ptp(before[..., :3], axis=(0, 1)) > 0.3).all()  # not blank
    middle = before[120:200, 180:300, :3]
    assert middle[..., 0].mean() > middle[..., 1].mean() + 0.3  # the front is red
    page.mouse.move(240, 180)
    page.mouse.down()
    page.mouse.move(240 - 90, 180, steps=4)
    page.mouse.up()
    turned = screen(page)
    assert change(turned, before) > 0.02
    assert camera()["azimuth"] == pytest.approx(first["azimuth"] + 90 * 180 / 360, abs=0.5)
    page.mouse.wheel(0, -300)
    nearer = screen(page)
    assert change(nearer, turned) > 0.02 and camera()["radius"] < 0.8 * first["radius"]
    page.mouse.down(button="right")
    page.mouse.move(200, 140, steps=4)
    page.mouse.up(button="right")
    settle(page)
    assert np.linalg.norm(np.subtract(camera()["target"], first["target"])) > 0.05
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    settle(page)
    assert camera()["elevation"] < -30
    page.keyboard.press("r")
    settle(page)
    for name, value in first.items():
        assert camera()[name] == pytest.approx(value, abs=1e-3)


def test_buttons(open_page: Open, tmp_path: Path) -> None:
    page = open_page(smooth_gaussians(1500, 0.02), viewport={"width": 1100, "height": 500})
    assert page.locator("#title").inner_text() == "object"
    assert page.locator("#count").inner_text() == "1,500 Gaussians"
    before = screen(page)
    assert (before[100, 30] == 1).all()
    page.click('button[title="Black"]')
    assert (screen(page)[100, 30, :3] == 0).all()
    page.fill("#color", "#336699")
    assert np.allclose(screen(page)[100, 30, :3], [0.2, 0.4, 0.6])
    page.click('button[title="Transparent"]')
    assert len(np.unique(screen(page)[100, 20:80, 0])) == 2  # a checkerboard
    open_picture = look(page)
    page.fill("#splat-scale", "0.2")
    assert "20 %" in page.locator("#splat-value").inner_text()
    assert look(page)[..., 3].mean() < 0.7 * open_picture[..., 3].mean()
    with page.expect_download() as download:
        page.click("#screenshot")
    assert download.value.suggested_filename == "object.png"
    saved = picture_of_bytes(Path(download.value.path()).read_bytes())
    assert saved.shape == (500, 1100, 4) and saved[100, 30, 3] == 0 and saved[..., 3].max() > 0.5
    azimuth = page.evaluate("maquetteViewer.camera.azimuth")
    page.click("#turntable")
    wait_until(page, "maquetteViewer.camera.azimuth > value + 3", azimuth)
    page.click("#turntable")
    settle(page)
    page.click("#settings")
    assert not page.locator("#panel").is_visible()


def test_the_object_is_fitted_again_until_somebody_moves_it(open_page: Open) -> None:
    page = open_page(cube_mesh(), viewport={"width": 1000, "height": 400})
    wide = page.evaluate("maquetteViewer.camera.radius")
    page.set_viewport_size({"width": 300, "height": 600})
    wait_until(page, "maquetteViewer.camera.radius > 1.2 * value", wide)
    narrow = settle(page)["radius"]
    page.keyboard.press("+")
    wait_until(page, "maquetteViewer.camera.radius < value", narrow)
    settle(page)
    page.set_viewport_size({"width": 1000, "height": 400})
    wait_until(page, "document.querySelector('canvas').width == value", 1000)
    assert settle(page)["radius"] == pytest.approx(0.9 * narrow)


def test_light_of_meshes(open_page: Open) -> None:
    page = open_page(cube_mesh(), viewport={"width": 1100, "height": 500})
    assert page.locator("#count").inner_text() == "12 triangles"
    assert not page.locator("#splat-scale").is_visible()
    studio = look(page)
    page.click("#light")
    assert change(look(page), studio) > 0.004


def test_names_cannot_run_programs(open_page: Open) -> None:
    page = open_page(smooth_gaussians(300, 0.03), title=EVIL)
    assert page.title() == page.locator("#title").inner_text() == EVIL
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0


def test_phone(open_page: Open) -> None:
    page = open_page(
        smooth_gaussians(1500, 0.02),
        viewport={"width": 360, "height": 640},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.locator("#panel").is_visible()
    for button in page.locator("nav button").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
        assert min(box["width"], box["height"]) >= 44
    page.tap("#settings")
    box = page.locator("#panel").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    page.tap('button[title="Black"]')
    picture = screen(page)
    assert (picture[200, 10, :3] == 0).all()
    bright = picture[..., :3].max(-1)[250:850] > 0.4
    assert bright.any(0).mean() > 0.5 and not bright[:, :8].any() and not bright[:, -8:].any()  # fitted into the width
    before = page.evaluate("maquetteViewer.camera")
    session = page.context.new_cdp_session(page)
    for kind, gap in (("Start", 60), ("Move", 80), ("Move", 120), ("End", 0)):
        points = [] if kind == "End" else [{"x": 180 - gap, "y": 300, "id": 0}, {"x": 180 + gap, "y": 300, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    after = settle(page)
    assert after["radius"] == pytest.approx(before["radius"] / 2, rel=0.05)
    assert after["azimuth"] == pytest.approx(before["azimuth"], abs=1)


def test_address_and_frame(browser: Any, open_page: Open) -> None:
    words = "#azimuth=90&elevation=-20&radius=2.5&fov=30&background=20242b&controls=0&splatScale=0.5&lighting=x&radius="
    page = open_page(smooth_gaussians(500, 0.03), address=words)
    camera = page.evaluate("maquetteViewer.camera")
    assert [camera[name] for name in ("azimuth", "elevation", "radius", "fov")] == [90, -20, 2.5, 30]
    assert not page.locator("nav").is_visible() and not page.locator("#title").is_visible()
    assert np.allclose(screen(page)[5, 5, :3] * 255, [0x20, 0x24, 0x2B])
    inner = html.escape(viewer_html(smooth_gaussians(500, 0.03)))
    outer = browser.new_page()
    outer.set_content(
        f'<iframe sandbox="allow-scripts" style="display: none" width="400" height="300" srcdoc="{inner}"></iframe>'
    )
    frame = outer.frame_locator("iframe")
    frame.locator("html[data-state=ready]").wait_for(timeout=READY_MS, state="attached")
    outer.eval_on_selector("iframe", "frame => { frame.style.display = 'block'; }")  # as tabs do
    deadline = time.monotonic() + READY_MS / 1000
    while (np.ptp(picture_of_bytes(frame.locator("canvas").screenshot())[..., :3], axis=(0, 1)) <= 0.3).any():
        assert time.monotonic() < deadline, "nothing is drawn"
    outer.close()


def test_no_webgl_is_said_in_words(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    page.goto(f"file://{export_html(cube_mesh(), tmp_path / 'page.html')}")
    page.wait_for_selector("html[data-state=failed]", timeout=READY_MS)
    assert "no WebGL 2" in page.locator("#message").inner_text()
    page.close()


def test_damaged_pages_say_so(browser: Any, tmp_path: Path) -> None:
    text = viewer_html(smooth_gaussians(300, 0.03))
    found = re.search(r'type="text/plain">(.*?)</script>', text)
    assert found
    file = tmp_path / "damaged.html"
    file.write_text(text.replace(found[1], found[1][: len(found[1]) // 8 * 4]))
    page = browser.new_page()
    page.goto(f"file://{file}")
    page.wait_for_selector("html[data-state=failed]", timeout=READY_MS)
    assert "cannot be shown" in page.locator("#message").inner_text()
    page.close()


def test_command_line_serves_until_interrupted(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "ball.ply"
    gaussians = smooth_gaussians(500, 0.03)
    maquette.write_gaussians(file, Gaussians(*(getattr(gaussians, name).to(torch.float32) for name in
                                               ("means", "quats", "scales", "opacities", "colors"))))  # fmt: skip
    command = [sys.executable, "-m", "maquette", "view", str(file), "--no-open"]
    # Where the tests run in the background of a shell Ctrl-C is ignored, and processes started here would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("html[data-state=ready]", timeout=READY_MS)
        assert page.locator("#title").inner_text() == "ball.ply"
        page.close()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in errors
