"""Block sizes that are picked, and reads that no kernel runs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from mc_jax.errors import InputError
from mc_jax.kernels.gates import Scores
from mc_jax.kernels.linear_read import linear_read, unsupported
from mc_jax.kernels.linear_read.config import Call, default_config, vmem_bytes
from tests.kernels.linear_read.test_linear_read import Case, inputs
from tests.kernels.tpu import compile_for, needs_libtpu

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
CHIPS = {
    name: pltpu.get_tpu_info_for_chip(getattr(pltpu.ChipVersion, f"TPU_{name.upper()}"), 1)
    for name in ("v4", "v5e", "v5p", "v6e")
}
CALL = Call(2048, 2048, 63, 128, 256, None, True, 128, 128, BF16)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("memories", [1, 5, 63, 512, 2048])
@pytest.mark.parametrize("shape", [(32, 32), (96, 384), (128, 128), (512, 128), (256, 256)])
def test_blocks_suit_the_call_and_fit(chip, dtype, memories, shape):
    out, width = shape
    call = dataclasses.replace(CALL, memories=memories, out=out, width=width, dtype=dtype)
    config = default_config(dataclasses.replace(call, head_dim=min(shape)), CHIPS[chip])
    assert config is not None
    config.check(memories)
    assert vmem_bytes(call, config) < CHIPS[chip].vmem_capacity_bytes * 7 / 8


def test_blocks_are_smaller_where_there_is_less_vmem():
    chosen = {name: default_config(CALL, chip) for name, chip in CHIPS.items()}
    assert chosen["v5e"].resident == 63 and chosen["v5e"].tokens == 512
    assert chosen["v4"].resident < 63 and chosen["v4"].resident % 8 == 0


def test_what_does_not_fit_into_vmem_is_read_by_xla():
    wide = dataclasses.replace(CALL, memories=16, out=512, width=2048, dtype=F32)
    assert "do not fit into VMEM" in str(unsupported(wide, any_device=True))
    assert unsupported(dataclasses.replace(wide, memories=1), any_device=True) is None


@needs_libtpu
@pytest.mark.parametrize(
    "case",
    [
        # Stacks of eight matrices of which products take two, and stacks of many.
        Case(256, 512, 63, 8, top_k=4, dtype=jnp.float32, config=None),
        Case(128, 512, 128, 4, dtype=jnp.bfloat16, config=None),
    ],
    ids=["large", "many"],
)
def test_compiles_for_a_tpu_with_little_vmem(case):
    args, _ = inputs(case)

    def run(*args):
        y, back = jax.vjp(lambda *args: linear_read(*args, **case.options)[0], *args)
        return back(y)

    assert "linear_read_backward" in compile_for("v4", run, *args).as_text()


# Of 100 tokens and six memories: what is at fault, and what is given in place of w and router.
MISFITS = {
    "router.descriptors.shape": lambda w, r: (w, r._replace(descriptors=r.descriptors[:5])),
    "router.u.shape": lambda w, r: (w, r._replace(u=r.u[:, :90])),
    "router.online.shape": lambda w, r: (w, r._replace(online=r.online[:1])),
    "router.cached.shape": lambda w, r: (w, Scores(r.online, jnp.zeros((6, 90)))),
    "weights.shape": lambda w, r: (w[:, :, :16], r),
}


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_interpret"])
def test_what_does_not_go_together(implementation):
    case = Case(tokens=100, memories=6)
    (q, w, router), _ = inputs(case)

    def fault(w, router, **options):
        with pytest.raises(InputError) as caught:
            linear_read(q, w, router, implementation=implementation, **case.options | options)
        return caught.value.field

    for field, misfit in MISFITS.items():
        assert fault(*misfit(w, router)) == field
    for option in ("top_k", "segment_len"):
        assert fault(w, router, **{option: 0}) == option


@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
def test_no_memories_give_zeros(implementation):
    (q, w, router), _ = inputs(Case(tokens=40, memories=3))
    router = router._replace(descriptors=router.descriptors[:0])
    y, own = linear_read(q, w[:0], router, segment_len=16, implementation=implementation)
    assert not y.any() and (own == 1).all()
