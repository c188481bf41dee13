"""The chunk-parallel form against the per-token scan, forward and backward.

    python -m benchmarks.chunk_vs_scan

Both are `mc_jax.memory_caching` on the same inputs, without caching, so that what differs is the
compression alone: `implementation="chunked"` against `implementation="recurrent"`, in turns.
Gradients are taken with respect to every input. Printed are the medians of the calls, their range
and the ratio; before anything is timed, outputs and gradients of both forms are compared.
"""

import argparse

from benchmarks import common

RULES = ("dla", "titans", "linear", "swla")
DEEP = ("dla", "titans")
TARGET = 10
PACKAGES = ("jax", "jaxlib", "numpy")
TOLERANCE = 1e-3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--expansion", type=int, default=4, help="hidden over head_dim of the MLP")
    parser.add_argument("--chunk_len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--rounds", type=int, default=5, help="most turns for each rule")
    parser.add_argument("--budget_s", type=float, default=60, help="no third turn after this long")
    parser.add_argument("--calls", type=int, default=5, help="timed calls of the chunk form a turn")
    return common.parse(parser)


def inputs(args: argparse.Namespace, rule: str) -> dict:
    """Arguments of `mc_jax.memory_caching`: unit q and k, gates as layers start with them."""
    import jax
    import jax.numpy as jnp

    from mc_jax.memory import (
        DeepParams,
        DLAGates,
        LinearGates,
        NormParams,
        SWLAGates,
        TitansGates,
    )

    keys = iter(jax.random.split(jax.random.key(0), 12))
    tokens = (args.batch, args.length, args.heads)
    heads, width, hidden = args.heads, args.head_dim, args.expansion * args.head_dim

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    def uniform(low, high):
        return jax.random.uniform(next(keys), tokens, minval=low, maxval=high)

    q, k, v = (normal(*tokens, width) for _ in range(3))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    alpha, beta = uniform(0.99, 1.0), uniform(0.1, 0.9)
    gates = {
        "linear": LinearGates(alpha),
        "swla": SWLAGates(alpha, beta, uniform(0.5, 1.0)),
        "dla": DLAGates(uniform(0.0, 0.1), alpha),
        "titans": TitansGates(alpha, beta, uniform(0.2, 0.8) * (1 - beta) / args.chunk_len),
    }[rule]
    params = None
    if rule in DEEP:
        w1 = normal(heads, width, hidden) / hidden**0.5
        w2 = normal(heads, hidden, width) / width**0.5
        norm = NormParams(jnp.ones((heads, width)), jnp.zeros((heads, width)))
        params = DeepParams(w1, w2, norm)
    return dict(q=q, k=k, v=v, u=None, gates=gates, params=params)


def form(args: argparse.Namespace, rule: str, given: dict, implementation: str):
    """One forward and backward pass of one form, as a function without arguments."""
    import jax

    import mc_jax

    weight = jax.random.normal(jax.random.key(1), given["v"].shape)

    def loss(given):
        out, _ = mc_jax.memory_caching(
            **given,
            rule=rule,
            aggregation="none",
            segment_len=args.length,
            chunk_len=args.chunk_len,
            implementation=implementation,
        )
        return (out * weight).sum(), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda: jax.block_until_ready(step(given))


def check_equal(rule: str, found, expected) -> None:
    """Compare losses, outputs and gradients; the times of two different things say nothing."""
    import jax
    import jax.numpy as jnp

    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{rule}: the forms differ by {error:.1e}, allowed: {TOLERANCE}")


def compare(args: argparse.Namespace, rule: str) -> dict:
    """Times of both forms for one rule, and their ratio."""
    given = inputs(args, rule)
    chunked, recurrent = (form(args, rule, given, name) for name in ("chunked", "recurrent"))
    check_equal(rule, chunked(), recurrent())
    times = common.interleave([chunked, recurrent], [args.calls, 1], args.rounds, args.budget_s)
    chunk, scan = (common.spread(t) for t in times)
    return {
        "rule": rule,
        "chunked": chunk,
        "recurrent": scan,
        "ratio": scan["median_s"] / chunk["median_s"],
        "worst_ratio": scan["min_s"] / chunk["max_s"],
        "target": TARGET if rule in DEEP else None,
    }


def main() -> None:
    args = arguments()
    common.use_threads(args.threads)
    rows = []
    for rule in args.rules:
        rows.append(compare(args, rule))
        print(f"{rule}: {rows[-1]['ratio']:.0f} times", flush=True)

    def milliseconds(row: dict) -> str:
        low, mid, high = (1e3 * row[key] for key in ("min_s", "median_s", "max_s"))
        return f"{mid:,.0f} ({low:,.0f} .. {high:,.0f}, {row['calls']} calls)"

    print(f"\n{common.device_name()}; length {args.length}, head dim {args.head_dim}; medians, ms")
    common.print_table(
        ("rule", "chunk form", "per-token scan", "ratio", "target"),
        [
            (
                row["rule"],
                milliseconds(row["chunked"]),
                milliseconds(row["recurrent"]),
                f"{row['ratio']:.0f}",
                str(row["target"] or ""),
            )
            for row in rows
        ],
    )
    common.write_results("chunk_vs_scan" if args.whole else None, PACKAGES, vars(args), rows)


if __name__ == "__main__":
    main()
