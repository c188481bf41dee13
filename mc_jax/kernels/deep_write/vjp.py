"""The write on a TPU with its gradient."""

import functools

import jax

from mc_jax.kernels.deep_write.backward import backward
from mc_jax.kernels.deep_write.blocks import Layout, Learned
from mc_jax.kernels.deep_write.chunk import Tokens
from mc_jax.kernels.deep_write.config import needs_starts
from mc_jax.kernels.deep_write.forward import Outputs, forward


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def write(layout: Layout, interpret: bool, tokens: Tokens, learned: Learned) -> Outputs:
    """See `forward`."""
    return forward(layout, interpret, False, tokens, learned)[0]


def _write_fwd(layout, interpret, tokens, learned):
    keep_starts = needs_starts(layout.call, layout.config)
    outputs, starts = forward(layout, interpret, keep_starts, tokens, learned)
    return outputs, (tokens, learned, starts)


def _write_bwd(layout, interpret, residuals, cotangents):
    tokens, learned, starts = residuals
    return backward(layout, interpret, tokens, learned, starts, cotangents)


write.defvjp(_write_fwd, _write_bwd)
