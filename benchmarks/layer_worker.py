"""A memory layer of the mc_jax that is on the path, timed on request; see vs_revision.

Reads a cell's settings as JSON from the first line of standard input; each further line asks for
that many calls, whose seconds it prints as a JSON list.
"""

import json
import sys
import time


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
        return jnp.sum(layer.apply(params, x) * weight)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))

    def run():
        return jax.block_until_ready(step(params, x))

    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(run())):
        raise RuntimeError("loss or gradients are not finite")
    return run


def main() -> None:
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
