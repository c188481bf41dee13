"""Tokens per second and memory over the length: memories beside attention, on any device.

    python -m benchmarks.throughput                     # this machine, a size that suits it
    python -m benchmarks.throughput --size 350m         # a GPU or TPU; bfloat16
    XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python -m benchmarks.throughput --parts step
    ... --num_layers 4 --models base ssc                # a minute on a GPU
    python -m benchmarks.throughput --report            # table and picture of what was measured

Every model works through the same number of tokens a step, as fewer and longer sequences. Measured
are one mixer's layer forward, the same forward and backward, and a whole training step (loss,
gradient, AdamW; the step of train.py). At each length the models run in turns; printed are medians.
The feed-forward is the wider the fewer projections a mixer has, so that all have the same number of
parameters, with linear memories within 2%; initial MLP memories come on top of it. Memory is what
the compiled step needs, its arguments and results included; what needs more than the device has
left is not run and says so.

Transformer++ runs on the platform's attention: cuDNN's flash attention on a GPU in bfloat16, splash
on a TPU, XLA's elsewhere. On a GPU all models keep all activations, which fit, and no loop stacks
those of their layers: that is a sixth faster and compiles for a minute or two a length, which fewer
layers (`--num_layers 4`) shorten. Chunks are a segment there: a matrix memory is the same whatever
they are, and larger products are faster. The flag above, which leaves products to cuBLAS, compiles
three times as fast. The picture is Figure 4 of the paper.
"""

import argparse
import dataclasses
import json
import os
import statistics
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import common

# Memory settings of each model; None is Transformer++.
MODELS: dict[str, dict[str, Any] | None] = {
    "base": {"aggregation": "none"},
    "residual": {"aggregation": "residual"},
    "grm": {"aggregation": "grm"},
    "soup": {"aggregation": "soup"},
    "ssc": {"aggregation": "ssc"},
    # A block of tokens reads what its first token selects.
    "ssc-blocks": {"aggregation": "ssc", "route_every": 128},
    "log-linear++": {"aggregation": "grm", "segmentation": "logarithmic"},
    "transformer++": None,
}
# Settings of the model, and parameters of a block over dim**2.
SIZES: dict[str, tuple[dict[str, Any], float]] = {
    "small": ({"dim": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 512}, 12),
    "350m": (
        {
            "dim": 1024,
            "num_layers": 24,
            "num_heads": 8,
            "vocab_size": 32_000,
            "dtype": "bfloat16",
            "scan_layers": True,
            "remat": "dots",
        },
        13,
    ),
}
# JAX compiles in several threads, but two that trace the same function disturb each other.
ONE_AT_A_TIME = threading.Lock()
RULES = ("linear", "swla", "dla", "titans")
PARTS = ("layer forward", "layer", "step")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
COLOURS = {
    "base": "#8a8a8a",
    "residual": "#7a5aa6",
    "grm": "#c2452d",
    "soup": "#d99a2b",
    "ssc": "#2f8f5b",
    "ssc-blocks": "#8fc26b",
    "log-linear++": "#3f6c8f",
    "transformer++": "#111111",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, help="small on a CPU, else 350m")
    parser.add_argument("--rule", choices=RULES, default="linear")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    lengths = [2048, 4096, 8192, 16384, 32768]
    parser.add_argument("--lengths", nargs="+", type=int, metavar="N", default=lengths)
    parser.add_argument("--tokens", type=int, help="of a step; the longest length by default")
    parser.add_argument("--num_layers", type=int, help="of the models; by default their size's")
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--chunk_len", type=int, help="64; on a GPU, for matrices, a segment")
    parser.add_argument("--top_k", type=int, default=4, help="memories that ssc reads")
    parser.add_argument("--rounds", type=int, default=5, help="most turns at each length")
    parser.add_argument("--budget_s", type=float, default=60, help="no third turn after this long")
    parser.add_argument("--threads", type=int, help="cores, on a CPU; all by default")
    parser.add_argument("--name", help="of the results; without it a part is not written")
    parser.add_argument("--report", action="store_true", help="measure nothing, show what is kept")
    args = common.parse(parser, "size", "rule")
    args.tokens = args.tokens or max(args.lengths)
    common.check_lengths(args.lengths, args.tokens)
    return args


