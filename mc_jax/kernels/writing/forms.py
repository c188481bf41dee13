"""The forms of a write without kernels, for all heads."""

import jax

from mc_jax.kernels.writing.reference import reference
from mc_jax.kernels.writing.types import Sequence, Written
from mc_jax.kernels.writing.xla import xla
from mc_jax.memory.network import DeepParams
from mc_jax.memory.rule import Rule

FORMS = {"reference": reference, "xla": xla}


def write(
    implementation: str,
    rule: Rule,
    params: DeepParams | None,
    sequence: Sequence,
    segment_len: int,
    chunk_len: int,
    independent: bool,
) -> Written:
    """Compress a fresh sequence; ends are in the type of the state.

    Args:
      implementation: reference | xla.
      rule: update rule.
      params: its learned parts, leaves [heads, ...].
      sequence: of every head.
      segment_len: tokens of a segment, a multiple of `chunk_len`.
      chunk_len: tokens of a chunk.
      independent: whether every segment starts from the initial state.
    """

    def head(params: DeepParams | None, sequence: Sequence) -> Written:
        form = FORMS[implementation]
        return form(rule, params, sequence, segment_len, chunk_len, independent)

    return jax.vmap(head)(params, sequence)
