"""Reshaped variants of `--plan sides`: geometry, framing, agreement of the four views, and what is stored of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from maquette.data.batch import render_set
from maquette.data.dataset import RenderedDataset
from maquette.data.plans import RenderOptions, plan_variant
from maquette.data.render import RenderedVariant, bounding_sphere, render_variants
from maquette.data.reshape import Reshape, random_reshape
from maquette.data.surface import Surface, pack_surface
from maquette.errors import InvalidInputError
from maquette.io import write_mesh
from maquette.mesh import Material, Mesh

SIDES = RenderOptions(plan="sides", image_size=64, supersample=1, variants=5)
RESHAPED = dataclasses.replace(SIDES, reshape_probability=1.0)
STRONG = Reshape(stretch=(0.7, 1.4, 1.2), lean=0.2, taper=0.35, turn_deg=110.0)


def wedge() -> Mesh:
    """Different from every side: a low block with a tall red fin at its front left, textured by material."""
    block = torch.tensor([[x, y, z] for x in (-0.8, 0.8) for y in (-0.5, 0.1) for z in (-0.4, 0.4)])
    fin = torch.tensor([[0.5, 0.1, 0.1], [0.8, 0.1, 0.4], [0.5, 0.1, 0.4], [0.6, 1.0, 0.3]])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    faces += [(8, 9, 10), (8, 11, 9), (9, 11, 10), (10, 11, 8)]
    materials = (Material(base_color=(0.4, 0.5, 0.7, 1.0)), Material(base_color=(0.9, 0.1, 0.1, 1.0)))
    return Mesh(
        torch.cat([block, fin]),
        torch.tensor(faces),
        materials=materials,
        face_materials=torch.tensor([0] * 12 + [1] * 4),
    )


def ball(rows: int = 24, columns: int = 48) -> Mesh:
    """The unit sphere with normals and texture coordinates."""
    v, u = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    height, angle = torch.pi * v, 2 * torch.pi * u
    points = torch.stack([height.sin() * angle.sin(), height.cos(), height.sin() * angle.cos()], -1).reshape(-1, 3)
    corner = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns - 1)).flatten()
    lower, upper = ([corner, corner + columns, corner + 1], [corner + 1, corner + columns, corner + columns + 1])
    faces = torch.cat([torch.stack(lower, -1), torch.stack(upper, -1)])
    areas = torch.linalg.cross(*(points[faces[:, i]] - points[faces[:, 0]] for i in (1, 2))).norm(dim=-1)
    texture = torch.ones(16, 16, 4)
    uvs = torch.stack([u, v], -1).reshape(-1, 2)
    return Mesh(points, faces[areas > 1e-6], points, uvs, materials=(Material(base_color_texture=texture),))


def render(options: RenderOptions, object_id: str = "thing", mesh: Mesh | None = None) -> list[RenderedVariant]:
    return list(render_variants(mesh or wedge(), object_id, False, options))


def facet_normals(surface: Surface) -> Tensor:
    """Vertex normals as sums of those of the faces around, weighted by area, `[N, 3]`."""
    corners = surface.vertices[surface.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(surface.vertices)
    for corner in range(3):
        total.index_add_(0, surface.faces[:, corner], normals)
    return torch.nn.functional.normalize(total, dim=-1)


def test_normals_and_texture_detail_follow_the_shape() -> None:
    surface = pack_surface(ball(), "cpu")
    changed = STRONG.apply(surface)
    assert changed.normals is not None
    inner = surface.vertices[:, 1].abs() < 0.95  # rows of the poles, and the seam where the texture ends
    inner &= (surface.vertices[:, 0].abs() > 0.2) | (surface.vertices[:, 2] < 0)
    agreement = (changed.normals * facet_normals(changed)).sum(-1)[inner]
    assert float(agreement.min()) > 0.995
    assert float((surface.normals * facet_normals(changed)).sum(-1)[inner].min()) < 0.8  # type: ignore[operator]
    anew = pack_surface(dataclasses.replace(ball(), vertices=changed.vertices), "cpu")
    torch.testing.assert_close(changed.face_normals, anew.face_normals)
    torch.testing.assert_close(changed.texel_density, anew.texel_density, rtol=1e-3, atol=0)


def test_each_change_does_what_it_says() -> None:
    point = Surface(
        **{
            **{field.name: getattr(pack_surface(wedge(), "cpu"), field.name) for field in dataclasses.fields(Surface)},
            "vertices": torch.tensor([[0.5, 0.4, 0.25]] * 12),
        }
    )

    def image(**changes: object) -> list[float]:
        return [float(x) for x in Reshape(**changes).apply(point).vertices[0]]  # type: ignore[arg-type]

    assert image() == pytest.approx([0.5, 0.4, 0.25])
    assert image(stretch=(2.0, 3.0, 4.0)) == pytest.approx([1.0, 1.2, 1.0])
    assert image(lean=0.5) == pytest.approx([0.5, 0.4, 0.45])
    assert image(taper=0.5) == pytest.approx([0.6, 0.4, 0.3])
    assert image(turn_deg=90.0) == pytest.approx([0.25, 0.4, -0.5], abs=1e-6)


def test_a_turned_object_is_the_object_seen_from_elsewhere() -> None:
    """The front of an object that is turned by 90 degrees stands at azimuth 90."""
    mesh = wedge()
    turned = dataclasses.replace(mesh, vertices=Reshape(turn_deg=90.0).apply(pack_surface(mesh, "cpu")).vertices)
    pictures = [
        render(RenderOptions(plan="custom", lighting="unlit", image_size=64, azimuths_deg=(azimuth,)), mesh=shown)[0]
        for azimuth, shown in ((0.0, mesh), (90.0, turned), (0.0, turned))
    ]
    expected, same, other = (picture.colors.astype(int) for picture in pictures)
    assert (np.abs(expected - same) > 8).mean() < 0.005
    assert (np.abs(expected - other) > 8).mean() > 0.05


def test_shapes_are_varied_but_limited() -> None:
    generator = np.random.default_rng(0)
    drawn = [random_reshape(generator) for _ in range(400)]
    stretches = np.log([shape.stretch for shape in drawn])
    assert np.abs(stretches).max() <= 0.5 and 0.2 < stretches.std() < 0.26
    assert max(abs(shape.lean) for shape in drawn) <= 0.18 and max(abs(shape.taper) for shape in drawn) <= 0.4
    turns = np.array([shape.turn_deg for shape in drawn])
    assert turns.min() >= 0 and turns.max() < 360
    sides = turns[turns % 90 == 0]
    assert 0.42 < len(sides) / 400 < 0.58 and set(sides) == {0, 90, 180, 270}
    assert np.histogram(turns, 4, (0, 360))[0].min() > 70


def test_without_reshaping_nothing_changes() -> None:
    """The share decides about variants > 0 alone, and about nothing but their shape."""
    half = dataclasses.replace(SIDES, reshape_probability=0.5)
    counts = []
    for name in ("a", "b", "c", "d"):
        for number in range(40):
            plain, some, every = (plan_variant(options, name, False, number) for options in (SIDES, half, RESHAPED))
            assert plain.reshape is None and dataclasses.replace(every, reshape=None) == plain
            assert (every.reshape is None) == (number == 0)
            assert some.reshape in (None, every.reshape)
            counts.append(some.reshape is not None)
    assert 0.4 < np.mean(counts) < 0.6
    settings = SIDES.settings()
    assert "reshape_probability" not in settings and "reshape" not in plan_variant(SIDES, "a", False, 1).settings()
    assert half.settings() == {**settings, "reshape_probability": 0.5}
    for plain_item, changed_item in zip(render(SIDES), render(half), strict=True):
        same = np.array_equal(plain_item.colors, changed_item.colors)
        assert same == (changed_item.variant.reshape is None)


def test_looks_are_those_of_earlier_releases() -> None:
    """Draws of the plan before shapes were changed: azimuth and elevation of the first view, radius, sky's red."""
    expected = [
        (0.0, 0.0, 0.6, 0.57),
        (358.591425, 0.0, 0.608919, 0.440566),
        (0.0, 0.0, 0.474956, 0.419684),
        (226.761966, 28.442375, 0.454286, 0.370871),
    ]
    for probability in (0.0, 1.0):
        options = RenderOptions(plan="sides", seed=3, reshape_probability=probability)
        for number, numbers in enumerate(expected):
            variant = plan_variant(options, "thing", False, number)
            first = variant.frames[0]
            found = (first.azimuth_deg, first.elevation_deg, variant.bounding_radius, variant.light.sky[0])
            assert found == pytest.approx(numbers, abs=1e-5)


