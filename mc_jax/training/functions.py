"""What runs on the devices: the functions of an experiment, on its mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mc_jax.model import LanguageModel
from mc_jax.training.evaluate import HeldOut, make_held_out
from mc_jax.training.experiment import Experiment
from mc_jax.training.optimizer import learning_rate, make_optimizer
from mc_jax.training.sharding import Shardings
from mc_jax.training.state import TrainState, initial_state
from mc_jax.training.step import compiler_options, make_train_step
from mc_jax.typing import Array, Int


class Functions(NamedTuple):
    """The functions, each compiled when it is first called, and the state that they work on.

    Attributes:
      initialise: the state before the first step.
      train_step: `(state, batch) -> (state, metrics)`; takes the state's place in memory. To be
        called on the mesh.
      held_out: see `make_held_out`.
      state: shapes and types of the state, and where its arrays lie.
    """

    initialise: Callable[[], TrainState]
    train_step: Any
    held_out: HeldOut
    state: TrainState


def functions_of(
    experiment: Experiment, shardings: Shardings, token_bytes: Int[Array, " vocab"] | None
) -> Functions:
    """Build them.

    Args:
      experiment: what is trained.
      shardings: the mesh.
      token_bytes: see `make_train_step`.
    """
    model, optimizer = LanguageModel(experiment.model), make_optimizer(experiment.train)
    settings = experiment.train
    train_step = make_train_step(
        *(model, optimizer, learning_rate(settings), settings.grad_accum, token_bytes),
        settings.trainable,
    )

    def initialise() -> TrainState:
        return initial_state(model, optimizer, experiment.config.seed)

    shapes = jax.eval_shape(initialise)
    places = shardings.state(shapes)
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, places
    )
    return Functions(
        jax.jit(initialise, out_shardings=places),
        jax.jit(
            train_step,
            donate_argnums=0,
            out_shardings=(places, shardings.everywhere),
            compiler_options=compiler_options(shardings.mesh.devices.flat[0].platform),
        ),
        make_held_out(model, token_bytes, shardings),
        state,
    )
