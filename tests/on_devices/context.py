"""A sequence that is split over devices gives what it gives on one, its gradients included.

Run by tests/caching/test_context.py, on four devices; some combinations with `--all` only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import mc_jax
from mc_jax.caching.context import in_zigzag
from tests.caching.cases import Case, assert_close, call, cast, make_inputs
from tests.rare import param

DEVICES = 4
TOKENS = PartitionSpec(None, "context")
NAMES = ("rule", "aggregation", "segmentation", "write_mode", "gate", "pooled", "route_every")
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
# Of which every device has two runs, one from the front and one from the back.
ZIGZAG = [
    ("linear", "ssc", "constant", "independent", "context", "gather"),
    ("swla", "soup", "constant", "independent", "position", "gather"),
    ("dla", "residual", "constant", "independent", "none", "gather"),
    ("linear", "ssc", "constant", "independent", "shared_query", "ring"),
    ("swla", "residual", "constant", "independent", "none", "ring"),
    ("dla", "grm", "constant", "independent", "position", "ring"),
    ("titans", "soup", "constant", "independent", "context", "ring"),
]
ALL = [
    *((*names, "gather", "contiguous") for names in GATHERED),
    *((*names, "ring", "contiguous") for names in PASSED_ON),
    *((*names, "zigzag") for names in ZIGZAG),
    # Blocks of three tokens read what their first one selects.
    ("linear", "ssc", "constant", "independent", "context", "keys", 3, "gather", "zigzag"),
    ("titans", "ssc", "constant", "checkpoint", "context", "keys", 3, "gather", "contiguous"),
    ("dla", "ssc", "constant", "independent", "shared_query", "keys", 3, "ring", "zigzag"),
]


def parameters():
    """All, by name; one is rare if those that follow have each of its options, and its exchange."""
    found, met = [], set()
    for names in reversed(ALL):
        *options, exchange, placement = names
        options = {(exchange, *option) for option in zip(NAMES, options, strict=False)}
        options.add((exchange, "placement", placement))
        found.append(param(names, rare=options <= met, id="-".join(map(str, names))))
        met |= options
    return found[::-1]


def split(case, exchange, placement, inputs):
    """Outputs of the whole sequences, computed on all devices."""
    specs = dict.fromkeys(inputs, TOKENS) | {"params": PartitionSpec()}
    if case.gate in ("shared_query", "none"):
        specs["u"] = PartitionSpec()
    mesh = jax.make_mesh((DEVICES,), ("context",), axis_types=(AxisType.Auto,))

    def run(inputs):
        options = {"context_axis": "context", "exchange": exchange, "placement": placement}
        return call(case, inputs, **options)[0]

    order = np.arange(inputs["v"].shape[1])
    if placement == "zigzag":
        runs = order.reshape(2 * DEVICES, -1)
        order = np.concatenate([[runs[i], runs[-1 - i]] for i in range(DEVICES)]).ravel()

    def ordered(name, spec):
        return jax.tree.map(lambda x: x[:, order] if spec == TOKENS else x, inputs[name])

    run = jax.shard_map(run, mesh=mesh, in_specs=(specs,), out_specs=TOKENS, check_vma=False)
    y = run({name: ordered(name, spec) for name, spec in specs.items()})
    return y[:, np.argsort(order)]


def test_zigzag():
    tokens = np.asarray(in_zigzag(np.arange(16)[None], 4)[0])
    expected = [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]
    np.testing.assert_array_equal(tokens.reshape(4, 4), expected)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("names", parameters())
def test_one_device(names):
    *options, exchange, placement = names
    case = Case(**dict(zip(NAMES, options, strict=False)))
    inputs = cast(make_inputs(case, 2 * DEVICES * case.segment_len), jnp.float64)
    weights = np.random.default_rng(1).normal(size=inputs["v"].shape)

    def loss(run, inputs):
        y = run(inputs)
        return jnp.sum(y * weights), y

    forms = (
        lambda inputs: call(case, inputs)[0],
        functools.partial(split, case, exchange, placement),
    )
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
        (PASSED_ON[1], "ring zigzag", 18, "whole segments of 6 tokens, an even number of them"),
        (PASSED_ON[2], "ring zigzag", 12, "placement: found 'zigzag'; allowed: contiguous: only"),
        (GATHERED[0], "gather zigzag", 12, "placement: found 'zigzag'; allowed: contiguous: only"),
        (GATHERED[2], "gather zigzag", 12, "placement: found 'zigzag'; allowed: contiguous: only"),
        (PASSED_ON[1], "ring spiral", 12, "placement: found 'spiral'; allowed: contiguous | zig"),
    ],
)
def test_refusals(names, exchange, tokens, message):
    case = Case(**dict(zip(NAMES, names, strict=False)))
    inputs = cast(make_inputs(case, DEVICES * tokens), jnp.float32)
    exchange, *placement = exchange.split()
    with pytest.raises(mc_jax.InputError, match=message):
        split(case, exchange, *(placement or ["contiguous"]), inputs)
