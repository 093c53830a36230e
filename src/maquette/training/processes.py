"""The processes of a run (through Hugging Face accelerate) and its stop signals."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from maquette.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from maquette.training.step import AutocastNetwork


class Processes:
    """This process among those of the run.

    Attributes:
        device: where this process trains.
        rank: 0 for the first process.
        world_size: number of processes.

    Args:
        device: "cpu", "cuda" or None for the best there is.

    Raises:
        MissingDependencyError: accelerate is not installed.
        UnsupportedError: CUDA was asked for and is not there.
        InvalidInputError: another device name.
    """

    def __init__(self, device: str | None = None) -> None:
        if device not in (None, "cpu", "cuda"):
            raise InvalidInputError(f"device must be cpu or cuda, got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("no CUDA device here: leave --device out, or see `maquette doctor`")
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError as error:
            raise MissingDependencyError("training needs accelerate: pip install 'maquette[train]'") from error
        parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        use_cpu = device == "cpu" or not torch.cuda.is_available()
        self._accelerator = Accelerator(cpu=use_cpu, mixed_precision="no", kwargs_handlers=[parallel])
        self.device: torch.device = self._accelerator.device
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def wrap(self, network: nn.Module, bf16: bool) -> nn.Module:
        """The network as the objective calls it: under autocast and, with several processes, data-parallel."""
        wrapped: nn.Module = self._accelerator.prepare_model(AutocastNetwork(network, bf16))
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Backward pass; the last one of a step averages gradients over processes."""
        self._accelerator.backward(loss)

    def no_sync(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Context in which backward passes keep their gradients to this process."""
        context: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(wrapped)
        return context

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes."""
        reduced: Tensor = self._accelerator.reduce(values, "mean")
        return reduced

    def maximum(self, value: int) -> int:
        """Largest of one integer per process."""
        mine = torch.tensor([value], device=self.device)
        gathered: Tensor = self._accelerator.gather(mine)
        return int(gathered.max().item())

    def wait(self) -> None:
        """Waits for all processes."""
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """Leaves the process group."""
        if self.world_size > 1:
            self._accelerator.end_training()


class StopSignal:
    """Context in which SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts at once.

    Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
