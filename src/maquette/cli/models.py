"""`maquette models`: list, describe, download and import models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from maquette.generators import GeneratorEntry
    from maquette.registry import ModelEntry


@dataclass(frozen=True)
class ListArgs:
    """Lists the models and whether their weights are on this machine."""

    names_only: bool = False
    """Print nothing but the names, one per line."""


@dataclass(frozen=True)
class InfoArgs:
    """Describes one model."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Name of the model, see: maquette models list."""


@dataclass(frozen=True)
class PullArgs:
    """Downloads the published weights of a model and checks them."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Name of the model, such as lgm-big."""
    force: bool = False
    """Download again although the weights are already here."""


@dataclass(frozen=True)
class ImportArgs:
    """Converts a checkpoint (.safetensors, .ckpt, .pt) into the weights of a model, after a strict check."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The checkpoint; pickled files are read as tensors only, no code in them is run. For mvdream and imagedream the
    published folder."""
    model: Annotated[str, arg(metavar="NAME")]
    """Name of the model whose network it fits."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Write this .safetensors file instead of installing the weights in the store."""
    rotation_axis: Literal["last", "gaussians"] | None = None
    """How the checkpoint normalises rotations; by default known from its file name. LGM checkpoints published before
    April 2024 need gaussians."""


def run_list(args: ListArgs) -> int:
    """Prints the table of models."""
    from maquette.generators import GENERATORS
    from maquette.registry import MODELS

    if args.names_only:
        print("\n".join([*MODELS, *GENERATORS]))
        return 0
    rows = [("NAME", "FAMILY", "PARAMETERS", "WEIGHTS", "SIZE", "LICENSE")]
    entries: list[ModelEntry | GeneratorEntry] = [*MODELS.values(), *GENERATORS.values()]
    for entry in entries:
        where, size = _weights_of(entry.name)
        rows.append((entry.name, entry.family, f"{entry.num_parameters / 1e6:.1f} M", where, size, entry.license))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_info(args: InfoArgs) -> int:
    """Prints what is known about a model."""
    from maquette.generators import GENERATORS
    from maquette.registry import get_entry
    from maquette.weights import find_weights

    if args.name in GENERATORS:
        return _print_facts(_generator_facts(args.name))
    entry = get_entry(args.name)
    params, path = entry.params, find_weights(args.name)
    facts: list[tuple[str, str]] = [
        ("family", entry.family),
        ("summary", entry.summary),
        ("parameters", f"{entry.num_parameters:,}"),
        ("input", f"{_views_text(params.num_input_views)} of {params.input_size} x {params.input_size} px, "
                  f"{params.fov_deg} degrees, {params.camera_radius} from the origin"),
        ("output", f"{params.num_gaussians:,} Gaussians"),
        ("license", entry.license),
        ("weights", str(path) if path else f"not here: {entry.how_to_get}"),
    ]  # fmt: skip
    if path is not None:
        facts.append(("size", _size_text(path.stat().st_size)))
        facts += _metadata_facts(path)
    if entry.hub_file is not None:
        facts += [("published", entry.hub_file.url), ("sha256", entry.hub_file.sha256)]
    return _print_facts(facts)


def _generator_facts(name: str) -> list[tuple[str, str]]:
    """What is known about a generator of views."""
    from maquette.generators import get_generator
    from maquette.weights import find_weights

    entry, path = get_generator(name), find_weights(name)
    params = entry.params
    given = "a picture, and a sentence if there is one" if params.takes_picture else "a sentence"
    facts = [
        ("family", entry.family),
        ("summary", entry.summary),
        ("parameters", f"{entry.num_parameters:,}"),
        ("input", "a sentence, a picture or both" if params.picture_optional else given),
        ("output", f"{params.num_views} views of {params.image_size} x {params.image_size} px"),
        ("license", entry.license),
        ("weights", str(path) if path else f"not here: {entry.how_to_get}"),
    ]
    if path is not None:
        facts += [("size", _size_text(path.stat().st_size)), *_metadata_facts(path)]
    return facts


def _print_facts(facts: list[tuple[str, str]]) -> int:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
    return 0


def run_pull(args: PullArgs) -> int:
    """Downloads weights."""
    from tqdm import tqdm

    from maquette.convert_checkpoint import pull
    from maquette.generators import GENERATORS
    from maquette.registry import get_entry
    from maquette.weights import stored_file

    if args.name in GENERATORS:
        pull(args.name)  # says how to get it instead
    entry = get_entry(args.name)
    present = stored_file(entry.name)
    if present.is_file() and not args.force:
        print(f"{entry.name} is already here: {present} (--force downloads it again)")
        return 0
    if entry.hub_file is not None:
        print(f"{entry.hub_file.url} ({_size_text(entry.hub_file.size_bytes)})")
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = pull(entry.name, progress=show)
    print(f"checked and installed: {path}")
    return 0


def run_import(args: ImportArgs) -> int:
    """Converts a checkpoint."""
    from maquette.convert_checkpoint import import_checkpoint, import_folder
    from maquette.generators import GENERATORS

    if args.model in GENERATORS:
        path = import_folder(args.file, args.model, destination=args.output)
    else:
        path = import_checkpoint(args.file, args.model, rotation_axis=args.rotation_axis, destination=args.output)
    print(f"{args.file.name} fits {args.model}; written: {path}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "list": (ListArgs, run_list),
    "info": (InfoArgs, run_info),
    "pull": (PullArgs, run_pull),
    "import": (ImportArgs, run_import),
}


def _weights_of(name: str) -> tuple[str, str]:
    """Where the weights of a model are, and their size."""
    from maquette.registry import MODELS
    from maquette.weights import embedded_file, find_weights

    path = find_weights(name)
    if path is not None:
        return "embedded" if path == embedded_file(name) else "here", _size_text(path.stat().st_size)
    hub_file = MODELS[name].hub_file if name in MODELS else None
    if hub_file is not None:
        return "pull", _size_text(hub_file.size_bytes)
    return "none", "-"


def _metadata_facts(path: Path) -> list[tuple[str, str]]:
    """The short ones of the facts that a weight file carries."""
    from maquette.weights import read_metadata

    known = ("source", "origin", "rotation_axis", "step")
    metadata = read_metadata(path)
    return [(name, metadata[name]) for name in known if name in metadata]


def _views_text(count: int) -> str:
    return "1 view" if count == 1 else f"{count} views"


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