def test_reshaped_objects_are_whole_and_of_the_variants_size() -> None:
    for name in ("one", "two", "three"):
        for item in render(RESHAPED, name)[1:]:
            alpha = item.colors[..., 3]
            border = np.concatenate([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], axis=1)
            assert not border.any() and ((alpha > 0).mean(axis=(1, 2)) > 0.01).all()
            assert item.depth is not None
            points = np.concatenate([surface_points(item, view) for view in range(4)])
            reach = np.linalg.norm(points, axis=-1).max()
            assert 0.8 * item.variant.bounding_radius < reach < item.variant.bounding_radius + 0.05


def surface_points(item: RenderedVariant, view: int) -> np.ndarray:  # type: ignore[type-arg]
    """World positions of the covered pixels of one view, `[P, 3]`."""
    assert item.depth is not None
    depth = torch.from_numpy(item.depth[view]).double()
    row, column = torch.nonzero(depth, as_tuple=True)
    z = depth[row, column]
    matrix = item.cameras.intrinsics[view].double()
    x = (column + 0.5 - matrix[0, 2]) / matrix[0, 0] * z
    y = (row + 0.5 - matrix[1, 2]) / matrix[1, 1] * z
    pose = torch.linalg.inv(item.cameras.world_to_camera[view].double())
    return (torch.stack([x, y, z], -1) @ pose[:3, :3].T + pose[:3, 3]).numpy()


