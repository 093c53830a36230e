"""The selective scan of state-space models (Mamba-1), differentiable."""

from maquette.nn.selective_scan.api import selective_scan

__all__ = ["selective_scan"]
