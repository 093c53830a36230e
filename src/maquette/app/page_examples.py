"""What a visitor can start from without a network: sentences, and the repository's pictures where they are."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import maquette

SENTENCES = (
    "a wooden chair",
    "a red mushroom with white dots",
    "a pine tree",
    "a stone pillar",
    "a blue car",
)
_PICTURES = ("taxi", "cactus", "shiba", "tavern")


@dataclass(frozen=True)
class Examples:
    """Inputs to try.

    Attributes:
        pictures: files.
        sentences: that the embedded generator has an idea of.
        views: .zip files of four posed views.
    """

    pictures: tuple[str, ...] = ()
    sentences: tuple[str, ...] = SENTENCES
    views: tuple[str, ...] = ()


def find_examples(folder: Path, root: Path | None = None) -> Examples:
    """The examples of this installation.

    Args:
        folder: where archives of views are written; created when missing.
        root: of the examples; by default `examples` of the repository that maquette runs from, if it does.
    """
    if root is None:
        root = Path(maquette.__file__).parents[2] / "examples"
    pictures, views = [], []
    for name in _PICTURES:
        source = root / name
        frames = sorted((source / "rgb").glob("*.png"))
        if not frames or not (source / "transforms.json").is_file():
            continue
        pictures.append(str(frames[0]))
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in (source / "transforms.json", *frames):
                packed.write(file, file.relative_to(source))
        views.append(str(archive))
    return Examples(tuple(pictures), SENTENCES, tuple(views))
