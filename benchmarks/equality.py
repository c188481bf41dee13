"""How far decoding is from the training forward pass, for every combination of options.

    JAX_ENABLE_X64=1 python -m benchmarks.equality --dtype float64
    python -m benchmarks.equality --dtype bfloat16

Logits of 3,000 tokens, of which a prompt is cut at random places and read in pieces, and what
follows is decoded token by token, against one forward pass over all of them: the largest
difference over the largest logit. An hour on two cores; a combination that the same code has
measured is not measured again.
"""

import argparse
import functools
import itertools
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import common

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
RULES = ("linear", "swla", "dla", "titans")
AGGREGATIONS = ("residual", "grm", "soup", "ssc")
HYBRIDS = (("memory", "attention"), ("sliding", "memory"), ("attention",))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float64", "bfloat16"), required=True)
    parser.add_argument("--length", type=int, default=3000)
    parser.add_argument("--decoded", type=int, default=200, help="the last tokens, one by one")
    parser.add_argument("--workdir", type=Path, default=Path("runs/equality"))
    parser.add_argument("--threads", type=int, help="cores; all by default")
    return common.parse(parser, "dtype")


def cases() -> dict[str, dict]:
    """Changes of the model by the name of the combination."""
    found: dict[str, dict] = {}
    for rule in RULES:
        found[f"{rule}, none"] = {"memory": {"rule": rule, "aggregation": "none"}}
        for how in itertools.product(
            AGGREGATIONS, ("constant", "logarithmic"), ("independent", "checkpoint")
        ):
            names = ("aggregation", "segmentation", "write_mode")
            memory = {"rule": rule, **dict(zip(names, how, strict=True))}
            found[", ".join((rule, *how))] = {"memory": memory}
    for pattern in HYBRIDS:
        found[" + ".join(pattern)] = {"pattern": pattern, "num_layers": len(pattern)}
    return found


def measure(changes: dict, dtype: str, length: int, decoded: int) -> float:
    """The largest difference of one combination."""
    import jax

    from mc_jax.inference import decode_step, make_room, prefill
    from mc_jax.model import LanguageModel, ModelConfig

    memory = {"segment_len": 64, "chunk_len": 16, "expansion": 2} | changes.get("memory", {})
    model = {"vocab_size": 64, "dim": 64, "num_layers": 1, "num_heads": 2, "mlp_dim": 96}
    config = ModelConfig.from_dict({**model, **changes, "dtype": dtype, "memory": memory})
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (1, length), dtype=np.int32)
    apply = jax.jit(LanguageModel(config).apply)
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), ids[:, :2])["params"]
    if dtype == "float64":
        params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    full = np.asarray(apply({"params": params}, ids)[0], np.float64)
    end, cache, worst = length - decoded, None, 0.0
    cuts = [0, *sorted(rng.choice(np.arange(1, end), 3, replace=False)), end]
    for start, stop in itertools.pairwise(cuts):
        logits, cache = prefill(config, params, ids[:, start:stop], cache)
        worst = max(worst, float(np.abs(np.asarray(logits[0]) - full[stop - 1]).max()))
    assert cache is not None
    cache = make_room(config, cache, length)

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(params, cache, tokens):
        def step(cache, token):
            logits, cache = decode_step(config, params, token[None], cache)
            return cache, logits[0]

        return jax.lax.scan(step, cache, tokens)[1]

    found = np.asarray(decode(params, cache, ids[0, end:]), np.float64)
    worst = max(worst, float(np.abs(found - full[end:]).max()))
    return worst / float(np.abs(full).max())


def main() -> None:
    args = arguments()
    common.use_threads(args.threads or len(os.sched_getaffinity(0)))
    import jax

    workdir = common.folder_of_this_code(args.workdir, PACKAGES)
    path = workdir / f"{args.dtype}-{args.length}-{args.decoded}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, changes in tqdm(cases().items(), desc=args.dtype):
        if name not in found:
            found[name] = measure(changes, args.dtype, args.length, args.decoded)
            path.write_text(json.dumps(found, indent=2))
            tqdm.write(f"{name}: {found[name]:.1e}")
            jax.clear_caches()
    worst = sorted(found, key=found.__getitem__)
    print(f"largest of {len(found)}: " + "; ".join(f"{x} {found[x]:.1e}" for x in worst[-3:]))
    rows = [{"combination": name, "difference": value} for name, value in found.items()]
    settings = {"dtype": args.dtype, "length": args.length, "decoded": args.decoded}
    common.write_results(f"equality_{args.dtype}" if args.whole else None, PACKAGES, settings, rows)


if __name__ == "__main__":
    main()
