"""What is read off a program's text, against programs whose exchanges are known."""

import pytest

from mc_jax.planning.program import Collective, Program, array_bytes, group_size, totals
from tests.on_devices.run import passes

LOOP = """\
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[64,8]) -> f32[8,8] {
  %all-reduce.9 = f32[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  ROOT %slice = f32[8,8]{1,0} dynamic-slice(%all-reduce.9)
}

%body (x: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %cp = f32[8,8]{1,0} collective-permute(%y), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %ag = bf16[64,8]{1,0} all-gather(%z), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[8,8]) fusion(%cp), calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"100"}
}

%condition (x: (s32[], f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(18)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p0: f32[8,8]) -> f32[8,8] {
  %w = (s32[], f32[8,8]) while(%init), condition=%condition, body=%body
  %s = (f32[10]{0}, f32[10]{0}) all-reduce-start(%p0), replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%sum
  ROOT %r = f32[8,8] fusion(%s), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_loops_and_groups():
    program = Program(LOOP)
    assert sorted(program.collectives()) == sorted(
        [
            Collective("collective-permute", 8 * 8 * 4, 4, 18),
            Collective("all-gather", 64 * 8 * 2, 4, 18),
            Collective("reduce-scatter", 64 * 8 * 4, 8, 18),
            Collective("all-reduce", 2 * 10 * 4, 8, 1),
        ]
    )
    assert program.cycles() == 18 * 100 + 7
    assert totals(program.collectives())["all-gather"] == (18, 18 * 64 * 8 * 2 * 3 / 4)
    assert totals(program.collectives())["all-reduce"] == (1, 2 * 80 * 7 / 8)


@pytest.mark.parametrize(
    ("shape", "size"),
    [("bf16[2,8,15]{2,1,0:T(8,128)(2,1)}", 480), ("f32[]", 4), ("(s32[3]{0}, pred[5])", 17)],
)
def test_bytes(shape, size):
    assert array_bytes(shape) == size


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[2,4]<=[8]", 4),
        ("mesh['a'=4,'b'=2] {'b'}", 2),
        ("mesh['a'=16,'b'=1,'c'=4], device_ids=([4,16]T(1,0)) {'a'}", 16),
    ],
)
def test_groups(groups, size):
    assert group_size(f"%x), replica_groups={groups}, dimensions={{0}}") == size


def test_groups_in_a_new_form_are_not_taken_for_none():
    with pytest.raises(ValueError, match="not known: %x.*spiral"):
        group_size("%x), replica_groups=spiral(4)")


def test_a_program_without_exchanges():
    assert group_size("to_apply=%sum") == 1
    assert totals(Program("ENTRY %m (a: f32[]) -> f32[] {\n}\n").collectives()) == {}


def test_compiled_programs():
    passes("program.py", devices=4)
