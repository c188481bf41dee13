"""What the paper's two sizes have in common; configs/paper_760m.py and paper_1b3.py run it.

An experiment is named "RULE,AGGREGATION" or "transformer" (Transformer++):

    python train.py --config=configs/paper_760m.py:titans,grm
    python train.py --config=configs/paper_760m.py:linear,grm \
        --config.model.memory.segmentation=logarithmic        # Log-Linear++

Parameters are counted all together, embeddings included and once, for the head is tied. Every
experiment of one size is to have the parameters that its name says, within 5%, so the feed-forward
is the wider the fewer projections of its own a mixer has: six with router queries (q, k, v, output
gate, output, router), five without a gate over memories, four in attention. MLP memories add 3%
(760M) or 6% (1.3B) to the count of matrix memories.

The paper does not say how FineWeb and Long-Data-Collections are mixed; 9 to 1 is ours. The
tokenizer is any SentencePiece model of 32,000 pieces, such as the tokenizer.model.v1 that the
package mistral-common ships: --config.data.tokenizer=sentencepiece:FILE.
"""

from ml_collections import ConfigDict

from configs import base
from mc_jax.errors import InputError
from mc_jax.model import MemoryConfig

BATCH, LENGTH = 128, 4096  # 0.5M tokens a step


def paper_config(
    experiment: str,
    *,
    dim: int,
    num_layers: int,
    num_heads: int,
    mlp_dims: dict[int, int],
    learning_rate: float,
    tokens: float,
) -> ConfigDict:
    """One experiment at one size.

    Args:
      experiment: "RULE,AGGREGATION" or "transformer".
      dim: width of the residual stream.
      num_layers: blocks.
      num_heads: heads.
      mlp_dims: width of the feed-forward by the number of the mixer's projections.
      learning_rate: the peak.
      tokens: that the model is trained on.
    """
    config = base.get_config()
    config.model.update(
        vocab_size=32_000,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )
    if experiment == "transformer":
        config.model.pattern = ("attention",)
        config.model.mlp_dim = mlp_dims[4]
    else:
        rule, comma, aggregation = experiment.partition(",")
        if not comma:
            raise InputError("--config", experiment, "RULE,AGGREGATION or transformer")
        config.model.memory.update(rule=rule, aggregation=aggregation)
        memory = MemoryConfig.from_dict(config.model.memory.to_dict())
        config.model.mlp_dim = mlp_dims[6 if memory.options.gated else 5]
    config.data.update(
        length=LENGTH,
        batch_size=BATCH,
        eval_batch_size=BATCH,
        sources=(
            "hf:HuggingFaceFW/fineweb:sample-100BT",
            "hf:togethercomputer/Long-Data-Collections",
        ),
        weights=(0.9, 0.1),
        tokenizer="sentencepiece:tokenizer.model",
    )
    # Parameters and optimizer split over all devices.
    config.mesh.update(data=1, fsdp=-1)
    config.train.update(
        steps=round(tokens / (BATCH * LENGTH)),
        learning_rate=learning_rate,
        eval_every=1000,
        checkpoint_every=1000,
    )
    return config
