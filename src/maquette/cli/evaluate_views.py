"""`maquette evaluate-views`: measure a generator of views on rendered assets."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from maquette.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from maquette.evaluation.captions import CaptionEvaluation
    from maquette.evaluation.generation import SideEvaluation


@dataclass(frozen=True)
class Args:
    """Measures a generator of views: the four sides of test objects from their front views, and from their captions.

    Beside it stand two answers without a model: the front repeated, and the sides of the training object with the
    nearest front (--train-data). Writes report.json, report.md, sheet.png and, for captions, captions.png.
    """

    data: Path
    """Folder that `maquette data render --plan standard` wrote."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("outputs/evaluation-views")
    """Folder of the report."""
    model: str = "mvdream-mini"
    """Generator of views."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of it to use instead of those in the store or the package."""
    split: str = "test"
    """Split of the data set; "all" takes every object."""
    limit: int | None = None
    """At most this many objects, spread evenly over the split."""
    steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of steps to compare."""
    guidance: tuple[float, ...] = ()
    """Strengths of guidance to compare for pictures; by default the model's."""
    prompt_guidance: float | None = None
    """Strength of guidance for captions; by default the model's."""
    temperature: tuple[float, ...] = ()
    """Strengths of the noise to start from to compare for pictures, 0 to 1; by default the model's."""
    prompt_temperature: float | None = None
    """Strength of the noise to start from for captions; by default the model's."""
    seed: int = 0
    """Of the noise; object i is made from SEED + i."""
    train_data: Annotated[Path | None, arg(metavar="DIR")] = None
    """Rendered train split (--plan sides or standard), for the nearest object."""
    reconstructor: str = "lgm-mini"
    """Model that makes Gaussians of the views, whose novel views are compared; none leaves that out."""
    classifier: Annotated[Path | None, arg(metavar="FILE")] = None
    """Judge of generated views (benchmarks/train_classifier.py); with it captions are measured."""
    num_captions: int = 100
    """Captions to measure, spread evenly over the objects."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N; by default the GPU if there is one."""


def run(args: Args) -> int:
    """Runs the verb and shows the tables."""
    from maquette.device import choose_device
    from maquette.evaluation.captions import markdown_captions
    from maquette.evaluation.generation import markdown_sides
    from maquette.evaluation.report import source_commit
    from maquette.io.atomic import atomic_write_text

    device = choose_device(args.device)
    sides = _measure_sides(args, device)
    table = markdown_sides(sides)
    report: dict[str, Any] = {
        "format": "maquette-evaluation-views/1",
        "model": args.model,
        "weights": None if args.weights is None else args.weights.name,
        "data": args.data.name,
        "split": args.split,
        "seed": args.seed,
        "reconstructor": args.reconstructor,
        "commit": source_commit(),
        "sides": [_side_entry(item) for item in sides],
    }
    if args.classifier is not None:
        captions = _measure_captions(args, device)
        table += "\n" + markdown_captions(captions)
        report["captions"] = dataclasses.asdict(captions)
    atomic_write_text(args.output / "report.json", json.dumps(report, indent=1).replace("NaN", "null") + "\n")
    atomic_write_text(args.output / "report.md", table)
    print(table)
    print(f"written to {args.output}")
    return 0


def _measure_sides(args: Args, device: torch.device) -> list[SideEvaluation]:
    from maquette.cli.evaluate import load_dataset
    from maquette.data.dataset import RenderedDataset
    from maquette.evaluation.generation import NearestObject, repeat_front
    from maquette.evaluation.generation_sheet import write_sides_sheet
    from maquette.generators import load_generator
    from maquette.registry import load

    dataset = load_dataset(args.data, args.split, args.limit)
    generator = load_generator(args.model, args.weights, device=device)
    reconstruct = None if args.reconstructor == "none" else load(args.reconstructor, device)
    answers: dict[str, Any] = {}
    guidances = args.guidance or (generator.params.guidance_for(True),)
    temperatures = args.temperature or (generator.params.temperature_for(True),)
    for steps, guidance, temperature in itertools.product(args.steps, guidances, temperatures):
        name = f"{steps} steps, guidance {guidance:g}, temperature {temperature:g}"
        options = {"steps": steps, "guidance": guidance, "temperature": temperature}
        answers[name] = _answer(generator, args.seed, options)
    if not answers:
        raise InvalidInputError("--steps names no number of steps")
    write_sides_sheet(args.output / "sheet.png", dataset, list(answers.values())[-1])
    answers["baseline: front repeated"] = repeat_front
    if args.train_data is not None:
        answers["baseline: nearest training object"] = NearestObject(RenderedDataset.load(args.train_data, "train"))
    settings = {
        "reconstruct": reconstruct,
        "keep_front": generator.params.picture_is_front,
        "device": device,
    }
    return [_with_bar(name, answer, dataset, settings) for name, answer in answers.items()]


def _with_bar(name: str, answer: Any, dataset: Any, settings: dict[str, Any]) -> SideEvaluation:
    from tqdm import tqdm

    from maquette.evaluation.generation import evaluate_sides

    with tqdm(total=len(dataset), unit="object", desc=name, dynamic_ncols=True) as bar:
        return evaluate_sides(name, answer, dataset, progress=lambda done: bar.update(done - bar.n), **settings)


def _answer(generator: Any, seed: int, options: dict[str, Any]) -> Any:
    """See `maquette.evaluation.generation.Answer`."""
    from maquette.generation import with_alpha

    def answer(front: torch.Tensor, index: int) -> torch.Tensor:
        return with_alpha(generator("", front, seed=seed + index, **options)[0])

    return answer


def _measure_captions(args: Args, device: torch.device) -> CaptionEvaluation:
    from maquette.cli.evaluate import load_dataset
    from maquette.evaluation.captions import evaluate_captions
    from maquette.evaluation.classifier import load_classifier
    from maquette.generators import load_generator

    assert args.classifier is not None
    dataset = load_dataset(args.data, args.split, args.num_captions)
    generator = load_generator(args.model, args.weights, device=device)

    def make(caption: str, index: int) -> torch.Tensor:
        made: torch.Tensor = generator(
            caption,
            seed=args.seed + index,
            steps=args.steps[-1],
            guidance=args.prompt_guidance,
            temperature=args.prompt_temperature,
        )[0]
        return made

    return evaluate_captions(
        make,
        dataset,
        load_classifier(args.classifier, device),
        sheet=args.output / "captions.png",
    )


def _side_entry(evaluation: SideEvaluation) -> dict[str, Any]:
    rows = [{"id": info.id, **dataclasses.asdict(scores)} for info, scores in evaluation.objects]
    return {"name": evaluation.name, "mean": dataclasses.asdict(evaluation.mean), "objects": rows}
