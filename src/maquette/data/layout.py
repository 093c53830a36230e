"""The rendered data set on disk: names, metadata and `dataset.json`.

DIR/dataset.json          what was rendered, how, and one entry per finished object
DIR/failures.json         what could not be rendered and why
DIR/<id>/transforms.json  cameras (nerfstudio layout) and per frame `variant` and `role`
DIR/<id>/rgb/000.png      RGBA, 8 bit, straight alpha; depth/000.png 16 bit; normal/000.png 8 bit, world axes
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maquette.errors import FileFormatError
from maquette.io.atomic import atomic_write_text

FORMAT = "maquette-rendered/1"
Role = Literal["input", "target"]
ROLES: tuple[Role, ...] = ("input", "target")
_REALISTIC_SOURCES = ("gazebo", "aws", "servicesim")
_LEVEL_WORDS = re.compile(
    r"[-_ ](\d+|[a-z]|v\d+|lv\d*|lvl\d*|level\d*|(first|second|third)age|small|medium|large|big|tall|short|wide)$"
)


@dataclass(frozen=True)
class ObjectInfo:
    """What is known about one object.

    Attributes:
        id: folder name.
        caption, category, source, license, split: from the index, "" where unknown.
        family: the id without trailing numbers, letters and level words: variants of one thing share it.
        realistic: made after a real thing rather than for a stylised game.
    """

    id: str
    caption: str = ""
    category: str = ""
    source: str = ""
    license: str = ""
    split: str = ""
    family: str = ""
    realistic: bool = False

    @staticmethod
    def from_index(row: dict[str, str]) -> ObjectInfo:
        """From one row of an asset index (`index.csv`); only `id` has to be there."""
        known = {name: row.get(name) or "" for name in ("id", "caption", "category", "source", "license", "split")}
        realistic = any(word in known["source"].lower() for word in _REALISTIC_SOURCES)
        return ObjectInfo(**known, family=family_of(known["id"]), realistic=realistic)


def family_of(object_id: str) -> str:
    """The id without trailing numbers, single letters and level or size words.

    >>> family_of("pack-houses_secondage_1_level2"), family_of("pack-key10"), family_of("pack-rock_single_d")
    ('pack-houses', 'pack-key', 'pack-rock_single')
    """
    name = object_id.lower()
    while True:
        shorter = _LEVEL_WORDS.sub("", name)
        shorter = re.sub(r"(?<=[a-z])\d+$", "", shorter)
        if shorter == name or not shorter:
            return name
        name = shorter


def write_index(root: Path, settings: dict[str, Any], objects: list[ObjectInfo]) -> None:
    """Writes `dataset.json` atomically; `settings` holds image_size, fov_deg, radius, plan, lighting, seed..."""
    entries = [dataclasses.asdict(info) for info in sorted(objects, key=lambda info: info.id)]
    document = {"format": FORMAT, **settings, "objects": entries}
    atomic_write_text(root / "dataset.json", json.dumps(document, indent=1) + "\n")


def read_index(root: Path) -> tuple[dict[str, Any], list[ObjectInfo]]:
    """Settings and objects of a rendered data set.

    Raises:
        FileFormatError: `dataset.json` is missing, malformed or of another format.
    """
    path = root / "dataset.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(
            f"{root} is not a rendered data set (no dataset.json): run `maquette data render ASSETS -o {root}`"
        ) from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}): render the data set again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise FileFormatError(f"{path} has format {found!r}, this version reads {FORMAT!r}")
    names = {field.name for field in dataclasses.fields(ObjectInfo)}
    try:
        objects = [ObjectInfo(**{k: v for k, v in entry.items() if k in names}) for entry in document.pop("objects")]
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} has a malformed list of objects: {error}") from error
    document.pop("format")
    return document, objects