def test_the_four_views_show_one_object_a_quarter_turn_apart() -> None:
    """What one view sees lies inside of all other silhouettes, and outside of some silhouette of another variant."""
    items = render(dataclasses.replace(RESHAPED, image_size=128))[1:]
    for item, stranger in zip(items, items[1:] + items[:1], strict=True):
        frames = item.variant.frames
        assert [round(frame.azimuth_deg - frames[0].azimuth_deg) % 360 for frame in frames] == [0, 90, 180, 270]
        assert len({frame.elevation_deg for frame in frames}) == 1
        assert min(inside(item, view, item, other) for view in range(4) for other in range(4)) > 0.99
        assert min(inside(item, view, stranger, other) for view in range(4) for other in range(4)) < 0.9


def inside(item: RenderedVariant, view: int, seen: RenderedVariant, other: int) -> float:
    """Share of the points that one view sees that the silhouette of another view, grown by a pixel, covers."""
    pose, matrix = seen.cameras.world_to_camera[other].double(), seen.cameras.intrinsics[other].double()
    pixels = (torch.from_numpy(surface_points(item, view)) @ pose[:3, :3].T + pose[:3, 3]) @ matrix.T
    column, row = (pixels[:, :2] / pixels[:, 2:]).floor().long().unbind(-1)
    alpha = torch.from_numpy(seen.colors[other, ..., 3].astype(np.float32))
    grown = torch.nn.functional.max_pool2d(alpha[None], 3, 1, 1)[0]
    return float((grown[row, column] > 0).double().mean())


