"""Trains the judge of generated views: categories of objects from renders of the train split.

    python benchmarks/train_classifier.py --data rendered/train-sides -o classifier.safetensors

A minute on a GPU. It is not part of maquette; `maquette evaluate-views --classifier FILE` takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from maquette.data.dataset import RenderedDataset
from maquette.evaluation.classifier import save_classifier, train_classifier


def main() -> None:
    """Reads the arguments and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="rendered with --plan sides")
    parser.add_argument("--split", default="train")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = RenderedDataset.load(args.data, args.split)

    def show(done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            print(f"step {done}/{total}", flush=True)

    network = train_classifier(dataset, steps=args.steps, batch_size=args.batch_size, device=device, progress=show)
    save_classifier(args.output, network, {"data": args.data.name, "split": args.split, "steps": str(args.steps)})
    print(args.output)


if __name__ == "__main__":
    main()
