"""The table at the start of a run: devices, model, data, batch, memory."""

import importlib.metadata
import logging
from typing import Any

import jax

from vit_jax import host_memory, sharding
from vit_jax.train.memory import Bytes
from vit_jax.train.setup import Setup
from vit_jax.words import byte_size, first_and_last, times

logger = logging.getLogger(__name__)

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


def log_summary(
    setup: Setup, workdir: str, step: int, memory: Any, waiting_bytes: int
) -> None:
    """Logs the summary of a run, one line per fact.

    Args:
      setup: the run.
      workdir: the directory that it writes to.
      step: the step that it starts from.
      memory: `memory_analysis()` of the compiled step, or None if there is none.
      waiting_bytes: maximum memory of loaded images that wait for a step.
    """
    config, mesh, model = setup.config, setup.mesh, setup.architecture
    device = mesh.devices.flat[0]
    state = setup.abstract_state()
    params = sum(x.size for x in jax.tree.leaves(state.params))
    per_device = config.batch_size // sharding.batch_parts(mesh)
    info = setup.info
    examples = info.num_examples[info.train_split]
    splits = (
        f"{split} {info.num_examples[split]:,}"
        for split in dict.fromkeys((info.train_split, info.eval_split))
    )
    count = getattr(model, "prompts", 0)
    prompts = f" + {count} prompts" if count else ""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)

    def held(tree: Any) -> str:
        return byte_size(sharding.bytes_per_device(tree))

    rows = {
        "backend": f"{device.platform}, {mesh.size} × {device.device_kind}, "
        f"process {jax.process_index() + 1} of {jax.process_count()}",
        "mesh": " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        + f": parameters {held(state.params)} per device, "
        f"optimiser state {held(state.opt_state)}"
        + f", averages {held(state.ema)}"
        * (config.ema_decay > 0),
        "versions": ", ".join(versions),
        "model": f"{config.model.variant or 'as pretrained'}: width {model.width}, "
        f"depth {model.depth}, {model.mixing}, {params:,} parameters, "
        f"computes in {setup.model.dtype}",
        "trained": _trained(setup, params),
        "images": f"{times(model.image_size)} pixels in patches of "
        f"{times(model.patch_size)}: {times(model.grid)} + "
        f"{model.num_prefix_tokens} tokens{prompts}",
        "data": f"{config.dataset}: {', '.join(splits)}; "
        + (f"{info.num_classes:,} classes" if info.num_classes else "no labels"),
        "classes": first_and_last(info.class_names or ()),
        "batch": f"{config.batch_size} = {per_device} per device"
        + f" = {config.accum_steps} × {per_device // config.accum_steps}"
        * (config.accum_steps > 1),
        "length": f"{'from step ' + format(step, ',') + ' to ' if step else ''}"
        f"{config.total_steps:,} steps of {examples / config.batch_size:.1f} "
        f"per epoch = {config.total_steps * config.batch_size / examples:.1f} epochs"
        + f"; ends early after {config.patience} evaluations without a better "
        f"{config.patience_metric or config.keep_best}" * (config.patience > 0),
        "input": _input(config, waiting_bytes),
        "memory": "; ".join(filter(None, (_memory(memory), host_memory.in_words()))),
        "directory": workdir,
    }
    for name, value in rows.items():
        if value:
            logger.info("%-10s %s", name, value)


def _trained(setup: Setup, params: int) -> str:
    """Says how many parameters are trained, if not all are, or not from the start."""
    groups, alone = setup.groups, setup.config.head_only_steps
    if not groups.freezes and not alone:
        return ""
    trained = groups.trained(setup.abstract_state().params)
    count = sum(x.size for x in jax.tree.leaves(trained))
    # A share of a few parameters in a large model needs more digits.
    share = f"{count:,} of {params:,} parameters ({100 * count / params:.3g} %)"
    return share + f"; in the first {alone:,} steps only the head" * bool(alone)


def _input(config: Any, waiting_bytes: int) -> str:
    processes, threads = config.loader_processes, config.loader_threads
    workers = f"{processes} processes of {threads} threads" if processes else None
    return (
        f"{workers or f'{threads} threads'}, at most {byte_size(waiting_bytes)} "
        "of images ready for later steps"
    )


def _memory(memory: Any) -> str:
    if memory is None:
        return "unknown: this backend's compiler does not report it"
    return f"{byte_size(Bytes.of(memory).peak)} per device for the compiled step"
