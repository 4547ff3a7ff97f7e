"""Lengths of the attention kernels' schedules, counted without a TPU.

  pip install 'vit_jax[plan]'
  python benchmarks/kernel_schedule.py [--chips=v5e,v4] [--tokens=197 --heads=12
      --channels=64]

Compiles the forward and the backward kernel for each chip and counts the bundles of
instructions in the compiler's final schedule of a grid step. A core issues one bundle
per cycle as long as nothing stalls. The numbers are in
vit_jax/plan/cost_model/kernels.py. Every size takes some seconds, and temporarily
200 MB for dumps.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# tokens, heads, channels of a head: B/16 at 224, L/16 at 224, H/14 at 224, B/16 at 384.
SIZES = ((197, 12, 64), (197, 16, 64), (257, 16, 80), (577, 12, 64))
TOPOLOGIES = {
    "v4": ("v4:2x2x1", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:2x2", {}),
    "v5p": ("v5p:2x2x1", {"chip_config_name": "megacore"}),
    "v6e": ("v6e:2x2", {}),
}
KERNELS = ("attention_forward", "attention_backward")


def main() -> None:
    """Prints a line for each chip, size and kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", default="v5e,v4")
    for name in ("tokens", "heads", "channels"):
        parser.add_argument(f"--{name}", type=int)
    asked = parser.parse_args()
    own = (asked.tokens, asked.heads, asked.channels)
    sizes = [own] if all(own) else SIZES
    titles = ("tokens", "heads", "channels", "forward", "backward")
    print("chip  " + "  ".join(f"{title:>11}" for title in titles))
    for chip in asked.chips.split(","):
        for size in sizes:
            kernels = [f"{steps} × {count:,}" for steps, count in schedule(chip, *size)]
            columns = "  ".join(f"{text:>11}" for text in (*map(str, size), *kernels))
            print(f"{chip:4}  {columns}", flush=True)


def schedule(
    chip: str, tokens: int, heads: int, channels: int
) -> list[tuple[int, int]]:
    """Returns, for each kernel, grid steps per image and bundles per grid step."""
    arguments = map(str, (tokens, heads, channels))
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        # The compiler reads its flags when it is loaded, so each needs its own process.
        result = subprocess.run(
            [sys.executable, __file__, "--child", chip, *arguments],
            env=os.environ
            | {
                "LIBTPU_INIT_ARGS": flags,
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            sys.exit(result.stderr)
        counts = []
        for kernel in KERNELS:
            pattern = f"*-{kernel}*-schedule-analysis_final_bundles.txt"
            (report,) = pathlib.Path(folder).glob(pattern)
            found = re.search(r"total scheduled bundles:\s+(\d+)", report.read_text())
            assert found
            counts.append(int(found[1]))
    together = map(int, result.stdout.split())
    return [(heads // t, count) for t, count in zip(together, counts, strict=True)]


def _compile(chip: str, tokens: int, heads: int, channels: int) -> None:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from vit_jax.models.attention.short_kernels import (
        heads_a_step,
        lanes_a_head,
        short_attention,
    )

    name, options = TOPOLOGIES[chip]
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=name, **options
    )
    kind = described.devices[0].device_kind
    device = jax.sharding.SingleDeviceSharding(described.devices[0])
    width = heads * channels
    x = jax.ShapeDtypeStruct((8, tokens, width), jnp.bfloat16, sharding=device)

    def both(query, key, value, gradient):
        def attention(*operands):
            return short_attention(*operands, num_heads=heads, device_kind=kind)

        mixed, pull = jax.vjp(attention, query, key, value)
        return mixed, *pull(gradient)

    jax.jit(both).lower(x, x, x, x).compile()
    lanes = lanes_a_head(tokens, width, heads, jnp.bfloat16, kind)
    for arrays in (4, 7):
        print(heads_a_step(tokens, heads * lanes, heads, 2, arrays, kind)[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _compile(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
