"""One memory layer against PyTorch packages, on the CPU: `memory-caching` and `titans-pytorch`.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.vs_peers
    python -m benchmarks.vs_peers --peers memory-caching --rules linear --length 4096 \\
        --rounds 3 --budget_s 150 --name vs_peers_4096

Forward and backward of one layer in float32, beside memory-caching with caching (GRM, context
gate), beside titans-pytorch, which caches nothing, without (titans, none): input and output
[batch, length, dim], gradients with respect to the input and to all parameters. Both run in one
process on the same cores, in turns; printed are the medians of the calls and their range.

What is the same: batch, length, dim, heads, segment length, the MLP memory's hidden width (4 times
the head's), aggregation, write mode, loss (outputs times a fixed random array), precision, threads.

What differs from memory-caching:
  - The package updates and reads token by token in Python; ours takes the inner gradients of a
    chunk of 32 tokens at its start (`--chunk_len`), which is how such layers are trained.
  - Ours does more around the memory: convolution, SiLU, unit queries and keys, gates that depend
    on the token, norms, an output gate. The package has projections and constant step sizes.
  - Ours has learned initial weights and the memory norm; the package has biases in the MLP, and
    starts it at zero, from where only the last bias moves. What a step costs does not depend on it.
  - Deep memories: gradients flow through the inner update, so the package runs with
    `inner_update_mode="differentiable"` (its default cuts them: `--stop_gradient` shows that).
    Titans descends on both sides (`update_convention="gradient_descent"` in the package, whose
    default is the paper's printed sign, which climbs and ends in NaN).
  - Write modes: `checkpoint`, the package's default, and `independent`, its "restart". The package
    is faster where the differentiable chain is cut at every segment.

What differs from titans-pytorch (`NeuralMemory`): it works in chunks as ours does, of the same
length; its layer has no convolution and keeps the weights at every chunk, and its memory is an MLP
of the same widths with a residual layer norm.
"""

import argparse

from benchmarks import common, one_layer

RULES = ("linear", "titans", "dla")
PEERS = ("memory-caching", "titans-pytorch")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", *PEERS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--rules", nargs="+", choices=RULES, default=list(RULES), help="beside memory-caching"
    )
    parser.add_argument(
        "--stop_gradient", action="store_true", help="memory-caching's cut inner loop"
    )
    one_layer.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="most turns for each rule")
    parser.add_argument("--budget_s", type=float, default=50, help="no third turn after this long")
    parser.add_argument(
        "--calls", type=int, default=15, help="timed in a turn; of memory-caching one"
    )
    parser.add_argument("--name", help="of the results file; without it a part is not written")
    return common.parse(parser, "write_mode", "stop_gradient")


def torch_program(args: argparse.Namespace, name: str, layer, apply, warm_up: int):
    """One forward and backward pass of a PyTorch layer, as a function without arguments."""
    import torch

    shape = (args.batch, args.length, args.dim)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def run(length: int = args.length):
        layer.zero_grad()
        x.grad = None
        y = apply(x[:, :length])
        (y * weight[:, :length]).sum().backward()
        if not (torch.isfinite(y).all() and torch.isfinite(x.grad).all()):
            raise RuntimeError(f"{name}: outputs or gradients are not finite")

    # A whole call may take a minute: a part is enough to warm up.
    run(warm_up)
    return run


def titans_pytorch(args: argparse.Namespace):
    """One forward and backward pass of titans-pytorch's memory."""
    import titans_pytorch

    layer = titans_pytorch.NeuralMemory(
        dim=args.dim,
        dim_head=args.dim // args.heads,
        heads=args.heads,
        chunk_size=args.chunk_len,
        default_model_kwargs={"depth": 2, "expansion_factor": 4.0},
    )
    return torch_program(args, "titans-pytorch", layer, lambda x: layer(x)[0], args.length)


def memory_caching_package(args: argparse.Namespace, rule: str):
    """One forward and backward pass of memory-caching's layer."""
    import memory_caching

    mode = "stopgrad" if args.stop_gradient else "differentiable"
    width = 4 * args.dim // args.heads
    config = memory_caching.MCConfig(
        d_model=args.dim,
        num_heads=args.heads,
        backend=rule,
        aggregation="grm",
        segment_size=args.segment_len,
        state_init_mode="checkpoint" if args.write_mode == "checkpoint" else "restart",
        dla=memory_caching.DLAConfig(memory_width=width, inner_update_mode=mode),
        titans=memory_caching.TitansConfig(
            memory_width=width, inner_update_mode=mode, update_convention="gradient_descent"
        ),
    )
    backend = {
        "linear": memory_caching.LinearMemoryBackend,
        "dla": lambda: memory_caching.DLABackend(config.dla),
        "titans": lambda: memory_caching.TitansBackend(config.titans),
    }[rule]()
    layer = memory_caching.MemoryCachingLayer(config=config, backend=backend)
    return torch_program(args, rule, layer, layer, 2 * args.segment_len)


def compare(args: argparse.Namespace, peer: str, rule: str, aggregation: str) -> dict:
    """Times of both for one layer, and the ratio of their tokens/s."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if peer == "titans-pytorch":
        theirs, calls = titans_pytorch(args), args.calls
    else:
        # A call takes seconds: one is enough in a turn, and an untimed one before it changes none.
        theirs, calls = memory_caching_package(args, rule), 1
    times = common.interleave(
        [one_layer.program(one_layer.settings_of(args, rule, aggregation)), theirs],
        [args.calls, calls],
        args.rounds,
        args.budget_s,
    )
    us, them = (common.spread(t) for t in times)
    return {
        "peer": peer,
        "rule": rule,
        "aggregation": aggregation,
        "ours": us,
        "package": them,
        "ratio": them["median_s"] / us["median_s"],
        "worst_ratio": them["min_s"] / us["max_s"],
    }


def main() -> None:
    args = arguments()
    common.use_threads(args.threads)
    tokens = args.batch * args.length
    layers = []
    if "memory-caching" in args.peers:
        layers += [("memory-caching", rule, "grm") for rule in args.rules]
    if "titans-pytorch" in args.peers:
        layers += [("titans-pytorch", "titans", "none")]
    rows = []
    for layer in layers:
        rows.append(compare(args, *layer))
        print(f"{', '.join(layer)}: {rows[-1]['ratio']:.1f} times", flush=True)

    def speed(row: dict) -> str:
        low, mid, high = (tokens / row[key] for key in ("max_s", "median_s", "min_s"))
        return f"{mid:,.0f} ({low:,.0f} .. {high:,.0f}, {row['calls']} calls)"

    header = ("peer", "layer", "ours, tokens/s", "peer, tokens/s", "ratio")
    print(f"\n{common.device_name()}; {args.write_mode} mode; medians (slowest .. fastest)")
    common.print_table(
        header,
        [
            (
                row["peer"],
                f"{row['rule']}, {row['aggregation']}",
                speed(row["ours"]),
                speed(row["package"]),
                f"{row['ratio']:.1f}",
            )
            for row in rows
        ],
    )
    name = f"vs_peers_{args.write_mode}" + ("_stop_gradient" if args.stop_gradient else "")
    common.write_results(args.name or (name if args.whole else None), PACKAGES, vars(args), rows)


if __name__ == "__main__":
    main()
