"""`maquette evaluate`: measure a model on novel views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from maquette.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

    from maquette.data.dataset import RenderedDataset
    from maquette.evaluation.protocol import Reconstruct


@dataclass(frozen=True)
class Args:
    """Measures a model on novel views of rendered assets: PSNR, SSIM and alpha IoU.

    Writes report.json (every object, means, realistic objects apart), report.md and sheet.png (best, median and worst
    objects) into the output folder.
    """

    data: Path
    """Folder that `maquette data render --plan standard` wrote."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("outputs/evaluation")
    """Folder of the report."""
    model: Annotated[str, arg(metavar="NAME|FILE")] = "lgm-mini"
    """Name of a model (see: maquette models list) or a .safetensors file."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of that model to use instead of the shipped ones."""
    generator: Annotated[str | None, arg(metavar="NAME")] = None
    """Show the model the front alone and make its other views with this generator (mvdream-mini)."""
    generator_weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of the generator to use instead of the shipped ones."""
    split: str = "test"
    """Split of the data set; "all" takes every object."""
    limit: int | None = None
    """At most this many objects, spread evenly over the split."""
    batch_size: int | None = None
    """Objects at a time; by default 1 on the CPU, 8 on a GPU."""
    device: Annotated[str | None, arg(metavar="DEVICE")] = None
    """cpu, cuda or cuda:N; by default the GPU if there is one."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the network; pictures are always compared in fp32."""
    sheet: bool = True
    """Write the picture sheet."""


def run(args: Args) -> int:
    """Runs the verb and shows the table."""
    import torch
    from tqdm import tqdm

    from maquette.device import choose_device
    from maquette.direct_generation import one_picture_model
    from maquette.evaluation.protocol import ORBIT4_NOVEL8, evaluate
    from maquette.evaluation.report import markdown_table, write_report, write_sheet
    from maquette.hub import file_sha256

    device = choose_device(args.device)
    dataset = load_dataset(args.data, args.split, args.limit)
    reconstruct, weights_file = _load_model(args, device)
    if args.generator is not None:
        reconstruct = _from_front(args, reconstruct, device)
    batch_size = args.batch_size or (8 if device.type == "cuda" else 1)
    with tqdm(total=len(dataset), unit="object", desc="evaluate", dynamic_ncols=True) as bar:
        evaluation = evaluate(
            reconstruct,
            dataset,
            protocol=ORBIT4_NOVEL8,
            device=device,
            batch_size=batch_size,
            progress=lambda done: bar.update(done - bar.n),
        )
    facts = {
        "model": args.model,
        "weights": None if weights_file is None else weights_file.name,
        "weights_sha256": None if weights_file is None else file_sha256(weights_file),
        "generator": args.generator,
        "input_views": 1 if args.generator or one_picture_model(args.model) else ORBIT4_NOVEL8.num_inputs,
        "data": args.data.name,
        "data_settings": dataset.settings,
        "split": args.split,
        "limit": args.limit,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": args.precision,
        "batch_size": batch_size,
    }
    report = write_report(args.output, evaluation, facts)
    if args.sheet:
        write_sheet(args.output / "sheet.png", evaluation, reconstruct, dataset, device)
    print(markdown_table(report))
    print(f"written to {args.output}")
    return 0


def _from_front(args: Args, reconstruct: Reconstruct, device: torch.device) -> Reconstruct:
    from maquette.evaluation.generation import from_front
    from maquette.generation import with_alpha
    from maquette.generators import load_generator

    assert args.generator is not None
    generator = load_generator(args.generator, args.generator_weights, device=device)
    params = generator.params
    if not params.takes_picture:
        raise InvalidInputError(f"{args.generator} takes sentences only: choose a generator that takes a picture")
    return from_front(reconstruct, lambda front, _: with_alpha(generator("", front)[0]), params.picture_is_front)


def load_dataset(data: Path, split: str, limit: int | None) -> RenderedDataset:
    """A split of a data set ("all": every object), at most `limit` objects, spread evenly over it.

    Raises:
        InvalidInputError: the limit is below 1, or nothing is left.
    """
    from maquette.data.dataset import RenderedDataset
    from maquette.data.layout import read_index

    wanted = None if split == "all" else split
    if limit is not None and limit < 1:
        raise InvalidInputError(f"--limit must be at least 1, got {limit}")
    if limit is None:
        return RenderedDataset.load(data, wanted)
    _, listed = read_index(data)
    ids = sorted(info.id for info in listed if wanted in (None, info.split))
    count = min(limit, len(ids))
    chosen = [ids[index * len(ids) // count] for index in range(count)]
    return RenderedDataset.load(data, wanted, ids=chosen)


def _load_model(args: Args, device: torch.device) -> tuple[Reconstruct, Path | None]:
    """The model and the file of its weights."""
    import torch

    from maquette.registry import load, load_network, reconstructor_of
    from maquette.weights import find_weights

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    if args.weights is not None:
        return reconstructor_of(load_network(args.model, args.weights, device, dtype)), args.weights
    path = Path(args.model)
    return load(args.model, device, dtype), path if path.is_file() else find_weights(args.model)
