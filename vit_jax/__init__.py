"""A Vision Transformer in JAX: pretrain, fine-tune at a higher resolution, use it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.api import Model as Model
    from vit_jax.api import load as load
    from vit_jax.api import save as save
    from vit_jax.walkthrough import explain as explain

__version__ = "0.2.0"
__all__ = ["Model", "__version__", "explain", "load", "save"]


def __getattr__(name: str) -> Any:
    # `import vit_jax` stays instant: JAX and Orbax are imported on first use.
    if name in ("Model", "load", "save"):
        from vit_jax import api

        return getattr(api, name)
    if name == "explain":
        from vit_jax import walkthrough

        return walkthrough.explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
