"""Sentences to numbers: CLIP's byte-pair tokenizer, from published files, from captions, or of single letters."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from maquette.errors import InvalidInputError, MissingDependencyError
from maquette.models.mvdream.params import TextEncoderParams

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_HEADER = "#version: 0.2\n"


def build_tokenizer(vocabulary_json: bytes, merges_text: bytes, params: TextEncoderParams) -> Any:
    """A CLIP tokenizer (of transformers) from the contents of its two files.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "transformers is needed for MVDream and ImageDream: pip install 'maquette[diffusion]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_bytes(vocabulary_json)
        (Path(folder) / "merges.txt").write_bytes(merges_text)
        return CLIPTokenizer.from_pretrained(folder, pad_token=params.pad_token, local_files_only=True)


def token_ids(tokenizer: Any, texts: Sequence[str], params: TextEncoderParams) -> Tensor:
    """Token ids `[B, num_tokens]` of sentences, cut or padded."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=params.num_tokens, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def letter_tokenizer(params: TextEncoderParams) -> tuple[bytes, bytes]:
    """The two files of a CLIP tokenizer that knows single bytes only: needs no download, spells everything.

    Args:
        params: whose vocabulary it must fit; needs at least 514 entries.

    Raises:
        InvalidInputError: the vocabulary is too small.
    """
    return _files(_letters(params), [], params)


def trained_tokenizer(captions: Iterable[str], params: TextEncoderParams) -> tuple[bytes, bytes]:
    """The two files of a CLIP tokenizer whose merges are learned from captions.

    Byte-pair encoding (Sennrich et al., 2016): the most frequent neighbours become one token, again and again, until
    the vocabulary is full or nothing occurs twice. Of equally frequent pairs the first in the alphabet is taken.

    Args:
        captions: what the sentences look like.
        params: whose vocabulary to fill; needs at least 514 entries.

    Raises:
        InvalidInputError: the vocabulary is too small.
        MissingDependencyError: transformers is not installed.
    """
    words = _letters(params)
    splitter = build_tokenizer(*letter_tokenizer(params), params)
    counts: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        counts.update(_spelled_words(splitter.tokenize(caption)))
    merges: list[tuple[str, str]] = []
    while len(words) + 2 < params.vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in counts.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        words.append("".join(best))
        counts = _merged(counts, best)
    return _files(words, merges, params)


def _spelled_words(letters: Iterable[str]) -> list[tuple[str, ...]]:
    """Letters in a row, divided after each one that ends a word."""
    words: list[tuple[str, ...]] = []
    word: list[str] = []
    for letter in letters:
        word.append(letter)
        if letter.endswith(_WORD_END):
            words.append(tuple(word))
            word = []
    return words


def _merged(counts: Counter[tuple[str, ...]], pair: tuple[str, str]) -> Counter[tuple[str, ...]]:
    result: Counter[tuple[str, ...]] = Counter()
    for word, count in counts.items():
        parts: list[str] = []
        for part in word:
            if parts and (parts[-1], part) == pair:
                parts[-1] += part
            else:
                parts.append(part)
        result[tuple(parts)] += count
    return result


def _letters(params: TextEncoderParams) -> list[str]:
    letters = _byte_letters()
    words = [*letters, *(letter + _WORD_END for letter in letters)]
    if params.vocabulary < len(words) + 2:
        raise InvalidInputError(f"spelling takes a vocabulary of {len(words) + 2}, got {params.vocabulary}")
    return words


def _files(words: list[str], merges: list[tuple[str, str]], params: TextEncoderParams) -> tuple[bytes, bytes]:
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {_START: params.vocabulary - 2, _END: params.vocabulary - 1}
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    return json.dumps(vocabulary).encode(), (_HEADER + lines).encode()


def _byte_letters() -> list[str]:
    """The visible letter by which byte-level tokenizers spell each byte."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(0x100)]
