"""`maquette generate`: posed pictures, one picture or a sentence to 3D files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from maquette.cli.console import StageLines, size_text

if TYPE_CHECKING:
    from maquette.pipelines import Result


@dataclass(frozen=True)
class Args:
    """Turns pictures of an object, or a sentence, into Gaussians, a mesh, a turntable and a contact sheet.

    SOURCE is a folder of four posed pictures, one picture, or a folder of pictures, each of which becomes an asset (run
    the same command again to continue). Without SOURCE, --prompt says what to show. One picture or a sentence first
    goes to a generator, which makes the four views, unless --model takes one picture (gamba-mini).
    """

    source: Annotated[Positional[Path | None], arg(metavar="SOURCE")] = None
    """VIEWS_DIR with transforms.json (nerfstudio layout) and four RGBA pictures, the first one becomes the front;
    PICTURE; or PICTURES_DIR."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("outputs")
    """Folder for NAME.FORMAT and report.json. It is created when missing; files of the same name are replaced."""
    model: Annotated[str, arg(metavar="NAME|FILE")] = "lgm-mini"
    """Name of a model (see: maquette models list) or a .safetensors file."""
    formats: Annotated[str, arg(metavar="LIST")] = "ply,splat,glb,mp4,png"
    """What to write, with commas and without spaces: ply, splat (Gaussians), glb (mesh), mp4 (turntable), png (contact
    sheet)."""
    pick: Annotated[str | None, arg(metavar="LIST")] = None
    """Positions in transforms.json of the four frames to use, such as 0,3,6,9, when there are more than four."""
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """Name of the files; by default that of SOURCE, or the first words of the prompt."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N; by default the GPU if there is one."""
    frames: int = 60
    """Frames of the turntable, one turn."""
    fps: int = 30
    """Frames per second of the turntable."""
    image_size: int = 384
    """Side of the turntable's pictures in pixels."""
    fit_mesh: FlagCreatePairsOff[bool] = False
    """Fit texture and vertices of the .glb to views of the Gaussians (half a minute on a CPU), as convert does."""
    prompt: Annotated[str, arg(metavar="TEXT")] = ""
    """What to show, alone or beside a picture."""
    negative_prompt: Annotated[str, arg(metavar="TEXT")] = ""
    """What not to show."""
    generator: Annotated[str, arg(metavar="NAME")] = "mvdream-mini"
    """Generator of views for one picture or a sentence."""
    generator_weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of the generator to use instead of those in the store or the package."""
    views_only: FlagCreatePairsOff[bool] = False
    """Stop after the views; maquette generate NAME-views continues from there."""
    seed: int = 0
    """Of the views; the same seed gives the same files on a CPU."""
    steps: int | None = None
    """Steps of the sampler; by default the generator's."""
    guidance: float | None = None
    """How strongly the views follow picture and prompt, 1 or more; by default the generator's."""
    temperature: float | None = None
    """How different views from other seeds may be, 0 to 1: towards 0 simpler, cleaner and more alike; by default the
    generator's."""
    num_samples: int = 1
    """Sets of views to make, from seeds SEED, SEED + 1...; each becomes an asset."""
    elevation: float = 0.0
    """Degrees from which the picture was taken, above is positive."""
    cut_out_by: Literal["alpha", "rembg", "plain"] | None = None
    """How to find the object: the picture's alpha, rembg, or our remover of plain backgrounds; by default the first of
    them that can."""


def run(args: Args) -> int:
    """Runs the pipeline and says where the files are."""
    from maquette.errors import InvalidInputError
    from maquette.io import IMAGE_SUFFIXES

    source = args.source
    if source is None and not args.prompt.strip():
        raise InvalidInputError("nothing to start from: give a folder of views, a picture, or --prompt TEXT")
    if source is None or source.suffix.lower() in IMAGE_SUFFIXES:
        from maquette.direct_generation import one_picture_model

        direct = source is not None and not args.views_only and one_picture_model(args.model) is not None
        return _run_direct(args) if direct else _run_generator(args)
    if source.is_dir() and not (source / "transforms.json").exists() and _has_pictures(source):
        return _run_batch(args)
    if args.prompt or args.views_only:
        raise InvalidInputError(
            f"{source} holds views already: --prompt and --views-only are for one picture or a folder of pictures"
        )
    return _run_views(args)


