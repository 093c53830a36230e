"""The training objective, LPIPS and SSIM: against the official numbers, torchmetrics, and finite differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

import golden_rules
from lgm_goldens import GOLDEN_MINI, golden, stand_in_inputs, stand_in_network, statistics
from maquette.cameras import Cameras
from maquette.errors import InvalidInputError, WeightsError
from maquette.gaussians import Gaussians
from maquette.models.lgm import official
from maquette.models.lgm.network import LGM
from maquette.models.lgm.objective import LGMObjective
from maquette.models.lgm.params import LGMParams
from maquette.nn.lpips import LPIPS
from maquette.nn.rendered_loss import RenderedLoss
from maquette.nn.ssim import multi_scale_ssim, ssim
from maquette.raster import render_gaussians
from maquette.views import Views

LOSS = golden("train_loss_mini")


def stand_in_lpips() -> LPIPS:
    state = {}
    for name, shape in zip(LOSS["lpips_keys"], LOSS["lpips_shapes"], strict=True):
        hashed = "lpips_loss." + str(name)
        if "scaling_layer" in hashed:
            continue
        if ".lins." in hashed:
            hashed = hashed.replace(".lins.", ".lin")
        sizes = [int(part) for part in str(shape).strip("[]").split(",")]
        state["lpips_loss." + str(name)] = torch.from_numpy(golden_rules.weight("public", hashed, sizes))
    return LPIPS().load_official(state)


def golden_views() -> Views:
    """The official sample's six pictures as RGBA views with cameras in the data's own world."""
    data = golden("dataset_sample")
    images = torch.from_numpy(data["views_bgra"]).permute(0, 3, 1, 2)[:, [2, 1, 0, 3]].float() / 255
    poses = torch.from_numpy(data["pose_text_values"])
    cameras = official.cameras_from_dataset_poses(poses, 64, GOLDEN_MINI).to(torch.float32)
    return Views(images[None], cameras.reshape(1, -1))


def first_views(views: Views, count: int) -> Views:
    cameras = views.cameras
    return Views(
        views.images[:, :count],
        Cameras(cameras.world_to_camera[:, :count], cameras.intrinsics[:, :count], cameras.height, cameras.width),
    )


def test_loss_pictures_and_gradients_match_the_official_ones() -> None:
    network = stand_in_network("mini").requires_grad_(True)
    objective = LGMObjective(GOLDEN_MINI, stand_in_lpips())
    views = golden_views()
    result = objective(network, first_views(views, 4), views, torch.Generator(), False)
    result.loss.backward()
    for name, expected in {"loss": "loss", "lpips": "loss_lpips", "psnr": "psnr"}.items():
        assert float(result.metrics[name]) == pytest.approx(float(LOSS[expected]), rel=1e-4), name
    both = float(result.metrics["mse"] + result.metrics["mse_alpha"])
    assert both == pytest.approx(float(LOSS["loss_mse_plus_alpha"]), rel=1e-4)
    assert result.pictures is not None
    predicted = result.pictures.flatten()[LOSS["images_pred_idx"]]
    assert_pictures_match(predicted, LOSS["images_pred_val"], "images", 2e-5)
    np.testing.assert_allclose(statistics(result.pictures), LOSS["images_pred_stat"], atol=1e-5)
    parameters = dict(network.named_parameters())
    squares = 0.0
    for name, (_, _, _, norm) in zip(LOSS["grad_names"], LOSS["grad_mean_std_maxabs_norm"], strict=True):
        gradient = parameters[str(name)].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        squares += float(gradient.norm()) ** 2
    assert squares**0.5 == pytest.approx(float(LOSS["grad_total_norm"]), rel=1e-3)


def test_lpips_of_a_pair_matches() -> None:
    first, second = (
        torch.from_numpy(golden_rules.image_batch("public", f"lpips_{which}", 2, 64, 64)) * 2 - 1 for which in "ab"
    )
    distances = stand_in_lpips()(first, second)
    np.testing.assert_allclose(distances, LOSS["lpips_pair"].flatten(), rtol=1e-4)


def test_foreign_weights_are_not_lpips() -> None:
    with pytest.raises(WeightsError, match="not the weights of LPIPS"):
        LPIPS().load_official({"conv.weight": torch.zeros(1)})


def test_renders_of_the_stand_in_network_match() -> None:
    data = golden("render_mini")
    with torch.inference_mode():
        gaussians = stand_in_network("mini")(stand_in_inputs("mini"))[0]
    elevations, azimuths = data["angles"].T
    cameras = official.orbit_cameras(elevations, azimuths, size=64)
    rendered = render_gaussians(gaussians, cameras)
    assert_pictures_match(rendered.color.clamp(0, 1), data["image"], "image", 1e-5)
    assert_pictures_match(rendered.alpha[:, None], data["alpha"], "alpha", 1e-5)
    # At a third of the size, edges are ten times as steep: the float32 noise of the network (up to 1e-5 in the
    # positions, 5e-7 on average) moves 7 % of the pixels by more than 1e-5, between float32 and float64 as well.
    small = render_gaussians(gaussians, cameras[:1], scale_modifier=0.3)
    assert_pictures_match(small.color[0].clamp(0, 1), data["image_scale0.3_view0"], "small image", 1e-4)
    assert_pictures_match(small.alpha[:1], data["alpha_scale0.3_view0"], "small alpha", 1e-4)


def assert_pictures_match(got: Tensor, expected: Any, name: str, atol: float) -> None:
    """Within `atol`, and at most 0.1 % of the values up to 4e-3 (a contribution at the threshold)."""
    difference = np.abs(got.numpy() - expected)
    assert np.mean(difference > atol) <= 0.001 and difference.max() < 4e-3, (name, difference.max())


def pictures(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(shape, generator=generator)
    return first, (first + 0.2 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [(11, 11), (64, 48)])
def test_ssim_agrees_with_torchmetrics(size: tuple[int, int]) -> None:
    first, second = pictures(0, 3, 3, *size)
    _, full = structural_similarity_index_measure(
        first, second, data_range=1.0, reduction="none", return_full_image=True
    )
    inside = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # windows that lie inside the picture
    torch.testing.assert_close(ssim(first, second), inside, atol=1e-5, rtol=0)
    torch.testing.assert_close(ssim(first, first), torch.ones(3))


def test_multi_scale_ssim_agrees_with_torchmetrics_but_for_the_border() -> None:
    first, second = pictures(1, 2, 1, 192, 192)
    ours = multi_scale_ssim(first, second)
    for image in range(2):
        expected = multiscale_structural_similarity_index_measure(
            first[image : image + 1], second[image : image + 1], data_range=1.0
        )
        torch.testing.assert_close(ours[image], expected, atol=3e-3, rtol=0)


def test_ssim_gradients_and_errors() -> None:
    first, second = (value.double() for value in pictures(2, 1, 1, 12, 12))
    assert torch.autograd.gradcheck(lambda image: ssim(image, second), first.requires_grad_(True))
    flat = torch.ones(1, 3, 64, 64, requires_grad=True)
    multi_scale_ssim(flat, torch.ones(1, 3, 64, 64)).sum().backward()
    assert flat.grad is not None and bool(torch.isfinite(flat.grad).all())
    with pytest.raises(InvalidInputError, match="at least 11 pixels"):
        ssim(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(InvalidInputError, match="one shape"):
        ssim(torch.zeros(3, 16, 16), torch.zeros(3, 16, 17))


SMALL = LGMParams(
    name="small-rays",
    down_channels=(32, 32),
    down_attention=(False, True),
    up_channels=(32, 32),
    up_attention=(False, False),
    input_size=32,
    splat_size=32,
    output_size=32,
    num_heads=2,
    patch_size=2,
    parametrization="hull",
    sweep_planes=8,
    grid_distortion_prob=0.0,
    camera_jitter_prob=0.0,
    normalize_poses=False,
    composite_twice=False,
    random_background_prob=0.5,
)


def disc_views(batch: int, num_views: int, size: int = 32) -> Views:
    """A red ball seen from an orbit."""
    rows, columns = torch.meshgrid(
        torch.arange(size) - size / 2 + 0.5, torch.arange(size) - size / 2 + 0.5, indexing="ij"
    )
    alpha = (rows**2 + columns**2 < (size / 3) ** 2).float()
    image = torch.stack([alpha * 0.9, alpha * 0.1, alpha * 0.1, alpha])
    cameras = Cameras.orbit(torch.arange(num_views) * (360.0 / num_views), height=size, width=size)
    return Views(image.expand(batch, num_views, 4, size, size), Cameras.stack([cameras] * batch))


def test_objective_learns_with_augmentations() -> None:
    torch.manual_seed(0)
    network = LGM(SMALL)
    objective = LGMObjective(SMALL)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = disc_views(2, 4), disc_views(2, 3)
    before = objective(network, inputs, targets, generator, False)
    assert {"mse", "mse_alpha", "ms_ssim", "psnr", "loss"} == set(before.metrics)
    assert before.pictures is not None and before.pictures.shape == (2, 3, 3, 32, 32)
    for _ in range(25):
        optimizer.zero_grad()
        objective(network, inputs, targets, generator, True).loss.backward()
        optimizer.step()
    after = objective(network, inputs, targets, generator, False)
    assert float(after.metrics["loss"]) < 0.5 * float(before.metrics["loss"])
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_augmentation_is_reproducible_and_off_in_evaluation() -> None:
    torch.manual_seed(1)
    world = dataclasses.replace(SMALL, parametrization="world", grid_distortion_prob=1.0)
    network, objective = LGM(world), LGMObjective(world)
    inputs, targets = disc_views(1, 4), disc_views(1, 2)

    def loss(seed: int, training: bool) -> Any:
        return float(objective(network, inputs, targets, torch.Generator().manual_seed(seed), training).metrics["loss"])

    assert loss(0, True) == loss(0, True) != loss(1, True)
    assert loss(0, False) == loss(1, False)


def test_random_background_reaches_the_references_only() -> None:
    objective = LGMObjective(dataclasses.replace(SMALL, random_background_prob=1.0))
    seen = []

    def network(pictures: Tensor, profile: Tensor) -> Any:
        seen.append(pictures)
        return LGM(SMALL)(pictures, profile)

    result = objective(network, disc_views(1, 4), disc_views(1, 2), torch.Generator().manual_seed(5), True)
    assert result.references is not None
    corner = result.references[0, :, :, 0, 0]
    torch.testing.assert_close(corner[0], corner[1])
    assert float(corner.max()) < 0.999
    white = (1.0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, 0, :3, 0, 0], white)


def test_three_inputs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\[B, 4, 4, H, W\]"):
        LGMObjective(SMALL)(LGM(SMALL), disc_views(1, 3), disc_views(1, 2), torch.Generator(), True)


def test_errors_above_the_knee_count_by_their_logarithm() -> None:
    nothing = Gaussians(
        torch.zeros(1, 1, 3), torch.ones(1, 1, 4), torch.full((1, 1, 3), 0.1), torch.zeros(1, 1), torch.zeros(1, 1, 3)
    )
    views = disc_views(1, 2)
    images = torch.ones_like(views.images)  # opaque: the alpha error of an empty answer is 1
    images[:, 0, :3], images[:, 1, :3] = 0.25, 0.75
    errors = torch.tensor([0.75**2 + 1, 0.25**2 + 1])  # over white
    for knee in (1e-3, 0.5):
        compare = RenderedLoss(size=32, lambda_ssim=0.0, error_knee=knee)
        found = compare(nothing, Views(images, views.cameras), views.cameras, torch.ones(1, 2, 3))
        torch.testing.assert_close(found.loss, knee * torch.log1p(errors / knee).mean())
        torch.testing.assert_close(found.metrics["mse"] + found.metrics["mse_alpha"], errors.mean())
    plain = RenderedLoss(size=32, lambda_ssim=0.0)
    loss = plain(nothing, Views(images, views.cameras), views.cameras, torch.ones(1, 2, 3)).loss
    torch.testing.assert_close(loss, errors.mean())


def test_similarity_at_full_resolution_is_a_term_of_its_own() -> None:
    ball = Gaussians(
        torch.zeros(1, 1, 3),
        torch.tensor([[[1.0, 0, 0, 0]]]),
        torch.full((1, 1, 3), 0.2),
        torch.full((1, 1), 0.9),
        torch.tensor([[[0.9, 0.2, 0.1]]]),
    )
    views, backgrounds = disc_views(1, 2), torch.ones(1, 2, 3)
    plain, fine = (RenderedLoss(size=32, lambda_ssim=0.0, lambda_fine_ssim=weight) for weight in (0.0, 0.3))
    without, found = (loss(ball, views, views.cameras, backgrounds) for loss in (plain, fine))
    _, full = structural_similarity_index_measure(
        found.predicted[0], found.references[0], data_range=1.0, reduction="none", return_full_image=True
    )
    inside = full[..., 5:-5, 5:-5].mean()
    assert inside < 0.9
    torch.testing.assert_close(found.loss - without.loss, 0.3 * (1 - inside), atol=1e-4, rtol=0)
    assert "ssim" not in without.metrics
