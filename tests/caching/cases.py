"""The combinations under test, and inputs for them that stay finite."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import mc_jax
from mc_jax import memory
from tests.compiling import quick_jit

RULES = ("linear", "swla", "dla", "titans")
AGGREGATIONS = ("none", "residual", "grm", "soup", "ssc")
GATED = ("grm", "soup", "ssc")
SEGMENTATIONS = ("constant", "logarithmic")
WRITE_MODES = ("independent", "checkpoint")
GATES = ("context", "shared_query", "position", "none")


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination of the static options of `mc_jax.memory_caching`."""

    rule: str = "linear"
    aggregation: str = "grm"
    segmentation: str = "constant"
    write_mode: str = "independent"
    gate: str = "context"
    segment_len: int = 6
    chunk_len: int = 3
    top_k: int = 2
    pooled: str = "keys"
    route_every: int = 1
    mem_norm: str = "layer"
    activation: str = "gelu"

    @property
    def deep(self):
        return self.rule in ("dla", "titans")

    def options(self):
        """The keyword arguments."""
        return dataclasses.asdict(self)

    def __str__(self):
        names = [self.rule, self.aggregation, self.segmentation, self.write_mode, self.gate]
        names += [] if self.mem_norm == "layer" else [self.mem_norm]
        names += [] if self.route_every == 1 else [f"every {self.route_every}"]
        return "-".join(names + ([] if self.pooled == "keys" else [self.pooled]))


def combinations(rules=RULES, aggregations=AGGREGATIONS, gates=GATES):
    """Every combination whose options all matter: what is not read keeps its default."""
    cases = []
    for rule, aggregation in itertools.product(rules, aggregations):
        if aggregation == "none":
            cases.append(Case(rule, aggregation, gate="none"))
            continue
        for segmentation, write_mode in itertools.product(SEGMENTATIONS, WRITE_MODES):
            case = Case(rule, aggregation, segmentation, write_mode, gate="none")
            if aggregation == "residual":
                cases.append(case)
                continue
            for gate in gates:
                if not (aggregation == "ssc" and gate == "none"):
                    cases.append(dataclasses.replace(case, gate=gate))
    return cases


def pooled_values():
    """Segments described by their values: what else a gate does is the same code for both."""
    return [
        Case("linear", "ssc", write_mode="checkpoint", gate="shared_query", pooled="values"),
        Case("swla", "grm", "logarithmic", pooled="values"),
        Case("titans", "soup", pooled="values"),
    ]


def routed_blocks():
    """Blocks of tokens that select together, in segments of 6."""
    return [
        Case("linear", "ssc", route_every=3),
        Case("swla", "ssc", gate="shared_query", route_every=2, top_k=9),
        Case("dla", "ssc", write_mode="checkpoint", route_every=6),
        Case("titans", "ssc", pooled="values", route_every=3),
    ]


def make_inputs(case, length, *, batch=1, heads=2, dim=5, hidden=6, window=2, places=4, seed=0):
    """float64 numpy inputs; unit q and k, and gates in the ranges that models start from."""
    rng = np.random.default_rng(seed)
    q, k, v, u = rng.normal(size=(4, batch, length, heads, dim))
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    if case.gate == "shared_query":
        u = rng.uniform(2.0, 4.0, size=heads)
    elif case.gate == "position":
        u = rng.normal(size=(batch, length, heads, places))
    elif case.gate == "none":
        u = None

    def uniform(low, high, *more):
        return rng.uniform(low, high, size=(batch, length, heads, *more))

    if case.rule == "linear":
        gates = memory.LinearGates(alpha=uniform(0.8, 1.0))
    elif case.rule == "swla":
        beta = uniform(0.1, 0.9) if window == 2 else uniform(0.1, 0.9, window - 1)
        gates = memory.SWLAGates(alpha=uniform(0.8, 1.0), beta=beta, lam=uniform(0.2, 1.0))
    elif case.rule == "dla":
        gates = memory.DLAGates(eta=uniform(0.0, 0.1), alpha=uniform(0.9, 1.0))
    else:
        beta = uniform(0.1, 0.9)
        eta = uniform(0.2, 0.8) * (1 - beta) / case.chunk_len
        gates = memory.TitansGates(alpha=uniform(0.9, 1.0), beta=beta, eta=eta)
    params = None
    if case.deep:
        norm = None
        if case.mem_norm == "layer":
            norm = memory.NormParams(
                scale=1 + 0.2 * rng.normal(size=(heads, dim)),
                bias=0.1 * rng.normal(size=(heads, dim)),
            )
        params = memory.DeepParams(
            w1=rng.normal(size=(heads, dim, hidden)) / hidden**0.5,
            w2=rng.normal(size=(heads, hidden, dim)) / dim**0.5,
            norm=norm,
        )
    return dict(q=q, k=k, v=v, u=u, gates=gates, params=params)


def cast(inputs, dtype):
    """The inputs as device arrays of one dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), inputs)


def cut(inputs, case, start, stop):
    """The tokens [start, stop) of the inputs; what has no length axis stays whole."""

    def tokens(x):
        return x[:, start:stop]

    whole = ("params", "u") if case.gate == "shared_query" else ("params",)
    return {
        name: value if name in whole else jax.tree.map(tokens, value)
        for name, value in inputs.items()
    }


def call(case, inputs, **more):
    """(out, cache) of the package."""
    return mc_jax.memory_caching(**inputs, **case.options(), **more)


def quick_call(case, inputs, dtype=jnp.float32, **more):
    """(out, cache) of one compiled call on inputs of one dtype."""
    return quick_jit(lambda inputs: call(case, inputs, **more))(cast(inputs, dtype))


def relative_error(found, expected):
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if expected.size == 0:
        return 0.0
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)


def assert_close(found, expected, tolerance, what=""):
    """Every leaf of two like trees agrees to a relative tolerance (NaN never does)."""
    flat_found, tree_found = jax.tree.flatten_with_path(found)
    flat_expected, tree_expected = jax.tree.flatten_with_path(expected)
    assert tree_found == tree_expected, f"{what}: {tree_found} is not {tree_expected}"
    for (path, a), (_, b) in zip(flat_found, flat_expected, strict=True):
        error = relative_error(a, b)
        assert error <= tolerance, f"{what}{jax.tree_util.keystr(path)}: {error:.3g}"
