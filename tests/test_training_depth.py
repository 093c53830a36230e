"""Learning from true depth, at several resolutions, and by the clock."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.data.batch import render_set
from maquette.data.dataset import RenderedDataset
from maquette.data.depths import decode_levels
from maquette.data.plans import RenderOptions
from maquette.data.png import decode_gray16
from maquette.errors import FileFormatError, InvalidInputError
from maquette.gaussians import Gaussians
from maquette.io import write_mesh
from maquette.mesh import Mesh
from maquette.models.lgm.network import LGM
from maquette.models.lgm.objective import LGMObjective, depth_term
from maquette.models.lgm.params import LGM_BIG, LGM_MINI, LGMParams
from maquette.nn.depth import pool_depths
from maquette.training import clock
from maquette.training.checkpoint import load_checkpoint
from maquette.training.config import AugmentConfig, SamplingConfig, TrainConfig
from maquette.training.feed import BatchFeed, expected_bytes, resize_views
from maquette.training.loop import RunOptions, train
from maquette.training.recipes import get_recipe
from maquette.training.tasks import Task, build_task
from maquette.views import Views
from training_stand_in import make_config, make_dataset, make_task

PARAMS = LGMParams(
    name="lgm-test",
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32, 32),
    up_attention=(False, False),
    splat_size=32,
    output_size=32,
    input_size=32,
    num_heads=2,
    patch_size=2,
    parametrization="hull",
    sweep_planes=8,
    normalize_poses=False,
    grid_distortion_prob=0.0,
    camera_jitter_prob=0.0,
    lambda_depth=1.0,
)
CONFIG = TrainConfig(model="lgm-test", steps=2, batch_size=1, sampling=SamplingConfig(target_views=2, input_targets=1))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of edge 2, which the renderer scales to a bounding sphere of radius 0.6."""
    root = tmp_path_factory.mktemp("rendered")
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([tri for a, b, c, d in quads for tri in ((a, b, c), (a, c, d))])
    write_mesh(root / "assets" / "cube.glb", Mesh(corners, faces))
    for name, geometry in (("with", True), ("without", False)):
        options = RenderOptions(image_size=32, supersample=1, lighting="unlit", geometry=geometry)
        render_set(root / "assets", root / name, options, workers=1)
    return root


def _cube(rendered: Path) -> Views:
    data = RenderedDataset.load(rendered / "with", input_depths=True)
    objects, frames = torch.tensor([0]), torch.tensor([[0, 1, 2, 3]])
    views = data.views(objects, frames)
    assert data.depths is not None
    return Views(views.images, views.cameras, decode_levels(*data.depths.gather(objects, frames)))


def test_depth_of_a_cube_is_its_distance(rendered: Path) -> None:
    depths = _cube(rendered).depths
    assert depths is not None and depths.shape == (1, 4, 32, 32)
    front = 1.5 - 0.6 / math.sqrt(3)  # the camera sees one face, perpendicular to its axis
    torch.testing.assert_close(depths[0, :, 16, 16], torch.full((4,), front), atol=1e-4, rtol=0)
    assert float(depths[0, :, 0, 0].abs().max()) == 0.0
    plain = RenderedDataset.load(rendered / "with")
    assert plain.depths is None


def test_missing_and_damaged_depth_say_so(rendered: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--no-geometry"):
        RenderedDataset.load(rendered / "without", input_depths=True)
    pictures_only = expected_bytes(rendered / "with", "")
    assert expected_bytes(rendered / "with", "", input_depths=True) == pictures_only + 4 * 2 * 32 * 32
    objective = LGMObjective(PARAMS)
    cube = _cube(rendered)
    with pytest.raises(InvalidInputError, match="lambda_depth"):
        objective(LGM(PARAMS), Views(cube.images, cube.cameras), cube, torch.Generator(), True)
    result = objective(LGM(PARAMS), Views(cube.images, cube.cameras), cube, torch.Generator(), False)
    assert "depth" not in result.metrics
    with pytest.raises(InvalidInputError, match="input_depths"):
        task = Task(LGM(PARAMS), objective, needs_depth=True)
        train(CONFIG, RunOptions(tmp_path, device="cpu", quiet=True), make_dataset(size=32), build=lambda _: task)
    with pytest.raises(InvalidInputError, match="depths must be"):
        Views(cube.images, cube.cameras, torch.zeros(1, 4, 8, 8))


def test_gray_png_equals_pillow_and_refuses_other_kinds(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (7, 9)).astype(np.uint16)
    pixels[3:] = np.arange(9, dtype=np.uint16) * 500 + 7  # smooth rows take other filters
    Image.fromarray(pixels).save(tmp_path / "depth.png")
    decoded = np.zeros((7, 9), np.uint16)
    decode_gray16((tmp_path / "depth.png").read_bytes(), decoded)
    np.testing.assert_array_equal(decoded, pixels)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "gray8.png")
    with pytest.raises(FileFormatError, match="16-bit"):
        decode_gray16((tmp_path / "gray8.png").read_bytes(), decoded)


