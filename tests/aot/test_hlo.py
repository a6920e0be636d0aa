"""The parser of optimized HLO text, and the numbers of iterations of loops."""

import pytest

from mmjax.aot import hlo
from mmjax.aot.hlo import Array, parse_type
from mmjax.aot.loops import trip_count

TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/mmjax/.venv/lib/python3.12/site-packages/flax/linear.py"
2 "/usr/lib/python3/site-packages/mmjax/models/tower.py"
3 "/home/me/my_recipe.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=4 end_column=9}
2 {file_name_id=2 function_name_id=1 line=20 end_line=20 column=4 end_column=9}
3 {file_name_id=3 function_name_id=1 line=30 end_line=30 column=4 end_column=9}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=1 parent_frame_id=3}

%fused (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %t = f32[8,4]{1,0} tanh(%p), metadata={op_name="jit(f)/tanh" stack_frame_id=1}
}

ENTRY %main.1 (x: f32[8,4]) -> (f32[8,4], s32[]) {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0), metadata={op_name="x[\\'a\\']"}
  %c = s32[] constant(-3)
  %s = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0}, u32[]) copy-start(%x)
  %y = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused, \
metadata={op_name="jit(f)/a\\"(b" stack_frame_id=3}, \
backend_config={"flags":["x=1"],"n":{"m":"2"}}
  ROOT %out = (f32[8,4]{1,0}, s32[]) tuple(%y, %c)
}
"""


def test_parser_reads_computations_instructions_and_attributes():
    module = hlo.parse(TEXT)
    assert list(module.computations) == ["fused", "main.1"] and module.entry == "main.1"
    main = module.computations["main.1"]
    fusion = main.instructions["y"]
    assert main.root.name == "out" and main.root.operands == ("y", "c")
    assert fusion.opcode == "fusion" and fusion.called == {"calls": ["fused"]}
    assert fusion.attribute("kind") == "kLoop"
    assert fusion.backend_config == {"flags": ["x=1"], "n": {"m": "2"}}
    assert main.instructions["c"].arguments == "-3"
    assert [a.space for a in main.instructions["s"].arrays] == [1, 0, 0]
    assert [user.name for user in main.users["x"]] == ["s", "y"]


def test_source_is_the_innermost_line_of_mmjax_or_else_of_the_user():
    module = hlo.parse(TEXT)
    fusion = module.computations["main.1"].instructions["y"]
    assert [line for _, line in module.stack(fusion)] == [10, 20, 30]
    assert module.source(fusion) == "mmjax/models/tower.py:20"
    assert module.source(module.computations["fused"].root) == "/home/me/my_recipe.py:30"
    assert module.source(module.computations["main.1"].instructions["c"]) == ""


@pytest.mark.parametrize(
    ("text", "arrays", "size"),
    [
        ("f32[]", [Array("f32", ())], 4),
        ("bf16[3,5]{1,0}", [Array("bf16", (3, 5), (1, 0))], 30),
        ("s4[3]{0}", [Array("s4", (3,), (0,))], 2),
        ("f8e4m3fn[7]{0}", [Array("f8e4m3fn", (7,), (0,))], 7),
        # Tiles pad the minor dimensions: 3 × 5 to 8 × 128, and 5 × 3 with the other order too.
        ("f32[3,5]{1,0:T(8,128)}", [Array("f32", (3, 5), (1, 0), (8, 128))], 4096),
        ("f32[9,5]{0,1:T(8,128)}", [Array("f32", (9, 5), (0, 1), (8, 128))], 4096),
        ("bf16[200]{0:T(1024)(128)(2,1)S(1)}", [Array("bf16", (200,), (0,), (1024,), 1)], 2048),
        ("(s32[], /*index=1*/pred[2]{0})", [Array("s32", ()), Array("pred", (2,), (0,))], 6),
    ],
)
def test_types_give_shapes_layouts_and_padded_bytes(text, arrays, size):
    assert list(parse_type(text)) == arrays
    assert sum(array.bytes for array in parse_type(text)) == size


# A loop as XLA for TPUs writes it: no trip count, constants inside, the counter increased in a
# fusion.
LOOP = """HloModule m

%increase (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %two = s32[] constant(STEP)
  ROOT %add = s32[] add(%p, %two)
}

%body (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %carry = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %v = f32[4]{0} get-tuple-element(%carry), index=1
  %next = s32[] fusion(%i), kind=kLoop, calls=%increase
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %v)
}

%condition (carry.1: (s32[], f32[4])) -> pred[] {
  %carry.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %limit = s32[] constant(12)
  ROOT %test = pred[] compare(COMPARE
}

ENTRY %main (x: f32[4]) -> (s32[], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[4]{0}) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%bodyCONFIG
}
"""


@pytest.mark.parametrize(
    ("compare", "step", "config", "expected"),
    [
        ("%i.1, %limit), direction=LT", 1, "", 12),
        ("%limit, %i.1), direction=GT", 1, "", 12),
        ("%i.1, %limit), direction=LT", 5, "", 3),
        ("%i.1, %limit), direction=LT", -1, "", None),
        ("%i.1, %limit), direction=EQ", 1, "", None),
        ("%limit, %limit), direction=LT", 1, "", None),
        ("%i.1, %i.1), direction=LT", 1, "", None),
        ("%i.1, %i.1), direction=LT", 1, ', backend_config={"known_trip_count":{"n":"7"}}', 7),
    ],
)
def test_number_of_iterations_of_a_loop(compare, step, config, expected):
    text = LOOP.replace("COMPARE", compare).replace("STEP", str(step)).replace("CONFIG", config)
    module = hlo.parse(text)
    main = module.computations["main"]
    assert trip_count(module, main, main.root) == expected
