"""Kernels that read matrix memories on a TPU: the gated sum of `W_i q` and all its gradients.

Tokens lie in the lanes. A grid step takes a block of tokens: it scores all memories, keeps the
gates in VMEM, and goes through the memories that the block sees, several to a product. Nothing of
size [tokens, memories] exists in HBM; the backward kernel computes the gates again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_limit
from mc_jax.kernels.block_gates import store_gates
from mc_jax.kernels.gates import Router
from mc_jax.kernels.linear_read.config import Call, Config
from mc_jax.kernels.reading import (
    add_router_gradient,
    last_stack,
    of_stack,
    prepared,
    seen_by,
)
from mc_jax.kernels.tiles import LANES, contract, each_group, row
from mc_jax.typing import Array

F32 = jnp.float32


def _group(config: Config) -> int:
    """Memories of one product, of which no more are there than are resident."""
    return min(config.group, 1 << (config.resident.bit_length() - 1))


def _parts(call: Call, config: Config) -> list[slice]:
    """A block's tokens, in parts of which what a small memory gives stays in registers."""
    step = 2 * LANES if call.out * call.width <= LANES**2 else config.tokens
    if config.tokens % step:
        step = config.tokens
    return [slice(at, at + step) for at in range(0, config.tokens, step)]


def _forward_kernel(call: Call, config: Config, first, inputs, outputs, gates, total) -> None:
    """Grid (token blocks, stacks of memories)."""
    q_ref, router, w_ref = inputs
    y_ref, own_ref = outputs
    stack = pl.program_id(1)
    seen = seen_by(call, config.tokens, first[0], pl.program_id(0))

    @pl.when(stack == 0)
    def _() -> None:
        store_gates(call.top_k, router, seen.each, seen.most, own_ref, gates)
        total[...] = jnp.zeros_like(total)

    def add(start: Array, size: int) -> None:
        rows = [row(gates, stack * config.resident + start + i) for i in range(size)]
        q = q_ref[...]
        if config.scale == "inputs" and size > 1:
            scaled = jnp.concatenate([q * g.astype(q.dtype) for g in rows], 0)
            weights = jnp.concatenate([w_ref[start + i] for i in range(size)], 1)
            total[...] += contract(weights, scaled, (1, 0))
            return
        read = contract(w_ref[pl.ds(start, size)].reshape(size * call.out, -1), q, (1, 0))
        sums = total[...]
        for i, g in enumerate(rows):
            sums += g * read[i * call.out : (i + 1) * call.out]
        total[...] = sums

    each_group(of_stack(seen.most, stack, config.resident), _group(config), add)

    @pl.when(stack == pl.num_programs(1) - 1)
    def _() -> None:
        y_ref[...] = total[...].astype(y_ref.dtype)


def _backward_kernel(
    call: Call, config: Config, first, inputs, outputs, own_ref, gates, dgates, dq, dw, ddescriptors
) -> None:
    """Grid (stacks of memories, token blocks): gradients of the weights add up over tokens."""
    q_ref, router, w_ref, y_ref, dy_ref, down_ref = inputs
    dq_ref, drouter, dw_ref = outputs
    stack, block = pl.program_id(0), pl.program_id(1)
    seen = seen_by(call, config.tokens, first[0], block)
    store_gates(call.top_k, router, seen.each, seen.most, own_ref, gates)

    @pl.when(block == 0)
    def _() -> None:
        dw[...] = jnp.zeros_like(dw)
        ddescriptors[...] = jnp.zeros_like(ddescriptors)

    dq[...] = jnp.zeros_like(dq)
    dgates[...] = jnp.zeros_like(dgates)

    def add(start: Array, size: int) -> None:
        # Once for all parts, when the first of them needs it.
        @functools.cache
        def turned(i: int) -> Array:
            return w_ref[start + i].T

        parts = []
        for lanes in _parts(call, config):
            q, dy = q_ref[:, lanes].astype(F32), dy_ref[:, lanes].astype(F32)
            sums, scaled = dq[:, lanes], []
            for i in range(size):
                g = gates[pl.ds(stack * config.resident + start + i, 1), lanes]
                back = contract(turned(i), dy_ref[:, lanes], (1, 0))
                sums += g * back
                scaled.append((g * (q if config.scale == "inputs" else dy)).astype(q_ref.dtype))
                if call.routed:
                    dgates[pl.ds(start + i, 1), lanes] = jnp.sum(q * back, 0, keepdims=True)
            dq[:, lanes] = sums
            parts.append(jnp.concatenate(scaled, 0))
        weighted = jnp.concatenate(parts, 1)
        if config.scale == "inputs":
            grad = contract(dy_ref[...], weighted, (1, 1))
            for i in range(size):
                dw[start + i] += grad[:, i * call.width : (i + 1) * call.width]
        else:
            grad = contract(weighted, q_ref[...], (1, 1))
            dw[pl.ds(start, size)] += grad.reshape(size, *dw.shape[1:])

    each_group(of_stack(seen.most, stack, config.resident), _group(config), add)
    dq_ref[...] = dq[...].astype(dq_ref.dtype)
    if call.routed:
        mixed = jnp.sum(dy_ref[...].astype(F32) * y_ref[...].astype(F32), 0, keepdims=True)
        add_router_gradient(
            *(stack, seen.most, router, own_ref[...], gates, dgates[...]),
            *(down_ref[...], mixed, drouter, ddescriptors),
        )

    @pl.when(block == pl.num_programs(1) - 1)
    def _() -> None:
        dw_ref[...] = dw[...].astype(dw_ref.dtype)
        if call.routed:
            drouter.descriptors[...] = ddescriptors[...]