def test_sizes_are_those_of_the_bounding_sphere() -> None:
    surface = pack_surface(wedge(), "cpu")
    center, radius = bounding_sphere(surface)
    changed = STRONG.apply(surface.placed(center, 1 / radius))
    middle, size = bounding_sphere(changed)
    assert np.linalg.norm(middle) > 0.01 and abs(size - 1) > 0.05  # it has to be measured again
    placed = changed.placed(middle, 0.6 / size)
    assert float(placed.vertices.norm(dim=-1).max()) == pytest.approx(0.6, abs=1e-5)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    for name in ("pack-one", "pack-two", "pack-three"):
        write_mesh(folder / f"{name}.glb", wedge())
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_files_do_not_depend_on_the_number_of_workers_and_say_what_changed(assets: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(SIDES, image_size=16, geometry=False, variants=4, reshape_probability=0.5)
    plain = dataclasses.replace(options, reshape_probability=0.0)
    for name, workers, given in (("one", 1, options), ("two", 2, options), ("plain", 1, plain)):
        render_set(assets, tmp_path / name, given, device="cpu", workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(InvalidInputError, match=r"reshape_probability: None there, 0\.5 now"):
        render_set(assets, tmp_path / "plain", options, device="cpu", workers=1)
    data, old = RenderedDataset.load(tmp_path / "one"), RenderedDataset.load(tmp_path / "plain")
    assert data.reshaped is not None and old.reshaped is not None
    assert data.reshaped.shape == (3, 16) and not old.reshaped.any()
    assert data.settings["reshape_probability"] == 0.5 and "reshape_probability" not in old.settings
    assert b"reshape" not in b"".join(contents(tmp_path / "plain").values())
    for index, info in enumerate(data.objects):
        variants = [plan_variant(options, info.id, False, number) for number in range(4)]
        expected = [variant.reshape is not None for variant in variants for _ in range(4)]
        assert data.reshaped[index].tolist() == expected
        same = (data.images[index] == old.images[index]).flatten(1).all(1)
        assert same.tolist() == [not changed for changed in expected]
        document = json.loads((tmp_path / "one" / info.id / "transforms.json").read_text())
        for variant, stored in zip(variants, document["variants"], strict=True):
            told = None if variant.reshape is None else json.loads(json.dumps(dataclasses.asdict(variant.reshape)))
            assert stored.get("reshape") == told
    assert 0 < int(data.reshaped.sum()) < 36


def test_training_views_are_reshaped_too() -> None:
    plain, changed = RenderOptions(plan="training"), RenderOptions(plan="training", reshape_probability=1.0)
    for number in range(3):
        variant = plan_variant(changed, "a", False, number)
        assert (variant.reshape is None) == (number == 0)
        assert repr(dataclasses.replace(variant, reshape=None)) == repr(plan_variant(plain, "a", False, number))


@pytest.mark.parametrize("name", ["reshape_probability", "aligned_probability"])
def test_shares_are_of_random_looks(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} needs plan 'sides' or 'training', the plan is 'standard'"):
        RenderOptions(plan="standard", **{name: 0.5})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=name + r" must lie in 0\.\.1, got 1\.5"):
        RenderOptions(plan="sides", **{name: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", ["sides", "training"])
def test_aligned_looks_have_the_cameras_of_the_evaluation(plan: Literal["sides", "training"]) -> None:
    """The input views and the size of the standard plan; light, textures and targets of the look without alignment."""
    plain = RenderOptions(plan=plan, reshape_probability=0.5)
    standard = plan_variant(RenderOptions(), "a", False, 0)
    some, every = (dataclasses.replace(plain, aligned_probability=share) for share in (0.5, 1.0))
    inputs = [frame for frame in standard.frames if frame.role == "input"]
    drawn = []
    for number in range(60):
        as_it_was, aligned = (plan_variant(options, "a", False, number) for options in (plain, every))
        assert [frame for frame in aligned.frames if frame.role == "input"] == inputs
        assert aligned.bounding_radius == standard.bounding_radius == 0.6
        assert aligned.frames[4:] == as_it_was.frames[4:]
        assert repr((aligned.light, aligned.augmentation)) == repr((as_it_was.light, as_it_was.augmentation))
        assert (aligned.reshape is None) == (as_it_was.reshape is None)
        if aligned.reshape is not None and as_it_was.reshape is not None:
            assert aligned.reshape == dataclasses.replace(as_it_was.reshape, turn_deg=0.0)
        either = repr(plan_variant(some, "a", False, number))
        assert either in (repr(aligned), repr(as_it_was))
        drawn.append(either == repr(aligned))
    assert 0.3 < np.mean(drawn) < 0.7
    assert every.settings() == {**plain.settings(), "aligned_probability": 1.0}
