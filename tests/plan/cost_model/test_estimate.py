"""Tests of estimates of time and traffic, against counts by hand in `step.hlo`."""

import pathlib

import pytest

from vit_jax.plan.chips import CHIPS, Chip
from vit_jax.plan.cost_model import hlo, kernels
from vit_jax.plan.cost_model.estimate import estimate

TEXT = pathlib.Path(__file__).with_name("step.hlo").read_text()
# Round numbers: a gigabyte per second, a thousand cycles per microsecond.
CHIP = Chip("TPU test", 1, 1, bandwidth=1e9, clock=1e9)

SQUARE = 1024 * 1024 * 2
ROWS = 64 * 256 * 4
# 100 × 250 in tiles of 8 × 128.
PADDED = 104 * 256 * 4
# Two operands and a result; the second product leaves its result on the chip.
PRODUCTS = 3 * SQUARE, 2 * SQUARE
LOOP = 10 * ROWS + 10 * ROWS
BROADCAST = 10 * ROWS + PADDED
# The schedule is for 12 heads; this kernel's metadata give 6.
KERNEL = 32 * 3060 / 2 / 1e9


def test_hyb_is_the_longer_of_cycles_and_traffic_for_products():
    found = estimate(TEXT, CHIP)
    products = 3 * SQUARE / 1e9 + 2 * SQUARE / 1e9
    assert found.hyb_seconds == pytest.approx(
        products + KERNEL + (LOOP + BROADCAST) / 1e9, rel=1e-4
    )
    # With more bandwidth the first product takes its cycles.
    wide = estimate(TEXT, CHIP._replace(bandwidth=1e12))
    assert wide.hyb_seconds == pytest.approx(
        300e-6 + 2 * SQUARE / 1e12 + KERNEL + (LOOP + BROADCAST) / 1e12, rel=1e-4
    )


def test_cyc_is_the_compilers_cycles_and_kernels():
    cycles = 300_000 + 30 + 500 + 10 * (1_000 + 2_000)
    found = estimate(TEXT, CHIP)
    assert found.cyc_seconds == pytest.approx(cycles / 1e9 + KERNEL)
    assert found.unknown_kernels == 0


def test_traffic_of_slices_and_asynchronous_copies():
    moved = PADDED + SQUARE / 2  # copied in whole, and half of a matrix
    found = estimate(TEXT, CHIP)
    expected = sum(PRODUCTS) + LOOP + BROADCAST + moved
    # Counters of the loop are a few bytes, padded.
    assert found.traffic_bytes == pytest.approx(expected, rel=1e-3)
    assert found.collectives == {"all-reduce": (1, 2 * PADDED)}


def test_trip_count_from_attribute_or_condition():
    known = TEXT.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    seven_fewer = 7 * 3_000 / 1e9
    assert estimate(TEXT, CHIP).cyc_seconds - estimate(
        known, CHIP
    ).cyc_seconds == pytest.approx(seven_fewer)


def test_trip_count_of_unrolled_loops():
    root = "  ROOT %next = (s32[]{:T(128)S(6)}, f32[10,64,256]{2,1,0:T(8,128)}) tuple("
    plus = "  %by = s32[] constant(4)\n  %more = s32[] add(%counter, %by)\n"
    unrolled = TEXT.replace(f"{root}%counter", f"{plus}{root}%more")
    assert unrolled != TEXT
    # Ten in increments of four take three rounds.
    assert estimate(TEXT, CHIP).cyc_seconds - estimate(
        unrolled, CHIP
    ).cyc_seconds == pytest.approx(7 * 3_000 / 1e9)


def test_unknown_kernels_are_counted():
    unknown = TEXT.replace("attention_forward.3 ", "other_kernel.3 ")
    found = estimate(unknown, CHIP)
    assert found.unknown_kernels == 1
    assert estimate(TEXT, CHIP).cyc_seconds - found.cyc_seconds == pytest.approx(KERNEL)