def forward(call: Call, config: Config, interpret: bool, first, q, router, weights) -> tuple:
    """Cached part of the outputs [out, tokens] and the online memory's gates [1, tokens]."""
    blocks, stacks = call.tokens // config.tokens, pl.cdiv(call.memories, config.resident)
    rows = stacks * config.resident

    last = functools.partial(last_stack, call, config.tokens, config.resident)

    def tokens(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, config.tokens), lambda i, s, _: (0, i))

    whole = pl.BlockSpec((rows, call.head_dim), lambda i, s, _: (0, 0))
    memories = pl.BlockSpec(
        (config.resident, call.out, call.width),
        lambda i, s, first: (jnp.minimum(s, last(first[0], i)), 0, 0),
    )
    scored = router and Router(tokens(call.head_dim), tokens(1), whole)
    return pl.pallas_call(
        functools.partial(_forward_kernel, call, config),
        out_shape=(
            (
                jax.ShapeDtypeStruct((call.out, call.tokens), q.dtype),
                jax.ShapeDtypeStruct((1, call.tokens), F32),
            ),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(blocks, stacks),
            in_specs=[(tokens(call.width), scored, memories)],
            out_specs=((tokens(call.out), tokens(1)),),
            scratch_shapes=[
                pltpu.VMEM((rows, config.tokens), F32),
                pltpu.VMEM((call.out, config.tokens), F32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="linear_read_forward",
    )(first, (q, prepared(router, rows), weights))[0]


def backward(call, config, interpret, first, q, router, weights, y, dy, down) -> tuple:
    """Gradients of q, the router and the weights; see `differentiable`."""
    blocks, stacks = call.tokens // config.tokens, pl.cdiv(call.memories, config.resident)
    rows = stacks * config.resident

    def tokens(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, config.tokens), lambda s, i, _: (0, i))

    def parts(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, height, config.tokens), lambda s, i, _: (s, 0, i))

    def partial(height: int) -> jax.ShapeDtypeStruct:
        kind = q.dtype if stacks == 1 else F32
        return jax.ShapeDtypeStruct((stacks, height, call.tokens), kind)

    whole = pl.BlockSpec((rows, call.head_dim), lambda s, i, _: (0, 0))
    some = pl.BlockSpec((config.resident, call.head_dim), lambda s, i, _: (s, 0))
    stack = (config.resident, call.out, call.width)
    memories = pl.BlockSpec(stack, lambda s, i, _: (s, 0, 0))
    scored = router and Router(tokens(call.head_dim), tokens(1), whole)
    scored_grad = router and Router(parts(call.head_dim), tokens(1), some)
    router_grad = router and Router(
        partial(call.head_dim),
        jax.ShapeDtypeStruct((1, call.tokens), F32),
        jax.ShapeDtypeStruct((rows, call.head_dim), F32),
    )
    output = tokens(call.out)
    return pl.pallas_call(
        functools.partial(_backward_kernel, call, config),
        out_shape=(
            (
                partial(call.width),
                router_grad,
                jax.ShapeDtypeStruct(weights.shape, weights.dtype),
            ),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(stacks, blocks),
            in_specs=[
                (
                    *(tokens(call.width), scored, memories),
                    *(router and output, output, router and tokens(1)),
                )
            ],
            out_specs=((parts(call.width), scored_grad, memories),),
            scratch_shapes=[
                pltpu.VMEM((1, config.tokens), F32),
                pltpu.VMEM((rows, config.tokens), F32),
                pltpu.VMEM((config.resident, config.tokens), F32),
                pltpu.VMEM((call.width, config.tokens), F32),
                pltpu.VMEM(stack, F32),
                pltpu.VMEM((config.resident, call.head_dim), F32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="linear_read_backward",
    )(first, (q, prepared(router, rows), weights, y, dy, down))[0]
