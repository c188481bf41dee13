"""Settings: what is refused, and with which words."""

import dataclasses
import json

import pytest

from mc_jax.errors import InputError
from mc_jax.model import AttentionConfig, MemoryConfig, ModelConfig, default_config

REFUSED = [
    (dict(vocab_size=1), "model.vocab_size"),
    (dict(dim=0), "model.dim"),
    (dict(num_layers=0), "model.num_layers"),
    (dict(num_heads=0), "model.num_heads"),
    (dict(num_heads=5), "model.num_heads"),
    (dict(mlp_dim=-1), "model.mlp_dim"),
    (dict(dim="128"), "model.dim"),
    (dict(dim=128.0), "model.dim"),
    (dict(dim=True), "model.dim"),
    (dict(tie_embeddings=1), "model.tie_embeddings"),
    (dict(dtype="float16"), "model.dtype"),
    (dict(remat="some"), "model.remat"),
    (dict(pattern=()), "model.pattern"),
    (dict(pattern="memory"), "model.pattern"),
    (dict(pattern=("memory", 1)), "model.pattern"),
    (dict(pattern=("memory", "mamba")), "model.pattern"),
    (dict(pattern=("memory", "attention", "sliding")), "model.num_layers"),
    (dict(pattern=("attention",), dim=20, num_heads=4), "model.num_heads"),
    (dict(n_layers=2), "model.n_layers"),
    (dict(memory="titans"), "model.memory"),
    (dict(memory=dict(rule="delta")), "model.memory.rule"),
    (dict(memory=dict(aggregation="mean")), "model.memory.aggregation"),
    (dict(memory=dict(gate="softmax")), "model.memory.gate"),
    (dict(memory=dict(segmentation="log")), "model.memory.segmentation"),
    (dict(memory=dict(write_mode="append")), "model.memory.write_mode"),
    (dict(memory=dict(segment_len=100)), "model.memory.segment_len"),
    (dict(memory=dict(segment_len=0)), "model.memory.segment_len"),
    (dict(memory=dict(chunk_len=0)), "model.memory.chunk_len"),
    (dict(memory=dict(top_k=0)), "model.memory.top_k"),
    (dict(memory=dict(aggregation="ssc", gate="none")), "model.memory.gate"),
    (dict(memory=dict(window=0)), "model.memory.window"),
    (dict(memory=dict(expansion=0)), "model.memory.expansion"),
    (dict(memory=dict(conv_width=0)), "model.memory.conv_width"),
    (dict(memory=dict(position_slots=0)), "model.memory.position_slots"),
    (dict(memory=dict(activation="tanh")), "model.memory.activation"),
    (dict(memory=dict(mem_norm="rms")), "model.memory.mem_norm"),
    (dict(memory=dict(decay=True)), "model.memory.decay"),
    (dict(memory=dict(decay="never")), "model.memory.decay"),
    (dict(memory=dict(rule="titans", decay="off")), "model.memory.decay"),
    (dict(memory=dict(implementation="fast")), "model.memory.implementation"),
    (dict(memory=dict(implementation="pallas")), "model.memory.implementation"),
    (dict(memory=dict(topk=4)), "model.memory.topk"),
    (dict(attention=dict(window=0)), "model.attention.window"),
    (dict(attention=dict(rope_theta=0.5)), "model.attention.rope_theta"),
    (dict(attention=dict(implementation="flash")), "model.attention.implementation"),
    (dict(attention=dict(implementation="splash")), "model.attention.implementation"),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED, ids=str)
def test_refuses(changes, field):
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict(changes)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    value = changes
    for name in field.split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    assert caught.value.found == value or field == "model.num_layers"


def test_a_refusal_says_what_to_do():
    with pytest.raises(InputError, match=r"segment_len: found 100; allowed: a multiple of chunk_l"):
        MemoryConfig(segment_len=100)
    with pytest.raises(InputError, match=r"num_heads: found 5; allowed: a divisor of model.dim=64"):
        ModelConfig(dim=64, num_heads=5)


def test_default_config_has_every_key_and_survives_json():
    values = default_config().to_dict()
    assert values.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    assert values["memory"].keys() == {field.name for field in dataclasses.fields(MemoryConfig)}
    assert values["attention"].keys() == {f.name for f in dataclasses.fields(AttentionConfig)}
    assert ModelConfig.from_dict(values) == ModelConfig()
    values["pattern"] = ("memory", "sliding")
    changed = ModelConfig.from_dict(json.loads(json.dumps(values)))
    assert changed == dataclasses.replace(ModelConfig(), pattern=("memory", "sliding"))


@pytest.mark.parametrize(
    ("rule", "decay", "decays"),
    [("linear", "auto", False), ("linear", "on", True), ("dla", "auto", True)]
    + [("dla", "off", False), ("swla", "auto", True), ("titans", "on", True)],
)
def test_decays(rule, decay, decays):
    assert MemoryConfig(rule=rule, decay=decay).decays is decays
