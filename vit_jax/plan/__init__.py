"""Memory, arithmetic and estimated time of a recipe, on devices that may be absent.

from vit_jax.plan import measure, topology
from vit_jax.train.programs import build

v5e = topology("v5e:2x2")
program, arguments = build(config, v5e.mesh(config))
measure(program, arguments, v5e).bytes.peak
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.plan.compiled import Measurement as Measurement
    from vit_jax.plan.compiled import measure as measure
    from vit_jax.plan.plans import Plan as Plan
    from vit_jax.plan.plans import make_plan as make_plan
    from vit_jax.plan.topologies import Topology as Topology
    from vit_jax.plan.topologies import topology as topology

_MODULES = {
    **dict.fromkeys(("Measurement", "measure"), "compiled"),
    **dict.fromkeys(("Plan", "make_plan"), "plans"),
    **dict.fromkeys(("Topology", "topology"), "topologies"),
}
__all__ = ["Measurement", "Plan", "Topology", "make_plan", "measure", "topology"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command answers --help without importing JAX.
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
