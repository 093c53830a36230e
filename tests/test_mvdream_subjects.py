"""Guessing what a sentence is about, and guidance by the guess."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from maquette.errors import InvalidInputError, WeightsError
from maquette.models.mvdream.loading import load_pipeline
from maquette.models.mvdream.pipeline import MultiViewPipeline
from maquette.models.mvdream.sampling import composed, guided
from maquette.models.mvdream.subjects import (
    NUM_BUCKETS,
    Subjects,
    fit_subjects,
    kind_of_noun,
    known_nouns,
    noun_of,
    num_features,
    sentence_features,
    words_of,
)
from maquette.weights import write_weights
from mvdream_stand_ins import TINY_MINI, random_pipeline

CAPTIONS = ("oak tree", "pine tree", "tall birch tree", "oak table", "round table", "small round chair", "palm")
PLANT = known_nouns()[0].index("plant")
CATEGORIES = ("plant", "plant", "plant", "furniture", "furniture", "furniture", "plant")


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return fit_subjects(CAPTIONS, CATEGORIES)


@pytest.fixture(scope="module")
def pipeline() -> MultiViewPipeline:
    return random_pipeline(dataclasses.replace(TINY_MINI, subject_shares=(1.0, 0.5)))


def test_what_was_told_is_known_and_its_forms_are_guessed(subjects: Subjects) -> None:
    assert [subjects.guess(caption) for caption in CAPTIONS] == list(CATEGORIES)
    for sentence, category in {
        "some trees": "plant",
        "Birches.": "plant",
        "armchairs": "furniture",
        "a TABLE, square": "furniture",
    }.items():
        assert subjects.guess(sentence) == category, sentence


def test_the_fit_is_the_minimum(subjects: Subjects) -> None:
    """At the minimum the derivative vanishes: X^T (p - y) / n + 1e-4 W = 0, from the fp16 weights."""
    features, weight = sentence_features(CAPTIONS).double(), subjects.weight.double()
    wanted = F.one_hot(torch.tensor([subjects.names.index(name) for name in CATEGORIES]), 2).double()
    shares = torch.softmax(features @ weight + subjects.bias.double(), dim=1)
    derivative = features.T @ (shares - wanted) / len(CAPTIONS) + 1e-4 * weight
    start = features.T @ (0.5 - wanted) / len(CAPTIONS)
    assert float(derivative.norm()) < 0.01 * float(start.norm())


def test_doubt_is_the_share_of_unknown_words(subjects: Subjects) -> None:
    assert subjects.doubt("tree") == pytest.approx(1 / (1 + 3 / 2))  # in three captions
    assert subjects.doubt("The tree, by a palm!") == pytest.approx((1 / (1 + 1 / 2) + 1 / (1 + 3 / 2)) / 2)
    assert subjects.doubt("shiny tree") == pytest.approx((1 + 1 / (1 + 3 / 2)) / 2)
    assert subjects.doubt("palm in a tree") == subjects.doubt("tree palm") == 1.0  # one caption has the thing, palm
    assert subjects.doubt("submarine") == subjects.doubt("") == subjects.doubt("with the") == 1.0


def test_nouns_are_known_that_no_caption_has(subjects: Subjects) -> None:
    assert "cypress" not in " ".join(CAPTIONS) and "sofa" not in " ".join(CAPTIONS)
    assert [subjects.guess(sentence) for sentence in ("a cypress", "cypresses", "sofas", "a sofa by a wall")] == [
        "plant",
        "plant",
        "furniture",
        "furniture",
    ]


def test_kinds_of_nouns() -> None:
    kinds, nouns = known_nouns()
    expected = {
        "dolphin": "animal",
        "bees": "animal",
        "berries": "food",
        "churches": "building",
        "pirate": "character",
        "jar": "container",
        "wardrobe": "furniture",
        "spatula": "kitchenware",
        "lantern": "lighting",
        "hammer": "tool",
        "necklace": "treasure",
        "wheelbarrow": "vehicle",
        "crossbow": "weapon",
    }
    found = {word: kind_of_noun(word) for word in expected}
    assert {word: None if kind is None else kinds[kind] for word, kind in found.items()} == expected
    assert kind_of_noun("happiness") is kind_of_noun("quickly") is kind_of_noun("") is kind_of_noun("s") is None
    assert len(nouns) > 15_000


def test_the_noun_is_the_last_word_before_a_preposition() -> None:
    assert noun_of(words_of("brown banner with shield and swords")) == "banner"
    assert noun_of(words_of("pile of stones")) == "pile"
    assert noun_of(["of", "stone"]) == "stone" and noun_of(["tree"]) == "tree" and noun_of([]) == ""


def test_words_and_features() -> None:
    assert words_of("A Tree, 2 m: l'été_à") == ["a", "tree", "2", "m", "l", "été", "à"]
    rows = sentence_features(["tree", "", "tree tree"])
    assert rows.shape == (3, num_features())
    assert rows[0, :NUM_BUCKETS].norm() == pytest.approx(1) and rows[1].abs().sum() == 0
    torch.testing.assert_close(rows[0], rows[2])
    # word, noun; ^tr tre ree ee$; ^tre tree ree$; ^tree tree$
    assert int((rows[0, :NUM_BUCKETS] > 0).sum()) == 2 + 4 + 3 + 2
    assert sorted(rows[0, NUM_BUCKETS:].nonzero().flatten().tolist()) == [kind_of_noun("tree"), 18 + PLANT]
    assert rows[0, NUM_BUCKETS:].sum() == 0.75


def test_subjects_survive_a_weight_file(subjects: Subjects) -> None:
    again = Subjects.from_tensors(subjects.tensors())
    assert again.names == subjects.names and again.counts == subjects.counts
    assert torch.equal(again.weight, subjects.weight) and torch.equal(again.bias, subjects.bias)
    tensors = subjects.tensors()
    for broken, message in (
        ({"weight": tensors["weight"]}, "must hold bias, table and weight"),
        ({**tensors, "table": tensors["table"][:-3]}, "table of subjects is broken"),
        ({**tensors, "weight": tensors["weight"][:7]}, r"weights of \[7, 2\], expected \[8228, 2\]"),
    ):
        with pytest.raises(WeightsError, match=message):
            Subjects.from_tensors(broken)


def test_captions_and_categories_must_be_as_many() -> None:
    for captions, categories in (((), ()), (("tree",), ())):
        with pytest.raises(InvalidInputError, match=r"captions and .* categories"):
            fit_subjects(captions, categories)


def test_composed_guidance_lies_between_both() -> None:
    none, sentence, subject = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(composed(none, sentence, subject, 4.0, 0.0), guided(none, sentence, 4.0))
    torch.testing.assert_close(composed(none, sentence, subject, 4.0, 1.0), guided(none, subject, 4.0))
    expected = none + 4.0 * (0.75 * (sentence - none) + 0.25 * (subject - none))
    torch.testing.assert_close(composed(none, sentence, subject, 4.0, 0.25), expected)


def with_subjects(pipeline: MultiViewPipeline, subjects: Subjects | None) -> MultiViewPipeline:
    parts = dataclasses.replace(pipeline.parts, subjects=subjects)
    return MultiViewPipeline(pipeline.params, parts)


def test_known_words_are_guided_by_the_sentence_alone(pipeline: MultiViewPipeline, subjects: Subjects) -> None:
    known = dataclasses.replace(subjects, counts={"oak": 10**9, "tree": 10**9})
    options = {"steps": 3, "guidance": 4.0}
    plain = with_subjects(pipeline, None)("oak tree", **options)
    torch.testing.assert_close(with_subjects(pipeline, known)("oak tree", **options), plain, atol=1e-3, rtol=0)
    guided_too = with_subjects(pipeline, subjects)("oak tree", **options)
    assert (guided_too - plain).abs().max() > 0.02


def test_unknown_words_begin_with_the_subject_alone(pipeline: MultiViewPipeline, subjects: Subjects) -> None:
    """With one step, at the highest noise, a sentence of unknown words is its guess."""
    assert subjects.doubt("submarine") == 1.0
    guess = subjects.guess("submarine")
    unknown = with_subjects(pipeline, subjects)("submarine", steps=1, guidance=4.0)
    told = with_subjects(pipeline, None)(guess, steps=1, guidance=4.0)
    torch.testing.assert_close(unknown, told, atol=1e-3, rtol=0)


def test_a_picture_says_what_it_is(pipeline: MultiViewPipeline, subjects: Subjects) -> None:
    picture = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1))
    results = [with_subjects(pipeline, s)("submarine", picture, steps=1, guidance=2.0) for s in (None, subjects)]
    assert torch.equal(*results)


def test_a_model_that_guesses_needs_its_subjects(pipeline: MultiViewPipeline, tmp_path: Path) -> None:
    state = {f"unet.{name}": value for name, value in pipeline.parts.unet.state_dict().items()}
    write_weights(tmp_path / "some.safetensors", state, {})
    with pytest.raises(WeightsError, match="subjects"):
        load_pipeline(pipeline.params, tmp_path / "some.safetensors")
