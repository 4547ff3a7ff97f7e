"""Tests of counting collectives in a program as TPU compilers write it."""

from vit_jax.plan.cost_model.collectives import collectives
from vit_jax.plan.cost_model.hlo import parse

# A gather in three parts, of which the first starts it; a sum that is scattered; a
# plain gather in two parts; and in a loop of three rounds a sum of two arrays.
TEXT = """HloModule jit_step, num_partitions=4

%start_fusion (part: bf16[16,128]) -> (bf16[16,128], bf16[64,128], u32[]) {
  %part = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%part), channel_id=4, frontend_attributes={chain_id="2"}
  ROOT %started = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%part, %all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (part.1: bf16[16,128]) -> bf16[64,128] {
  %part.1 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%part.1), channel_id=4, frontend_attributes={chain_id="2"}
}

%done_fusion (part.2: bf16[16,128]) -> bf16[64,128] {
  %part.2 = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.3 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%part.2), channel_id=4, frontend_attributes={chain_id="2"}
  ROOT %done = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.5 (whole: f32[64,128]) -> f32[16,128] {
  %whole = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%whole), channel_id=1, to_apply=%add
  ROOT %kept = f32[16,128]{1,0:T(8,128)} slice(%all-reduce.1), slice={[0:16], [0:128]}
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %sums = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) all-reduce(%x, %x), channel_id=1, to_apply=%add
  ROOT %next = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%count, %x)
}

%condition (now: (s32[], f32[8,128])) -> pred[] {
  %now = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[16,128], b: f32[64,128], c: (s32[], f32[8,128])) -> f32[16,128] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[64,128]{1,0:T(8,128)} parameter(1)
  %c = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(2)
  %first = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start_fusion
  %second = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%a), kind=kOutput, calls=%async_collective_fusion.7
  %third = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%done_fusion
  %all-gather-start = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}) all-gather-start(%a), channel_id=5
  %all-gather-done = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather-done(%all-gather-start)
  %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%c), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %scattered = f32[16,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.5
}
"""  # noqa: E501


def test_collectives_count_whole_arrays_and_rounds_of_loops():
    found = collectives(parse(TEXT))
    assert found == {
        "all-gather": (2, 2 * 64 * 128 * 2),
        "reduce-scatter": (1, 64 * 128 * 4),
        "all-reduce": (3, 3 * 2 * 8 * 128 * 4),
    }


def test_the_most_bytes_come_first():
    assert list(collectives(parse(TEXT))) == [
        *("all-gather", "reduce-scatter", "all-reduce")
    ]
    fewer = TEXT.replace('{"n":"3"}', '{"n":"9"}')
    assert next(iter(collectives(parse(fewer)))) == "all-reduce"
