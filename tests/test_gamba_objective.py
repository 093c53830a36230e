"""Gamba's objective against the official numbers; the radial mask loss against a slow, independent one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import golden_rules
from gamba_goldens import GOLDEN_MINI, golden, stand_in_network
from gamba_small import SMALL, ball_views
from lgm_goldens import statistics
from maquette.cameras import Cameras
from maquette.errors import InvalidInputError
from maquette.gaussians import Gaussians
from maquette.models.gamba.network import Gamba
from maquette.models.gamba.objective import GambaObjective
from maquette.models.gamba.official import cameras_from_dataset_columns, dataset_sample, official_name
from maquette.models.gamba.radial import mask_outline, radial_mask_loss
from maquette.nn.lpips import LPIPS
from maquette.views import Views

LOSS = golden("train_loss_mini")
SAMPLE = golden("dataset_sample")


def test_dataset_sample_matches() -> None:
    views, columns = torch.from_numpy(SAMPLE["views_bgra"]), torch.from_numpy(SAMPLE["json_x_y_z_origin_columns"])
    sample = dataset_sample(views, columns, GOLDEN_MINI)
    for name, value in {
        "in_images": sample.pictures,
        "in_plucker_img": sample.inputs,
        "in_camposes": sample.cameras.opengl_poses()[:1],
        "images_output": sample.images_output,
        "masks_output": sample.masks_output,
    }.items():
        assert list(value.shape) == list(SAMPLE[f"{name}_shape"])
        got = value.flatten()[SAMPLE[f"{name}_idx"]]
        np.testing.assert_allclose(got, SAMPLE[f"{name}_val"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(statistics(value), SAMPLE[f"{name}_stat"], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(sample.cameras.world_to_camera.mT, SAMPLE["cam_view"], atol=1e-6)
    np.testing.assert_allclose(-sample.cameras.positions, SAMPLE["cam_pos"], atol=1e-6)


def golden_views() -> Views:
    """The official sample's three pictures as RGBA views with cameras in the data's own world."""
    images = torch.from_numpy(SAMPLE["views_bgra"]).permute(0, 3, 1, 2)[:, [2, 1, 0, 3]].float() / 255
    columns = torch.from_numpy(SAMPLE["json_x_y_z_origin_columns"])
    cameras = cameras_from_dataset_columns(columns, 64, GOLDEN_MINI).to(torch.float32)
    return Views(images[None], cameras.reshape(1, -1))


def stand_in_lpips() -> LPIPS:
    shapes = {name: value.shape for name, value in LPIPS().state_dict().items() if "scaling_layer" not in name}
    weights = {name: golden_rules.weight("public", f"lpips_loss.{name}", shape) for name, shape in shapes.items()}
    return LPIPS().load_official({name: torch.from_numpy(value) for name, value in weights.items()})


def test_loss_pictures_and_gradients_match_the_official_ones() -> None:
    network = stand_in_network("mini")
    views = golden_views()
    result = GambaObjective(GOLDEN_MINI, stand_in_lpips())(network, views, views, torch.Generator(), False)
    result.loss.backward()
    for name, expected in {"loss": "loss", "lpips": "loss_lpips", "psnr": "psnr"}.items():
        assert float(result.metrics[name]) == pytest.approx(float(LOSS[expected]), rel=1e-4), name
    assert result.pictures is not None
    difference = np.abs(result.pictures.flatten()[LOSS["images_pred_idx"]].numpy() - LOSS["images_pred_val"])
    assert np.mean(difference > 2e-5) <= 0.001 and difference.max() < 4e-3
    np.testing.assert_allclose(statistics(result.pictures), LOSS["images_pred_stat"], atol=1e-5)
    gradients = {official_name(name): p.grad for name, p in network.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == {str(name) for name in LOSS["frozen"]}
    for name, (mean, std, largest, norm) in zip(LOSS["grad_names"], LOSS["grad_mean_std_maxabs_norm"], strict=True):
        gradient = gradients[str(name)]
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), name
        np.testing.assert_allclose(statistics(gradient), [mean, std, largest], atol=1e-3 * largest, err_msg=str(name))


def test_camera_frame_puts_the_input_in_front() -> None:
    """Whatever the world of the data, the network of the official preset sees the standard rays."""
    seen: list[Tensor] = []

    def network(tokens: Tensor, pictures: Tensor) -> Gaussians:
        seen.append(tokens[:, 3:])
        return Gamba(SMALL)(tokens, pictures)

    params = dataclasses.replace(SMALL, world="camera")
    for azimuth in (0.0, 70.0):
        views = ball_views(1, 3, first_azimuth=azimuth)
        GambaObjective(params)(network, views, views, torch.Generator(), False)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)


def test_upright_frame_keeps_the_elevation() -> None:
    seen: list[Tensor] = []
    network = Gamba(SMALL)

    def recording(tokens: Tensor, pictures: Tensor) -> Gaussians:
        seen.append(tokens[:, 3:])
        return network(tokens, pictures)

    image = ball_views(1, 1).images
    for azimuth in (0.0, 130.0):
        cameras = Cameras.orbit([azimuth], 25.0, height=32, width=32).reshape(1, 1)
        GambaObjective(SMALL)(recording, Views(image, cameras), Views(image, cameras), torch.Generator(), False)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0][0, 3:6, 16, 16], torch.tensor([0.0, -0.42, -0.9]), atol=0.05, rtol=0)


def test_one_input_is_drawn_in_training_and_the_first_is_taken_otherwise() -> None:
    torch.manual_seed(0)
    network = Gamba(SMALL).eval()
    objective = GambaObjective(dataclasses.replace(SMALL, random_background_prob=0.0))
    inputs = ball_views(1, 4)
    images = inputs.images.clone()
    images[:, :, 0] *= torch.tensor([1.0, 0.7, 0.4, 0.1])[:, None, None]
    inputs = Views(images, inputs.cameras)

    def loss(seed: int, training: bool, given: Views = inputs) -> float:
        generator = torch.Generator().manual_seed(seed)
        return float(objective(network, given, ball_views(1, 2), generator, training).loss.detach())

    losses = {round(loss(seed, True), 6) for seed in range(24)}
    assert len(losses) == 4
    first = Views(images[:, :1], Cameras.orbit([0.0], height=32, width=32).reshape(1, 1))
    assert loss(0, False) == pytest.approx(loss(0, True, first), abs=1e-6)
    assert round(loss(5, False), 6) in losses


def test_the_first_view_can_be_drawn_more_often() -> None:
    shown = []

    def recording(tokens: Tensor, picture: Tensor) -> Gaussians:
        shown.append(picture[:, 0].amin(dim=(-2, -1)))  # dark in the first view only
        return Gamba(SMALL).eval()(tokens, picture)

    views = ball_views(64, 4)
    images = views.images.clone()
    images[:, :, :3] = torch.tensor([0.0, 0.9, 0.9, 0.9])[:, None, None, None]
    views = Views(images, views.cameras)
    for share in (0.0, 0.6, 1.0):
        params = dataclasses.replace(SMALL, first_view_prob=share)
        targets = Views(views.images[:, :1], views.cameras[:, :1])
        GambaObjective(params)(recording, views, targets, torch.Generator().manual_seed(0), True)
    counts = [int((values < 0.5).sum()) for values in shown]
    assert 6 < counts[0] < 28 and 35 < counts[1] < 56 and counts[2] == 64  # expected: 16, 0.7 * 64 = 45, 64


def test_wrong_inputs_are_named() -> None:
    views = ball_views(1, 2)
    single = Views(views.images[0], views.cameras.reshape(2))
    with pytest.raises(InvalidInputError, match=r"gamba-small trains on inputs and targets \[B, V, 4, H, W\]"):
        GambaObjective(SMALL)(Gamba(SMALL), single, views, torch.Generator(), False)


def star(size: int, radii: Tensor) -> Tensor:
    """Coverage `[size, size]` of a polygon about the centre: its distance in half diagonals at equidistant angles."""
    axis = (torch.arange(size) + 0.5 - size / 2) / (size / math.sqrt(2))
    angles = torch.atan2(axis[:, None], axis[None]) % (2 * math.pi)
    corners = angles / (2 * math.pi) * len(radii)
    low = corners.floor().long() % len(radii)
    limit = torch.lerp(radii[low], radii[(low + 1) % len(radii)], corners - corners.floor())
    return ((axis[:, None] ** 2 + axis[None] ** 2).sqrt() < limit).float()


def test_outline_of_a_polygon_is_found() -> None:
    radii = 0.35 + 0.15 * torch.rand(16, generator=torch.Generator().manual_seed(1))
    outline = mask_outline(star(256, radii), 16)
    torch.testing.assert_close(outline, radii, atol=0.01, rtol=0)
    assert float(mask_outline(torch.zeros(2, 8, 8), 4).abs().max()) == 0.0
    assert float(mask_outline(torch.ones(8, 8), 4).min()) == pytest.approx(math.sqrt(0.5), abs=0.1)


def gaussians_at(means: Tensor) -> Gaussians:
    batch, count = means.shape[:2]
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(batch, count, 4)
    return Gaussians(means, quats, torch.full_like(means, 0.01), torch.ones(batch, count), torch.ones_like(means))


def test_radial_loss_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    means = (torch.rand(2, 30, 3, generator=generator) - 0.5) * 2.2
    means[0, 0] = torch.tensor([0.1, 0.0, 1.49])  # before the first camera, too near to be drawn
    cameras = Cameras.stack([Cameras.orbit([0.0, 50.0], 10.0, height=64, width=64)] * 2)
    alpha = torch.stack([star(64, 0.3 + 0.2 * torch.rand(64, generator=generator)) for _ in range(4)]).reshape(
        2, 2, 64, 64
    )
    outlines = mask_outline(alpha)
    total = 0.0
    for batch in range(2):
        for view in range(2):
            for mean in means[batch].tolist():
                total += squared_excess(mean, cameras, batch, view, outlines[batch, view].tolist())
    loss = radial_mask_loss(gaussians_at(means), cameras, alpha)
    assert total > 0
    assert float(loss) == pytest.approx(total / (2 * 2 * 30), rel=1e-4)


def squared_excess(mean: list[float], cameras: Cameras, batch: int, view: int, outline: list[float]) -> float:
    matrix, intrinsics = cameras.world_to_camera[batch, view].tolist(), cameras.intrinsics[batch, view].tolist()
    x, y, z = (sum(row[i] * v for i, v in enumerate([*mean, 1.0])) for row in matrix[:3])
    if z <= 0.2:
        return 0.0
    right, down = intrinsics[0][0] * x / z, intrinsics[1][1] * y / z  # from the centre of the picture
    distance = math.hypot(right, down) / math.hypot(32, 32)
    turns = (math.atan2(down, right) % (2 * math.pi)) / (2 * math.pi) * len(outline)
    low = int(turns)
    share = turns - low
    allowed = outline[low] * (1 - share) + outline[(low + 1) % len(outline)] * share
    return max(distance - allowed, 0.0) ** 2


def test_radial_loss_pulls_inwards_only_what_is_outside() -> None:
    cameras = Cameras.orbit([0.0], height=64, width=64).reshape(1, 1)
    alpha = star(64, torch.full((16,), 0.3))[None, None]
    means = torch.tensor([[[0.6, 0.0, 0.0], [0.1, 0.1, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(radial_mask_loss(gaussians_at(means), cameras, alpha), means)
    assert float(gradient[0, 0, 0]) > 0 and abs(float(gradient[0, 0, 1])) < 1e-6
    assert float(gradient[0, 1:].abs().max()) == 0.0
    objective = GambaObjective(dataclasses.replace(SMALL, lambda_radial=0.1))
    result = objective(Gamba(SMALL), ball_views(1, 1), ball_views(1, 2), torch.Generator(), False)
    plain = GambaObjective(SMALL)(Gamba(SMALL), ball_views(1, 1), ball_views(1, 2), torch.Generator(), False)
    assert "radial" in result.metrics and "radial" not in plain.metrics


@pytest.mark.parametrize("radial", [0.0, 0.1])
def test_training_reduces_the_loss(radial: float) -> None:
    torch.manual_seed(0)
    network = Gamba(SMALL)
    objective = GambaObjective(dataclasses.replace(SMALL, lambda_radial=radial))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = ball_views(2, 4), ball_views(2, 3)
    before = objective(network, inputs, targets, generator, False)
    assert {"mse", "mse_alpha", "ms_ssim", "psnr", "loss"} <= set(before.metrics)
    assert before.pictures is not None and before.pictures.shape == (2, 3, 3, 32, 32)
    for _ in range(25):
        optimizer.zero_grad()
        objective(network, inputs, targets, generator, True).loss.backward()
        optimizer.step()
    after = objective(network.eval(), inputs, targets, generator, False)
    assert float(after.metrics["loss"]) < 0.6 * float(before.metrics["loss"])
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