def test_pooled_depths_know_one_surface_or_none() -> None:
    depths = torch.tensor([[1.0, 1.02, 1.0, 1.2], [1.02, 1.04, 1.0, 1.2], [0.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    expected = torch.tensor([[1.02, 0.0], [0.0, 2.0]])  # smooth, edge between surfaces, silhouette, flat
    torch.testing.assert_close(pool_depths(depths, 2), expected)
    assert pool_depths(depths, 4) is depths


def test_depth_term_measures_z_and_pulls_on_positions(rendered: Path) -> None:
    cube = _cube(rendered)
    depths, cameras, alpha = cube.depths, cube.cameras, cube.images[:, :, 3]
    assert depths is not None
    truth = pool_depths(depths, 16)
    cells = cameras.resized(16, 16)
    origins, directions = cells.rays()  # [1, 4, 16, 16, 3]
    forward = cameras.world_to_camera[:, :, None, None, 2, :3]
    along = truth / (directions * forward).sum(-1)
    means = (origins + along[..., None] * directions).reshape(1, -1, 3).requires_grad_(True)
    count = means.shape[1]
    opacities = torch.full((1, count), 0.25)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4)
    exact = Gaussians(means, quats, torch.full((1, count, 3), 0.01), opacities, torch.rand(1, count, 3))
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert float(depth_term(exact, cameras, depths, alpha, valid, 16).detach()) < 1e-8
    shifted = means + 0.3 * forward.expand(1, 4, 16, 16, 3).reshape(1, -1, 3)
    moved = dataclasses.replace(exact, means=shifted)
    term = depth_term(moved, cameras, depths, alpha, valid, 16)
    assert float(term.detach()) == pytest.approx(0.3 - 0.01, abs=1e-5)  # smooth L1 with beta 0.02
    term.backward()
    counted = (truth > 0).flatten()
    assert means.grad is not None
    assert bool((means.grad[0, counted].norm(dim=-1) > 0).all())
    assert float(means.grad[0, ~counted].abs().max()) == 0.0
    assert float(depth_term(moved, cameras, depths, alpha, ~valid, 16).detach()) == 0.0


@pytest.mark.parametrize("field", ["grid_distortion_prob", "camera_jitter_prob"])
def test_changed_views_do_not_count(rendered: Path, field: str) -> None:
    """With the last three views changed, only the depth of the first one matters."""
    world = dataclasses.replace(PARAMS, parametrization="world")
    cube, network = _cube(rendered), LGM(world)
    assert cube.depths is not None
    torch.nn.init.normal_(network.conv.bias, std=0.2)

    def depth_term(depths: torch.Tensor, probability: float) -> float:
        objective = LGMObjective(dataclasses.replace(world, **{field: probability}))
        views = Views(cube.images, cube.cameras, depths)
        result = objective(network, views, cube, torch.Generator().manual_seed(0), True)
        return float(result.metrics["depth"])

    wrong = cube.depths.clone()
    wrong[:, 1:] *= 1.5
    assert depth_term(wrong, 1.0) == depth_term(cube.depths, 1.0)
    assert depth_term(wrong, 0.0) != depth_term(cube.depths, 0.0)


def test_feed_brings_depth_and_both_resolutions(rendered: Path, tmp_path: Path) -> None:
    data = RenderedDataset.load(rendered / "with", input_depths=True)
    feed = BatchFeed(data, dataclasses.replace(CONFIG, input_size=16), torch.device("cpu"), target_size=24)
    inputs, targets = feed.batch(0)
    assert inputs.images.shape == (1, 4, 4, 16, 16) and targets.images.shape == (1, 2, 4, 24, 24)
    full = _cube(rendered)
    expected = resize_views(full, 16)
    assert inputs.depths is not None and expected.depths is not None and full.depths is not None
    assert torch.equal(inputs.depths, expected.depths) and targets.depths is None
    assert torch.equal(expected.depths, pool_depths(full.depths, 16))
    half = PARAMS.at_input_size(16)
    first = train(
        dataclasses.replace(CONFIG, input_size=16, ema_decay=0.5, augment=AugmentConfig(edge_probability=1.0)),
        RunOptions(tmp_path / "half", device="cpu", quiet=True, tensorboard=False, log_every=1),
        data,
        build=lambda _: Task(LGM(half), LGMObjective(half), half.output_size, half.needs_depth),
    )
    log = (tmp_path / "half" / "log.jsonl").read_text()
    assert re.search(r'"depth"', log) and '"skipped_steps": 0' in log
    averaged = load_checkpoint(first.checkpoint).tensors["ema"]
    started: list[LGM] = []

    def build(_: TrainConfig) -> Task:
        started.append(LGM(PARAMS))
        return Task(started[0], LGMObjective(PARAMS), None, PARAMS.needs_depth)

    options = RunOptions(tmp_path / "full", device="cpu", quiet=True, tensorboard=False, init_from=first.checkpoint)
    train(
        dataclasses.replace(CONFIG, schedule_seconds=1.0),
        dataclasses.replace(options, max_seconds=0.0),
        data,
        build=build,
    )
    # A step or two at the start of the warm-up hardly moves a weight: it began with the averages.
    worst = max(float((averaged[name] - value).abs().max()) for name, value in started[0].state_dict().items())
    assert worst < 2e-3


def test_presets_scale_and_keep_their_weights() -> None:
    half = LGM_MINI.at_input_size(128)
    assert (half.input_size, half.splat_size, half.output_size) == (128, 128, 128)
    assert {k: v.shape for k, v in LGM(half).state_dict().items()} == {
        k: v.shape for k, v in LGM(LGM_MINI).state_dict().items()
    }
    with pytest.raises(InvalidInputError, match="multiple of 8"):
        LGM_MINI.at_input_size(100)
    with pytest.raises(InvalidInputError, match="lambda_depth"):
        dataclasses.replace(LGM_MINI, lambda_depth=-1.0)
    assert LGM_MINI.needs_depth and not LGM_BIG.needs_depth
    config = get_recipe("lgm-mini")
    task = build_task(dataclasses.replace(config, input_size=128))
    assert isinstance(task.network, LGM) and task.network.params == half
    assert (task.target_size, task.needs_depth) == (128, True)
    assert not build_task(dataclasses.replace(config, use_depth=False)).needs_depth
    changed = build_task(dataclasses.replace(config, lambda_depth=0.7, lambda_ssim=0.3)).objective
    assert isinstance(changed, LGMObjective)
    assert (changed.params.lambda_depth, changed.params.lambda_ssim) == (0.7, 0.3)


def test_clock_follows_the_larger_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    by_steps = clock.Clock(100, None, int)
    by_steps.start(3)
    now[0] += 1000
    by_steps.advance(10)
    assert by_steps.position == 10
    by_time = clock.Clock(100, 50.0, int)
    by_time.earlier = 10.0
    by_time.start(5)
    assert by_time.position == 20  # 10 s of 50 s
    now[0] += 15
    by_time.advance(9)
    assert by_time.position == 24  # not read in between
    by_time.advance(10)
    assert by_time.position == 50
    assert by_time.seconds_left(1.0) == 25.0
    by_time.advance(60)
    assert by_time.position == 60


def test_schedule_by_the_clock_ends_the_run_for_good(tmp_path: Path) -> None:
    config = make_config(steps=1_000_000, schedule_seconds=1.0)
    options = RunOptions(tmp_path, device="cpu", quiet=True, tensorboard=False, save_every=0)
    first = train(config, options, make_dataset(), build=make_task)
    assert first.finished and first.reason == "finished" and first.step < 1_000_000
    assert train(config, options, make_dataset(), build=make_task).step == first.step
    with pytest.raises(InvalidInputError, match="schedule_seconds"):
        make_config(schedule_seconds=0.0)
