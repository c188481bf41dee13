"""Parameters and FLOPs, counted by hand and by the compiler."""

import math

import jax
import pytest
from jax.extend.core import jaxprs_in_params

from mc_jax.model import LanguageModel, flops_per_token, param_count

from . import tiny

# Of one block: dim 8, 2 heads of 4, feed-forward 12 (288), two norms (16).
AROUND = 3 * 8 * 12 + 2 * 8
MIXER = 5 * 8 * 8 + 4 * 3 * 8 + 4  # q, k, v, gate, out; convolution; norm over a head
MLP_MEMORY = 2 * (2 * 4 * 16 + 2 * 4)  # two heads: two maps of 4 x 16, the norm's affine
BY_HAND = {
    "linear": 0,
    "swla": 3 * 2 * (8 + 1),
    "dla": 2 * 2 * (8 + 1) + MLP_MEMORY,
    "titans": 3 * 2 * (8 + 1) + MLP_MEMORY,
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_param_count(rule):
    for aggregation, router in (("grm", 8 * 8), ("none", 0)):
        config = tiny.config(dict(rule=rule, aggregation=aggregation), num_layers=2)
        expected = 24 * 8 + 8 + 2 * (AROUND + MIXER + BY_HAND[rule] + router)
        assert param_count(config) == expected
    params = tiny.init(config)
    assert param_count(config) == sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def test_param_count_of_attention():
    config = tiny.config(pattern=("attention",), tie_embeddings=False, scan_layers=True)
    assert param_count(config) == 2 * 24 * 8 + 8 + AROUND + 4 * 8 * 8


@pytest.mark.parametrize("pattern", ["attention", "sliding"])
def test_flops_of_attention_are_the_compilers(pattern):
    length, layers, dim = 64, 2, 64
    config = tiny.config(
        vocab_size=128,
        dim=dim,
        num_layers=layers,
        mlp_dim=128,
        pattern=(pattern,),
        attention=dict(window=16),
    )
    model = LanguageModel(config)
    ids = jax.ShapeDtypeStruct((1, length), "int32")
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)
    compiled = jax.jit(model.apply).lower(variables, ids).compile()
    # XLA multiplies the whole square of scores; a token needs the keys that it sees.
    seen = [min(t + 1, 16 if pattern == "sliding" else length) for t in range(length)]
    unseen = 4 * layers * dim * sum(length - keys for keys in seen)
    expected = length * flops_per_token(config, length) + unseen
    # What XLA counts beside matmuls: norms, softmax, rotary, residual sums.
    assert expected < compiled.cost_analysis()["flops"] < 1.1 * expected


def products(jaxpr):
    """FLOPs of all matrix products of a traced program."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            found += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        inner = [products(other) for other in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        found += equation.params.get("length", 1) * sum(inner)
    return found


@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize("aggregation", ["none", "residual", "grm", "soup"])
def test_flops_of_memories_are_those_of_the_equations(rule, aggregation):
    """Of the fifteenth token, which sees three cached memories, in the token-by-token form."""
    before = 14
    memory = dict(rule=rule, aggregation=aggregation, implementation="recurrent", chunk_len=4)
    config = tiny.config(memory, dim=128, mlp_dim=64, vocab_size=128)
    model = LanguageModel(config)

    def extend(variables, tokens, cache=None):
        return model.apply(variables, tokens, cache, method="extend")

    tokens, token = (jax.ShapeDtypeStruct((1, n), "int32") for n in (before, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    _, cache = jax.eval_shape(extend, variables, tokens)
    found = products(jax.make_jaxpr(extend)(variables, token, cache).jaxpr)
    # Of means over a sequence, what its last token adds.
    sums = [length * flops_per_token(config, length) for length in (before, before + 1)]
    # Convolution, outer products of matrix memories and sums of reads are no matrix products.
    assert 0.985 < found / (sums[1] - sums[0]) < 1


def test_flops_of_reads_and_writes():
    """Length 10 in segments of 4: tokens see 0, 0, 0, 0, 1, 1, 1, 1, 2, 2 cached memories."""

    def flops(length=10, **memory):
        return flops_per_token(tiny.config(dict(memory)), length)

    heads, width = 2, 4
    plain = flops(aggregation="none")
    matrix, mlp = 2 * width**2, 2 * 2 * width * 4 * width
    mean = (4 * 1 + 2 * 2) / 10
    read = heads * mean * (matrix + 2 * width)
    assert flops(aggregation="residual") == pytest.approx(plain + read)
    router = 2 * 8 * 8 + heads * (1 + mean) * 2 * width
    assert flops(aggregation="grm") == pytest.approx(plain + read + router)
    assert flops(aggregation="soup") == pytest.approx(plain + read + router)
    one = heads * 0.6 * (matrix + 2 * width)
    assert flops(aggregation="ssc", top_k=1) == pytest.approx(plain + one + router)
    # Of two tokens the second scores what the first has selected, 1 of 1 or 2.
    some = 2 * 8 * 8 + heads * (1 + (4 * 1 + 2 + 1) / 10) * 2 * width
    assert flops(aggregation="ssc", top_k=1, route_every=2) == pytest.approx(plain + one + some)
    # Bits of 0, 1, 2 segments: 0, 1, 1.
    assert flops(aggregation="residual", segmentation="logarithmic") == pytest.approx(plain + one)
    deep = flops(rule="titans", aggregation="none")
    assert deep == pytest.approx(plain - heads * 2 * matrix + heads * (2.5 + 1) * mlp)
    # Eight tokens of two segments are compressed again into one.
    deep_read = heads * 0.6 * (mlp + 2 * width) + heads * 0.8 * 2.5 * mlp
    options = dict(rule="titans", aggregation="residual", segmentation="logarithmic")
    assert flops(**options) == pytest.approx(deep + deep_read)
