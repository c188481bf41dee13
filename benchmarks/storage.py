"""What it costs in quality to keep memories in fewer bytes, or fewer of them.

    python train.py --config=configs/default.py --workdir=runs/default
    python -m benchmarks.storage --workdirs runs/default

Held-out text is read by `LanguageModel.extend` in pieces of a segment, from a cache that keeps its
memories in each form, or within budgets of a part of their bytes; printed are bits per byte over
the tokens behind the first memories, which are the same text for all.
"""

import argparse
import functools
from pathlib import Path

import numpy as np

from benchmarks import common

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdirs", nargs="+", type=Path, required=True, help="trained on text")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a text")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.25], help="of the bytes")
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--name", help="of the results; without it they are not written")
    return parser.parse_args()


def losses(config, params, inputs: np.ndarray, targets: np.ndarray, storage) -> np.ndarray:
    """Cross-entropy of each token [texts, length]."""
    import jax
    import optax

    from mc_jax.inference.storage import make_keeper
    from mc_jax.model import LanguageModel

    @functools.partial(jax.jit, donate_argnums=1)
    def read(params, cache, tokens, targets):
        model = LanguageModel(config)
        logits, cache = model.apply({"params": params}, tokens, cache, method=model.extend)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets), cache

    keeper = make_keeper(config, params, storage, len(inputs), None)
    size = keeper.tokens_at_a_time(config.memory.segment_len)
    found, cache = [], None
    for start in range(0, inputs.shape[1], size):
        piece = np.s_[:, start : start + size]
        if cache is not None:
            cache = keeper.ready(cache, size, inputs.shape[1])
        loss, cache = read(params, cache, inputs[piece], targets[piece])
        found.append(loss)
    return np.concatenate(found, 1)


def measure(args: argparse.Namespace, workdir: Path) -> list[dict]:
    import jax

    from mc_jax import data
    from mc_jax.inference import Storage
    from mc_jax.inference.storage import bytes_of_a_memory
    from mc_jax.model import ModelConfig
    from mc_jax.training import load

    saved = load(workdir, "best")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    settings = saved.config.data
    with saved.config.unlocked():
        settings.update(length=args.length, eval_batch_size=args.texts, eval_batches=1)
    (batch,) = data.eval_batches(settings)
    token_bytes = np.asarray(data.tokenizer(settings).token_bytes)[batch["targets"]]
    memories = args.length // config.memory.segment_len
    each = bytes_of_a_memory(config, saved.params, Storage(), args.texts, None)
    storages = [Storage(form=form) for form in ("float32", "bfloat16", "int8")]
    for share in args.shares:
        budget = int(each * memories * share)
        storages += [Storage(budget=budget, when_full=name) for name in ("drop", "merge")]
    rows = []
    for storage in storages:
        loss = losses(config, saved.params, batch["inputs"], batch["targets"], storage)
        behind = np.s_[:, 2 * config.memory.segment_len :]
        bits = loss[behind].sum() / token_bytes[behind].sum() / np.log(2)
        one = bytes_of_a_memory(config, saved.params, storage, args.texts, None)
        size = min(one * memories, storage.budget or one * memories) // args.texts
        about = f"{config.memory.rule}, {config.memory.aggregation}"
        kept = storage.form
        if storage.budget is not None:
            kept = f"{storage.budget / each / memories:.0%}, {storage.when_full}"
        rows.append({"model": about, "memories": kept, "bytes": size, "bits_per_byte": bits})
        rows[-1]["over_float32"] = bits - rows[0]["bits_per_byte"]
        print(rows[-1], flush=True)
        jax.clear_caches()
    return rows


def main() -> None:
    args = arguments()
    common.use_threads(args.threads)
    rows = [row for workdir in args.workdirs for row in measure(args, workdir)]
    common.print_table(
        ("model", "memories", "KiB a text", "bits per byte", "over float32"),
        [
            (
                row["model"],
                row["memories"],
                f"{row['bytes'] / 1024:,.0f}",
                f"{row['bits_per_byte']:.4f}",
                f"{row['over_float32']:+.4f}",
            )
            for row in rows
        ],
    )
    settings = {name: value for name, value in vars(args).items() if name != "workdirs"}
    common.write_results(args.name, PACKAGES, settings, rows)


if __name__ == "__main__":
    main()