def _run_views(args: Args) -> int:
    from maquette.pipelines import generate

    assert args.source is not None
    pick = None if args.pick is None else _integers(args.pick)
    result = generate(args.source, args.output, name=args.name, pick=pick, progress=StageLines(), **_how(args))
    _show(result)
    return 0


def _run_direct(args: Args) -> int:
    from maquette.direct_generation import generate_from_picture
    from maquette.errors import InvalidInputError

    assert args.source is not None
    if args.prompt:
        raise InvalidInputError(f"{args.model} goes by the picture alone: leave out --prompt")
    result = generate_from_picture(
        args.source,
        args.output,
        name=args.name,
        elevation_deg=args.elevation,
        cut_out_by=args.cut_out_by,
        progress=StageLines(),
        **_how(args),
    )
    _show(result)
    return 0


def _run_generator(args: Args) -> int:
    from maquette.generation import generate_from, make_views

    common: dict[str, Any] = {
        "generator": args.generator,
        "generator_weights": args.generator_weights,
        "name": args.name,
        "progress": StageLines(),
    }
    if args.views_only:
        made = make_views(args.source, args.output, _view_options(args), device=args.device, **common)
        results: tuple[Result, ...] = ()
    else:
        assets = generate_from(args.source, args.output, _view_options(args), **common, **_how(args))
        made, results = assets.made, assets.results
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"views in {sum(made.timings_s.values()):.1f} s")
    for path in (*made.files.values(), *made.folders):
        print(f"  {path}")
    for result in results:
        _show(result)
    return 0


def _run_batch(args: Args) -> int:
    from maquette.batch_generation import generate_batch

    assert args.source is not None
    result = generate_batch(
        args.source,
        args.output,
        _view_options(args),
        generator=args.generator,
        generator_weights=args.generator_weights,
        views_only=args.views_only,
        progress=lambda name, said, number, total: print(f"{number}/{total} {name}: {said}", file=sys.stderr),
        **_how(args),
    )
    print(f"{result.done} made, {result.kept} were there, {len(result.failures)} failed: {result.report}")
    for name, reason in result.failures.items():
        print(f"  {name}: {reason}")
    return 1 if result.failures else 0


def _has_pictures(folder: Path) -> bool:
    from maquette.io import IMAGE_SUFFIXES

    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _how(args: Args) -> dict[str, Any]:
    """Arguments that every way takes."""
    from maquette.rendering import Turntable
    from maquette.surface import SurfaceOptions

    return {
        "model": args.model,
        "formats": args.formats,
        "device": args.device,
        "turntable": Turntable(num_frames=args.frames, fps=args.fps, image_size=args.image_size),
        "surface": SurfaceOptions(fast=not args.fit_mesh),
    }


def _view_options(args: Args) -> Any:
    from maquette.generation import ViewOptions

    return ViewOptions(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        temperature=args.temperature,
        num_samples=args.num_samples,
        elevation_deg=args.elevation,
        cut_out_by=args.cut_out_by,
    )


def _show(result: Result) -> None:
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result.gaussians.num_gaussians:,} Gaussians in {sum(result.timings_s.values()):.1f} s")
    for path in result.files.values():
        print(f"  {path}  {size_text(path.stat().st_size)}")


def _integers(text: str) -> list[int]:
    from maquette.errors import InvalidInputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"--pick needs whole numbers separated by commas, such as 0,3,6,9, got {text!r}"
        ) from error
