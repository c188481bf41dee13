"""AdamW with warm-up, cosine decay, clipping, and weight decay on matrices only."""

import jax
import optax

from mc_jax.training.config import TrainConfig
from mc_jax.training.fine_tuning import trains
from mc_jax.typing import PyTree

# Names of parameters that are matrices. By name, since a bias or a norm's scale that is kept per
# head, or stacked over layers, has as many axes as a matrix.
MATRICES = ("embedding", "head", "kernel", "w1", "w2")


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0.

    Rises linearly from peak / (warm-up steps + 1), so that no step is wasted on a rate of 0, and
    falls by a cosine to `final_lr_fraction` of the peak at the last step.
    """
    peak = config.learning_rate
    warmup = round(config.warmup_fraction * config.steps)
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    fall = optax.cosine_decay_schedule(
        peak, max(config.steps - 1 - warmup, 1), config.final_lr_fraction
    )
    return optax.join_schedules([rise, fall], [warmup])


def decay_mask(params: PyTree) -> PyTree:
    """True for the parameters that weight decay applies to, in a tree of the shape of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in MATRICES, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer that `config` describes."""
    adamw = optax.adamw(
        learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    # The state has the same structure with and without clipping, so that either may be resumed.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, adamw)
    if config.skip_nonfinite:
        optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
    if not config.trainable:
        return optimizer

    def groups(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if trains(config.trainable, path) else "frozen", params
        )

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, groups)
