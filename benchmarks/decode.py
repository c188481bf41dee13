"""Time and memory of a decoded token over the length of the context, memories beside attention.

    python -m benchmarks.decode                       # this machine, a size that suits it
    python -m benchmarks.decode --rule titans
    python -m benchmarks.decode --report              # table and picture of what was measured

Each model decodes one sequence from a cache that holds a context of so many tokens, in a compiled
loop; what the cache holds is random numbers, of which neither time nor memory depends. At each
context the models, those of `throughput`, run in turns; printed are medians. Beside each time
stands what a straight line says that is laid through the model's own times, over what a token
reads: cached memories, for Transformer++ keys and values.
"""

import argparse
import functools
import json
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.throughput import COLOURS, MODELS, PACKAGES, RULES, SIZES, model_config

# Residual reads what grm reads, and a token of a block as many as one that selects for itself.
NAMES = [name for name in MODELS if name not in ("residual", "ssc-blocks")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, help="small on a CPU, else 350m")
    parser.add_argument("--rule", choices=RULES, default="linear")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    contexts = [1024, 4096, 16384, 65536]
    parser.add_argument("--contexts", nargs="+", type=int, metavar="N", default=contexts)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in one timed run")
    parser.add_argument("--batch", type=int, default=1, help="sequences, side by side")
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--chunk_len", type=int, default=64)
    parser.add_argument("--top_k", type=int, default=4, help="memories that ssc reads")
    parser.add_argument("--rounds", type=int, default=7, help="most turns at each context")
    parser.add_argument("--budget_s", type=float, default=60, help="no third turn after this long")
    parser.add_argument("--threads", type=int, help="cores, on a CPU; all by default")
    parser.add_argument("--name", help="of the results; without it a part is not written")
    parser.add_argument("--report", action="store_true", help="measure nothing, show what is kept")
    return common.parse(parser, "size", "rule")


def random_cache(config, params, args: argparse.Namespace, context: int):
    """A cache of so many tokens, with room for those that are decoded."""
    import jax
    import jax.numpy as jnp

    from mc_jax.inference import make_room, prefill

    _, cache = prefill(config, params, np.zeros((args.batch, 1), np.int32))
    cache = make_room(config, cache, context + args.tokens)
    rng = np.random.default_rng(0)

    def fill(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), x.dtype)

    return at_position(jax.tree.map(fill, cache), context)


def at_position(cache, position: int):
    """The same cache as that of so many tokens."""
    import jax
    import jax.numpy as jnp

    def place(path, x):
        named = jax.tree_util.keystr(path[-1:], simple=True) == "position"
        return jnp.full_like(x, position) if named else x

    return jax.tree_util.tree_map_with_path(place, cache)


def prepare(args: argparse.Namespace, name: str, context: int):
    """A function that decodes `args.tokens` tokens, and the bytes of the cache."""
    import jax
    import jax.numpy as jnp

    from mc_jax.inference import decode_step
    from mc_jax.model import LanguageModel

    config = model_config(args, name, jax.default_backend())
    start = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), start)["params"]
    cache = random_cache(config, params, args, context)

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(params, cache):
        def step(carry, _):
            token, cache = carry
            logits, cache = decode_step(config, params, token, cache)
            return (jnp.argmax(logits, -1).astype(jnp.int32), cache), jnp.isfinite(logits).all()

        token = jnp.zeros(args.batch, jnp.int32)
        (_, cache), finite = jax.lax.scan(step, (token, cache), None, args.tokens)
        return at_position(cache, context), finite.all()

    size = sum(x.nbytes for x in jax.tree.leaves(cache)) // args.batch
    held = [cache]

    def call():
        held[0], finite = jax.block_until_ready(decode(params, held[0]))
        return finite

    if not call():
        raise RuntimeError(f"{name}, context {context}: logits are not finite")
    return call, size


def reads(args: argparse.Namespace, name: str, context: int) -> int:
    """What a token reads besides its layer: cached memories, or keys and values."""
    memories = context // args.segment_len
    if MODELS[name] is None:
        return context
    kept = MODELS[name] or {}
    if kept["aggregation"] == "none":
        return 0
    if kept["aggregation"] == "ssc":
        return min(memories, args.top_k)
    return memories.bit_count() if "segmentation" in kept else memories


