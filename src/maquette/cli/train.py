"""`maquette train`: train a model on rendered assets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from maquette.training.config import OptimizerConfig, SamplingConfig, TrainConfig
    from maquette.training.loop import RunOptions
    from maquette.training.schedule import ScheduleConfig

ConfigT = TypeVar("ConfigT", "TrainConfig", "OptimizerConfig", "ScheduleConfig", "SamplingConfig")


@dataclass(frozen=True)
class Args:
    """Trains a model on assets rendered with `maquette data render --plan training`.

    Run the same command again to continue an interrupted run exactly. Several GPUs: start it with
    `torchrun --standalone --nproc_per_node=N -m maquette.cli train ...`. Options left out keep the model's recipe.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Model: lgm-mini, lgm-tiny, lgm-small, lgm-lrm, lgm-big, gamba-mini, gamba, or
    mvdream-mini-autoencoder and then mvdream-mini."""
    data: Path
    """Folder that `maquette data render` wrote."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Run folder for checkpoints, logs and pictures; by default runs/NAME."""
    split: str = "train"
    """Split of the data set."""
    steps: int | None = None
    """Optimizer steps of the whole run; the learning rate falls towards the last one."""
    batch_size: int | None = None
    """Objects per process and forward pass."""
    accumulation: int | None = None
    """Forward passes per optimizer step."""
    lr: float | None = None
    """Peak learning rate."""
    schedule: Literal["onecycle", "cosine", "trapezoid", "constant"] | None = None
    """Course of the learning rate."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises."""
    weight_decay: float | None = None
    """AdamW's weight decay."""
    ema_decay: float | None = None
    """Decay of the averaged weights; 0 keeps none."""
    target_views: int | None = None
    """Views per object that are rendered and compared."""
    input_targets: int | None = None
    """How many of the target views are input views."""
    target_size: int | None = None
    """Height and width in pixels at which predictions are compared; by default the model's."""
    input_size: int | None = None
    """Height and width of the input pictures in pixels; half of the model's shows four times the objects per second.
    Continue at full size with --init-from."""
    use_depth: bool = True
    """Learn from true depth, where the model does; --no-use-depth trains on data rendered with --no-geometry."""
    lpips: Annotated[Path | None, arg(metavar="FILE")] = None
    """LPIPS weights (VGG-16, .safetensors) for the official perceptual term; without them multi-scale SSIM is taken."""
    lambda_depth: float | None = None
    """Weight of the depth term in the loss; by default the model's."""
    lambda_ssim: float | None = None
    """Weight of the multi-scale SSIM in the loss, which stands in for LPIPS; by default the model's."""
    lambda_fine_ssim: float | None = None
    """Weight of SSIM at the pictures' own resolution in the loss; by default the model's."""
    error_knee: float | None = None
    """Mean squared error of a view from which on errors count by their logarithm, as in PSNR (0: never); by default the
    model's."""
    join_mirrored: bool | None = None
    """Whether gamba-mini learns from its joined answers to a picture and its mirror image, as it works later, or from
    one answer, in half the time; by default as it works."""
    autoencoder: Annotated[Path | None, arg(metavar="FILE")] = None
    """For mvdream-mini: what mvdream-mini-autoencoder exported. For mvdream-mini-autoencoder: train on the decoder of
    this one alone, so that its latents stay what they are."""
    schedule_seconds: float | None = None
    """Training time after which the run is over, all calls together: the learning rate follows the clock (or the
    steps, whichever is further). Such a run cannot be repeated bit for bit."""
    seed: int | None = None
    """Decides initial weights, data order and augmentation."""
    augment: bool = True
    """Whether to change colours and damage inputs as the recipe says."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: the recipe's on a GPU, fp32 on the CPU."""
    max_seconds: float | None = None
    """Save and stop after this many seconds; the same command continues."""
    init_from: Path | None = None
    """Weights to start from: a .safetensors file or a checkpoint folder."""
    export: Path | None = None
    """Where to write the (averaged) weights as fp16 .safetensors, with every checkpoint and at the end."""
    license: str = "Apache-2.0"
    """License named in the exported file."""
    device: Literal["cpu", "cuda"] | None = None
    """By default the GPU if there is one."""
    data_device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the pictures are kept; auto: on the GPU if they take at most half of its free memory."""
    compile: bool = False
    """Compile the network with torch.compile (needs a C compiler; pays off after a minute or two)."""
    channels_last: bool = False
    """Keep weights and features in channels-last order; usually faster on GPUs."""
    save_every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    log_every: int = 50
    """Steps between log entries."""
    picture_every: int = 1000
    """Steps between grids of true and predicted pictures; 0: none."""
    allow_config_change: bool = False
    """Continue a run although its settings, data or number of processes have changed."""
    quiet: bool = False
    """Show nothing on the terminal."""
    tensorboard: bool = True
    """Write TensorBoard events."""


def run(args: Args) -> int:
    """Trains; 0 as well when the run stopped early with a checkpoint."""
    from maquette.training.loop import train

    train(make_config(args), make_options(args), args.data)
    return 0


def make_config(args: Args) -> TrainConfig:
    """The model's recipe with the options that were given.

    Raises:
        InvalidInputError: no recipe of that name, or a value out of range.
    """
    from maquette.device import choose_device
    from maquette.training.config import AugmentConfig
    from maquette.training.recipes import get_recipe

    recipe = get_recipe(args.name)
    on_gpu = choose_device(args.device).type == "cuda"
    precision = args.precision if args.precision != "auto" else recipe.precision if on_gpu else "fp32"
    optimizer = _with(recipe.optimizer, lr=args.lr, weight_decay=args.weight_decay)
    schedule = _with(recipe.schedule, kind=args.schedule, warmup_steps=args.warmup_steps)
    sampling = _with(recipe.sampling, target_views=args.target_views, input_targets=args.input_targets)
    return _with(
        recipe,
        steps=args.steps,
        batch_size=args.batch_size,
        accumulation=args.accumulation,
        ema_decay=args.ema_decay,
        target_size=args.target_size,
        input_size=args.input_size,
        lpips=None if args.lpips is None else str(args.lpips),
        autoencoder=None if args.autoencoder is None else str(args.autoencoder),
        lambda_depth=args.lambda_depth,
        lambda_ssim=args.lambda_ssim,
        lambda_fine_ssim=args.lambda_fine_ssim,
        error_knee=args.error_knee,
        join_mirrored=args.join_mirrored,
        schedule_seconds=args.schedule_seconds,
        use_depth=args.use_depth and recipe.use_depth,
        seed=args.seed,
        precision=precision,
        optimizer=optimizer,
        schedule=schedule,
        sampling=sampling,
        augment=recipe.augment if args.augment else AugmentConfig(),
    )


def make_options(args: Args) -> RunOptions:
    """Where and how to run."""
    from maquette.training.loop import RunOptions

    names = {field.name for field in dataclasses.fields(RunOptions)} & {
        field.name for field in dataclasses.fields(Args)
    }
    given = {name: getattr(args, name) for name in names}
    given["output"] = args.output if args.output is not None else Path("runs") / args.name
    return RunOptions(**given)


def _with(config: ConfigT, **changes: object) -> ConfigT:
    """A copy with the changes that are not None."""
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(config, **given)
