"""What a deep model needs, by the line through two shallow ones: in fewer minutes."""

import dataclasses

from vit_jax.plan.compiled import Measurement
from vit_jax.plan.plans import logger, measure_step
from vit_jax.plan.topologies import Topology
from vit_jax.train.setup import Setup

# Blocks are alike, and the compiler's work grows with their number. How close the line
# comes is in docs/planning.md.
DEPTHS = (2, 4)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of a training step on one device."""

    peak_bytes: int
    fits: bool
    # By hyb and by cyc; None: no estimates for this platform, or refused.
    seconds: tuple[float, float] | None
    extrapolated: bool  # or compiled as it is


def is_shallow(setup: Setup) -> bool:
    """Whether compiling the model as it is takes no longer than two shallow ones."""
    return setup.architecture.depth <= DEPTHS[-1] or setup.config.model.scan


def as_measured(found: Measurement) -> Prediction:
    """What was compiled as it is."""
    return Prediction(found.bytes.peak, found.fits, _seconds(found), False)


def predict(setup: Setup, topology: Topology, what: str) -> Prediction:
    """Compiles the training step, or, of a deep model, those of two shallow ones.

    Args:
      setup: the run.
      topology: where its mesh lies.
      what: for the messages on progress.
    """
    depth, (few, more) = setup.architecture.depth, DEPTHS
    if is_shallow(setup):
        logger.info("compiling: %s", what)
        return as_measured(measure_step(setup, topology))

    points = []
    for blocks in DEPTHS:
        logger.info("compiling: %s, %d of %d blocks", what, blocks, depth)
        points.append(measure_step(at_depth(setup, blocks), topology))

    def line(first: float, second: float) -> float:
        return second + (second - first) / (more - few) * (depth - more)

    peak = line(*(point.bytes.peak for point in points))
    seconds = None
    first, second = map(_seconds, points)
    if first and second:
        seconds = line(first[0], second[0]), line(first[1], second[1])
    return Prediction(int(peak), peak <= topology.usable_bytes, seconds, True)


def _seconds(found: Measurement) -> tuple[float, float] | None:
    return found.estimate and (found.estimate.hyb_seconds, found.estimate.cyc_seconds)


def at_depth(setup: Setup, depth: int) -> Setup:
    """The same run with another number of blocks."""
    architecture = dataclasses.replace(setup.architecture, depth=depth)
    model = setup.model.clone(architecture=architecture)
    return dataclasses.replace(setup, architecture=architecture, model=model)
