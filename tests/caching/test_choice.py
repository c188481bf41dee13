"""Which kernels a call runs on, and what is said of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import mc_jax
from mc_jax import InputError, memory
from mc_jax.caching.calls import Sizes
from mc_jax.caching.context import Context
from mc_jax.caching.kernels import check_implementation, read_kernel
from mc_jax.caching.options import Options
from mc_jax.device import DESCRIBED, described
from tests.caching.cases import Case, call, cast, make_inputs
from tests.kernels.gpu import on_a_gpu
from tests.kernels.tpu import OTHERS, TOPOLOGIES, device, needs_libtpu

F32 = jnp.dtype(jnp.float32)
LINEAR, SWLA = memory.get_rule("linear"), memory.get_rule("swla")


def options(aggregation, segment_len, chunk_len):
    facts = "constant", "independent", "context", 2
    return Options(aggregation, segment_len, *facts, chunk_len)


def test_explain_says_what_runs_and_what_it_costs():
    text = mc_jax.explain(16384, heads=8, head_dim=128)
    assert "xla, since the kernels run on a TPU or a GPU" in text
    assert "63 cached memories a head" in text
    # 63 * 64 / 2 pairs of a segment and a memory, 256 tokens, 2 * 128^2 FLOPs, 8 heads.
    assert "forward 135 GFLOP" in text
    text = mc_jax.explain(16384, rule="titans", heads=8, head_dim=128)
    assert text.count("xla, since the kernel runs on a TPU") == 2
    assert "forward 1.08e+03 GFLOP" in text  # 8 times as many for each pair
    text = mc_jax.explain(512, rule="dla", heads=2, head_dim=64, segmentation="logarithmic")
    assert "xla, since MLP memories of logarithmic segments" in text
    with pytest.raises(InputError, match="mem_norm"):
        mc_jax.explain(512, rule="dla", heads=2, head_dim=64, mem_norm="batch")
    with pytest.raises(InputError, match=re.escape("'v1'; allowed: v4 | v5e | v5p | v6e | tpu7x")):
        mc_jax.explain(512, heads=2, head_dim=64, device="v1")


def test_explain_for_a_cpu_on_any_device():
    with described("v5e"):
        text = mc_jax.explain(16384, heads=8, head_dim=128, device="cpu")
    assert "write  linear, independent: xla" in text and "read   grm: xla" in text


@needs_libtpu
@pytest.mark.parametrize("chip", [*TOPOLOGIES, *OTHERS])
def test_chips_are_described_as_the_compiler_does(chip):
    mesh = Mesh(np.array([device(chip)]), ("x",))
    assert DESCRIBED[chip] == mesh.abstract_mesh.abstract_device


def test_explain_asks_for_all_memories():
    """One would fit."""
    wide = {"heads": 8, "head_dim": 512, "rule": "titans", "device": "v5e"}
    levels = {"aggregation": "soup", "segmentation": "logarithmic", "dtype": "float32"}
    assert "read   grm: xla, since eight memories" in mc_jax.explain(16384, **wide)
    text = mc_jax.explain(262144, **wide | levels | {"head_dim": 256})
    assert "read   soup: xla, since 10 levels of 1024 x 256 do not fit" in text
    one = mc_jax.explain(512, **wide | levels | {"head_dim": 256})
    assert "read   soup: pallas (level_read)" in one


def test_xla_writes_what_does_not_fit():
    """The last chunk of 1,000 tokens is not full, for which the kernel keeps more."""

    def kernels(length):
        def run():
            tokens = jnp.zeros((1, length, 1, 416), jnp.bfloat16)
            return mc_jax.memory_caching(
                *(tokens, tokens, tokens, None),
                memory.TitansGates(*[jnp.ones((1, length, 1))] * 3),
                memory.DeepParams(jnp.zeros((1, 416, 1664)), jnp.zeros((1, 1664, 416))),
                rule="titans",
                aggregation="none",
                mem_norm="none",
                chunk_len=64,
            )[0]

        return str(jax.make_jaxpr(run)()).count("name=deep_write")

    with described("v5e"):
        assert (kernels(1024), kernels(1000)) == (1, 0)


def test_xla_reads_and_writes_large_memories_where_vmem_is_small():
    """A v4 has a quarter of what those after it have, or less; kernels of matrices fit."""
    old = {"heads": 4, "head_dim": 64, "device": "v4"}
    for options in ({"rule": "titans"}, {"aggregation": "ssc", "route_every": 128}):
        text = mc_jax.explain(4096, **old, **options)
        assert "xla, since the kernel needs a TPU with 32 MiB of VMEM, not 16" in text
    text = mc_jax.explain(4096, **old)
    assert "pallas (linear_write)" in text and "pallas (linear_read)" in text


def test_a_ring_selects_on_xla():
    """What a token selects is known as scores, which kernels do not take."""
    facts = options("ssc", 16, 16), LINEAR
    ring, gather = (Context("context", exchange, "contiguous") for exchange in ("ring", "gather"))
    assert read_kernel(*facts, "pallas_interpret", ring) == "xla"
    assert read_kernel(*facts, "pallas_interpret", gather) == "pallas_interpret"
    check_implementation("pallas_interpret", *facts, Sizes(1, 64, 16, None, F32), ring)


def test_a_gpu_says_which_chunks_its_kernel_does_not_read():
    sizes = Sizes(1, 96, 64, None, jnp.dtype(jnp.bfloat16))
    with on_a_gpu():
        check_implementation("pallas", options("grm", 96, 32), LINEAR, sizes)
        check_implementation("pallas", options("none", 96, 32), LINEAR, sizes)
        with pytest.raises(InputError, match="chunks of 16, 32 or n times 64, not 48"):
            check_implementation("pallas", options("grm", 96, 48), LINEAR, sizes)
        with pytest.raises(InputError, match="reads no cached memory"):
            check_implementation("pallas", options("none", 96, 32), SWLA, sizes)


@pytest.mark.parametrize(
    "case",
    [
        Case("linear", "grm", "logarithmic"),
        Case("linear", "ssc"),
        Case("titans", "ssc", route_every=3),
        Case("dla", "soup"),
    ],
    ids=str,
)
def test_scores_are_not_rounded(case):
    """As matrix units would round float32; forward, and for u and descriptors."""

    def exact_products(case):
        inputs = cast(make_inputs(case, 41), F32)
        program = jax.make_jaxpr(jax.grad(lambda x: call(case, x)[0].sum()))(inputs)
        return str(program).count("precision=(Precision.HIGHEST, Precision.HIGHEST)")

    # Sums of states have the same precision.
    without = Case(case.rule, "residual", case.segmentation, gate="none")
    assert exact_products(case) >= exact_products(without) + 3


def test_explain_names_the_kernels_of_a_tpu_and_their_steps():
    options = {"heads": 8, "head_dim": 128, "device": "v5e"}
    text = mc_jax.explain(16384, **options)
    levels = mc_jax.explain(16384, segmentation="logarithmic", **options)
    selected = mc_jax.explain(16384, aggregation="ssc", route_every=128, **options)
    assert "pallas (level_read)" in levels
    assert "pallas (block_read); blocks of 128 tokens select 4 memories each" in selected
    # Four memories a token, 2 * 128^2 FLOPs each.
    assert f"forward {8 * 16384 * 4 * 2 * 128**2 / 1e9:.3g} GFLOP" in selected
    assert "pallas (linear_write)\n" in text and "pallas (linear_read)\n" in text
    # 8 heads of 64 segments: 256 * 257 / 2 pairs met twice, and the state that is written.
    flop = 8 * 64 * (2 * 2 * 128 * 256 * 257 // 2 + 2 * 256 * 128**2)
    assert f"forward {flop / 1e9:.3g} GFLOP and 168 MB" in text
    assert "Config(heads=4, tokens=256)" in text
