"""A data set as a generator would give it: python benchmarks/generated_inputs.py --data DIR -o DIR [--shard 0/8].

Copies what `maquette data render --plan training --aligned-probability 1 --variants 1 --no-geometry` wrote, with the
second to fourth input view of every object replaced by those that `mvdream-mini` makes of the first, the true front. On
such a set `maquette train lgm-mini --no-use-depth --init-from` learns to take views that do not quite agree. Several
processes share the work by --shard; the same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from maquette.data.dataset import INPUT, RenderedDataset
from maquette.data.layout import read_index, write_index
from maquette.device import choose_device
from maquette.evaluation.generation import sized
from maquette.generation import with_alpha
from maquette.generators import load_generator
from maquette.io import write_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--generator", default="mvdream-mini")
    parser.add_argument("--shard", default="0/1", help="number/count of the processes that share the objects")
    parser.add_argument("--limit", type=int, help="at most so many objects of the split")
    parser.add_argument("--device")
    args = parser.parse_args()
    number, count = (int(part) for part in args.shard.split("/"))
    device = choose_device(args.device)
    settings, listed = read_index(args.data)
    chosen = sorted((info for info in listed if info.split == args.split), key=lambda info: info.id)[: args.limit]
    generator = load_generator(args.generator, device=device)
    args.output.mkdir(parents=True, exist_ok=True)
    for index, info in tqdm(list(enumerate(chosen))[number::count], unit="object", disable=number > 0):
        target = args.output / info.id
        if target.exists():
            continue
        dataset = RenderedDataset.load(args.data, ids=[info.id])
        frames = torch.nonzero((dataset.roles[0] == INPUT) & (dataset.variants[0] == 0)).flatten()
        front = dataset.views(0, frames[:1]).images[0]
        made = sized(with_alpha(generator("", front, seed=index)[0]).cpu().float(), dataset.image_size)
        partial = target.with_name(f".{info.id}")
        shutil.copytree(args.data / info.id, partial, dirs_exist_ok=True)
        names = [frame["file_path"] for frame in json.loads((partial / "transforms.json").read_text())["frames"]]
        for frame, view in zip(frames[1:].tolist(), made[1:], strict=True):
            write_image(partial / names[frame], view)
        partial.rename(target)
    write_index(args.output, settings, chosen)


if __name__ == "__main__":
    main()
