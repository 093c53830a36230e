"""The weights that come with the package: their size, and what they make of the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import maquette
from maquette.evaluation.metrics import alpha_iou, psnr
from maquette.generators import GENERATORS, get_generator, load_generator
from maquette.models.mvdream.encoders import to_planes
from maquette.raster import render_gaussians
from maquette.registry import MODELS
from maquette.weights import embedded_file, read_metadata

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = [entry.name for entry in (*MODELS.values(), *GENERATORS.values()) if entry.embedded]


def test_what_is_said_to_come_with_the_package_does_and_fits_the_budget() -> None:
    sizes = {name: embedded_file(name).stat().st_size for name in NAMES}
    assert {"lgm-mini", "gamba-mini", "mvdream-mini"} <= sizes.keys() and sum(sizes.values()) < 64 * 2**20
    assert sizes["mvdream-mini"] < 20 * 2**20 and sizes["gamba-mini"] <= 8 * 2**20
    for name in NAMES:
        metadata = read_metadata(embedded_file(name))
        assert metadata["model"] == name and metadata["license"] == "Apache-2.0" and "config" in metadata
        assert embedded_file(name).with_suffix(".md").is_file(), f"{name} needs a card"


def test_the_other_sides_of_an_example_are_made_from_its_front() -> None:
    """The object was in no training. Nearer to its true sides than the front repeated is, in outline and colour."""
    truth = maquette.read_views(EXAMPLES / "taxi").images
    views = load_generator("mvdream-mini", device="cpu")("", truth[0], seed=0)[0]
    assert views.shape == truth.shape
    made, repeated = views[1:], truth[:1].expand(3, -1, -1, -1)
    overlap = [float(alpha_iou(images[:, 3], truth[1:, 3]).mean()) for images in (made, repeated)]
    likeness = [float(psnr(to_planes(images, 3), to_planes(truth[1:], 3)).mean()) for images in (made, repeated)]
    assert overlap[0] > 0.6 and likeness[0] > 14 and overlap[0] > overlap[1], (overlap, likeness)


@pytest.mark.parametrize("example", ["taxi", "shiba"])
def test_one_picture_becomes_an_object_that_is_right_from_the_side_too(example: str) -> None:
    """From the front alone: its own picture again, and the other sides nearer to the truth than the repeated front."""
    views = maquette.read_views(EXAMPLES / example)
    gaussians = maquette.load("gamba-mini", "cpu").picture(views.images[0])
    assert gaussians.num_gaussians == 2 * 16_384
    seen = render_gaussians(gaussians, views.cameras, background=(1.0, 1.0, 1.0))
    truth = to_planes(views.images, 3)
    likeness = psnr(seen.color.clamp(0, 1), truth).tolist()
    repeated = psnr(truth[:1].expand_as(truth), truth).tolist()
    assert likeness[0] > 20, likeness
    assert sum(likeness[1:]) > sum(repeated[1:]), (likeness, repeated)


def test_a_sentence_decides_what_is_shown() -> None:
    pipeline = load_generator("mvdream-mini", device="cpu")
    tree, pumpkin = (pipeline(sentence, seed=0, steps=6)[0] for sentence in ("a green tree", "a pumpkin"))
    means = []
    for views in (tree, pumpkin):
        assert (views[:, 3].mean(dim=(-2, -1)) > 0.02).all() and (views[:, 3, 0] < 0.1).all()  # inside the frame
        weights = views[:, 3:]
        means.append(((views[:, :3] * weights).sum(dim=(0, 2, 3)) / weights.sum()).tolist())
    assert means[0][1] > means[0][0] > means[0][2] and means[1][0] > 1.3 * means[1][1] > 1.3 * means[1][2], means


def test_same_seed_same_views() -> None:
    pipeline = load_generator("mvdream-mini", device="cpu")
    first, second, other = (pipeline("a chair", seed=seed, steps=2) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_explained(name: str) -> None:
    entry = GENERATORS.get(name) or MODELS[name]
    assert "come with a release" in entry.how_to_get
    assert name not in GENERATORS or get_generator(name).params.picture_optional
