"""Bytes that devices exchange to share a sequence: memory caching against ring attention.

    python -m benchmarks.context_bytes          # about two minutes, compiles only

One layer's core with linear memories and GRM, heads of 128, bfloat16, sequences split over the
eight devices of a TPU v5p:2x2x2, compiled for it, and the exchanges read off the program. Ring
attention beside it is what passes its keys and values around on the same mesh, and their gradients
back (bfloat16, gradients summed up in float32 as here). A segment of C tokens sends one d x d
memory and a mean key in place of 2 C d numbers: 2 C / (d + 2) times fewer.
"""

import argparse
import functools
import os
from typing import Any

from benchmarks import common

PACKAGES = ("jax", "jaxlib", "libtpu")
TOPOLOGY, DEVICES, HEADS, WIDTH, TOKENS = "v5p:2x2x2", 8, 2, 128, 4096


def sent_per_token(loss: Any, backward: bool) -> dict[str, float]:
    """Bytes by kind that a device sends for each of its tokens, of one head."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from mc_jax.planning.chips import devices_of
    from mc_jax.planning.program import Program, totals

    axes = PartitionSpec(None, "context")
    mesh = Mesh(devices_of(TOPOLOGY), ("context",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct(
        (1, DEVICES * TOKENS, HEADS, WIDTH), jnp.bfloat16, sharding=NamedSharding(mesh, axes)
    )
    split = jax.shard_map(loss, mesh=mesh, in_specs=(axes,) * 4, out_specs=axes, check_vma=False)

    def total(*args: Any) -> Any:
        return jnp.sum(split(*args).astype(jnp.float32))

    run = jax.grad(total, argnums=(0, 1, 2, 3)) if backward else split
    with jax.set_mesh(mesh):
        text = jax.jit(run).lower(*[x] * 4).compile().as_text()
    found = totals(Program(text or "").collectives())
    return {kind: sent / TOKENS / HEADS for kind, (_, sent) in found.items() if sent > 1000}


def memories(segment_len: int, exchange: str, q: Any, k: Any, v: Any, u: Any) -> Any:
    from mc_jax import memory_caching

    options: dict[str, Any] = dict(rule="linear", segment_len=segment_len, chunk_len=64)
    return memory_caching(q, k, v, u, None, context_axis="context", exchange=exchange, **options)[0]


def keys_and_values(q: Any, k: Any, v: Any, u: Any) -> Any:
    """What ring attention passes around; scores without their softmax, which stays at home."""
    import jax
    import jax.numpy as jnp

    from mc_jax.caching.context import Context
    from mc_jax.caching.ring import sum_over_devices

    def read(block: Any, q: Any, constant: None, source: Any) -> Any:
        k, v = block
        one = jax.checkpoint(lambda q, k, v: (q @ k.T).astype(jnp.bfloat16) @ v)
        heads = jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))
        return heads(q, k, v).astype(jnp.float32)

    return sum_over_devices(Context("context", "ring"), read, (k, v), q, None)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rows: list[dict[str, Any]] = []
    for backward in (False, True):
        way = "forward and backward" if backward else "forward"
        attention = sent_per_token(keys_and_values, backward)
        rows.append({"way": way, "what": "ring attention", "bytes": attention})
        for segment_len in (256, 1024):
            for exchange in ("gather", "ring"):
                found = sent_per_token(functools.partial(memories, segment_len, exchange), backward)
                rows.append(
                    {
                        "way": way,
                        "what": f"memories of {segment_len} tokens, {exchange}",
                        "bytes": found,
                        "times_fewer": sum(attention.values()) / sum(found.values()),
                        "predicted": 2 * segment_len / (WIDTH + 2),
                    }
                )
    table = [
        [
            row["way"],
            row["what"],
            f"{sum(row['bytes'].values()):,.0f}",
            f"{row['times_fewer']:.2f}" if "times_fewer" in row else "",
            f"{row['predicted']:.2f}" if "predicted" in row else "",
            ", ".join(f"{kind} {size:,.0f}" for kind, size in row["bytes"].items()),
        ]
        for row in rows
    ]
    header = ("", "", "bytes a token and head", "times fewer", "predicted", "of them")
    common.print_table(header, table)
    settings = dict(topology=TOPOLOGY, heads=HEADS, head_dim=WIDTH, tokens_of_a_device=TOKENS)
    common.write_results("context_bytes", PACKAGES, settings, rows)


if __name__ == "__main__":
    main()
