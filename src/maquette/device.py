"""Which device to compute on: one answer for the pipelines, the models and the command line."""

from __future__ import annotations

import torch

from maquette.errors import InvalidInputError, UnsupportedError


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device that was asked for, checked, or the best one of this machine.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None (or "auto") takes the GPU if there is one.

    Raises:
        InvalidInputError: no such kind of device.
        UnsupportedError: this machine has no such GPU.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"unknown device {str(device)!r}; valid: cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UnsupportedError(
            f"this machine has no GPU {chosen} that torch can use ({count} found): use cpu, or see: maquette doctor"
        )
    return chosen
