"""`maquette bench raster` for machines without tyro: python benchmarks/raster.py [--device cuda|cpu] [-o DIR]."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from maquette.raster.bench import bench_machine
from maquette.raster.bench_report import machine, markdown, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--commit")
    args = parser.parse_args()
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    results, notes = bench_machine(device)
    where = machine(device, args.commit)
    print(markdown(results, where, notes))
    write_report(results, where, args.output, f"raster_{args.device}", notes)


if __name__ == "__main__":
    main()
