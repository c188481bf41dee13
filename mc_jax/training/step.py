"""One step: loss, gradient, update. Pure functions, to be compiled by the caller."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mc_jax.caching.context import in_zigzag
from mc_jax.model import LanguageModel
from mc_jax.sharding import active_mesh, constrain
from mc_jax.training.fine_tuning import freeze
from mc_jax.training.state import TrainState
from mc_jax.typing import Array, Bool, Float, Int

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


class Sums(NamedTuple):
    """Totals over the positions of a batch, each times its weight; they add over batches."""

    loss: Float[Array, ""]  # cross-entropy in nats
    weight: Float[Array, ""]
    correct: Float[Array, ""]  # most likely token is the target
    bytes: Float[Array, ""] | None  # of text that the targets stand for; None if they are no text

    @classmethod
    def zeros(cls, text: bool) -> "Sums":
        """The totals of no batch at all."""
        zero = jnp.float32(0)
        return cls(zero, zero, zero, zero if text else None)


def token_scores(
    model: nn.Module, params: Mapping, batch: Batch
) -> tuple[Float[Array, "batch length"], Bool[Array, "batch length"]]:
    """Cross-entropy in nats, and whether the likeliest token is the target, whatever the weights.

    Args:
      model: gives logits [batch, length, vocab] for tokens [batch, length].
      params: its parameters.
      batch: `inputs` and `targets`, each [batch, length].
    """
    logits = jnp.asarray(model.apply({"params": params}, batch["inputs"]))
    return logit_scores(logits, batch["targets"])


def logit_scores(
    logits: Float[Array, "*places vocab"], targets: Int[Array, "*places"]
) -> tuple[Float[Array, "*places"], Bool[Array, "*places"]]:
    """Cross-entropy in nats, and whether the target is the likeliest token, of equals the first."""
    logits = jnp.asarray(logits, jnp.float32)
    with jax.named_scope("loss"):
        # Targets as rows that are never made: the gradient is one pass, without a scatter.
        one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
        loss = optax.safe_softmax_cross_entropy(logits, one_hot)
        # An argmax would say the same; on a CPU it takes 25 times as long as the loss.
        target = targets[..., None]
        chosen = jnp.take_along_axis(logits, target, axis=-1)
        token = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
        not_before = (logits < chosen) | ((logits == chosen) & (token >= target))
        return loss, jnp.all(not_before, axis=-1)


def batch_sums(
    model: LanguageModel, params: Mapping, batch: Batch, token_bytes: Int[Array, " vocab"] | None
) -> Sums:
    """Run the model on a batch and add up, in float32.

    Args:
      model: a `LanguageModel`.
      params: its parameters.
      batch: `inputs`, `targets`, `weights`, each [batch, length].
      token_bytes: bytes of text that each token stands for; None if the tokens are no text.
    """
    batch = _laid_out(model, batch)
    loss_BL, correct_BL = token_scores(model, params, batch)
    targets, weights = batch["targets"], batch["weights"]
    text_bytes = None if token_bytes is None else jnp.sum(weights * token_bytes[targets])
    return Sums(
        jnp.sum(weights * loss_BL),
        jnp.sum(weights),
        jnp.sum(weights * correct_BL),
        text_bytes,
    )


def _laid_out(model: LanguageModel, batch: Batch) -> Batch:
    """The batch with tokens in the order in which devices that share sequences have them."""
    mesh = active_mesh()
    devices = 1 if mesh is None else mesh.shape["context"]
    if devices == 1 or model.config.memory.placement == "contiguous":
        return batch
    return {key: constrain(in_zigzag(x, devices), "batch", "length") for key, x in batch.items()}


def means(sums: Sums) -> Metrics:
    """`loss` (nats per token), `accuracy` (on recall tasks: the recall), text's `bits_per_byte`."""
    metrics = {"loss": sums.loss / sums.weight, "accuracy": sums.correct / sums.weight}
    if sums.bytes is not None:
        metrics["bits_per_byte"] = sums.loss / jnp.log(2.0) / sums.bytes
    return metrics


def compiler_options(platform: str) -> dict[str, str | bool]:
    """What XLA is told when it compiles a training step for a platform.

    On a CPU only products go to its library of kernels (YNNPACK). The library's sums over many
    tokens, such as the gradients of norms, take several times as long as XLA's own: a step of a
    small model on one sequence of 32,768 tokens 1.25 times as long.
    """
    if platform != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    microbatches: int,
    token_bytes: Int[Array, " vocab"] | None,
    trainable: str = "",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build `train_step(state, batch) -> (state, metrics)`.

    The loss is the mean cross-entropy over the weighted positions of the whole batch, however many
    `microbatches` it is worked through in. Metrics: those of `means`, `grad_norm` before clipping,
    of what is `trainable` (see `TrainConfig`), and `lr`. A gradient that is not finite anywhere
    shows as a `grad_norm` that is not. With `skip_nonfinite` also `skipped`, the updates that were
    left out so far, and `skipped_in_a_row`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        total = jnp.sum(batch["weights"])

        def loss(params: Mapping, microbatch: Batch) -> tuple[Array, Sums]:
            sums = batch_sums(model, freeze(trainable, params), microbatch, token_bytes)
            return sums.loss / total, sums

        def accumulate(totals: tuple, microbatch: Batch) -> tuple[tuple, None]:
            gradient = jax.grad(loss, has_aux=True)(state.params, microbatch)
            return jax.tree.map(jnp.add, totals, gradient), None

        zeros = jax.tree.map(jnp.zeros_like, state.params), Sums.zeros(text=token_bytes is not None)
        (gradient, sums), _ = jax.lax.scan(accumulate, zeros, _split(batch, microbatches))
        with jax.named_scope("update"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = means(sums) | {
            "grad_norm": optax.tree.norm(gradient),
            "lr": schedule(state.step),
            **_skipped(opt_state),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _skipped(opt_state: optax.OptState) -> Metrics:
    """Updates left out so far, and those of them in a row, where that is allowed."""
    counts = [
        (in_all, in_a_row)
        for (_, in_all), (_, in_a_row) in zip(
            optax.tree.get_all_with_path(opt_state, "total_notfinite"),
            optax.tree.get_all_with_path(opt_state, "notfinite_count"),
            strict=True,
        )
    ]
    if not counts:
        return {}
    return dict(zip(("skipped", "skipped_in_a_row"), counts[0], strict=True))


def _split(batch: Batch, microbatches: int) -> Batch:
    """[batch, ...] to [microbatches, batch / microbatches, ...]; every n-th row goes together,
    so that rows stay on the device that they are on."""
    return jax.tree.map(
        lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), dict(batch)
    )
