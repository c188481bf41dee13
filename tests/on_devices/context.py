"""A sequence that is split over devices gives what it gives on one, its gradients included.

Run by tests/caching/test_context.py, on four devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import mc_jax
from tests.caching.cases import Case, assert_close, call, cast, make_inputs

DEVICES = 4
TOKENS = PartitionSpec(None, "context")
NAMES = ("rule", "aggregation", "segmentation", "write_mode", "gate", "pooled")
GATHERED = [
    ("linear", "none", "constant", "independent", "none"),
    ("linear", "residual", "constant", "checkpoint", "none"),
    ("linear", "grm", "logarithmic", "independent", "context"),
    ("linear", "ssc", "constant", "independent", "context"),
    ("swla", "none", "constant", "independent", "none"),
    ("swla", "soup", "constant", "checkpoint", "shared_query"),
    ("swla", "grm", "logarithmic", "checkpoint", "position"),
    ("dla", "none", "constant", "independent", "none"),
    ("dla", "grm", "constant", "independent", "position"),
    ("dla", "soup", "constant", "checkpoint", "context"),
    ("titans", "residual", "constant", "independent", "none"),
    ("titans", "ssc", "constant", "checkpoint", "context"),
    ("titans", "grm", "logarithmic", "checkpoint", "context"),
    ("linear", "grm", "constant", "independent", "context", "values"),
]
PASSED_ON = [
    ("linear", "residual", "constant", "independent", "none"),
    ("linear", "grm", "constant", "independent", "shared_query"),
    ("linear", "ssc", "constant", "checkpoint", "context"),
    ("swla", "soup", "constant", "independent", "position"),
    ("dla", "soup", "constant", "independent", "context"),
    ("dla", "ssc", "constant", "independent", "position"),
    ("titans", "grm", "constant", "checkpoint", "context"),
    ("titans", "residual", "constant", "independent", "none"),
    ("linear", "ssc", "constant", "independent", "context", "values"),
]
ALL = [*((*names, "gather") for names in GATHERED), *((*names, "ring") for names in PASSED_ON)]


def split(case, exchange, inputs):
    """Outputs of the whole sequences, computed on all devices."""
    specs = dict.fromkeys(inputs, TOKENS) | {"params": PartitionSpec()}
    if case.gate in ("shared_query", "none"):
        specs["u"] = PartitionSpec()
    mesh = jax.make_mesh((DEVICES,), ("context",), axis_types=(AxisType.Auto,))

    def run(inputs):
        return call(case, inputs, context_axis="context", exchange=exchange)[0]

    return jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=TOKENS, check_vma=False)(
        inputs
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("names", ALL, ids="-".join)
def test_one_device(names):
    *options, exchange = names
    case = Case(**dict(zip(NAMES, options, strict=False)))
    inputs = cast(make_inputs(case, 2 * DEVICES * case.segment_len), jnp.float64)
    weights = np.random.default_rng(1).normal(size=inputs["v"].shape)

    def loss(run, inputs):
        y = run(inputs)
        return jnp.sum(y * weights), y

    forms = lambda inputs: call(case, inputs)[0], functools.partial(split, case, exchange)
    (y, gradient), (y_split, gradient_split) = (
        (aux, gradient)
        for gradient, aux in (
            jax.jit(jax.grad(functools.partial(loss, form), has_aux=True))(inputs) for form in forms
        )
    )
    assert_close(y_split, y, 1e-11, "outputs")
    assert_close(gradient_split, gradient, 1e-10, "gradient of ")


@pytest.mark.parametrize(
    ("names", "exchange", "tokens", "message"),
    [
        (GATHERED[3], "tree", 12, "exchange: found 'tree'; allowed: gather | ring"),
        (GATHERED[3], "gather", 9, "whole segments of 6 tokens on every device"),
        (GATHERED[0], "gather", 7, "whole chunks of 3 tokens on every device"),
        (GATHERED[2], "ring", 12, "exchange: found 'ring'; allowed: gather for logarithmic"),
        (("dla", "grm", "logarithmic", "independent", "none"), "gather", 12, "segmentation: found"),
    ],
)
def test_refusals(names, exchange, tokens, message):
    case = Case(**dict(zip(NAMES, names, strict=False)))
    inputs = cast(make_inputs(case, DEVICES * tokens), jnp.float32)
    with pytest.raises(mc_jax.InputError, match=message):
        split(case, exchange, inputs)
