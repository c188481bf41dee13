"""Decoding gives what the training forward pass gives, however a text is cut."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mc_jax import InputError
from mc_jax.inference import decode_step, make_room, prefill
from mc_jax.inference.run import room_for
from mc_jax.model import LanguageModel
from tests.model import tiny
from tests.rare import named, param

LENGTH, DECODED = 84, 12
RAGGED = np.array([72, 37])

MODELS = {
    "linear-none": {"memory": {"rule": "linear", "aggregation": "none"}},
    "linear-ssc": {"memory": {"rule": "linear", "aggregation": "ssc"}},
    "linear-ssc-blocks": {
        "memory": {"rule": "linear", "aggregation": "ssc", "route_every": 2, "top_k": 1}
    },
    "swla-grm-logarithmic": {
        "memory": {"rule": "swla", "aggregation": "grm", "segmentation": "logarithmic"}
    },
    "dla-soup-checkpoint": {
        "memory": {"rule": "dla", "aggregation": "soup", "write_mode": "checkpoint"}
    },
    "titans-ssc-position": {
        "memory": {"rule": "titans", "aggregation": "ssc", "gate": "position", "conv_width": 1}
    },
    "titans-grm-logarithmic-shared": {
        "memory": {
            "rule": "titans",
            "aggregation": "grm",
            "segmentation": "logarithmic",
            "gate": "shared_query",
            "pooled": "values",
        }
    },
    "hybrid": {"pattern": ("memory", "attention", "sliding"), "num_layers": 3},
    "hybrid-scanned": {
        "pattern": ("sliding", "memory"),
        "num_layers": 4,
        "scan_layers": True,
        "remat": "full",
        "memory": {"aggregation": "residual"},
    },
    "transformer": {"pattern": ("attention",), "num_layers": 2, "tie_embeddings": False},
}


def model(name, dtype):
    changes = {"attention": {"window": 9}} | MODELS[name]
    return tiny.config(**changes, dtype=dtype)


def params_of(config, dtype):
    """Perturbed parameters, in float64 for float64."""
    single = tiny.perturbed(dataclasses.replace(config, dtype="float32"))
    return jax.tree.map(lambda x: np.asarray(x, dtype), single)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def step(config, params, tokens, cache):
    return decode_step(config, params, tokens, cache)


def check(config, params, tolerance):
    ids = tiny.tokens(2, LENGTH)
    full = tiny.quick_jit(lambda p, t: LanguageModel(config).apply({"params": p}, t))(params, ids)
    full = np.asarray(full, np.float64)
    scale = np.abs(full).max()

    def close(found, row, position):
        error = np.abs(np.asarray(found, np.float64) - full[row, position]).max() / scale
        assert error <= tolerance, f"sequence {row}, token {position}: {error:.2g}"

    # In pieces of 32 and of whatever is left, then token by token.
    end = LENGTH - DECODED
    logits, cache = prefill(config, params, ids[:, :end], piece=32)
    assert cache.position.shape == ()
    cache = make_room(config, cache, LENGTH)
    for position in range(end, LENGTH):
        for row in range(2):
            close(logits[row], row, position - 1)
        logits, cache = step(config, params, ids[:, position], cache)
    # Sequences of different lengths, then 11 and 3 tokens more, then token by token.
    logits, cache = prefill(config, params, ids[:, :72], lengths=RAGGED, piece=32)
    more = np.array([11, 3])
    for row, (at, count) in enumerate(zip(RAGGED, more, strict=True)):
        close(logits[row], row, at - 1)
        assert at + count <= LENGTH
    rows = [ids[row, at : at + 11] for row, at in enumerate(RAGGED)]
    logits, cache = prefill(config, params, np.stack(rows), cache, lengths=more)
    position = RAGGED + more
    assert cache.position.tolist() == position.tolist()
    for row in range(2):
        close(logits[row], row, position[row] - 1)
    cache = make_room(config, cache, room_for(config, LENGTH + 1))
    logits, cache = step(config, params, ids[[0, 1], position], cache)
    for row in range(2):
        close(logits[row], row, position[row])


RARE = ("titans-grm-logarithmic-shared", "hybrid")


@pytest.mark.parametrize("name", named({name: name for name in MODELS}, RARE))
def test_float64(name, x64):
    config = model(name, "float64")
    check(config, params_of(config, "float64"), 1e-9)


@pytest.mark.parametrize("name", ["linear-ssc", param("dla-soup-checkpoint", rare=True), "hybrid"])
def test_bfloat16(name):
    """Two orders of operations differ by roundings of bfloat16."""
    # Of a width whose sums average roundings, and as at the start: perturbed ones amplify them.
    config = dataclasses.replace(model(name, "bfloat16"), dim=64, mlp_dim=96)
    check(config, tiny.init(dataclasses.replace(config, dtype="float32")), 2e-2)


def test_without_room_logits_are_nan():
    """Nothing overwrites what an earlier token has left."""
    for name in ("linear-ssc", "transformer"):
        config = model(name, "float32")
        params = params_of(config, "float32")
        _, cache = prefill(config, params, tiny.tokens(2, 16))
        logits, _ = jax.jit(decode_step, static_argnums=0)(
            config, params, np.zeros(2, np.int32), cache
        )
        expected = 0 if name == "linear-ssc" else 1
        assert np.isnan(logits).any() == expected


def test_few_programs_for_any_length():
    """Prompts of all lengths up to 200 and a growing text: sizes are powers of two."""
    config = model("linear-ssc", "float32")
    sizes = {room_for(config, length) for length in range(1, 5000)}
    assert len(sizes) <= 8
    from mc_jax.inference import run

    params = params_of(config, "float32")
    before = run._read._cache_size()
    for length in range(1, 60, 3):
        prefill(config, params, tiny.tokens(2, length))
    assert run._read._cache_size() - before <= 2 * 3


@pytest.mark.parametrize(
    ("tokens", "more", "field", "found"),
    [
        (np.zeros((2, 0), np.int32), {}, "tokens", "int32[2, 0]"),
        (np.zeros(3, np.int32), {}, "tokens", "int32[3]"),
        (np.zeros((2, 3)), {}, "tokens", "float64[2, 3]"),
        (np.array([[1, -7]]), {}, "tokens", "-7"),
        (np.array([[1, 24]]), {}, "tokens", "24"),
        (np.array([[1, 2]]), {"lengths": np.array([3])}, "lengths", "[3]"),
        (np.array([[1, 2]]), {"lengths": np.array([0])}, "lengths", "[0]"),
        (np.array([[1, 2]]), {"lengths": np.array([1.5])}, "lengths", "[1.5]"),
        (np.array([[1, 2]]), {"piece": 48}, "piece", "48"),
    ],
)
def test_bad_tokens(tokens, more, field, found):
    config = model("linear-ssc", "float32")
    with pytest.raises(InputError) as error:
        prefill(config, {}, tokens, **more)
    assert error.value.field == field
    assert found in str(error.value)


@pytest.mark.parametrize("name", ["linear-none", "hybrid-scanned", "transformer"])
def test_a_cache_of_other_sequences(name):
    config = model(name, "float32")
    _, cache = prefill(config, params_of(config, "float32"), tiny.tokens(2, 16))
    with pytest.raises(InputError, match="2 sequences"):
        prefill(config, {}, tiny.tokens(1, 16), cache)


def test_float64_needs_x64():
    with pytest.raises(InputError, match="JAX_ENABLE_X64"):
        tiny.config(dtype="float64")
