"""AdamW whose state is plain named tensors, and averaged weights (EMA)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maquette.errors import WeightsError
from maquette.training.config import OptimizerConfig
from maquette.training.schedule import StepValues

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


class _SkippingAdamW(torch.optim.AdamW):
    """Fused AdamW reads `found_inf` on the device: where it is 1, the step changes nothing."""

    found_inf: Tensor | None = None


class NamedAdamW:
    """Fused AdamW over the trainable parameters of a network, with a state that is saved by parameter name.

    A step whose gradient is not finite changes nothing; that decision is taken on the device, so the host never
    waits for it.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig) -> None:
        self._named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._config = config
        decayed = [p for p in self._named.values() if p.ndim > 1 or config.decay_vectors]
        others = [p for p in self._named.values() if not (p.ndim > 1 or config.decay_vectors)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._adamw = _SkippingAdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )

    def step(self, values: StepValues) -> tuple[Tensor, Tensor]:
        """Clips, updates and clears the gradients.

        Returns:
            The norm of the whole gradient before clipping, and whether the step was skipped (0 or 1), as scalars on
            the device.
        """
        limit = self._config.grad_clip if self._config.grad_clip > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(self._named.values(), limit)
        skipped = (~torch.isfinite(norm)).float()
        for group in self._adamw.param_groups:
            group["lr"] = values.lr
            beta1 = values.beta1 if values.beta1 is not None else self._config.betas[0]
            group["betas"] = (beta1, self._config.betas[1])
        self._adamw.found_inf = skipped
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norm.detach(), skipped

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as a flat mapping "<parameter>.<moment>" to tensor; empty before the first step."""
        state = self._adamw.state
        return {
            f"{name}.{moment}": state[parameter][moment]
            for name, parameter in self._named.items()
            if parameter in state
            for moment in MOMENTS
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state_tensors` gave.

        Raises:
            WeightsError: entries are missing, unknown or of another shape.
        """
        if not tensors:
            self._adamw.state.clear()
            return
        expected = {f"{name}.{moment}" for name in self._named for moment in MOMENTS}
        if set(tensors) != expected:
            odd = sorted(set(tensors) ^ expected)[:5]
            raise WeightsError(f"the optimizer state does not fit the network; first entries that differ: {odd}")
        for name, parameter in self._named.items():
            restored: dict[str, Tensor] = {}
            for moment in MOMENTS:
                value = tensors[f"{name}.{moment}"]
                like = parameter.detach() if moment != "step" else torch.zeros((), device=parameter.device)
                if value.shape != like.shape:
                    raise WeightsError(
                        f"optimizer entry {name}.{moment} is {list(value.shape)}, not {list(like.shape)}"
                    )
                restored[moment] = torch.empty_like(like, dtype=value.dtype).copy_(value)
            self._adamw.state[parameter] = restored


class AveragedWeights:
    """Exponential moving average of a network's parameters, with a warm-up of the decay.

    After t updates the decay is min(decay, (1 + t) / (10 + t)), so that the first weights are forgotten quickly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network
        self._decay = decay
        self._parameters: list[Tensor] = list(network.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights after step `step` (0-based)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    def state_tensors(self) -> dict[str, Tensor]:
        """A state dict of the network with averaged parameters (buffers are the current ones)."""
        by_id = {id(p): average for p, average in zip(self._parameters, self._averages, strict=True)}
        current = self._network.state_dict(keep_vars=True)
        return {name: by_id.get(id(value), value.detach()) for name, value in current.items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state_tensors` gave.

        Raises:
            WeightsError: a parameter is missing or of another shape.
        """
        for (name, _), average in zip(self._network.named_parameters(), self._averages, strict=True):
            if name not in tensors or tensors[name].shape != average.shape:
                raise WeightsError(f"the averaged weights do not fit the network: entry {name!r} is missing or differs")
            average.copy_(tensors[name])
