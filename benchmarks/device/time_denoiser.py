"""Times training steps of mvdream-mini's denoiser on random latents, with and without CUDA graphs. About 30 s.

PYTHONPATH=src python3 benchmarks/device/time_denoiser.py 64 128 256
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from maquette.models.mvdream.objective import DenoisingBatch, DenoisingObjective
from maquette.models.mvdream.params import MVDREAM_MINI
from maquette.models.mvdream.training_networks import ConditionalDenoiser
from maquette.training.capture import CapturedNetwork
from maquette.training.optimizer import AveragedWeights, NamedAdamW
from maquette.training.recipes import get_recipe
from maquette.training.schedule import StepValues
from maquette.training.step import AutocastNetwork

DEVICE = torch.device("cuda")


def batch_of(count: int) -> DenoisingBatch:
    """Random latents, pictures and sentences of `count` objects."""
    params = MVDREAM_MINI
    assert params.picture_encoder is not None
    size, side, text = params.latent_size, params.picture_encoder.image_size, params.text_encoder
    return DenoisingBatch(
        torch.randn(count, 4, params.unet.in_channels, size, size, device=DEVICE),
        torch.randn(count, 4, 16, device=DEVICE),
        torch.rand(count, 3, side, side, device=DEVICE),
        torch.randint(text.vocabulary, (count, text.num_tokens), device=DEVICE),
        torch.randint(text.vocabulary, (text.num_tokens,), device=DEVICE),
        torch.rand(count, device=DEVICE) < 0.5,
    )


def measure(count: int, captured: bool, steps: int = 30) -> tuple[float, float, float]:
    """Milliseconds per step, those of the host alone, and GiB."""
    torch.manual_seed(0)
    network = ConditionalDenoiser(MVDREAM_MINI).to(DEVICE).train()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    called: nn.Module = AutocastNetwork(network, True)
    called = CapturedNetwork(called) if captured else called
    objective, generator = DenoisingObjective(MVDREAM_MINI), torch.Generator(DEVICE)
    optimizer = NamedAdamW(network, get_recipe("mvdream-mini").optimizer)
    average = AveragedWeights(network, 0.999)
    batch = batch_of(count)

    def step(number: int) -> None:
        loss = objective(called, batch, generator, True).loss
        torch.autograd.backward(loss)
        optimizer.step(StepValues(1e-5, None))
        average.update(number)

    torch.cuda.reset_peak_memory_stats()
    for number in range(5):
        step(number)
    torch.cuda.synchronize()
    began = time.monotonic()
    for number in range(steps):
        step(number)
    host = time.monotonic() - began
    torch.cuda.synchronize()
    whole = time.monotonic() - began
    return 1e3 * whole / steps, 1e3 * host / steps, torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    """Prints one row for each size and way."""
    print(torch.cuda.get_device_name(), torch.__version__)
    print("objects  graphs   ms/step  host ms  objects/s   GiB")
    for count in [int(word) for word in sys.argv[1:]] or [128]:
        for captured in (False, True):
            whole, host, memory = measure(count, captured)
            row = f"{count:7d}  {captured!s:6s} {whole:9.1f} {host:8.1f} {1e3 * count / whole:10.0f} {memory:5.1f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
