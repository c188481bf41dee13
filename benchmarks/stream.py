"""A million tokens through a small model, one after the other, in one process.

    python -m benchmarks.stream

The tokens are decoded twice: with all memories kept, and within a budget. At ten points it prints
what is to stay as it is: the cache's size, the process's memory, the programs compiled so far, and
how far the running states and logits are from those of the same tokens read afresh, in parallel, by
`prefill` (within a budget those differ besides in what was dropped when, so only states of the
first layer are compared, which do not depend on it).
"""

import argparse
import functools
from pathlib import Path

import numpy as np

from benchmarks import common

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
BLOCK = 512


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=10**6, help="at least so many")
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--budget", type=int, default=10**6, help="bytes of memories")
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--name", help="of the results; the default run has one")
    return common.parse(parser)


def resident() -> int:
    """Bytes that this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Compilations:
    """Counts the programs that XLA compiles."""

    def __init__(self):
        import jax

        self.count = 0

        def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
            self.count += event.endswith("backend_compile_duration")

        jax.monitoring.register_event_duration_secs_listener(listen)


def distance(found, expected) -> float:
    """Largest difference over the largest entry."""
    import jax

    errors = [
        np.abs(np.asarray(x) - np.asarray(y)).max() / max(np.abs(np.asarray(y)).max(), 1e-30)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        if x.size
    ]
    return float(max(errors))


def stream(args: argparse.Namespace, config, params, ids: np.ndarray, storage, compiled) -> list:
    """Decode all tokens; a row for each point."""
    import jax

    from mc_jax.inference import decode_step, prefill
    from mc_jax.inference.run import room_for
    from mc_jax.inference.storage import make_keeper
    from mc_jax.model.cache import memories_of

    keeper = make_keeper(config, params, storage, 1, None)
    block = keeper.tokens_at_a_time(BLOCK)

    @functools.partial(jax.jit, donate_argnums=1)
    def read(params, cache, tokens):
        def step(cache, token):
            logits, cache = decode_step(config, params, token[None], cache)
            return cache, logits

        cache, logits = jax.lax.scan(step, cache, tokens)
        return cache, logits[-1]

    # Points lie within segments: at their ends states are empty.
    first = config.memory.segment_len // 2
    _, cache = prefill(config, params, ids[None, :first], storage=storage)
    rows, programs, every = [], 0, (len(ids) - first) // args.points
    for start in range(first, len(ids), block):
        before, end = compiled.count, start + block
        cache = keeper.ready(cache, block, room_for(config, end))
        cache, logits = read(params, cache, ids[start:end])
        programs += compiled.count - before
        if (end - first) % every:
            continue
        memories = memories_of(config, cache)
        kept = [(memory.memories, memory.descriptors) for memory in memories]
        afresh, other = prefill(config, params, ids[None, :end], storage=storage)
        states = [memory.state for memory in memories]
        expected = [memory.state for memory in memories_of(config, other)]
        if storage.budget is not None:
            states, expected = states[:1], expected[:1]
        rows.append(
            {
                "budget": storage.budget,
                "tokens": end,
                "memories": memories[0].capacity,
                "bytes": sum(x.nbytes for x in jax.tree.leaves(kept)),
                "resident": resident(),
                "programs": programs,
                "state_drift": distance(states, expected),
                "logits_drift": None if storage.budget else distance(logits, afresh),
            }
        )
        print_row(rows[-1])
    return rows


def print_row(row: dict) -> None:
    logits = "" if row["logits_drift"] is None else f", logits {row['logits_drift']:.1e}"
    print(
        f"{row['tokens']:>9,} tokens: {row['memories']:>5,} memories a head, "
        f"{row['bytes'] / 2**20:6.2f} MiB, process {row['resident'] / 2**20:,.0f} MiB, "
        f"{row['programs']} programs, drift of states {row['state_drift']:.1e}{logits}",
        flush=True,
    )


def main() -> None:
    args = arguments()
    common.use_threads(args.threads)
    import jax
    import jax.numpy as jnp

    from mc_jax.inference import Storage
    from mc_jax.model import LanguageModel, ModelConfig

    memory = {"aggregation": "ssc", "segment_len": args.segment_len}
    config = ModelConfig.from_dict(
        {"vocab_size": 256, "dim": args.dim, "num_layers": 2, "num_heads": 2, "memory": memory}
        | {"mlp_dim": 2 * args.dim}
    )
    start = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), start)["params"]
    count = -(-args.tokens // (args.points * BLOCK)) * args.points * BLOCK
    count += args.segment_len // 2
    ids = np.random.default_rng(0).integers(0, 256, count, dtype=np.int32)
    compiled, rows = Compilations(), []
    for budget in (None, args.budget):
        print("all memories kept" if budget is None else f"within {budget:,} bytes of memories")
        rows += stream(args, config, params, ids, Storage(budget=budget), compiled)
    common.write_results(
        args.name or ("stream" if args.whole else None), PACKAGES, vars(args), rows
    )


if __name__ == "__main__":
    main()
