"""The kernels of a GPU, each by itself: forward, and forward and backward.

    python -m benchmarks.gpu_kernels
    python -m benchmarks.gpu_kernels --kernels selected_read select --top_k 8

All heads of one sequence in bfloat16. Printed are medians, and the bandwidth that moving every
array once would take: what reads memory well is near the card's. Beside a kernel's own time stands
what XLA does around it: for a read of selected memories it sorts pairs of token and memory.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import common

KERNELS = ("convolve", "chunk_read", "scores", "read", "select", "selected_read")
PACKAGES = ("jax", "jaxlib")


class Case(NamedTuple):
    """One kernel's call.

    Attributes:
      function: of arrays, all heads at once.
      arrays: what it takes; whole numbers among them have no gradient.
    """

    function: Callable[..., Any]
    arrays: tuple


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--segment_len", type=int, default=256, help="and tokens of a chunk")
    parser.add_argument("--top_k", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="turns of ten calls of each")
    parser.add_argument("--name", help="of the results; without it a part is not written")
    args = common.parse(parser)
    common.check_lengths([args.segment_len], args.length)
    return args


def case_of(kernel: str, args: argparse.Namespace) -> Case:
    """A kernel's call, on random arrays: each token sees the memories before its segment."""
    import jax
    import jax.numpy as jnp

    from mc_jax.kernels.chunk_read import chunk_read, segment_scores
    from mc_jax.kernels.convolve import convolve
    from mc_jax.kernels.gates import Router
    from mc_jax.kernels.linear_read.triton import mix
    from mc_jax.kernels.linear_read.triton_route import select_memories
    from mc_jax.kernels.linear_read.triton_selected import mix_selected

    heads, length, width, size = args.heads, args.length, args.head_dim, args.segment_len
    keys = iter(jax.random.split(jax.random.key(0), 8))
    memories, segment = length // size - 1, jnp.arange(length) // size

    def normal(*shape: int, dtype=jnp.bfloat16):
        return jax.random.normal(next(keys), (heads, *shape), dtype)

    def uniform(*shape: int):
        return jax.random.uniform(next(keys), (heads, *shape))

    rows, columns, matrices = (length, width), (width, length), (memories, width, width)
    match kernel:
        case "convolve":
            x = jnp.moveaxis(normal(1, length, 3, width), 0, 3)
            taps = jnp.moveaxis(normal(4, 3, width, dtype=jnp.float32), 0, 2)
            return Case(lambda taps, x: convolve(taps, x, 1e-6), (taps, x))
        case "chunk_read":
            decay = -0.1 * uniform(length // size, size)
            logs = jnp.cumsum(decay, -1).reshape(heads, length)
            states = normal(length // size, width, width, dtype=jnp.float32)
            qkv = [normal(*rows) for _ in range(3)]
            return Case(jax.vmap(chunk_read), (*qkv, logs, states))
        case "scores":
            scores = jax.vmap(lambda u, k: segment_scores(u, k, size))
            return Case(scores, (normal(*rows), normal(*rows)))
        case "read":
            gate = jnp.where(jnp.arange(memories)[:, None] < segment, uniform(memories, length), 0)
            mixed = jax.vmap(lambda w, gate, x: mix(w, gate, x, size, 0))
            return Case(mixed, (normal(*matrices), gate, normal(*columns)))
        case "select":

            def select(u, online, descriptors):
                own, gates, _ = select_memories(Router(u, online, descriptors), size, 0, args.top_k)
                return own, gates

            online = normal(length, dtype=jnp.float32)
            descriptors = normal(memories, width, dtype=jnp.float32)
            return Case(jax.vmap(select), (normal(*columns), online, descriptors))
        case _:
            gate = uniform(args.top_k, length)
            chosen = (uniform(args.top_k, length) * segment).astype(jnp.int32)
            memory = jnp.where(segment > 0, chosen, memories)
            gate = jnp.where(segment > 0, gate, 0)
            one = jax.vmap(lambda w, gate, memory, x: mix_selected(w, gate, memory, x))
            return Case(one, (normal(*matrices), gate, memory, normal(*columns)))


def programs(case: Case) -> dict[str, tuple[Callable[[], Any], int]]:
    """The kernel forward, and with its backward: each a call, and the bytes of its arrays."""
    import jax

    def both(arrays, gradients):
        y, back = jax.vjp(case.function, *arrays)
        return y, back(gradients)

    def call(function, *args):
        program = jax.jit(function).lower(*args).compile()
        return lambda: jax.block_until_ready(program(*args))

    def size(*trees) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(trees))

    y = jax.jit(case.function)(*case.arrays)
    forward = size(case.arrays, y)
    return {
        "forward": (call(case.function, *case.arrays), forward),
        # Read again: the arrays; and gradients of the outputs, for gradients of the arrays.
        "forward and backward": (
            call(both, case.arrays, y),
            forward + size(case.arrays, y, case.arrays),
        ),
    }


def main() -> None:
    args = arguments()
    import jax

    if jax.default_backend() != "gpu":
        raise SystemExit(f"gpu_kernels: found {jax.default_backend()}, allowed: an NVIDIA GPU")
    rows, lines = [], []
    for kernel in args.kernels:
        made = programs(case_of(kernel, args))
        runs = [run for run, _ in made.values()]
        times = common.interleave(runs, [10] * len(runs), args.rounds, float("inf"))
        line = [kernel]
        for (part, (_, moved)), found in zip(made.items(), times, strict=True):
            row = {"kernel": kernel, "part": part, "bytes": moved} | common.spread(found)
            line += [f"{1e3 * row['median_s']:.3f}", f"{moved / row['median_s'] / 1e9:,.0f}"]
            rows.append(row)
        lines.append(line)
    print(f"\n{common.device_name()}")
    header = ("kernel", "forward, ms", "GB/s", "forward and backward, ms", "GB/s")
    common.print_table(header, lines)
    common.write_results(
        args.name or ("gpu_kernels" if args.whole else None), PACKAGES, vars(args), rows
    )


if __name__ == "__main__":
    main()
