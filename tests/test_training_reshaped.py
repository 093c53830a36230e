"""What the training of a generator says of reshaped objects: nothing, their picture is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
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


def feed(reshaped: Tensor | None, copies: int = 1) -> LatentFeed:
    recipe = get_recipe("mvdream-mini")
    config = dataclasses.replace(
        recipe, augment=AugmentConfig(), latent_copies=copies, precision="fp32", batch_size=256
    )
    torch.manual_seed(0)
    tokenizer = build_tokenizer(*letter_tokenizer(TINY_MINI.text_encoder), TINY_MINI.text_encoder)
    autoencoder = LatentAutoencoder(TINY_MINI.autoencoder)
    return LatentFeed(dataset(reshaped), config, torch.device("cpu"), 0, 1, TINY_MINI, autoencoder, tokenizer, {})


def contents(pictures: Tensor) -> Tensor:
    """Object, variant and side of pictures `[B, 3, S, S]`, `[B, 3]`."""
    return (pictures[..., 4, 4] * 255 / torch.tensor([40.0, 60.0, 50.0])).round().long()


def test_no_sentence_is_told_of_reshaped_objects() -> None:
    (batch,) = feed(some_reshaped()).draw(0, 0, torch.Generator().manual_seed(1))
    objects, variants, sides = contents(batch.pictures).unbind(-1)
    expected = ((objects == 0) & (variants == 2)) | ((objects == 2) & (variants > 0))
    assert 50 < int(expected.sum()) < 130 and torch.equal(batch.wordless, expected)
    assert not sides[~expected].any() and set(sides[expected].tolist()) == {0, 1, 2, 3}
    told: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, noisy: Tensor, *conditions: Tensor) -> Tensor:
            told.extend((conditions[2], conditions[5]))
            return torch.zeros_like(noisy)

    for training in (True, False):
        DenoisingObjective(TINY_MINI)(Recorder(), batch, torch.Generator().manual_seed(0), training)
        said, with_picture = told[-2:]
        silent = (said == batch.silence).all(dim=1)
        assert silent[expected].all() and (with_picture[expected] == 1).all()
        assert 0 < int((~silent).sum()) <= int((~expected).sum())


@pytest.mark.parametrize("flags", [None, torch.zeros(OBJECTS, 4 * VARIANTS, dtype=torch.bool)])
def test_objects_as_they_are_keep_their_sentences(flags: Tensor | None) -> None:
    (batch,) = feed(flags).draw(0, 0, torch.Generator().manual_seed(1))
    (other,) = feed(some_reshaped()).draw(0, 0, torch.Generator().manual_seed(1))
    assert not batch.wordless.any() and not contents(batch.pictures)[:, 2].any()
    same = ~other.wordless
    assert torch.equal(batch.prompts, other.prompts) and torch.equal(batch.latents[same], other.latents[same])


def test_changed_colors_stay_without_words_too() -> None:
    changed = [
        made.draw(0, 0, torch.Generator().manual_seed(1))[0].wordless
        for made in (feed(None, 2), feed(some_reshaped(), 2))
    ]
    assert changed[1][changed[0]].all() and 0 < int(changed[0].sum()) < int(changed[1].sum()) < 256
