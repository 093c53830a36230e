"""The viewer's pages without a browser: what they hold, how exact it is, how large, and what is refused."""

from __future__ import annotations

import dataclasses
import html.parser
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import maquette
from maquette import cli
from maquette.cameras import Cameras
from maquette.errors import FileFormatError, InvalidInputError, UnsupportedError
from maquette.gaussians import Gaussians
from maquette.io.gaussian_ply import SH_C0
from maquette.mesh import Mesh
from maquette.viewer import ViewerOptions, ViewerServer, background_of, export_html, viewer_html
from maquette.viewer.gaussian_payload import MAX_GAUSSIANS, morton_order
from maquette.viewer.mesh_payload import MAX_TRIANGLES
from pipeline_scenes import ball_of_gaussians
from viewer_scenes import arrays_of, cube_mesh, facts_of, gaussians_of, psnr, smooth_gaussians, surface_gaussians

MANY = 500_000
LARGEST_PAGE = 12_000_000


def pictures(gaussians: Gaussians, radius: float = 1.5) -> np.ndarray:
    cameras = Cameras.orbit([0.0, 130.0, 250.0], [0.0, 30.0, -20.0], radius=radius, height=256, width=256)
    return maquette.render(gaussians, cameras).numpy()


@pytest.mark.parametrize("scale", [0.006, 0.03])
def test_quantised_gaussians_look_like_the_originals(scale: float) -> None:
    gaussians = surface_gaussians(20_000, scale)
    shown = gaussians_of(viewer_html(gaussians))
    assert shown.num_gaussians == int((gaussians.opacities >= 1 / 255).sum())
    for radius in (1.5, 0.8):
        assert psnr(pictures(shown, radius), pictures(gaussians, radius)) > 45


def test_floaters_do_not_coarsen_the_object() -> None:
    gaussians = surface_gaussians(5000, 0.012)
    means = gaussians.means.clone()
    means[::500] *= 2000  # far away, in all directions
    spread = dataclasses.replace(gaussians, means=means)
    page = viewer_html(spread)
    assert psnr(pictures(gaussians_of(page)), pictures(spread)) > 45
    assert facts_of(page)["radius"] < 1  # and the camera stands where the object is seen
    assert np.linalg.norm(facts_of(page)["center"]) < 0.1