def model_config(args: argparse.Namespace, name: str, backend: str):
    """One model of the comparison."""
    from mc_jax.model import AttentionConfig, MemoryConfig, ModelConfig

    shape, per_block = SIZES[args.size]
    memory = MODELS[name]
    projections = 4  # q, k, v and out; memories have an output gate, gated ones a router as well
    if memory is not None:
        projections = 5 if memory["aggregation"] in ("none", "residual") else 6
    lanes = 16 if args.size == "small" else 128
    mlp_dim = round(shape["dim"] * (per_block - projections) / 3 / lanes) * lanes
    if backend == "gpu":
        shape = shape | {"scan_layers": False, "remat": "none"}
    if memory is None:
        flash = backend == "gpu" and shape.get("dtype") == "bfloat16"
        attention = AttentionConfig(implementation="cudnn" if flash else "auto")
        return ModelConfig(**shape, mlp_dim=mlp_dim, pattern=("attention",), attention=attention)
    chunk_len = 64
    if backend == "gpu" and args.rule in ("linear", "swla"):
        chunk_len = args.segment_len
    settings = MemoryConfig(
        rule=args.rule,
        segment_len=args.segment_len,
        chunk_len=args.chunk_len or chunk_len,
        top_k=args.top_k,
        **memory,
    )
    return ModelConfig(**shape, mlp_dim=mlp_dim, memory=settings)


@dataclasses.dataclass
class Compiled:
    """One part of one model at one length.

    Attributes:
      model: its name.
      part: of it.
      length: tokens of a sequence.
      bytes: what a call needs, arguments and results included.
      program: takes what `arguments` makes.
      arguments: makes the arrays that a call starts from.
    """

    model: str
    part: str
    length: int
    bytes: int
    program: Callable[..., Any]
    arguments: Callable[[], tuple]

    def call(self) -> Callable[[], Any]:
        """A function that runs it; a training step goes on from the one before."""
        import jax

        held = list(self.arguments())

        def run():
            result = jax.block_until_ready(self.program(*held))
            if self.part == "step":
                held[0] = result[0]
            return result

        return run


def layer_program(config, args: argparse.Namespace, length: int, gradient: bool):
    """One mixer forward, or forward and backward, and what makes its arguments."""
    import jax
    import jax.numpy as jnp

    from mc_jax.model.attention import Attention
    from mc_jax.model.memory_layer import MemoryLayer

    layer = Attention(config) if config.pattern == ("attention",) else MemoryLayer(config)
    shape = (args.tokens // length, length, config.dim)

    def arguments():
        x, weight = jax.random.normal(jax.random.key(0), (2, *shape), config.compute_dtype)
        return layer.init(jax.random.key(1), x[:1, : args.segment_len]), x, weight

    def forward(params, x, weight):
        return layer.apply(params, x)[0]

    def loss(params, x, weight):
        return jnp.sum(forward(params, x, weight) * weight, dtype=jnp.float32)

    return (jax.value_and_grad(loss, (0, 1)) if gradient else forward), arguments


def step_program(config, args: argparse.Namespace, length: int):
    """A training step as train.py runs it, and what makes its arguments."""
    import jax
    import jax.numpy as jnp

    from mc_jax.model import LanguageModel
    from mc_jax.training.config import TrainConfig
    from mc_jax.training.optimizer import learning_rate, make_optimizer
    from mc_jax.training.state import initial_state
    from mc_jax.training.step import make_train_step

    model, train = LanguageModel(config), TrainConfig()
    optimizer = make_optimizer(train)
    shape = (args.tokens // length, length + 1)

    def arguments():
        tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocab_size)
        batch = {
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": jnp.ones((shape[0], length)),
        }
        return initial_state(model, optimizer, seed=0), batch

    return make_train_step(model, optimizer, learning_rate(train), 1, None), arguments


def prepare(args: argparse.Namespace, name: str, part: str, length: int) -> Compiled:
    """Compile one part of a model; no array is made."""
    import jax

    from mc_jax.training.step import compiler_options

    backend = jax.default_backend()
    config, options = model_config(args, name, backend), {}
    if args.num_layers:
        config = dataclasses.replace(config, num_layers=args.num_layers)
    if part == "step":
        program, arguments = step_program(config, args, length)
        options = compiler_options(backend)
    else:
        program, arguments = layer_program(config, args, length, gradient=part == "layer")
    donated = (0,) if part == "step" else ()
    with ONE_AT_A_TIME:
        lowered = jax.jit(program, donate_argnums=donated).lower(*jax.eval_shape(arguments))
        making = jax.jit(arguments).lower()
    compiled = lowered.compile(compiler_options=options)
    memory = compiled.memory_analysis()
    assert memory is not None
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return Compiled(name, part, length, needed, compiled, making.compile())


def all_compiled(args: argparse.Namespace, progress) -> Iterator[list[Compiled]]:
    """The models of each part and length; nothing is compiled while they are measured.

    On a GPU those of one length are compiled beside each other.
    """
    import jax

    def compiled(key: tuple[str, str, int]) -> Compiled:
        program = prepare(args, *key)
        progress.update()
        return program

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores if jax.default_backend() == "gpu" else 1) as pool:
        for part in args.parts:
            for length in args.lengths:
                keys = [(name, part, length) for name in args.models]
                yield list(pool.map(compiled, keys))


