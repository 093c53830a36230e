"""`maquette bench step` for machines without tyro: python benchmarks/step.py [--device cuda|cpu] [-o DIR]."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from maquette.raster.bench_report import machine
from maquette.training.bench import bench_step, markdown, recipe_of, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("lgm-big", "lgm-small", "lgm-tiny"), default="lgm-big")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--commit")
    args = parser.parse_args()
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    params, config = recipe_of(args.model, args.batch_size)
    results, notes = bench_step(device, params, config)
    where = machine(device, args.commit)
    print(markdown(results, where, params, config, notes))
    write_report(results, where, params, config, args.output, f"step_{args.device}", notes)


if __name__ == "__main__":
    main()
