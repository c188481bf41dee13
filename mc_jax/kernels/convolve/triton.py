"""Convolution, SiLU and length 1 in one pass over the tokens: Pallas kernels through Triton.

XLA takes a pass over memory for each of them and, on the way back, one for each tap. A program
takes a block of tokens of one head; its arithmetic is float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mc_jax.typing import Array, Float

F32 = jnp.float32
# Tokens that a program has in registers, and those that it goes over on the way back, where it adds
# up the kernel's gradient.
TOKENS, SPAN = 16, 256
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=1)


def convolve(
    kernel: Float[Array, "width 3 heads head_dim"],
    x: Float[Array, "batch length 3 heads head_dim"],
    eps: float,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values [batch, heads, length, head_dim] of sequences that start here.

    `y_t = silu(sum_i w_i x_{t-i})`, and of queries and keys `y / sqrt(|y|² + eps)`.

    Args:
      kernel: w.
      x: projected tokens: for queries, keys and values.
      eps: see above.
      interpret: run the kernels' steps on any device.
    """
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, -x.shape[1] % SPAN)
    made = _convolve((eps, interpret), kernel.astype(F32), jnp.pad(x, pad))
    q, k, v = (y[:, :, : x.shape[1]] for y in made)
    return q, k, v


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(static: tuple[float, bool], kernel: Array, x: Array) -> list[Array]:
    batch, length, _, heads, head_dim = x.shape
    like = jax.ShapeDtypeStruct((batch, heads, length, head_dim), x.dtype)
    return _by_tokens(_forward, TOKENS, static, kernel, x, (), [like] * 3)


def _convolve_forward(static: tuple[float, bool], kernel: Array, x: Array) -> Any:
    return _convolve(static, kernel, x), (kernel, x)


def _convolve_backward(static: tuple[float, bool], residuals: Any, dy: list[Array]) -> tuple:
    kernel, x = residuals
    batch, length = x.shape[:2]
    spans = jax.ShapeDtypeStruct((batch, length // SPAN, *kernel.shape), F32)
    dz, parts = _by_tokens(_backward, SPAN, static, kernel, x, tuple(dy), [x, spans])
    width = kernel.shape[0]
    later = jnp.pad(dz, [(0, 0), (0, width - 1), *[(0, 0)] * 3]).astype(F32)
    dx = sum(w * later[:, i : i + length] for i, w in enumerate(kernel))
    return jnp.sum(parts, (0, 1)), dx.astype(x.dtype)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _by_tokens(
    body: Any,
    tokens: int,
    static: tuple[float, bool],
    kernel: Array,
    x: Array,
    others: tuple[Array, ...],
    outputs: list[Any],
) -> list[Array]:
    """A program for each sequence, head and run of so many tokens."""
    eps, interpret = static
    batch, length, _, heads, head_dim = x.shape
    width = kernel.shape[0]

    def spec(like: Any) -> pl.BlockSpec:
        match like.shape:
            case (_, n, 3, _, _) if n == length:
                return pl.BlockSpec(
                    (None, tokens, 3, None, head_dim), lambda b, h, t: (b, t, 0, h, 0)
                )
            case (_, _, _, 3, _, _):
                return pl.BlockSpec(
                    (None, None, width, 3, None, head_dim), lambda b, h, t: (b, t, 0, 0, h, 0)
                )
            case _:
                return pl.BlockSpec((None, None, tokens, head_dim), lambda b, h, t: (b, h, t, 0))

    return pl.pallas_call(
        functools.partial(body, eps),
        grid=(batch, heads, length // tokens),
        in_specs=[
            pl.BlockSpec((width, 3, None, head_dim), lambda b, h, t: (0, 0, h, 0)),
            pl.BlockSpec((None, length, 3, None, head_dim), lambda b, h, t: (b, 0, 0, h, 0)),
            *map(spec, others),
        ],
        out_specs=[spec(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=PARAMS,
        interpret=interpret,
        name="convolve" + body.__name__,
    )(kernel, x, *others)


def _taps(kernel: Any, x: Any, part: int, start: Array) -> list[tuple[Array, Array]]:
    """Weights [head_dim] and tokens [TOKENS, head_dim] of each step back."""
    token = start + lax.broadcasted_iota(jnp.int32, (TOKENS,), 0)
    taps = []
    for i in range(kernel.shape[0]):
        rows = x[jnp.maximum(token - i, 0), part, :].astype(F32)
        taps.append((kernel[i, part, :], jnp.where((token >= i)[:, None], rows, 0)))
    return taps


def _forward(eps: float, kernel: Any, x: Any, *outputs: Any) -> None:
    for part, out in enumerate(outputs):
        z = sum(w * rows for w, rows in _taps(kernel, x, part, pl.program_id(2) * TOKENS))
        y = z / (1 + jnp.exp(-z))
        if part < 2:
            y = y * lax.rsqrt(jnp.sum(y * y, 1, keepdims=True) + eps)
        out[...] = y.astype(out.dtype)


def _backward(
    eps: float, kernel: Any, x: Any, dq: Any, dk: Any, dv: Any, dz: Any, dkernel: Any
) -> None:
    """Gradients of the convolution's outputs, and the span's part of the kernel's."""
    start = pl.program_id(2) * SPAN
    for part, gradient in enumerate((dq, dk, dv)):

        def add(block: Array, totals: tuple, part: int = part, gradient: Any = gradient) -> tuple:
            rows = pl.ds(block * TOKENS, TOKENS)
            taps = _taps(kernel, x, part, start + block * TOKENS)
            z = sum(w * tap for w, tap in taps)
            gate = 1 / (1 + jnp.exp(-z))
            dy = gradient[rows, :].astype(F32)
            if part < 2:
                y = z * gate
                scale = lax.rsqrt(jnp.sum(y * y, 1, keepdims=True) + eps)
                along = jnp.sum(y * dy, 1, keepdims=True) * scale * scale
                dy = scale * (dy - along * y)
            found = dy * gate * (1 + z * (1 - gate))
            dz[rows, part, :] = found.astype(dz.dtype)
            return tuple(total + found * tap for total, (_, tap) in zip(totals, taps, strict=True))

        zeros = (jnp.zeros((TOKENS, x.shape[-1]), F32),) * kernel.shape[0]
        # Summed over tokens once for a span: rows lie with different threads.
        for i, total in enumerate(lax.fori_loop(0, SPAN // TOKENS, add, zeros)):
            dkernel[i, part, :] = jnp.sum(total, 0)