def free_bytes() -> int:
    """Memory that this process may still take on the first device."""
    import jax

    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats["bytes_limit"] - stats["bytes_in_use"]


def all_finite(tree: Any) -> bool:
    """Whether all floats of a program's results are finite."""
    import jax
    import jax.numpy as jnp

    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return bool(jax.jit(lambda xs: jnp.array([jnp.isfinite(x).all() for x in xs]).all())(floats))


def measure(args: argparse.Namespace, programs: list[Compiled]) -> list[dict]:
    """Times of all models of one part at one length."""
    calls, rows, timed = [], [], []
    for program in programs:
        row: dict[str, Any] = {
            "model": program.model,
            "part": program.part,
            "length": program.length,
            "bytes": program.bytes,
        }
        rows.append(row)
        if program.bytes > 0.9 * free_bytes():
            row["skipped"] = f"needs {program.bytes / 2**30:.1f} GiB"
            continue
        call = program.call()
        if not all_finite(call()):
            where = f"{program.part}, length {program.length}"
            raise RuntimeError(f"{program.model}, {where}: results are not finite")
        calls.append(call)
        timed.append(row)
    times = common.interleave(calls, [1] * len(calls), args.rounds, args.budget_s)
    for row, found in zip(timed, times, strict=True):
        row |= common.spread(found) | {"tokens_per_s": args.tokens / statistics.median(found)}
    return rows


def table(rows: list[dict], part: str) -> None:
    """Tokens/s and memory of one part: a line for each model, a column for each length."""
    rows = [row for row in rows if row["part"] == part]
    if not rows:
        return
    lengths = sorted({row["length"] for row in rows})
    models = [name for name in MODELS if any(row["model"] == name for row in rows)]
    by_key = {(row["model"], row["length"]): row for row in rows}

    def entry(row: dict) -> str:
        if "skipped" in row:
            return row["skipped"]
        return f"{row['tokens_per_s']:,.0f} ({row['bytes'] / 2**30:.1f})"

    def growth(name: str) -> str:
        first, last = (by_key[name, n].get("tokens_per_s") for n in (lengths[0], lengths[-1]))
        return f"{last / first:.2f}" if first and last else ""

    print(f"\n{part}: tokens/s (GiB)")
    header = (part, *(f"{n:,}" for n in lengths), "last over first")
    lines = [(m, *(entry(by_key[m, n]) for n in lengths), growth(m)) for m in models]
    common.print_table(header, lines)


def draw(record: dict, path) -> None:
    """Tokens/s of a training step over the length: Figure 4 of the paper."""
    from matplotlib.figure import Figure

    rows = [row for row in record["rows"] if row["part"] == "step" and "skipped" not in row]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, colour in COLOURS.items():
        points = [(row["length"], row["tokens_per_s"]) for row in rows if row["model"] == name]
        if points:
            style = "--" if MODELS[name] is None else "-"
            axis.plot(*zip(*points, strict=True), style, color=colour, marker="o", label=name)
    lengths = sorted({row["length"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in lengths])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("length of a sequence (tokens)")
    axis.set_ylabel("tokens per second, training step")
    settings = record["settings"]
    axis.set_title(
        f"{settings['size']} model, {settings['rule']} memory, {record['device']}", fontsize=9
    )
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"written: {path.relative_to(common.ROOT)}")


def report(name: str) -> None:
    """Print the tables and draw the picture of what was measured."""
    path = common.RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path.relative_to(common.ROOT)}: not measured yet")
    record = json.loads(path.read_text())
    print(f"\n{record['device']}, {record['date']}, {record['settings']}")
    for part in PARTS:
        table(record["rows"], part)
    draw(record, common.ROOT / "docs" / "images" / f"{name}.png")


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
    kept = f"throughput_{backend}_{args.size}_{args.rule}"
    name = args.name or (kept if args.whole or args.report else None)
    if not args.report:
        rows: list[dict] = []
        settings = {k: v for k, v in vars(args).items() if k not in ("report", "name")}
        settings["xla_flags"] = os.environ.get("XLA_FLAGS", "")
        with tqdm(total=len(args.parts) * len(args.lengths) * len(args.models)) as progress:
            progress.set_description("compiling")
            for programs in all_compiled(args, progress):
                rows += measure(args, programs)
                # What has been measured is not lost if a later length fails.
                common.write_results(name, PACKAGES, settings, rows, unfinished=True)
        common.write_results(name, PACKAGES, settings, rows)
    if name:
        report(name)
        return
    for part in args.parts:
        table(rows, part)


if __name__ == "__main__":
    main()
