"""Shading, plans and patterns of the asset renderer, on scenes whose pictures are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.data.color import linear_to_srgb, srgb_to_linear
from maquette.data.lighting import STUDIO, UNLIT, random_light
from maquette.data.patterns import KINDS, fractal_noise, random_augmentation
from maquette.data.plans import RenderOptions, plan_variant
from maquette.data.render import RenderedVariant, bounding_sphere, render_variants
from maquette.errors import InvalidInputError
from maquette.mesh import Material, Mesh

CUBE_FACES = torch.tensor(
    [
        *([0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4]),
        *([2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]),
    ]
)


def quad(**kwargs: object) -> Mesh:
    """A square in the plane z = 0 that faces +Z; uv (0, 0) is its top left corner."""
    vertices = torch.tensor([[-1.0, 1, 0], [-1, -1, 0], [1, -1, 0], [1, 1, 0]])
    uvs = torch.tensor([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), uvs=uvs, **kwargs)  # type: ignore[arg-type]


def cube(**kwargs: object) -> Mesh:
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    return Mesh(corners, CUBE_FACES, **kwargs)  # type: ignore[arg-type]


def front(mesh: Mesh, *, azimuth: float = 0.0, **options: object) -> RenderedVariant:
    settings = {"plan": "custom", "azimuths_deg": (azimuth,), "image_size": 64, "lighting": "unlit", **options}
    return next(iter(render_variants(mesh, "thing", False, RenderOptions(**settings))))  # type: ignore[arg-type]


def test_srgb_transfer_matches_published_values() -> None:
    encoded = torch.tensor([0.0, 0.04045, 0.5, 1.0])
    expected = torch.tensor([0.0, 0.0031308, 0.2140411, 1.0])
    torch.testing.assert_close(srgb_to_linear(encoded), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(encoded)), encoded, atol=1e-6, rtol=0)


def test_unlit_shows_the_base_colour_and_straight_alpha_edges() -> None:
    picture = front(quad(materials=(Material(base_color=(0.8, 0.4, 0.2, 1.0)),)), supersample=4).colors[0]
    partial = (picture[..., 3] > 0) & (picture[..., 3] < 255)
    assert partial.sum() > 20  # the square does not end on pixel borders
    covered = picture[picture[..., 3] > 0]
    assert (np.abs(covered[:, :3].astype(int) - [204, 102, 51]) <= 1).all()
    assert not picture[picture[..., 3] == 0].any()


def test_textures_are_upright_and_repeat() -> None:
    texture = torch.ones(2, 2, 4)
    texture[0, 0, :3], texture[0, 1, :3] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    texture[1, 0, :3], texture[1, 1, :3] = torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 1, 0])
    mesh = quad(materials=(Material(base_color_texture=texture),))
    first = front(mesh).colors[0]
    expected = {(22, 22): [255, 0, 0], (22, 41): [0, 255, 0], (41, 22): [0, 0, 255], (41, 41): [255, 255, 0]}
    for (row, column), color in expected.items():  # texel centres, at a quarter of the square
        assert np.abs(first[row, column, :3].astype(int) - color).max() <= 60, (row, column)
    assert mesh.uvs is not None
    shifted = dataclasses.replace(mesh, uvs=mesh.uvs + torch.tensor([3.0, -2.0]))
    assert np.abs(front(shifted).colors.astype(int) - front(mesh).colors).max() <= 2


def test_minified_textures_average_in_linear_light() -> None:
    checks = (torch.arange(512)[:, None] + torch.arange(512)) % 2
    texture = torch.cat([checks[..., None].float().expand(512, 512, 3), torch.ones(512, 512, 1)], -1)
    picture = front(quad(materials=(Material(base_color_texture=texture),)), image_size=32).colors[0]
    inside = picture[10:22, 10:22, :3]
    assert np.abs(inside.astype(int) - 188).max() <= 1  # sRGB of half the light


def test_colours_multiply_in_linear_light() -> None:
    grey = torch.tensor([[0.5, 0.5, 0.5, 1.0]]).expand(4, 4)
    picture = front(quad(vertex_colors=grey, materials=(Material(base_color=(0.5, 0.5, 0.5, 1.0)),))).colors[0]
    expected = round(float(linear_to_srgb(torch.tensor(0.2140411**2))) * 255)
    assert np.abs(picture[32, 32, :3].astype(int) - expected).max() <= 1


def test_materials_apply_to_their_faces() -> None:
    materials = (Material(base_color=(1, 0, 0, 1)), Material(base_color=(0, 0, 1, 1)))
    picture = front(quad(materials=materials, face_materials=torch.tensor([0, 1]))).colors[0]
    assert picture[36, 28, :3].tolist() == [255, 0, 0] and picture[28, 36, :3].tolist() == [0, 0, 255]


def test_depth_and_normals() -> None:
    result = front(quad(), lighting="studio")
    assert result.depth is not None and result.normals is not None
    assert abs(float(result.depth[0, 32, 32]) - 1.5) < 1e-5 and result.depth[0, 0, 0] == 0
    assert np.abs(result.normals[0, 32, 32].astype(int) - [128, 128, 255]).max() <= 1
    assert not result.normals[0, 0, 0].any()
    seen_from_behind = front(quad(), azimuth=180.0).normals
    assert seen_from_behind is not None
    assert np.abs(seen_from_behind[0, 32, 32].astype(int) - [128, 128, 0]).max() <= 1
    assert front(quad(), geometry=False).depth is None


def test_shading_does_not_depend_on_winding_or_stored_side() -> None:
    mesh = cube()
    flipped = dataclasses.replace(mesh, faces=mesh.faces.flip(1))
    options = {"azimuth": 30.0, "elevations_deg": (20.0,), "lighting": "studio"}
    assert np.array_equal(front(mesh, **options).colors, front(flipped, **options).colors)  # type: ignore[arg-type]
    normals = torch.nn.functional.normalize(mesh.vertices, dim=-1)
    smooth, inverted = (dataclasses.replace(mesh, normals=sign * normals) for sign in (1, -1))
    expected = front(smooth, **options).colors  # type: ignore[arg-type]
    assert np.array_equal(expected, front(inverted, **options).colors)  # type: ignore[arg-type]


def test_missing_normals_are_flat_and_given_ones_are_smooth() -> None:
    mesh = cube()
    flat = front(mesh, azimuth=30.0, lighting="studio").colors[0]
    faces = flat[32, (flat[32, :, 3] == 255)][:, :3]
    assert len(np.unique(faces, axis=0)) <= 3  # two sides and perhaps the pixel between them
    normals = torch.nn.functional.normalize(mesh.vertices, dim=-1)
    smooth = front(dataclasses.replace(mesh, normals=normals), azimuth=30.0, lighting="studio").colors[0]
    assert len(np.unique(smooth[32, (smooth[32, :, 3] == 255)][:, :3], axis=0)) > 6


def test_studio_light_keeps_grey_grey_and_whites_unburnt() -> None:
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    light = STUDIO.irradiance(directions)
    assert 0.9 < float(light.max()) <= 1.0 and float(light.min()) > 0.3
    mean_grey = float(linear_to_srgb(light * srgb_to_linear(torch.tensor(0.5))).mean())
    assert 0.38 < mean_grey < 0.5
    assert torch.equal(UNLIT.irradiance(directions), torch.ones(4000, 3))


def test_random_lights_differ_and_stay_in_range() -> None:
    directions = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    generator = np.random.default_rng(0)
    peaks = [float(random_light(generator).irradiance(directions).max()) for _ in range(50)]
    assert min(peaks) > 0.6 and max(peaks) < 1.1 and len(set(peaks)) == 50


def test_the_standard_plan_is_the_evaluation_protocol() -> None:
    frames = plan_variant(RenderOptions(), "x", False, 0).frames
    assert [(f.azimuth_deg, f.elevation_deg, f.role) for f in frames[:4]] == [
        (azimuth, 0.0, "input") for azimuth in (0.0, 90.0, 180.0, 270.0)
    ]
    assert [f.azimuth_deg for f in frames[4:]] == [22.5 + 45 * k for k in range(8)]
    assert [f.elevation_deg for f in frames[4:]] == [-10, 0, 10, 20, 30, 20, 10, 0]
    assert {f.role for f in frames[4:]} == {"target"}


def test_the_training_plan_is_random_but_repeatable() -> None:
    options = RenderOptions(plan="training", seed=5)
    variants = [plan_variant(options, "thing", False, number) for number in range(40)]
    again = plan_variant(options, "thing", False, 7)
    assert again.frames == variants[7].frames and again.light == variants[7].light
    assert plan_variant(options, "other", False, 7).frames != again.frames
    level = [v for v in variants if v.frames[0].elevation_deg == 0]
    assert 14 <= len(level) <= 34
    for variant in variants:
        inputs = [f for f in variant.frames if f.role == "input"]
        turns = np.diff([f.azimuth_deg for f in inputs]) % 360
        assert len(inputs) == 4 and len(variant.frames) == 16 and np.allclose(turns, 90)
        assert all(-30 <= f.elevation_deg <= 60 for f in variant.frames)
        assert 0.5 <= variant.bounding_radius <= 0.62
    below = np.mean([f.elevation_deg < 15 for v in variants for f in v.frames if f.role == "target"])
    assert below > 0.5  # low views are favoured


def test_whole_objects_are_in_the_picture() -> None:
    options = RenderOptions(image_size=64, lighting="unlit")
    colors = next(iter(render_variants(cube(), "c", False, options))).colors
    border = np.concatenate([colors[:, 0], colors[:, -1], colors[:, :, 0], colors[:, :, -1]], axis=1)
    assert not border.any() and colors[..., 3].max() == 255


def test_size_and_place_of_a_mesh_do_not_matter() -> None:
    moved = dataclasses.replace(cube(), vertices=cube().vertices * 37 + torch.tensor([5.0, -80, 11]))
    assert bounding_sphere(moved)[0] == pytest.approx((5, -80, 11))
    assert np.abs(front(moved).colors.astype(int) - front(cube()).colors).max() <= 3


def test_meshes_without_area_are_errors() -> None:
    point = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(InvalidInputError, match="radius"):
        front(point)
    with pytest.raises(InvalidInputError, match="finite"):
        front(Mesh(torch.full((3, 3), torch.nan), torch.tensor([[0, 1, 2]])))


def samples(count: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(count, 3, generator=generator) - 0.5
    return torch.full((count, 3), 0.4), positions, torch.randint(0, 3, (count,), generator=generator)


def test_augmentation_is_a_function_of_place_and_keeps_a_share_unaltered() -> None:
    generator = np.random.default_rng(1)
    drawn = [random_augmentation(generator, realistic=False) for _ in range(400)]
    assert 0.33 < np.mean([item.name == "none" for item in drawn]) < 0.47
    albedo, positions, materials = samples()
    kinds = set()
    for item in drawn[:120]:
        result = item.apply(albedo, positions, materials)
        assert bool(result.isfinite().all()) and float(result.min()) >= 0 and float(result.max()) <= 1
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
        shuffled = item.apply(albedo[order], positions[order], materials[order])
        torch.testing.assert_close(shuffled, result[order], atol=1e-5, rtol=0)
        if item.pattern is not None:
            kinds.add(item.pattern.kind)
    assert kinds == set(KINDS)
    real = [random_augmentation(generator, realistic=True) for _ in range(200)]
    assert not any(item.pattern and item.pattern.mode == "replace" for item in real)


def test_noise_is_spread_and_smooth() -> None:
    _, positions, _ = samples(20000)
    value = fractal_noise(positions * 20, seed=0, octaves=4)
    assert 0.4 < float(value.mean()) < 0.6 and float((value < 0.2).float().mean()) > 0.1
    step = (fractal_noise(positions * 20 + 1e-3, seed=0, octaves=4) - value).abs()
    assert float(step.max()) < 0.1


def test_variants_of_training_look_different_and_repeat_exactly() -> None:
    options = RenderOptions(plan="training", image_size=32, variants=2, geometry=False)
    first, second = (list(render_variants(cube(), "c", False, options)) for _ in range(2))
    assert np.array_equal(first[1].colors, second[1].colors)
    assert not np.array_equal(first[0].colors, first[1].colors)


def test_supersampling_only_changes_edges_of_flat_pictures() -> None:
    fine, coarse = (front(quad(), supersample=count).colors[0] for count in (4, 1))
    assert set(np.unique(coarse[..., 3])) == {0, 255}
    differs = (fine != coarse).any(-1)
    assert 0 < differs.sum() < 64 * 5 and not differs[25:39, 25:39].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "orbit"}, "standard, training, sides, custom"),
        ({"image_size": 4}, "8..4096"),
        ({"lighting": "sun"}, "studio, unlit, random"),
        ({"radius": 0.5}, "0.7"),
        ({"supersample": 9}, "1..4"),
        ({"azimuths_deg": (0.0,)}, "custom"),
        ({"plan": "custom", "elevations_deg": (95.0,)}, r"\[-90, 90\]"),
        ({"variants": 0}, "1..1000"),
    ],
)
def test_options_name_what_is_valid(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        RenderOptions(**change)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_gpu_pictures_equal_cpu_pictures() -> None:
    options = RenderOptions(plan="training", image_size=64)
    on_cpu, on_gpu = (list(render_variants(cube(), "c", False, options, device)) for device in ("cpu", "cuda"))
    for left, right in zip(on_cpu, on_gpu, strict=True):
        difference = np.abs(left.colors.astype(int) - right.colors)
        assert (difference > 2).mean() < 0.005  # hard pattern borders may fall to either side


def test_cameras_are_those_of_the_orbit() -> None:
    result = front(quad(), azimuth=70.0)
    expected = Cameras.orbit([70.0], height=64, width=64)
    torch.testing.assert_close(result.cameras.world_to_camera, expected.world_to_camera)
