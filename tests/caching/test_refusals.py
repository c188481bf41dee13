"""Bad input: an InputError that names the field, what was found and what is allowed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax import memory
from mc_jax.errors import InputError

from .cases import RULES, SEGMENTATIONS, WRITE_MODES, Case, call, cast, cut, make_inputs, quick_call

LENGTH = 13
LINEAR = Case("linear")
SWLA = Case("swla")
DLA = Case("dla")
TITANS = Case("titans")
UNNORMED = Case("dla", mem_norm="none")
POSITION = Case("linear", gate="position")
SHARED = Case("linear", gate="shared_query")
SSC = Case("linear", "ssc")


def inputs_of(case):
    return cast(make_inputs(case, LENGTH), jnp.float32)


def refused(case, inputs, field, found=None, **more):
    """The call raises, and its one line names the field and what was found."""
    with pytest.raises(InputError) as caught:
        call(case, inputs, **more)
    error = caught.value
    # Of a cache, the part that does not fit is named: initial_cache.state.window[0].
    named = error.field.startswith(field) if field == "initial_cache" else error.field == field
    assert named, str(error)
    assert "\n" not in str(error)
    assert error.allowed
    if found is not None:
        assert found in str(error)


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        (LINEAR, "rule", "linaer"),
        (LINEAR, "aggregation", "mean"),
        (LINEAR, "segmentation", "log"),
        (LINEAR, "write_mode", "checkpoints"),
        (LINEAR, "gate", "content"),
        (DLA, "mem_norm", "rms"),
        (DLA, "activation", "tanh"),
        (SSC, "top_k", 0),
        (SSC, "top_k", -1),
        (SSC, "top_k", 2.5),
        (SSC, "top_k", True),
        (LINEAR, "segment_len", 0),
        (LINEAR, "segment_len", 7),
        (LINEAR, "segment_len", 6.0),
        (LINEAR, "chunk_len", 0),
        (LINEAR, "chunk_len", "3"),
        (LINEAR, "pooled", "queries"),
        (POSITION, "pooled", "values"),
        (Case("linear", "residual", gate="none"), "pooled", "values"),
        (SSC, "route_every", 0),
        (SSC, "route_every", 4),
        (SSC, "route_every", 12),
        (LINEAR, "route_every", 3),
        (Case("linear", "ssc", "logarithmic"), "route_every", 3),
        (Case("linear", "ssc", gate="position"), "route_every", 3),
    ],
)
def test_options(case, field, value):
    refused(dataclasses.replace(case, **{field: value}), inputs_of(case), field, repr(value))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@pytest.mark.parametrize("write_mode", WRITE_MODES)
def test_ssc_needs_scores(rule, segmentation, write_mode):
    """The one refused combination."""
    case = Case(rule, "ssc", segmentation, write_mode, "none")
    refused(case, inputs_of(case), "gate", "none")


def test_implementation():
    refused(LINEAR, inputs_of(LINEAR), "implementation", "fast", implementation="fast")


@pytest.mark.parametrize(
    ("case", "field", "shape"),
    [
        (LINEAR, "q", (1, LENGTH, 2)),
        (LINEAR, "k", (1, LENGTH + 1, 2, 5)),
        (LINEAR, "k", (1, LENGTH, 2, 4)),
        (LINEAR, "v", (2, LENGTH, 2, 5)),
        (LINEAR, "v", (1, LENGTH, 3, 5)),
        (LINEAR, "u", (1, LENGTH, 2, 4)),
        (POSITION, "u", (1, LENGTH, 2)),
        (POSITION, "u", (1, LENGTH, 2, 0)),
        (SHARED, "u", (3,)),
        (SHARED, "u", (1, LENGTH, 2, 5)),
    ],
)
def test_shapes(case, field, shape):
    inputs = inputs_of(case)
    inputs[field] = jnp.ones(shape)
    refused(case, inputs, field, str(list(shape))[1:-1])


@pytest.mark.parametrize(
    ("case", "gate", "shape"),
    [
        (LINEAR, "alpha", (1, LENGTH)),
        (SWLA, "lam", (1, LENGTH, 3)),
        (SWLA, "beta", (1, LENGTH - 1, 2)),
        (SWLA, "beta", (1, LENGTH, 3, 2)),
        (DLA, "eta", (1, LENGTH, 2, 1)),
        (TITANS, "beta", (1, LENGTH, 2, 1)),
    ],
)
def test_gate_shapes(case, gate, shape):
    inputs = inputs_of(case)
    inputs["gates"] = inputs["gates"]._replace(**{gate: jnp.ones(shape)})
    refused(case, inputs, f"gates.{gate}", str(shape))


def test_gates_of_another_rule():
    inputs = inputs_of(LINEAR)
    inputs["gates"] = inputs_of(SWLA)["gates"]
    refused(LINEAR, inputs, "gates", "SWLAGates")
    for case in (SWLA, DLA, TITANS):
        refused(case, {**inputs_of(case), "gates": None}, "gates", "None")


def test_missing_u():
    for case in (LINEAR, POSITION, SSC):
        refused(case, {**inputs_of(case), "u": None}, "u", "None")


def test_params():
    norm, params = inputs_of(DLA)["params"].norm, inputs_of(DLA)["params"]
    for case in (DLA, TITANS):
        refused(case, {**inputs_of(case), "params": None}, "params", "None")
    refused(LINEAR, {**inputs_of(LINEAR), "params": params}, "params")
    refused(DLA, {**inputs_of(DLA), "params": params._replace(norm=None)}, "params.norm", "None")
    for mem_norm in ("none", "weight_l2"):
        case = dataclasses.replace(UNNORMED, mem_norm=mem_norm)
        refused(case, {**inputs_of(case), "params": params}, "params.norm")
    for field, shape in (("w1", (2, 5)), ("w1", (3, 5, 6)), ("w2", (2, 5, 6)), ("w2", (2, 7, 5))):
        wrong = params._replace(**{field: jnp.ones(shape)})
        refused(DLA, {**inputs_of(DLA), "params": wrong}, f"params.{field}", str(shape))
    wrong = params._replace(norm=memory.NormParams(norm.scale[0], norm.bias))
    refused(DLA, {**inputs_of(DLA), "params": wrong}, "params.norm.scale", "(5,)")


def test_dtypes():
    inputs = inputs_of(LINEAR)
    refused(LINEAR, {**inputs, "q": jnp.ones(inputs["q"].shape, jnp.int32)}, "q", "int32")


@pytest.mark.parametrize(
    "other",
    [
        Case("linear", "residual", gate="none"),
        Case("linear", "none", gate="none"),
        Case("swla"),
        Case("dla"),
        Case("titans", mem_norm="none"),
        Case("linear", "grm", "logarithmic"),
    ],
    ids=str,
)
def test_cache_of_another_configuration(other):
    inputs = inputs_of(other)
    _, cache = quick_call(other, cut(inputs, other, 0, 7))
    refused(LINEAR, cut(inputs_of(LINEAR), LINEAR, 7, LENGTH), "initial_cache", initial_cache=cache)


@pytest.mark.parametrize("sizes", [{"batch": 2}, {"heads": 3}, {"dim": 4}])
def test_cache_of_other_sizes(sizes):
    other = cast(make_inputs(LINEAR, LENGTH, **sizes), jnp.float32)
    _, cache = quick_call(LINEAR, other)
    refused(LINEAR, inputs_of(LINEAR), "initial_cache", initial_cache=cache)


def test_cache_of_another_selection():
    """One without the first token of a block, in the middle of the block."""
    blocks = dataclasses.replace(SSC, route_every=3)
    _, cache = quick_call(SSC, inputs_of(SSC))
    refused(blocks, inputs_of(blocks), "initial_cache", ".leader", initial_cache=cache)


def test_cache_of_another_window():
    wide = cast(make_inputs(SWLA, LENGTH, window=4), jnp.float32)
    _, cache = quick_call(SWLA, wide)
    refused(SWLA, inputs_of(SWLA), "initial_cache", initial_cache=cache)


def test_not_a_cache():
    refused(LINEAR, inputs_of(LINEAR), "initial_cache", initial_cache=np.zeros(3))
