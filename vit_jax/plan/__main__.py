"""The needs of a run before it starts, on devices that may be absent.

  python -m vit_jax.plan --config=configs/b16.py[:ARGUMENT] [--topology=v5e:4x4]
      [--suggest] [--sweep='batch_size=64,128;image_size=224,384;patch_size=14,16']
      [--config.KEY=VALUE ...] [--json]
  python -m vit_jax.plan --sweep=patch|size|variant [--variant=B/16] [--image_size=224]
      [--config=… [--topology=…]] [--measure=IMAGES] [--csv=FILE] [--plot=FILE] [--json]

Prints tokens, parameters and arithmetic of the model; the compiler's memory use per
device, and whether it fits; and an estimate of a step's time on TPUs. Neither weights
nor a prepared data set is needed. --topology is a slice of TPUs (v3, v4, v5e, v5p,
v6e), GPUs (h100:8, a100:8) or cpu; the default is the devices of this machine.
--suggest adds the largest batch that fits, and the effect and cost of each way to save
memory.

--sweep=patch, size or variant needs no recipe: it prints tokens, parameters, FLOPs and
memory of attention for patches of 8 to 32 pixels, images of 160 to 512 pixels, or
variants from Ti to G, and for a recipe with --topology also memory and time of a
training step. --measure adds a forward pass on this machine.
"""

import functools
import json
import sys
from typing import Any

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError, problems_of
from vit_jax.plan import sweep_flags


def main() -> None:
    """Runs the command; see the module's docstring."""
    command.guard(_main)


def _main() -> None:
    own = flags.FlagValues()
    flags.DEFINE_string(
        "topology", "", "devices, as in v5e:4x4; default: those of this machine", own
    )
    flags.DEFINE_bool(
        "suggest", False, "also show the largest batch, and ways to save memory", own
    )
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "patch, size or variant; or a table over values of keys, as in "
        "batch_size=64,128;patch_size=14,16",
        flag_values=own,
    )
    flags.DEFINE_bool("json", False, "one JSON object on standard output", own)
    sweep_flags.define(own)
    rest = command.parse(sys.argv, own, __doc__ or "", known_only=True)
    argv = [sys.argv[0], *rest]

    from vit_jax.plan import report, suggest, sweep, sweep_command
    from vit_jax.plan.plans import make_plan

    if axis := sweep_command.axis_of(own):
        sweep_command.run(axis, own, argv, _recipe)
        return
    axes = sweep.parse(own.sweep)
    topology, config, prepare = _recipe(argv, own.topology)
    points = sweep.configs(argv, axes)
    setup = prepare(config)
    if not any(key.startswith(("dataset", "data_dir", "data.")) for key in axes):
        prepare = functools.partial(prepare, dataset=setup.dataset)
    plan = make_plan(setup, topology)
    found: dict[str, Any] = plan.to_json()
    show = (lambda *_: None) if own.json else (lambda view, value: view(value))
    show(report.show_plan, plan)
    if own.suggest:
        found["suggestions"] = suggest.suggest(plan, prepare)
        show(report.show_suggestions, found["suggestions"])
    if points:
        found["sweep"] = sweep.run(points, prepare, topology)
        show(report.show_sweep, found["sweep"])
    if own.json:
        print(json.dumps(found, allow_nan=False))


def _topology(name: str) -> Any:
    import jax

    from vit_jax.plan.topologies import topology

    if name:
        # Neither wait for nor occupy an accelerator that this process will not use.
        jax.config.update("jax_platforms", "cpu")
    return topology(name)


def _recipe(argv: list[str], topology_name: str) -> tuple[Any, Any, Any]:
    """Returns the topology, a command line's config, and what sets up such runs."""
    from vit_jax.config.recipes import WrongOverrides, load_recipe
    from vit_jax.train.setup import set_up

    topology, problems = _topology(topology_name), []
    try:
        config, _ = load_recipe(argv)
    except WrongOverrides as error:
        config, problems = error.config, problems_of(error)
    pretrained = None
    if config.pretrained and not config.model.variant:
        # Without a variant, the architecture is that of the weights.
        from vit_jax.weights.loading import load_weights

        try:
            weights = load_weights(config.pretrained)
            pretrained = weights.description
        except UserError as error:
            problems += problems_of(error)
    prepare = functools.partial(set_up, devices=topology.devices, pretrained=pretrained)
    if problems:
        prepare(config, problems=problems)
    return topology, config, prepare


if __name__ == "__main__":
    main()