def measure(args: argparse.Namespace, context: int, progress) -> list[dict]:
    """Times of all models at one context."""
    import jax

    calls, rows = [], []
    for name in args.models:
        progress.set_description(f"context {context}, {name}: compiling")
        call, size = prepare(args, name, context)
        calls.append(call)
        rows.append({"model": name, "context": context, "bytes": size})
        rows[-1]["reads"] = reads(args, name, context)
        progress.update()
    progress.set_description(f"context {context}: measuring")
    times = common.interleave(calls, [1] * len(calls), args.rounds, args.budget_s)
    for row, found in zip(rows, times, strict=True):
        row |= common.spread([t / args.tokens for t in found])
    jax.clear_caches()
    return rows


def predicted(rows: list[dict]) -> list[float]:
    """A straight line through the times of one model over what a token reads."""
    count = np.array([row["reads"] for row in rows], float)
    seconds = np.array([row["median_s"] for row in rows])
    if np.ptp(count) == 0:
        return [float(seconds.mean())] * len(rows)
    # Relative errors count: the longest context must not outweigh all others.
    design = np.stack([np.ones_like(count), count], 1) / seconds[:, None]
    line, *_ = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)
    return [float(line[0] + line[1] * n) for n in count]


def report(name: str) -> None:
    """Print the table and draw the picture of what was measured."""
    path = common.RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path.relative_to(common.ROOT)}: not measured yet")
    record = json.loads(path.read_text())
    print(f"\n{record['device']}, {record['date']}, {record['settings']}")
    table(record["rows"])
    draw(record, common.ROOT / "docs" / "images" / f"{name}.png")


def table(rows: list[dict]) -> None:
    """Milliseconds a token and size of the cache: a line for each model."""
    contexts = sorted({row["context"] for row in rows})
    lines = []
    for name in NAMES:
        own = [row for row in rows if row["model"] == name]
        if not own:
            continue
        line = predicted(own)
        entries = [
            f"{1e3 * row['median_s']:.2f} [{1e3 * value:.2f}] ({row['bytes'] / 2**20:.1f})"
            for row, value in zip(own, line, strict=True)
        ]
        growth = own[-1]["median_s"] / own[0]["median_s"]
        lines.append((name, *entries, f"{growth:.2f}"))
    print("\nms a token [by the line over what it reads] (MiB of cache)")
    common.print_table(("context", *(f"{n:,}" for n in contexts), "last over first"), lines)
    last = {row["model"]: row["median_s"] for row in rows if row["context"] == contexts[-1]}
    if {"ssc", "transformer++"} <= last.keys():
        times = last["transformer++"] / last["ssc"]
        print(f"\nssc decodes {times:.1f} times as fast as transformer++ at {contexts[-1]:,}")


def draw(record: dict[str, Any], path) -> None:
    """Milliseconds a token over the context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, colour in COLOURS.items():
        own = [row for row in record["rows"] if row["model"] == name]
        if own:
            style = "--" if MODELS[name] is None else "-"
            points = [(row["context"], 1e3 * row["median_s"]) for row in own]
            axis.plot(*zip(*points, strict=True), style, color=colour, marker="o", label=name)
    contexts = sorted({row["context"] for row in record["rows"]})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(contexts, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in contexts])
    axis.set_xlabel("context (tokens)")
    axis.set_ylabel("milliseconds a decoded token")
    settings = record["settings"]
    title = f"{settings['size']} model, {settings['rule']} memory, {record['device']}"
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"written: {path.relative_to(common.ROOT)}")


def main() -> None:
    args = arguments()
    from mc_jax.allocator import keep_freed_memory, restart_with_huge_pages

    restart_with_huge_pages()
    if args.threads:
        common.use_threads(args.threads)
    import jax
    from tqdm import tqdm

    keep_freed_memory()
    backend = jax.default_backend()
    args.size = args.size or ("small" if backend == "cpu" else "350m")
    kept = f"decode_{backend}_{args.size}_{args.rule}"
    name = args.name or (kept if args.whole or args.report else None)
    if args.report and name:
        report(name)
        return
    rows = []
    with tqdm(total=len(args.contexts) * len(args.models)) as progress:
        for context in args.contexts:
            rows += measure(args, context, progress)
    settings = {k: v for k, v in vars(args).items() if k not in ("report", "name")}
    common.write_results(name, PACKAGES, settings, rows)
    report(name) if name else table(rows)


if __name__ == "__main__":
    main()
