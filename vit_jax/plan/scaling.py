"""Linear extrapolation of a deep model's needs from two shallow ones, to save time."""

import collections
import dataclasses
import re

from vit_jax.errors import UserError
from vit_jax.plan.compiled import Measurement
from vit_jax.plan.plans import logger, measure_step
from vit_jax.plan.topologies import Topology
from vit_jax.train.setup import Setup

# Blocks are alike, and compilation time grows with their number. docs/planning.md has
# the error of the extrapolation.
DEPTHS = (2, 4)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Memory and time of a training step, per device."""

    peak_bytes: int
    fits: bool
    # (hyb, cyc); None if the platform has no estimates or the compiler refused.
    seconds: tuple[float, float] | None
    extrapolated: bool  # otherwise compiled at full depth


def is_shallow(setup: Setup) -> bool:
    """Returns whether to compile at full depth.

    That takes no longer than two shallow models, or blocks differ in what is trained,
    so that shallow models say nothing about them.
    """
    if setup.architecture.depth <= DEPTHS[-1] or setup.config.model.scan:
        return True
    return not _blocks_alike(setup)


def _blocks_alike(setup: Setup) -> bool:
    frozen: dict[str, set[str]] = collections.defaultdict(set)
    for path, group in setup.groups.by_path.items():
        block, _, inside = path.partition("/")
        if re.fullmatch(r"blocks_\d+", block):
            frozen[block] |= {inside} if group.frozen else set()
    try:
        _ = at_depth(setup, DEPTHS[0]).groups
    except UserError:  # a pattern for a block that a shallow model lacks
        return False
    return len({frozenset(paths) for paths in frozen.values()}) == 1


def as_measured(found: Measurement) -> Prediction:
    """Makes a prediction of a program that was compiled at full depth."""
    return Prediction(found.bytes.peak, found.fits, _seconds(found), False)


def predict(setup: Setup, topology: Topology, what: str) -> Prediction:
    """Compiles the training step; for a deep model, those of two shallow models.

    Args:
      setup: the run.
      topology: the devices of its mesh.
      what: name of the run in progress messages.
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
    """Returns the run with another number of blocks."""
    architecture = dataclasses.replace(setup.architecture, depth=depth)
    model = setup.model.clone(architecture=architecture)
    return dataclasses.replace(setup, architecture=architecture, model=model)
