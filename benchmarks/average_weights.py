"""The mean of several weights of one model: python benchmarks/average_weights.py A B ... -o MEAN.safetensors.

Weights that were trained on from the same start, in different ways, lie in one basin; their mean generalises better
than each of them (Wortsman et al. 2022, "Model soups"). The header (licence, configuration) is the first file's, with
the shares noted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from maquette.errors import WeightsError
from maquette.weights import read_weights, write_weights


def mean_weights(states: list[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    """Weighted mean of tensors of the same names and shapes, in float32, given back in the first one's dtype."""
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise WeightsError("the files hold tensors of different names or shapes: they must be of one model")
    total = sum(shares)
    mean = {}
    for name, first in states[0].items():
        parts = [share / total * state[name].float() for share, state in zip(shares, states, strict=True)]
        mean[name] = torch.stack(parts).sum(0).to(first.dtype)
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", help="one per file, > 0; by default all alike")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    shares = args.shares or [1.0] * len(args.files)
    if len(shares) != len(args.files) or min(shares) <= 0:
        parser.error(f"--shares needs {len(args.files)} numbers above 0, got {shares}")
    files = [read_weights(path) for path in args.files]
    mean = mean_weights([state for state, _ in files], shares)
    mixed = dict(zip((path.name for path in args.files), shares, strict=True))
    write_weights(args.output, mean, {**files[0][1], "mean_of": json.dumps(mixed)})
    print(args.output)


if __name__ == "__main__":
    main()
