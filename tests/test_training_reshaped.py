"""What the training of a generator says of reshaped objects: nothing, their picture is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.data.dataset import RenderedDataset
from maquette.data.layout import ObjectInfo
from maquette.models.mvdream.objective import DenoisingObjective
from maquette.models.mvdream.tokenizer import build_tokenizer, letter_tokenizer
from maquette.models.mvdream.training_networks import LatentAutoencoder
from maquette.training.config import AugmentConfig
from maquette.training.latents import LatentFeed
from maquette.training.recipes import get_recipe
from mvdream_stand_ins import TINY_MINI

SIZE, OBJECTS, VARIANTS = 32, 3, 3


def dataset(reshaped: Tensor | None) -> RenderedDataset:
    """Pictures of one brightness per object (red), variant (green) and side (blue)."""
    images = torch.full((OBJECTS, 4 * VARIANTS, 4, SIZE, SIZE), 255, dtype=torch.uint8)
    variants = torch.arange(VARIANTS).repeat_interleave(4).expand(OBJECTS, -1).contiguous()
    images[:, :, 0] = (40 * torch.arange(OBJECTS).byte())[:, None, None, None]
    images[:, :, 1] = (60 * variants.byte())[..., None, None]
    images[:, :, 2] = (50 * torch.arange(4 * VARIANTS).remainder(4).byte())[None, :, None, None]
    cameras = Cameras.orbit([0.0, 90.0, 180.0, 270.0] * VARIANTS, height=SIZE, width=SIZE)
    return RenderedDataset(
        root=Path("nowhere"),
        images=images,
        world_to_camera=cameras.world_to_camera.expand(OBJECTS, -1, -1, -1).contiguous(),
        intrinsics=cameras.intrinsics.expand(OBJECTS, -1, -1, -1).contiguous(),
        roles=torch.zeros(OBJECTS, 4 * VARIANTS, dtype=torch.uint8),
        variants=variants,
        objects=tuple(ObjectInfo(f"o{i}", f"caption {i}", "thing", family=f"o{i}") for i in range(OBJECTS)),
        settings={},
        reshaped=reshaped,
    )


def some_reshaped() -> Tensor:
    """Variant 2 of object 0, variants 1 and 2 of object 2."""
    flags = torch.zeros(OBJECTS, VARIANTS, dtype=torch.bool)
    flags[0, 2] = flags[2, 1] = flags[2, 2] = True
    return flags.repeat_interleave(4, dim=1)


def feed(
    reshaped: Tensor | None,
    copies: int = 1,
    *,
    data: RenderedDataset | None = None,
    augment: AugmentConfig | None = None,
) -> LatentFeed:
    recipe = get_recipe("mvdream-mini")
    config = dataclasses.replace(
        recipe, augment=augment or AugmentConfig(), latent_copies=copies, precision="fp32", batch_size=256
    )
    torch.manual_seed(0)
    tokenizer = build_tokenizer(*letter_tokenizer(TINY_MINI.text_encoder), TINY_MINI.text_encoder)
    autoencoder = LatentAutoencoder(TINY_MINI.autoencoder)
    data = data or dataset(reshaped)
    return LatentFeed(data, config, torch.device("cpu"), 0, 1, TINY_MINI, autoencoder, tokenizer, {})


def contents(pictures: Tensor) -> Tensor:
    """Object, variant and side of pictures `[B, 3, S, S]`, `[B, 3]`."""
    return (pictures[..., 4, 4] * 255 / torch.tensor([40.0, 60.0, 50.0])).round().long()


def test_no_sentence_is_told_of_reshaped_objects() -> None:
    (batch,) = feed(some_reshaped()).draw(0, 0, torch.Generator().manual_seed(1))
    objects, variants, sides = contents(batch.pictures).unbind(-1)
    reshaped = ((objects == 0) & (variants == 2)) | ((objects == 2) & (variants > 0))
    assert int(reshaped.sum()) > 30 and batch.wordless[reshaped].all()
    assert 90 < int(batch.wordless.sum()) < 166  # half of the sets, give or take 5 standard deviations
    assert not sides[~batch.wordless].any() and set(sides[batch.wordless].tolist()) == {0, 1, 2, 3}
    assert set(variants[~batch.wordless & (objects == 1)].tolist()) == {0, 1, 2}
    told: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, noisy: Tensor, *conditions: Tensor) -> Tensor:
            told.extend((conditions[2], conditions[5]))
            return torch.zeros_like(noisy)

    for training in (True, False):
        DenoisingObjective(TINY_MINI)(Recorder(), batch, torch.Generator().manual_seed(0), training)
        said, with_picture = told[-2:]
        silent = (said == batch.silence).all(dim=1)
        assert silent[batch.wordless].all() and (with_picture[batch.wordless] == 1).all()
        assert 0 < int((~silent).sum()) <= int((~batch.wordless).sum())


def test_no_sentence_is_told_from_another_side_than_the_front() -> None:
    """Variant 1 starts at 30 degrees: its sides are shown, but only as pictures."""
    data = dataset(None)
    turned = Cameras.orbit([30.0, 120.0, 210.0, 300.0], height=SIZE, width=SIZE).world_to_camera
    data.world_to_camera[:, 4:8] = turned
    (batch,) = feed(None, data=data).draw(0, 0, torch.Generator().manual_seed(1))
    variants = contents(batch.pictures)[:, 1]
    assert set(variants[~batch.wordless].tolist()) == {0, 2} and set(variants.tolist()) == {0, 1, 2}


def test_objects_that_are_always_turned_go_without_words() -> None:
    flags = torch.ones(OBJECTS, 4 * VARIANTS, dtype=torch.bool)
    (batch,) = feed(flags).draw(0, 0, torch.Generator().manual_seed(1))
    assert batch.wordless.all()


def test_sentences_are_told_of_objects_in_their_own_colors() -> None:
    """With two copies, the second of which has other colours: what is told shows the first, exactly."""
    gray = AugmentConfig(grey_probability=1.0, color_probability=1.0)
    (batch,) = feed(None, 2, augment=gray).draw(0, 0, torch.Generator().manual_seed(1))
    red, green, blue = batch.pictures[:, :, 4, 4].unbind(1)
    colored = (red != green) | (green != blue)
    own = contents(batch.pictures)[~batch.wordless]
    assert (own[:, 2] == 0).all() and (own <= 2).all()
    assert 0.55 < float(colored.float().mean()) < 0.95 and 90 < int(batch.wordless.sum()) < 166