def test_branches_are_equally_likely():
    one = "%loop = (s32[]{:T(128)S(6)}, f32[10,64,256]{2,1,0:T(8,128)}) while(%initial)"
    branches = TEXT.replace(
        f"{one}, condition=%condition, body=%body",
        one.replace("while(%initial)", "conditional(%start, %initial, %initial)")
        + ", branch_computations={%body, %condition}",
    )
    less = (10 - 0.5) * 3_000 / 1e9
    difference = estimate(TEXT, CHIP).cyc_seconds - estimate(branches, CHIP).cyc_seconds
    assert difference == pytest.approx(less)


@pytest.mark.parametrize(
    ("text", "shape", "size", "in_hbm"),
    [
        (
            "bf16[128,197,768]{2,1,0:T(8,128)(2,1)}",
            (128, 197, 768),
            128 * 200 * 1536,
            1,
        ),
        ("bf16[128,197,768]{2,0,1:T(8,128)(2,1)S(1)}", (128, 197, 768), 38731776, 0),
        ("f32[]{:T(128)S(6)}", (), 4, 0),
        ("f32[100]{0:T(1024)}", (100,), 4096, 1),
        ("u4[16]", (16,), 8, 1),
        ("f32[64,64]{1,0:T(8,128)S(3)}", (64, 64), 64 * 128 * 4, 1),
        ("token[]", (), 0, 1),
    ],
)
def test_arrays_have_padded_bytes_and_a_memory(text, shape, size, in_hbm):
    program = hlo.parse(f"ENTRY %m () -> f32[] {{\n  %x = {text} parameter(0)\n}}\n")
    (leaf,) = program.computations["m"].operations["x"].leaves
    assert leaf == (shape, size, bool(in_hbm))


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def kernel(name, tokens, heads=12, images=16, channels=64):
    said = f'{{\n"heads":"{heads}"\n}}' if heads else "{}"
    width = channels * (heads or 12)
    shape = f"bf16[{images},{tokens},{width}]{{2,1,0}}"
    text = (
        f"ENTRY %m () -> f32[] {{\n  %{name}.1 = {shape}"
        ' custom-call(), custom_call_target="tpu_custom_call", '
        f"frontend_attributes={{kernel_metadata={said}}}\n}}\n"
    )
    return hlo.parse(text).computations["m"].operations[f"{name}.1"]


@pytest.mark.parametrize("chip", list(kernels.BUNDLES))
def test_kernels_take_their_counted_schedules(chip):
    clocks = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
    cores = 2 if chip in ("v4", "v5p") else 1
    for (tokens, heads, channels), both in kernels.BUNDLES[chip].items():
        for name, bundles in zip(kernels.KERNELS, both, strict=True):
            one = kernel(name, tokens, heads, channels=channels)
            found = kernels.seconds(one, CHIPS[chip])
            assert found == pytest.approx(16 * bundles / clocks[chip] / cores)


def test_other_sizes_scale_with_heads_and_pairs_of_tokens():
    v5e = CHIPS["v5e"]
    one = kernels.seconds(kernel("attention_forward", 197), v5e)
    for other, times in [
        (kernel("attention_forward", 197, heads=3), 1 / 4),
        (kernel("attention_forward", 257), (257 / 197) ** 2),
        (kernel("attention_forward", 197, images=32), 2),
        (kernel("attention_forward", 197, heads=0), 1),  # taken from the width
    ]:
        assert kernels.seconds(other, v5e) == pytest.approx(times * one)
    # The head's width matters more than the number of tokens for the nearest size.
    wide = kernel("attention_forward", 197, heads=16, channels=80)
    assert kernels.seconds(wide, v5e) == pytest.approx(
        16 * 10_664 * (197 / 257) ** 2 / 1.5e9
    )
    # A chip that was not counted gets v5e's schedules.
    other = v5e._replace(kind="TPU v9", clock=3e9)
    of_other = kernels.seconds(kernel("attention_forward", 197), other)
    assert of_other == pytest.approx(one / 2)
    assert kernels.seconds(kernel("attention_forward", 197), CHIPS["h100"]) is None
