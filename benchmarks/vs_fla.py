"""The memory alone on a GPU, beside flash-linear-attention's kernels.

    pip install flash-linear-attention       # beside PyTorch with CUDA and requirements-gpu.txt
    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.vs_fla

Forward and backward from queries, keys, values and gates to outputs in bfloat16, the same number of
tokens a call as fewer and longer sequences, all in one process, in turns; printed are medians.

flash-linear-attention first tries many blocks for each of its kernels, which takes minutes. What it
refuses on a card is left out, with its reason: on Hopper the gradient of `simple_gla` with Triton
3.4 to 3.7.0.

`simple_gla` with a scalar decay is the function that mc_jax computes for linear memories without
caching. Gated linear attention has a decay for each feature; DeltaNet removes what a key held
before it writes. Neither caches memories, so beside GRM and SSC they say what caching costs.
"""

import argparse
import statistics
from collections.abc import Callable

from benchmarks import common

PEERS = ("simple_gla", "gla", "delta_rule")
OURS = ("none", "grm", "ssc")
PACKAGES = ("jax", "jaxlib", "torch", "triton", "flash-linear-attention")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--aggregations", nargs="+", choices=OURS, default=list(OURS))
    lengths = [2048, 8192, 32768]
    parser.add_argument("--lengths", nargs="+", type=int, metavar="N", default=lengths)
    parser.add_argument("--tokens", type=int, help="of a call; the longest length by default")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20, help="turns at each length")
    parser.add_argument("--name", help="of the results; without it a part is not written")
    args = common.parse(parser)
    args.tokens = args.tokens or max(args.lengths)
    common.check_lengths(args.lengths, args.tokens)
    return args


def their_program(args: argparse.Namespace, peer: str, length: int):
    """One forward and backward pass of a kernel of flash-linear-attention."""
    import torch
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    shape = (args.tokens // length, length, args.heads, args.head_dim)

    def normal():
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    unit = torch.nn.functional.normalize
    inputs = [unit(normal(), dim=-1), unit(normal(), dim=-1), normal()]
    decay = -0.1 * torch.rand(shape, device="cuda")
    kernel, gate = {
        "simple_gla": (chunk_simple_gla, decay[..., 0]),
        "gla": (chunk_gla, decay.bfloat16()),
        "delta_rule": (chunk_delta_rule, torch.rand(shape[:3], device="cuda").bfloat16()),
    }[peer]
    inputs = [x.detach().requires_grad_() for x in (*inputs, gate)]
    weight = normal()

    def run():
        for x in inputs:
            x.grad = None
        kernel(*inputs)[0].backward(weight)
        torch.cuda.synchronize()

    return run


def our_program(args: argparse.Namespace, aggregation: str, length: int):
    """The same of linear memories."""
    import jax
    import jax.numpy as jnp

    import mc_jax
    from mc_jax.memory import LinearGates

    shape = (args.tokens // length, length, args.heads, args.head_dim)
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v, u, weight = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:5])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    alpha = jnp.exp(-0.1 * jax.random.uniform(keys[5], shape[:3]))

    def loss(q, k, v, u, alpha):
        y, _ = mc_jax.memory_caching(
            *(q, k, v, u, LinearGates(alpha)),
            aggregation=aggregation,
            segment_len=args.segment_len,
            chunk_len=args.segment_len,
        )
        return jnp.sum(y.astype(jnp.float32) * weight)

    inputs = (q, k, v, u, alpha)
    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(*inputs).compile()
    return lambda: jax.block_until_ready(gradients(*inputs))


def can_run(name: str, program: Callable[[], None]) -> bool:
    """Run a program for the first time; whether it can, where its package may refuse the card."""
    print(f"{name}: first run", flush=True)
    try:
        program()
    except Exception as error:  # the package and Triton, which it compiles with, have their own
        if not name.startswith("fla "):
            raise
        print(f"{name}: left out: {type(error).__name__}: {error}")
        return False
    return True


def main() -> None:
    args = arguments()
    rows: list[dict] = []
    for length in args.lengths:
        programs = {f"fla {peer}": their_program(args, peer, length) for peer in args.peers}
        for how in args.aggregations:
            programs[f"mc_jax {how}"] = our_program(args, how, length)
        programs = {name: run for name, run in programs.items() if can_run(name, run)}
        times = common.interleave(
            list(programs.values()), [1] * len(programs), args.rounds, float("inf")
        )
        for name, found in zip(programs, times, strict=True):
            speed = args.tokens / statistics.median(found)
            rows.append(
                {"name": name, "length": length, "tokens_per_s": speed} | common.spread(found)
            )
    print(f"\n{common.device_name()}: tokens/s of one layer's memory, forward and backward")
    speeds = {(row["name"], row["length"]): f"{row['tokens_per_s']:,.0f}" for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    common.print_table(
        ("", *(f"{n:,}" for n in args.lengths)),
        [(name, *(speeds.get((name, n), "") for n in args.lengths)) for name in names],
    )
    common.write_results(
        args.name or ("vs_fla" if args.whole else None), PACKAGES, vars(args), rows
    )


if __name__ == "__main__":
    main()
