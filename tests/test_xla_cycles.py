"""The compiler's estimate of a program: loops count as often as they run."""

import pytest

from benchmarks import xla_cycles

# 7 outside, four turns of 100 + 10 and, in each, three turns of 1.
PROGRAM = """
%inner_body (p: s32[]) -> s32[] {
  %a = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"1"}
}

%inner_cond (p: s32[]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%p, %constant.1), direction=LT
}

%body (p: s32[]) -> s32[] {
  %b = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"100"}
  %c = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"10"}
  %w = (s32[]) while(%t), condition=%inner_cond, body=%inner_body
}

%cond (p: s32[]) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%p, %constant.2), direction=LT
}

ENTRY %main.1 (p: s32[]) -> s32[] {
  %d = f32[8]{0} fusion(%p), backend_config={"estimated_cycles":"7"}
  %w = (s32[]) while(%t), condition=%cond, body=%body, metadata={op_name="x"}
}
"""


def test_loops_in_loops():
    assert xla_cycles.cycles(PROGRAM) == 7 + 4 * (110 + 3 * 1)


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="inner_cond"):
        xla_cycles.cycles(PROGRAM.replace("constant(3)", "parameter(1)"))
