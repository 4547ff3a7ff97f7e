"""A check that a training step compiled for H100s uses cuDNN's fused attention.

    pip install 'vit_jax[cuda12]'
    python benchmarks/compile_gpu.py [depth, by default 2]

No GPU is needed. Compiles B/16 at 224 with 128 images per device for four H100s, with
each formulation of attention and on several meshes, and prints what the programs
contain. Exits with 1 unless cuDNN is called once per block in each direction, and no
activations are gathered. cuDNN asks the device itself how much workspace it needs, so
the memory does not include that.
"""

import os
import re
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

FORMULATIONS = ("cudnn", "explicit", "xla")
MESHES = ({"data": 4}, {"data": 1, "fsdp": 4}, {"data": 2, "tensor": 2})
IMAGES = 128  # per device
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def main(depth: str = "2") -> None:
    """Runs the command."""
    from vit_jax.plan.topologies import topology

    devices = topology("h100:4")
    print("mesh | attention | fused calls forward, backward | GiB each | collectives")
    wrong = []
    for sizes in MESHES:
        for attention in FORMULATIONS:
            text, memory = compile_step(devices, int(depth), sizes, attention)
            calls = tuple(
                text.count(f'target="{name}"') for name in (FORWARD, BACKWARD)
            )
            kinds = "all-reduce all-gather reduce-scatter all-to-all collective-permute"
            counts = {k: len(collectives(text, k)) for k in kinds.split()}
            row = (
                " × ".join(
                    f"{axis} {size}" for axis, size in sizes.items() if size > 1
                ),
                attention,
                f"{calls[0]}, {calls[1]}",
                f"{memory:.2f}",
                ", ".join(f"{n} {kind}" for kind, n in counts.items() if n),
            )
            print(" | ".join(row), flush=True)
            # The last block may compute one token only, with XLA's attention.
            blocks = (int(depth) - 1, int(depth)) if attention == "cudnn" else (0,)
            if calls[0] != calls[1] or calls[0] not in blocks:
                wrong.append(f"{row[:2]}: {calls} fused calls")
            if large := gathered_activations(text):
                wrong.append(f"{row[:2]}: gathers {large}")
    if wrong:
        sys.exit("\n".join(wrong))


def compile_step(devices, depth: int, sizes: dict[str, int], attention: str):
    """Returns the text of the compiled step, and its memory on a device in GiB."""
    from vit_jax.config import default_config
    from vit_jax.train.programs import build

    config = default_config()
    config.dataset, config.image_size = "imagenet2012", (224,)
    config.total_steps = 1000
    config.model.depth, config.model.attention = depth, attention
    config.mesh.update(sizes)
    mesh = devices.mesh(config)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    config.batch_size = IMAGES * parts
    step, arguments = build(config, mesh)
    compiled = step.lower(*arguments).compile(devices.compiler_options)
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return compiled.as_text(), size / 2**30


def collectives(text: str, kind: str) -> list[str]:
    """Returns the result types of all collectives of a kind."""
    return re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)


def gathered_activations(text: str) -> list[str]:
    """Returns the shapes of gathered arrays that have images and tokens."""
    return [
        shape
        for types in collectives(text, "all-gather")
        for shape in re.findall(r"\w+\[[\d,]*\]", types)
        if re.search(rf"\[(\d+,)*({IMAGES}|{4 * IMAGES}),19[67],", shape)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
