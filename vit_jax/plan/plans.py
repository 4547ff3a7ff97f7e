"""One recipe on one topology: sizes, arithmetic, memory, length of the run."""

import dataclasses
import logging
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.plan import flops
from vit_jax.plan.compiled import Measurement, measure
from vit_jax.plan.topologies import Topology
from vit_jax.train.setup import Setup

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts; bytes and seconds are of one device."""

    topology: Topology
    setup: Setup
    flops: flops.Flops
    parameter_bytes: int
    optimizer_bytes: int
    measurement: Measurement

    @property
    def params(self) -> int:
        """Parameters of the model."""
        return sum(x.size for x in jax.tree.leaves(self.setup.abstract_state().params))

    @property
    def images(self) -> int:
        """That the run sees, each as often as it comes."""
        config = self.setup.config
        return config.total_steps * config.batch_size

    @property
    def epochs(self) -> float:
        """The same in passes over the training split."""
        return self.images / self.setup.info.num_examples[self.setup.info.train_split]

    @property
    def bytes(self) -> dict[str, int]:
        """By what it is for.

        `peak` is what the compiler counts: arguments, outputs and temporaries less what
        they share. The arguments are the training state and the batch; `activations`
        are the rest, the compiler's temporaries: activations kept for the backward
        pass, what is computed with, and gradients as far as they live at that time.
        All `gradients` at once would be as large as the parameters; they are rarely.
        So parameters + optimizer + batch + activations = peak.
        """
        memory = self.measurement.bytes
        state = self.parameter_bytes + self.optimizer_bytes
        return {
            "parameters": self.parameter_bytes,
            "gradients": self.parameter_bytes,
            "optimizer": self.optimizer_bytes,
            "batch": memory.arguments - state,
            "activations": memory.peak - memory.arguments,
            "peak": memory.peak,
        }

    def to_json(self) -> dict[str, Any]:
        """The whole as JSON values; what is not known is null."""
        setup, measured = self.setup, self.measurement
        return {
            "topology": self.topology.name,
            "devices": setup.mesh.size,
            "mesh": dict(setup.mesh.shape),
            "image_size": list(setup.architecture.image_size),
            "patch_size": list(setup.architecture.patch_size),
            "batch_size": setup.config.batch_size,
            "tokens": setup.architecture.num_tokens,
            "params": self.params,
            "flops_per_image": self.flops.total,
            "train_flops_per_image": self.flops.training,
            "attention_share": self.flops.attention / self.flops.total,
            "bytes": self.bytes,
            "usable_bytes": self.topology.usable_bytes,
            "fits": measured.fits,
            "refused": measured.refused or None,
            "compile_seconds": measured.compile_seconds,
            "hyb_seconds": measured.hyb_seconds,
            "cyc_seconds": measured.cyc_seconds,
            "traffic_bytes": measured.traffic_bytes,
            "collectives": measured.collectives
            and {kind: found._asdict() for kind, found in measured.collectives.items()},
            "total_steps": setup.config.total_steps,
            "epochs": self.epochs,
            "images": self.images,
        }


def make_plan(setup: Setup, topology: Topology) -> Plan:
    """Compiles the training step of a run and counts the rest.

    Args:
      setup: the run, of `set_up(config, devices=topology.devices)`.
      topology: where its mesh lies.
    """
    state = setup.abstract_state()
    logger.info("compiling the training step for %s", topology.name)
    return Plan(
        topology=topology,
        setup=setup,
        flops=flops.count(setup.architecture),
        parameter_bytes=sharding.bytes_per_device(state.params),
        # With the counters of steps and of bad images.
        optimizer_bytes=sharding.bytes_per_device(state._replace(params=())),
        measurement=measure_step(setup, topology),
    )


def measure_step(setup: Setup, topology: Topology) -> Measurement:
    """What the compiler says of a run's training step."""
    return measure(setup.train_step(), setup.abstract_arguments(), topology)
