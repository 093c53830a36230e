"""Data order: which objects and frames a step uses, as a pure function of the seed and the step.

Every number comes from a counter-based generator keyed by (seed, step) and is indexed by the sample's place in the
global batch. So a resumed run continues exactly, and N processes with batch B see what one process with batch N*B
sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maquette.errors import InvalidInputError
from maquette.training.config import SamplingConfig

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Objects and frames of one process's batch: `objects` [B], `inputs` [B, num_inputs], `targets` [B, views]."""

    objects: IntArray
    inputs: IntArray
    targets: IntArray


class ViewSampler:
    """Chooses objects by family and views by variant.

    Args:
        families: family name of each object, `[O]`.
        realistic: whether each object comes from a realistic source, `[O]`.
        variants: variant number of each frame, negative where a frame does not exist, `[O, F]`.
        is_input: whether each frame is an input view, `[O, F]`.
        config: see `SamplingConfig`.
        seed: of the whole run, >= 0.

    Raises:
        InvalidInputError: no objects, or a variant with fewer input or other frames than the config asks for.
    """

    def __init__(
        self,
        families: Sequence[str],
        realistic: Sequence[bool],
        variants: IntArray,
        is_input: npt.NDArray[np.bool_],
        config: SamplingConfig,
        seed: int,
    ) -> None:
        if len(families) == 0:
            raise InvalidInputError("the data set has no objects to train on: check --data and --split")
        self._config = config
        self._seed = seed
        self._cumulative = np.cumsum(object_weights(families, realistic, config))
        self._inputs, self._others, self._num_variants = _frame_tables(variants, is_input, config)

    def choose(self, step: int, rank: int, world_size: int, batch_size: int, micro_step: int = 0) -> Choice:
        """The batch of one process at one step; `micro_step` counts forward passes under gradient accumulation."""
        config = self._config
        columns = 2 + config.num_inputs + self._others.shape[2]
        key = np.random.SeedSequence(entropy=(self._seed, step, micro_step, _STREAM))
        generator = np.random.Generator(np.random.Philox(key))
        uniforms = generator.random((world_size * batch_size, columns))
        uniforms = uniforms[rank * batch_size : (rank + 1) * batch_size]
        total = self._cumulative[-1]
        last = len(self._cumulative) - 1
        objects = np.minimum(np.searchsorted(self._cumulative, uniforms[:, 0] * total, side="right"), last)
        counts = self._num_variants[objects]
        variant = np.minimum((uniforms[:, 1] * counts).astype(np.int64), counts - 1)
        inputs = self._inputs[objects, variant]  # [B, num_inputs]
        others = self._others[objects, variant]  # [B, most others], -1 where there is none
        order_inputs = np.argsort(uniforms[:, 2 : 2 + config.num_inputs], axis=1)
        scores = np.where(others >= 0, uniforms[:, 2 + config.num_inputs :], 2.0)
        order_others = np.argsort(scores, axis=1)
        picked_inputs = np.take_along_axis(inputs, order_inputs[:, : config.input_targets], axis=1)
        wanted = config.target_views - config.input_targets
        repeats = np.arange(wanted)[None] % (others >= 0).sum(axis=1, keepdims=True)  # few frames: use them again
        picked_others = np.take_along_axis(others, np.take_along_axis(order_others, repeats, axis=1), axis=1)
        return Choice(objects, inputs, np.concatenate([picked_inputs, picked_others], axis=1))


_STREAM = 0x6D617175  # keeps this stream apart from other uses of the same seed


def object_weights(
    families: Sequence[str], realistic: Sequence[bool], config: SamplingConfig
) -> npt.NDArray[np.float64]:
    """Unnormalised probability of each object, `[O]`: family size to the power of minus `family_exponent`, times
    `realistic_weight` for realistic objects."""
    _, index, counts = np.unique(np.asarray(families, dtype=str), return_inverse=True, return_counts=True)
    weights = counts[index].astype(np.float64) ** -config.family_exponent
    return weights * np.where(np.asarray(realistic, dtype=bool), config.realistic_weight, 1.0)


def _frame_tables(
    variants: IntArray, is_input: npt.NDArray[np.bool_], config: SamplingConfig
) -> tuple[IntArray, IntArray, IntArray]:
    """Frames by object and variant: inputs `[O, K, num_inputs]`, others `[O, K, most]` padded by -1, counts `[O]`."""
    num_objects = variants.shape[0]
    num_variants = np.maximum(variants.max(axis=1) + 1, 0)
    most_variants = int(num_variants.max(initial=0))
    others_of: dict[tuple[int, int], IntArray] = {}
    inputs = np.full((num_objects, most_variants, config.num_inputs), -1, dtype=np.int64)
    for index in range(num_objects):
        if num_variants[index] == 0:
            raise InvalidInputError(f"object {index} of the data set has no frames")
        for variant in range(int(num_variants[index])):
            frames = np.flatnonzero(variants[index] == variant)
            own_inputs = frames[is_input[index, frames]]
            others = frames[~is_input[index, frames]]
            if len(own_inputs) < config.num_inputs:
                raise InvalidInputError(
                    f"object {index}, variant {variant} has {len(own_inputs)} input frames, the recipe needs "
                    f"{config.num_inputs}: render again with `maquette data render`"
                )
            if config.target_views > config.input_targets and len(others) == 0:
                raise InvalidInputError(f"object {index}, variant {variant} has no target frames")
            inputs[index, variant] = own_inputs[: config.num_inputs]
            others_of[index, variant] = others
    most = max((len(item) for item in others_of.values()), default=0)
    table = np.full((num_objects, most_variants, max(most, 1)), -1, dtype=np.int64)
    for (index, variant), others in others_of.items():
        table[index, variant, : len(others)] = others
    return inputs, table, num_variants.astype(np.int64)
