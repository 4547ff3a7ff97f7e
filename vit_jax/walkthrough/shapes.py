"""The shapes that enter and leave each stage, found among the calls of a trace.

Each function returns (input, output) without the batch, or None if a model has no such
stage.
"""

import dataclasses
import math
from collections.abc import Callable

from vit_jax.models import Architecture, ViTOrMixer
from vit_jax.walkthrough.tracing import Call

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape]


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of a traced model, found by the end of their scope."""

    by_scope: dict[str, Call]
    architecture: ViTOrMixer

    def __getitem__(self, end: str) -> Call | None:
        return next((c for s, c in self.by_scope.items() if s.endswith(end)), None)


Finder = Callable[[Calls], Shapes | None]


def of_call(end: str) -> Finder:
    """Makes a finder of the shapes of one call."""
    return lambda calls: (found := calls[end]) and (found.input, found.output)


def on_rows(end: str) -> Finder:
    """Makes a finder of the shapes of a call on a grid, whose places become rows."""
    return lambda calls: (
        (found := calls[end]) and (_rows(found.input), _rows(found.output))
    )


def windows(calls: Calls) -> Shapes:
    """Finds the input of the patch embedding, and its windows flattened."""
    a, (image, tokens) = calls.architecture, _patch_embed(calls)
    return image, (math.prod(tokens[:2]), math.prod(a.embed_window) * image[-1])


def embedded(calls: Calls) -> Shapes:
    """Finds the flattened windows and their embeddings."""
    return windows(calls)[1], _rows(_patch_embed(calls)[1])


def prefixed(calls: Calls) -> Shapes | None:
    """Finds patches, and patches behind the tokens in front of them."""
    if not calls.architecture.num_prefix_tokens:
        return None
    return of_call(".add_prefix")(calls)


def prompts_join(calls: Calls) -> Shapes | None:
    """Finds tokens before and after prompts that pass through all blocks."""
    return None if _deep(calls.architecture) else _prompted(calls)


def prompts_of_block(calls: Calls) -> Shapes | None:
    """Finds the tokens of a block before and after its own prompts."""
    return _prompted(calls) if _deep(calls.architecture) else None


def prompts_leave(calls: Calls) -> Shapes | None:
    """Finds tokens with and without prompts, after the blocks."""
    joined = prompts_join(calls)
    return joined and (joined[1], joined[0])


def keys_and_values(calls: Calls) -> Shapes | None:
    """Finds the tokens that attention reads, and both projections of them."""
    found = calls["Block/attention/key"]
    return found and (found.input, (2, *found.output))


def weights(calls: Calls) -> Shapes | None:
    """Finds queries, and the attention weights of all heads."""
    queries, keys = calls["Block/attention/query"], calls["Block/attention/key"]
    a = calls.architecture
    if queries is None or keys is None or not isinstance(a, Architecture):
        return None
    return queries.output, (a.num_heads, queries.output[0], keys.output[0])


def mixed(calls: Calls) -> Shapes | None:
    """Finds attention weights, and the values mixed by them."""
    read, out = weights(calls), calls["Block/attention/out"]
    return read and out and (read[1], out.input)


def norm(dimensions: int) -> Finder:
    """Makes a finder of the final norm, if it reads tokens (2) or one vector (1)."""

    def found(calls: Calls) -> Shapes | None:
        call = calls[".pool/norm"]
        if call is None or len(call.input) != dimensions:
            return None
        return call.input, call.output

    return found


def pooled(calls: Calls) -> Shapes | None:
    """Finds tokens, and the vectors that are pooled from them."""
    if found := of_call("._pooled")(calls):
        return found
    # A Mixer's `pool` is the norm and the mean.
    last_norm, pool = calls[".pool/norm"], calls[".pool"]
    return last_norm and pool and (last_norm.output, pool.output)


def logits(calls: Calls) -> Shapes | None:
    """Finds the head's input, and the logits; two heads read a vector each."""
    head = calls["/head"]
    # The model's own call ends last.
    *_, model = calls.by_scope.values()
    return head and (head.input, model.output)


def _patch_embed(calls: Calls) -> Shapes:
    found = of_call("/patch_embed")(calls)
    assert found is not None  # every model has one
    return found


def _rows(shape: Shape) -> Shape:
    """Counts the places of a grid row by row: [gh, gw, d] becomes [n, d]."""
    return (math.prod(shape[:-1]), shape[-1])


def _deep(architecture: ViTOrMixer) -> bool:
    return isinstance(architecture, Architecture) and architecture.prompts_deep


def _prompted(calls: Calls) -> Shapes | None:
    outside, inside = calls[".encode"], calls["Block/norm1"]
    if outside is None or inside is None or outside.input == inside.input:
        return None
    return outside.input, inside.input
