"""What a sentence is about, for a small model whose words are few: a guess at the category, and how sure it is.

Our own text encoder learns from two thousand captions and says little about words that it has not met. What they are
is told by a list of nouns of WordNet 3.1 (`nouns.txt`, made by `benchmarks/make_nouns.py`), by their letters, and by
the words around them: a linear classifier on these (words and letter n-grams as in Joulin et al., 2016, "Bag of Tricks
for Efficient Text Classification") guesses the category. Where the words are little known the pipeline guides the first
steps by the guess (Liu et al., 2022, "Compositional Visual Generation with Composable Diffusion Models").
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.errors import InvalidInputError, WeightsError

NUM_BUCKETS = 8192
"""Features that all words and n-grams share by their hash."""

_GRAM_LENGTHS = (3, 4, 5)
_NOUN_WEIGHT, _WORD_WEIGHT = 0.5, 0.25
_DECAY = 1e-4
_ITERATIONS = 80
_HALF_KNOWN, _RARE = 2.0, 2
_PREPOSITIONS = frozenset(["at", "by", "for", "from", "in", "of", "on", "to", "with"])
_SMALL_WORDS = _PREPOSITIONS | {"a", "an", "and", "or", "the"}


@dataclass(frozen=True)
class Subjects:
    """A classifier of sentences and what it was trained on.

    Attributes:
        names: the categories.
        weight: `[F, C]`, F features as `sentence_features` makes them.
        bias: `[C]`.
        counts: how many training captions have each word.
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    counts: Mapping[str, int]

    def guess(self, sentence: str) -> str:
        """The likeliest category of a sentence."""
        logits = sentence_features([sentence]) @ self.weight.float() + self.bias.float()
        return self.names[int(logits.argmax())]

    def doubt(self, sentence: str) -> float:
        """How little a model trained on the same captions knows the words of a sentence, 0..1.

        1 if at most two training captions have the word that names the thing. Otherwise the mean over its words, small
        ones such as "the" aside, of 1 for a word that no training caption has, and 1/2 for one that two of them have.
        """
        words = words_of(sentence)
        if self.counts.get(noun_of(words), 0) <= _RARE:
            return 1.0
        words = [word for word in words if word not in _SMALL_WORDS]
        doubts = [1.0 / (1.0 + self.counts.get(word, 0) / _HALF_KNOWN) for word in words]
        return sum(doubts) / len(doubts) if doubts else 1.0

    def tensors(self) -> dict[str, Tensor]:
        """For a weight file; `from_tensors` reads them."""
        document = json.dumps({"names": self.names, "counts": self.counts}, separators=(",", ":")).encode()
        table = torch.frombuffer(bytearray(document), dtype=torch.uint8)
        return {"weight": self.weight, "bias": self.bias, "table": table}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Subjects:
        """What `tensors` gave.

        Raises:
            WeightsError: a tensor is missing, or they do not fit each other.
        """
        if set(tensors) != {"weight", "bias", "table"}:
            raise WeightsError(f"subjects must hold bias, table and weight, got {', '.join(sorted(tensors))}")
        try:
            document = json.loads(bytes(tensors["table"].tolist()))
            names, counts = tuple(document["names"]), document["counts"]
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"the table of subjects is broken: {error}") from error
        shape = list(tensors["weight"].shape)
        expected = [num_features(), len(names)]
        if shape != expected or list(tensors["bias"].shape) != expected[1:]:
            raise WeightsError(f"subjects has weights of {shape}, expected {expected}")
        return cls(names, tensors["weight"], tensors["bias"], counts)


def fit_subjects(captions: Sequence[str], categories: Sequence[str]) -> Subjects:
    """Trains the classifier (logistic regression, L2, L-BFGS) and counts the words; about a second, no random numbers.

    Args:
        captions: what objects are called, one each.
        categories: of the same objects.

    Raises:
        InvalidInputError: no captions, or not one category for each.
    """
    if not captions or len(captions) != len(categories):
        raise InvalidInputError(f"got {len(captions)} captions and {len(categories)} categories: give one for each")
    names = tuple(sorted(set(categories)))
    features = sentence_features(captions)
    wanted = torch.tensor([names.index(category) for category in categories])
    weight = torch.zeros(num_features(), len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS)

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, wanted) + 0.5 * _DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    counts = Counter(word for caption in captions for word in set(words_of(caption)))
    return Subjects(names, weight.detach().half(), bias.detach().half(), dict(sorted(counts.items())))


def words_of(sentence: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"[^\W_]+", sentence.lower())


def noun_of(words: Sequence[str]) -> str:
    """The word that names the thing: the last one before a preposition; "" without words."""
    end = next((place for place, word in enumerate(words) if place and word in _PREPOSITIONS), len(words))
    return words[end - 1] if words else ""


@functools.cache
def known_nouns() -> tuple[tuple[str, ...], dict[str, int]]:
    """Kinds of things, and the number of the kind of each noun of the list."""
    lines = resources.files(__package__).joinpath("nouns.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    return tuple(row[0] for row in rows), {noun: kind for kind, row in enumerate(rows) for noun in row[1:]}


def kind_of_noun(word: str) -> int | None:
    """The number of the kind of a noun, in singular or plural; None for other words."""
    nouns = known_nouns()[1]
    forms = [word]
    if word.endswith("s"):
        forms += [word[:-1], word.removesuffix("es"), word.removesuffix("ies") + "y"]
    return next((nouns[form] for form in forms if form in nouns), None)


def num_features() -> int:
    """Columns of `sentence_features`."""
    return NUM_BUCKETS + 2 * len(known_nouns()[0])


def sentence_features(sentences: Sequence[str]) -> Tensor:
    """What the classifier sees of sentences.

    Returns:
        `[B, F]` float32: which words (the noun once more) and which letter n-grams of 3 to 5 a sentence has, hashed to
        `NUM_BUCKETS` columns of length 1 together; then the kind of its noun, and the kinds of all its words.
    """
    texts = torch.zeros(len(sentences), NUM_BUCKETS)
    kinds = torch.zeros(len(sentences), 2, len(known_nouns()[0]))
    for row, sentence in enumerate(sentences):
        words = words_of(sentence)
        pieces = [f"word {word}" for word in words] + [f"noun {noun_of(words)}"] * bool(words)
        for word in words:
            spelled = f"^{word}$"
            for length in _GRAM_LENGTHS:
                pieces += [spelled[start : start + length] for start in range(len(spelled) - length + 1)]
            kind = kind_of_noun(word)
            if kind is not None:
                kinds[row, 1, kind] = _WORD_WEIGHT
        texts[row, [zlib.crc32(piece.encode()) % NUM_BUCKETS for piece in pieces]] = 1.0
        kind = kind_of_noun(noun_of(words))
        if kind is not None:
            kinds[row, 0, kind] = _NOUN_WEIGHT
    return torch.cat([F.normalize(texts, dim=1), kinds.flatten(1)], dim=1)
