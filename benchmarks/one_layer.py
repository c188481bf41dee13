"""A memory layer forward and backward, as several benchmarks time it.

As a program it times the layer of the mc_jax that is on the path, on request (vs_revision): it
reads settings as JSON from the first line of standard input; each further line asks for that many
calls, whose seconds it prints as a JSON list. It imports nothing else of the benchmarks.
"""

import argparse
import json
import sys
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The layer's shape."""
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--segment_len", type=int, default=64)
    parser.add_argument("--chunk_len", type=int, default=32, help="ours")
    parser.add_argument("--write_mode", choices=("checkpoint", "independent"), default="checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="cores for both")


def settings_of(args: argparse.Namespace, rule: str, aggregation: str) -> dict:
    """What `program` builds its layer from."""
    memory = {name: getattr(args, name) for name in ("segment_len", "chunk_len", "write_mode")}
    return {
        "batch": args.batch,
        "length": args.length,
        "model": {"dim": args.dim, "num_heads": args.heads, "dtype": "float32"},
        "memory": {"rule": rule, "aggregation": aggregation} | memory,
    }


def program(settings: dict):
    """Forward and backward of one layer, as a function without arguments."""
    import jax
    import jax.numpy as jnp

    from mc_jax.model import MemoryConfig, ModelConfig
    from mc_jax.model.memory_layer import MemoryLayer

    memory = MemoryConfig(**settings["memory"])
    layer = MemoryLayer(ModelConfig(**settings["model"], memory=memory))
    shape = (settings["batch"], settings["length"], settings["model"]["dim"])
    x, weight = jax.random.normal(jax.random.key(0), (2, *shape))
    params = layer.init(jax.random.key(1), x)

    def loss(params, x):
        y = layer.apply(params, x)
        # Before layers had caches they gave their outputs alone; vs_revision runs those, too.
        return jnp.sum((y[0] if isinstance(y, tuple) else y) * weight)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))

    def run():
        return jax.block_until_ready(step(params, x))

    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(run())):
        raise RuntimeError("loss or gradients are not finite")
    return run


def set_allocator() -> None:
    """As this mc_jax's train.py does; the first revisions leave the C library's as it is."""
    try:
        from mc_jax import allocator
    except ImportError:
        return
    if hasattr(allocator, "restart_with_huge_pages"):
        allocator.restart_with_huge_pages()
    allocator.keep_freed_memory()


def main() -> None:
    set_allocator()
    run = program(json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
