"""Counting bundles: a program whose count is known by hand."""

import pytest

from benchmarks import llo

# Five turns of a loop of 16 bundles, of which 2 with a delay of 3 are left out where the index is
# even. A branch takes effect after four more bundles. 2 bundles before and 1 after the loop.
PROGRAM = """
     0   :  { %s1_s0 = inlined_call_operand.<no memory space> [shape: s32[1], index: 0] }
   0x1   :  { %s2_s1 = smov 0  ;;  %13 = sst [smem:[#allocation5]] %s1_s0 }
   0x2 LB: > { %s4_s3 = sadd.s32 1, %s3_s2  ;;  %s3_s2 = sphi %s2_s1, %s4_s3 /* Start region 7 */ }
   0x3   : > { %s5_s4 = sand.u32 1, %s3_s2  ;;  %s9_s8 = sld [smem:[#allocation5]] }
   0x4   : > { %p1_p0 = scmp.eq.s32.totalorder %s5_s4, 0  ;;  %s10_s9 = sadd.s32 5, %s9_s8 }
   0x5   : > { %20 = sbr.rel (%p1_p0) target = $region8  ;;  %v1 = vadd.f32 %v2, %v3 }
   0x6   : > { %v4 = vmul.f32 %v1, %v1 }
   0x7   : > {}
   0x8   : > {}
   0x9   : > {}
   0xa   : > { %v5 = vmul.f32 %v1, %v1 } /* Start region 9 */
   0xb   : > { %22 = vdelay 3 }
   0xc PF: > { %p2_p1 = scmp.ge.s32.totalorder %s4_s3, %s10_s9 /* Start/End empty region 8 */ }
   0xd   : > { %21 = sbr.rel (!%p2_p1) target = $region7 }
   0xe   : > {}
   0xf   : > {}
  0x10   : > {}
  0x11   : > {}
  0x12 LE:  { %v6 = vmul.f32 %v1, %v1 }
"""
TURN, SKIPPED = 16, 2 + 3


@pytest.mark.parametrize("operand", [0, 2])
def test_loops_branches_delays_and_operands(operand):
    turns = 5 + operand
    even = (turns + 1) // 2
    expected = 2 + turns * (TURN + 3) - even * SKIPPED + 1
    assert llo.count(PROGRAM, scalars=operand).cycles == expected


@pytest.mark.parametrize("core", [0, 2])
def test_a_core_knows_its_number(core):
    operand = "%s1_s0 = inlined_call_operand.<no memory space> [shape: s32[1], index: 0]"
    program = PROGRAM.replace(operand, "%s1_s0 = sld [smem:[#allocation0]] /* core id */")
    assert program != PROGRAM
    assert llo.count(program, core=core) == llo.count(PROGRAM, scalars=core)


def test_the_high_word_of_a_product_divides_by_a_constant():
    """Six turns, (2/3) 10: the compiler divides so."""
    addition = "%s10_s9 = sadd.s32 5, %s9_s8"
    # 0xaaaaaaab is 2^33 / 3, rounded up, and negative if taken as signed.
    product = "%s10_s9 = smulhi.u32 2863311531, 10"
    program = PROGRAM.replace(addition, product)
    assert program != PROGRAM
    six = llo.count(PROGRAM, scalars=1).cycles
    assert llo.count(program).cycles == six


def test_a_branch_on_a_vector_is_an_error_not_a_guess():
    with pytest.raises(llo.UnknownBranch, match="region8"):
        llo.count(PROGRAM.replace("scmp.eq.s32.totalorder %s5_s4, 0", "vmand.all %v7"))


def test_what_arrays_hold_is_asked_for_once_a_load():
    """The number of turns from an array, and that of a place which something wrote."""
    indexed = PROGRAM.replace("sld [smem:[#allocation5]]", "sld [smem:[#allocation5 + %s5_s4]]")
    assert indexed != PROGRAM
    with pytest.raises(llo.UnknownBranch, match="region7"):
        llo.count(indexed)
    found = iter([2] * 7)
    assert llo.count(indexed, arrays=lambda: next(found)) == llo.count(PROGRAM, scalars=2)
    assert next(found, None) is None
    assert llo.count(PROGRAM, arrays=lambda: 2) == llo.count(PROGRAM)
