"""The plan of one recipe on one topology: sizes, FLOPs, memory, length of the run."""

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
    """The facts of a run before it starts; bytes and seconds are per device."""

    topology: Topology
    setup: Setup
    flops: flops.Flops
    training_flops: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    measurement: Measurement

    @property
    def params(self) -> int:
        """Number of parameters of the model."""
        return parameters_of(self.setup)

    @property
    def trained_params(self) -> int:
        """Number of those that are trained."""
        trained = self.setup.groups.trained(self.setup.abstract_state().params)
        return sum(x.size for x in jax.tree.leaves(trained))

    @property
    def images(self) -> int:
        """Number of images that the run sees, repetitions included."""
        config = self.setup.config
        return config.total_steps * config.batch_size

    @property
    def epochs(self) -> float:
        """Number of passes over the training split."""
        return self.images / self.setup.info.num_examples[self.setup.info.train_split]

    @property
    def bytes(self) -> dict[str, int]:
        """Memory by purpose; parameters + optimizer + batch + activations = peak.

        `peak` is the compiler's count: arguments, outputs and temporaries, less the
        memory that they share. The arguments are the training state and the batch;
        `activations` are the rest: activations kept for the backward pass,
        intermediate results, and the gradients that are alive at the peak.
        `gradients` is the size of all gradients together, that of the parameters that
        are trained; they are rarely alive at the same time.
        """
        memory = self.measurement.bytes
        state = self.parameter_bytes + self.optimizer_bytes
        return {
            "parameters": self.parameter_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
            "batch": memory.arguments - state,
            "activations": memory.peak - memory.arguments,
            "peak": memory.peak,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values; unknown values are null."""
        setup, measured = self.setup, self.measurement
        return {
            "topology": self.topology.name,
            "devices": setup.mesh.size,
            "mesh": dict(setup.mesh.shape),
            "image_size": list(setup.architecture.image_size),
            "patch_size": list(setup.heaviest.patch_size),
            "batch_size": setup.config.batch_size,
            "tokens": setup.heaviest.num_tokens,
            "params": self.params,
            "trained_params": self.trained_params,
            "flops_per_image": self.flops.total,
            "train_flops_per_image": self.training_flops,
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
    """Compiles the training step of a run, and counts its FLOPs and bytes.

    Args:
      setup: the run, from `set_up(config, devices=topology.devices)`.
      topology: the devices of its mesh.
    """
    state = setup.abstract_state()
    logger.info("compiling the training step for %s", topology.name)
    return Plan(
        topology=topology,
        setup=setup,
        flops=flops.count(setup.heaviest),
        training_flops=flops.of_step(setup),
        parameter_bytes=sharding.bytes_per_device(state.params),
        gradient_bytes=sharding.bytes_per_device(setup.groups.trained(state.params)),
        # Includes the counters of steps and of bad images.
        optimizer_bytes=sharding.bytes_per_device(state._replace(params=())),
        measurement=measure_step(setup, topology),
    )


def parameters_of(setup: Setup) -> int:
    """Counts the parameters of a run's model."""
    return sum(x.size for x in jax.tree.leaves(setup.abstract_state().params))


def measure_step(setup: Setup, topology: Topology) -> Measurement:
    """Compiles a run's training step and returns the compiler's figures."""
    return measure(setup.train_step(), setup.abstract_arguments(), topology)