def test_values_at_the_ends_of_their_ranges() -> None:
    quats = torch.nn.functional.normalize(torch.randn(600, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    quats[:4] = torch.eye(4)
    gaussians = dataclasses.replace(ball_of_gaussians(600), quats=quats)
    gaussians.scales[5] = torch.tensor([1e-30, 0.5, 0.01])
    gaussians.opacities[6] = 1.0
    gaussians.colors[7] = torch.tensor([-0.5, 1.0, 2.5])
    order = torch.from_numpy(morton_order(gaussians.means[1:].double().numpy())) + 1  # the first one is invisible
    shown, wanted = gaussians_of(viewer_html(gaussians)), gaussians.select(order)
    assert float((shown.means - wanted.means).abs().max()) < 1e-5
    dots = (shown.quats * wanted.quats).sum(-1).abs()
    assert float(dots.min()) > 1 - 4e-6
    place = int((order == 5).nonzero())
    assert shown.scales[place].tolist()[1:] == pytest.approx([0.5, 0.01], rel=0.05)
    assert 0 < float(shown.scales[place, 0]) < 1e-5
    assert float(shown.opacities[(order == 6).nonzero()].item()) == 1.0
    assert shown.colors[(order == 7).nonzero()].flatten().tolist() == pytest.approx([0, 1.0, 2.5], abs=0.006)


def test_harmonics_become_their_mean_colour() -> None:
    plain = ball_of_gaussians(300)
    harmonics = torch.zeros(300, 4, 3)
    harmonics[:, 0] = (plain.colors - 0.5) / SH_C0
    harmonics[:, 1:] = 0.3
    page = viewer_html(dataclasses.replace(plain, colors=harmonics))
    assert facts_of(page)["harmonics"]
    assert torch.allclose(gaussians_of(page).colors, gaussians_of(viewer_html(plain)).colors, atol=1.1 / 255)


def test_half_a_million_gaussians_stay_under_12_mb(tmp_path: Path) -> None:
    scene = surface_gaussians(MANY, 0.003)
    path = export_html(dataclasses.replace(scene, opacities=scene.opacities.clamp_min(0.01)), tmp_path / "large.html")
    assert facts_of(path.read_text())["shown"] == MANY
    assert path.stat().st_size < LARGEST_PAGE


def test_morton_order_keeps_neighbours_together() -> None:
    points = np.random.default_rng(0).random((4096, 3))
    ordered = points[morton_order(points)].reshape(-1, 64, 3)
    sides = (ordered.max(1) - ordered.min(1)).max(1)
    assert np.median(sides) < 0.55  # 64 of 4096 points lie in two cells of side 1/4; in random order in all
    assert sorted(morton_order(points)) == list(range(4096))
    assert list(morton_order(np.zeros((3, 3)))) == [0, 1, 2]


def test_mesh_arrays() -> None:
    mesh = cube_mesh()
    page = viewer_html(mesh)
    arrays, facts = arrays_of(page), facts_of(page)
    assert np.allclose(arrays["vertices"], mesh.vertices)
    assert np.array_equal(arrays["faces"], mesh.faces)
    assert np.allclose(arrays["normals"][:, :3] / 127, mesh.normals)
    assert facts["groups"] == [{"material": 0, "first": 0, "count": 24}, {"material": 1, "first": 24, "count": 12}]
    assert facts["materials"][0]["texture"] == 0 and facts["materials"][1]["texture"] is None
    assert facts["materials"][1]["color"] == pytest.approx([0.2, 0.4, 0.8])
    assert arrays["texture0"][:2].tobytes() == b"\xff\xd8"  # JPEG
    assert facts["radius"] == pytest.approx(0.4 * 3**0.5, rel=1e-6)
    texture = mesh.materials[0].base_color_texture
    assert texture is not None
    texture[:8, :8, 3] = 0
    assert arrays_of(viewer_html(mesh))["texture0"][1:4].tobytes() == b"PNG"
    assert set(arrays_of(viewer_html(cube_mesh(textured=False)))) == {"vertices", "faces", "normals", "colors"}


class _Collector(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_titles_are_text_and_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    evil = "</title></h1><script>alert(1)</script><img src=x onerror=alert(1)> {{payload}}"
    page = viewer_html(ball_of_gaussians(), title=evil)
    collector, plain = _Collector(), _Collector()
    collector.feed(page)
    plain.feed(viewer_html(ball_of_gaussians(), title="plain"))
    assert collector.tags == plain.tags
    assert collector.addresses == ["data:,"]
    assert collector.texts.count(evil) == 2
    assert "connect-src" not in page and "default-src 'none'" in page
    file = tmp_path / "a<b>&'\".ply"
    maquette.write_gaussians(file, ball_of_gaussians())
    named = _Collector()
    named.feed(viewer_html(file))
    assert named.tags == plain.tags and file.name in named.texts


def test_objects_that_cannot_be_shown(tmp_path: Path) -> None:
    ball, cube = ball_of_gaussians(), cube_mesh()
    broken = dataclasses.replace(ball, means=ball.means.clone())
    broken.means[3, 1] = float("nan")
    faint = dataclasses.replace(ball, opacities=torch.full_like(ball.opacities, 0.003))
    many = Gaussians(*(getattr(ball, f.name)[:1].expand(MAX_GAUSSIANS + 1, *([-1] * (getattr(ball, f.name).ndim - 1)))
                       for f in dataclasses.fields(ball)))  # fmt: skip
    mesh_with_nan = dataclasses.replace(cube, vertices=torch.full_like(cube.vertices, float("inf")))
    bad = [
        (broken, "means: 1 of 900 values are NaN"),
        (faint, "none of the 300 Gaussians is visible"),
        (many, f"at most {MAX_GAUSSIANS:,}"),
        (Gaussians.stack([ball, ball]), "batch"),
        (ball.select(torch.zeros(300, dtype=torch.bool)), "no Gaussians"),
        (mesh_with_nan, "vertices of 24 of 24"),
        (Mesh(cube.vertices, cube.faces[:0]), "no faces"),
        (Mesh(cube.vertices, cube.faces[:1].expand(MAX_TRIANGLES + 1, 3)), f"at most {MAX_TRIANGLES:,}"),
        (Mesh(cube.vertices[:1].expand(3, 3), torch.tensor([[0, 1, 2]])), "no extent"),
    ]
    for asset, message in bad:
        with pytest.raises(InvalidInputError, match=message):
            export_html(asset, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidInputError, match=r"suffixes \.html"):
        export_html(ball, tmp_path / "page.txt")
    empty = tmp_path / "empty.splat"
    empty.touch()
    for file, error in ((empty, FileFormatError), (tmp_path / "a.docx", FileFormatError)):
        with pytest.raises(error, match=file.name):
            viewer_html(file)
    with pytest.raises(FileNotFoundError):
        viewer_html(tmp_path / "nothing.glb")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("background", "red;}"), ("azimuth_deg", float("nan")), ("elevation_deg", 91.0), ("radius", 0.0),
        ("fov_deg", 150.0), ("splat_scale", 3.0), ("lighting", "disco"),
    ],
)  # fmt: skip
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name.removesuffix("_deg")):
        ViewerOptions(**{name: value})  # type: ignore[arg-type]


def test_backgrounds_as_people_type_them() -> None:
    assert background_of("White") == "#ffffff" and background_of("transparent") == "transparent"
    assert background_of("D8E2DC") == background_of("#d8e2dc") == "#d8e2dc"
    for wrong in ("blue-ish", "#fff", "##ffffff", ""):
        with pytest.raises(InvalidInputError, match="valid: white, gray, black, transparent"):
            background_of(wrong)


def test_the_server_answers_this_machine_only() -> None:
    with ViewerServer("<p>ä</p>") as server:
        with urllib.request.urlopen(server.url + "?again") as answer:
            assert answer.read().decode() == "<p>ä</p>"
        for address, headers, code in (
            (server.url + "etc/passwd", {}, 404),
            (server.url + "../../secret", {}, 404),
            (server.url, {"Host": "evil.example"}, 403),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(address, headers=headers))
            assert refused.value.code == code
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(UnsupportedError, match=f"port {port} of 127.0.0.1"):
            ViewerServer("", port)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url)
    with pytest.raises(InvalidInputError, match="port"):
        ViewerServer("", 70000)


def test_export_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page = tmp_path / "ball.splat", tmp_path / "pages" / "ball.html"
    maquette.write_gaussians(source, smooth_gaussians(500))
    command = ["view", str(source), "--export", str(page), "--background", "20242b", "--turntable", "--title", "A ball"]
    assert cli.main(command) == 0
    assert str(page) in capsys.readouterr().out
    facts = facts_of(page.read_text())
    assert facts["options"]["background"] == "#20242b" and facts["options"]["turntable"]
    assert facts["count"] == 500
    assert cli.main(["view", str(source), "--export", str(page), "--background", "sea"]) == 1
    assert "unknown background 'sea'" in capsys.readouterr().err
