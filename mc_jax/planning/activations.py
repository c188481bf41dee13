"""What the forward pass keeps for the backward pass."""

import math

import jax
import jax.numpy as jnp

from mc_jax.model import LanguageModel
from mc_jax.sharding import ways
from mc_jax.training.experiment import Experiment
from mc_jax.training.sharding import BATCH_KEYS, Shardings
from mc_jax.training.step import Batch, batch_sums
from mc_jax.typing import Array, PyTree


def activation_bytes(experiment: Experiment, shardings: Shardings, params: PyTree) -> int:
    """Bytes of a device that a microbatch's forward pass keeps, at the most.

    These are what JAX keeps, by `model.remat`. The compiler may compute some of it again, or never
    store it; on a mesh with `tensor` some of it is split further.

    Args:
      experiment: what is to be trained.
      shardings: the mesh.
      params: shapes of the parameters.
    """
    config, model = experiment.config.data, LanguageModel(experiment.model)
    rows = config.batch_size // experiment.train.grad_accum
    batch = {
        key: jax.ShapeDtypeStruct(
            (rows, config.length), jnp.float32 if key == "weights" else jnp.int32
        )
        for key in BATCH_KEYS
    }

    def kept(params: PyTree, batch: Batch) -> PyTree:
        def loss(params: PyTree) -> Array:
            return batch_sums(model, params, batch, None).loss

        return jax.vjp(loss, params)[1]

    with jax.set_mesh(shardings.mesh):
        residuals = jax.tree.leaves(jax.eval_shape(kept, params, batch))
    # Parameters are kept as well, and counted elsewhere: what depends on the batch has its rows.
    others = {x.shape for x in jax.tree.leaves(params)}
    sizes = [
        x.dtype.itemsize * math.prod(x.shape)
        for x in residuals
        if rows in x.shape and x.shape not in others
    ]
    mesh = shardings.mesh.shape
    return sum(sizes) // (ways(mesh, "batch") * ways(mesh, "length"))
