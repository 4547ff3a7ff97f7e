"""Compares the cost of LoRA with that of full fine-tuning, here and with PEFT.

    python benchmarks/lora.py --python=PYTHON [--variant=S/16] [--size=112] [--batch=16]
        [--rank=8] [--rounds=15]

PYTHON is an interpreter with torch, transformers and peft. Both train a Vision
Transformer with random weights on random images, in float32, on the CPU, with AdamW;
LoRA is on queries and values (PEFT's default for these models) or, with --targets=all,
on all matrices of the blocks. Rounds run the four steps in turn in one session, and the
ratios are medians of the ratios within rounds. Exits with 1 if LoRA's share of the full
step is larger here than with PEFT.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from steps import compiled_step, in_turn, median_ratio, timed

CLASSES = 10
# Variant → width, depth, mlp_dim, heads: what transformers is told.
SIZES = {"Ti/16": (192, 12, 768, 3), "S/16": (384, 12, 1536, 6)}
TARGETS = {
    "query,value": r".*attention.*\.(query|value|q_proj|v_proj)",
    "all": r".*layers?\.\d+\..*\.(query|key|value|q_proj|k_proj|v_proj|o_proj|dense"
    r"|fc1|fc2)",
}


def recipe(given: argparse.Namespace, rank: int) -> Any:
    """Returns the config of our step: LoRA of this rank, or everything with 0."""
    from vit_jax.config.recipes import load_recipe

    words = [
        *("--config=configs/b16.py:digits", "--config.accum_steps=1"),
        *(f"--config.model.variant={given.variant}", "--config.model.gelu=exact"),
        *(f"--config.image_size={given.size}", f"--config.batch_size={given.batch}"),
        *("--config.optimizer=adamw", "--config.momentum_dtype=float32"),
        "--config.grad_clip_norm=0",
    ]
    if rank:
        words.append(f"--config.lora.rank={rank}")
        words.append(f"--config.lora.targets={given.targets}")
    return load_recipe(["", *words])[0]


def serve(given: argparse.Namespace) -> None:
    """Runs PEFT's steps on request: reads "full" or "lora", writes seconds."""
    import peft
    import torch
    import transformers

    width, depth, hidden, heads = SIZES[given.variant]
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        image_size=given.size,
        num_labels=CLASSES,
    )
    full = transformers.ViTForImageClassification(config)
    adapted: Any = peft.get_peft_model(
        transformers.ViTForImageClassification(config),
        peft.LoraConfig(
            r=given.rank,
            lora_alpha=given.rank,
            target_modules=TARGETS[given.targets],
            modules_to_save=["classifier"],
        ),
    )
    images = torch.randn(given.batch, 3, given.size, given.size)
    labels = torch.randint(CLASSES, (given.batch,))
    models = {"full": full, "lora": adapted}
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for name, model in models.items()
    }
    counts = {
        name: sum(p.numel() for p in model.parameters() if p.requires_grad)
        for name, model in models.items()
    }
    versions = {one.__name__: one.__version__ for one in (torch, transformers, peft)}
    print(json.dumps({"versions": versions, "trained": counts}), flush=True)
    for line in sys.stdin:
        model, optimizer = models[line.strip()].train(), optimizers[line.strip()]
        started = time.perf_counter()
        optimizer.zero_grad()
        model(pixel_values=images, labels=labels).loss.backward()
        optimizer.step()
        print(time.perf_counter() - started, flush=True)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--variant", choices=SIZES, default="S/16")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=TARGETS, default="query,value")
    parser.add_argument("--rounds", type=int, default=15)
    # The half that the command runs with the other interpreter.
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given)
        return 0
    arguments = [word for word in sys.argv[1:] if not word.startswith("--python")]
    peer = subprocess.Popen(
        [given.python, __file__, "--serve", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert peer.stdin and peer.stdout
    reads, writes = peer.stdout, peer.stdin
    print(json.loads(reads.readline()))

    def asked(name: str) -> float:
        print(name, file=writes, flush=True)
        return float(reads.readline())

    seconds = in_turn(
        {
            "vit_jax full": timed(compiled_step(recipe(given, 0))),
            "PEFT full": lambda: asked("full"),
            "vit_jax LoRA": timed(compiled_step(recipe(given, given.rank))),
            "PEFT LoRA": lambda: asked("lora"),
        },
        given.rounds,
    )
    writes.close()
    peer.wait()
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name}: {middle:.3f} s a step, {given.batch / middle:.1f} images/s")
    ratios = {
        who: median_ratio(seconds[f"{who} LoRA"], seconds[f"{who} full"])
        for who in ("vit_jax", "PEFT")
    }
    print("LoRA's step over the full one:", ratios)
    return int(ratios["vit_jax"] > ratios["PEFT"])


if __name__ == "__main__":
    sys.exit(main())
