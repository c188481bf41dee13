"""Loss on the held-out batches."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from mc_jax.model import LanguageModel
from mc_jax.training.sharding import Shardings, to_devices
from mc_jax.training.step import Sums, batch_sums, means
from mc_jax.typing import Array, Int, PyTree

HeldOut = Callable[[PyTree, Iterable[Mapping[str, np.ndarray]]], dict[str, float]]


def make_held_out(
    model: LanguageModel, token_bytes: Int[Array, " vocab"] | None, shardings: Shardings
) -> HeldOut:
    """Build `held_out(params, batches)`: the metrics of `step.means` over all `batches`."""

    def add(params: PyTree, sums: Sums, batch: Mapping[str, Array]) -> Sums:
        return jax.tree.map(jax.numpy.add, sums, batch_sums(model, params, batch, token_bytes))

    add = shardings.on_mesh(jax.jit(add, out_shardings=shardings.everywhere))

    def held_out(params: PyTree, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        sums = Sums.zeros(text=token_bytes is not None)
        for batch in batches:
            sums = add(params, sums, to_devices(batch, shardings.batch))
        return {name: float(value) for name, value in means(sums).items()}

    return held_out
