"""Exported weights: one fp16 safetensors file with what is known about them in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.errors import WeightsError
from maquette.training.config import TrainConfig
from maquette.weights import write_weights


def export_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: TrainConfig,
    step: int,
    facts: Mapping[str, Any],
    license_text: str = "",
) -> None:
    """Writes weights as fp16 with metadata: model, step, config, training (`facts` as JSON), license.

    Raises:
        WeightsError: a weight is not finite in fp16.
    """
    halves: dict[str, Tensor] = {}
    for name, value in tensors.items():
        half = value.detach().cpu().contiguous().clone()
        if half.is_floating_point():
            half = half.to(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise WeightsError(f"{name} is not finite as fp16: the weights diverged, export an earlier checkpoint")
        halves[name] = half
    metadata = {
        "model": config.model,
        "step": str(step),
        "config": json.dumps(config.to_json()),
        "training": json.dumps(facts, default=str),
        "license": license_text,
    }
    write_weights(path, halves, metadata)
