"""The stages of an image's way through a model, with their shapes and counts."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.models import ViTOrMixer
from vit_jax.walkthrough import shapes
from vit_jax.walkthrough.facts import facts_of
from vit_jax.walkthrough.shapes import Calls, Shape
from vit_jax.walkthrough.tracing import MIXED, WEIGHTS, trace


class Stage(NamedTuple):
    """One step of an image's way through a model.

    Attributes:
      name: what happens.
      input: shape of what enters, without the batch; patches are counted row by row.
      output: shape of what leaves.
      parameters: number of parameters, of all blocks together.
      flops: FLOPs per image, of all blocks together. Only products count, 2 per term,
        as in `vit_jax.plan`.
      sentence: what happens, in full.
      repeats: how often an image passes through it.
      in_block: whether each block has such a stage; then it repeats in each.
      adds_input_of: name of the stage whose input is added to this one's output, where
        a residual branch ends; "" elsewhere.
    """

    name: str
    input: Shape
    output: Shape
    parameters: int
    flops: int
    sentence: str
    repeats: int = 1
    in_block: bool = False
    adds_input_of: str = ""


def stages_of(architecture: ViTOrMixer) -> tuple[Stage, ...]:
    """Lists the stages of a model in their order.

    The shapes are those of the Linen module's calls when it is traced. Every parameter
    and every product belongs to one stage, so that the sums are the model's own.
    """
    traced, facts = trace(architecture), facts_of(architecture)
    calls = Calls(traced.calls, architecture)
    present = {kind: found for kind in _KINDS if (found := kind.shapes(calls))}
    parameters, flops = dict.fromkeys(present, 0), dict.fromkeys(present, 0)
    for path, number in traced.params.items():
        parameters[_owner(path, present, "params")] += number
    for product in traced.products:
        flops[_owner(product.scope, present, "scope")] += product.flops
    return tuple(
        Stage(
            kind.name.format(**facts),
            *found,
            parameters[kind],
            flops[kind],
            kind.sentence.format(**facts),
            architecture.depth if kind.in_block else 1,
            kind.in_block,
            kind.adds_input_of,
        )
        for kind, found in present.items()
    )


class _Kind(NamedTuple):
    """A row of the table of stages.

    Attributes:
      name: a format of facts, as `sentence`.
      shapes: finds the shapes of input and output.
      sentence: what happens.
      params: pattern of its parameters' paths; of several that match, the first counts.
      scope: pattern of the scopes of its products.
      in_block: whether it is a part of every block.
      adds_input_of: see `Stage`.
    """

    name: str
    shapes: shapes.Finder
    sentence: str
    params: str = "$."
    scope: str = "$."
    in_block: bool = False
    adds_input_of: str = ""


def _owner(name: str, present: Mapping[_Kind, object], field: str) -> _Kind:
    """Returns the stage that a parameter or a product belongs to."""
    for kind in present:
        if re.search(getattr(kind, field), name):
            return kind
    raise AssertionError(f"{name} belongs to no stage")


# In the order in which an image passes through them.
_KINDS = (
    _Kind(
        "ResNet",
        shapes.of_call("/trunk"),
        "A ResNet turns the image into features, one for {stride}×{stride} pixels.",
        "^trunk/",
        "/trunk(/|$)",
    ),
    _Kind(
        "cut into patches",
        shapes.windows,
        "{cut}, {grid} of them, which do not overlap; each becomes a row of {values} "
        "numbers.",
    ),
    _Kind(
        "patch embedding",
        shapes.embedded,
        "Each row is multiplied by the same {values}×{width} matrix, and a bias is "
        "added; a convolution whose stride is its window does both steps at once"
        "{resized}.",
        "^patch_embed/",
        "/patch_embed(/|$)",
    ),
    _Kind(
        "positions",
        shapes.on_rows("._positioned"),
        "{positions}",
        "^pos_embed$",
        r"\._positioned(/|$)",
    ),
    _Kind(
        "{prefix_name}",
        shapes.prefixed,
        "{prefix} in front of the patches{prefix_positions}.",
        "^(cls|distillation|registers|pos_embed_prefix)$",
        r"\.add_prefix(/|$)",
    ),
    _Kind(
        "prompts join",
        shapes.prompts_join,
        "Learned tokens follow the others through all blocks: {prompts} prompts.",
        "^prompts$",
    ),
    _Kind(
        "prompts",
        shapes.prompts_of_block,
        "Each block appends its own learned tokens, {prompts} prompts, which are read "
        "but not computed further.",
        "^blocks/prompts$",
        in_block=True,
    ),
    _Kind(
        "norm 1",
        shapes.of_call("Block/norm1"),
        "Each token is brought to mean 0 and deviation 1, then scaled and shifted.",
        "^blocks/norm1/",
        in_block=True,
    ),
    _Kind(
        "MLP 1 over patches",
        shapes.of_call("Block/tokens_mlp/fc1"),
        "For each channel on its own, a dense layer reads the values of all patches; "
        "GELU follows.",
        "^blocks/tokens_mlp/fc1/",
        "Block/tokens_mlp/fc1(/|$)",
        in_block=True,
    ),
    _Kind(
        "MLP 2 over patches",
        shapes.of_call("Block/tokens_mlp/fc2"),
        "A dense layer leads back to one value per patch, which is added to the token.",
        "^blocks/tokens_mlp/",
        "Block/tokens_mlp(/|$)",
        in_block=True,
        adds_input_of="norm 1",
    ),
    _Kind(
        "queries",
        shapes.of_call("Block/attention/query"),
        "A dense layer makes each token's queries, {head_width} numbers for each of "
        "{heads} heads{lora}.",
        "^blocks/attention/query/",
        "Block/attention/query(/|$)",
        in_block=True,
    ),
    _Kind(
        "keys and values",
        shapes.keys_and_values,
        "Two more dense layers make keys and values in the same way.",
        "^blocks/attention/(key|value)/",
        "Block/attention/(key|value)(/|$)",
        in_block=True,
    ),
    _Kind(
        "attention weights",
        shapes.weights,
        "In each head, every query is multiplied by every key; divided by "
        "√{head_width}, the softmax makes each row sum to one.",
        scope=WEIGHTS,
        in_block=True,
    ),
    _Kind(
        "weighted values",
        shapes.mixed,
        "Each token gets the mean of all values with its weights; the heads are put "
        "side by side.",
        scope=MIXED,
        in_block=True,
    ),
    _Kind(
        "attention output",
        shapes.of_call("Block/attention/out"),
        "A dense layer mixes the heads; {scaled}the result is added to the token.",
        "^blocks/(attention/|layer_scale1$)",
        "Block/attention(/|$)",
        in_block=True,
        adds_input_of="norm 1",
    ),
    _Kind(
        "norm 2",
        shapes.of_call("Block/norm2"),
        "Each token is normalised again, with another scale and shift.",
        "^blocks/norm2/",
        in_block=True,
    ),
    _Kind(
        "MLP, first layer",
        shapes.of_call("Block/mlp/fc1"),
        "A dense layer widens each token on its own; GELU follows.",
        "^blocks/mlp/fc1/",
        "Block/mlp/fc1(/|$)",
        in_block=True,
    ),
    _Kind(
        "MLP, last layer",
        shapes.of_call("Block/mlp/fc2"),
        "A dense layer leads back to the token's width; {scaled}the result is added "
        "to the token.",
        # And whatever else a block has.
        "^blocks/",
        "Block/",
        in_block=True,
        adds_input_of="norm 2",
    ),
    _Kind(
        "prompts leave",
        shapes.prompts_leave,
        "Nothing after the blocks reads the prompts.",
    ),
    _Kind(
        "final norm",
        shapes.norm(2),
        "Each token is normalised.",
        "^norm/",
    ),
    _Kind(
        "pooling",
        shapes.pooled,
        "{pooling}",
        "^map_head/",
        r"\.pool/.*\._pooled(/|$)",
    ),
    _Kind(
        "final norm",
        shapes.norm(1),
        "The pooled vector is normalised.",
        "^norm/",
    ),
    _Kind(
        "pre-logits",
        shapes.of_call("/pre_logits"),
        "A dense layer and tanh precede the head.",
        "^pre_logits/",
        "/pre_logits(/|$)",
    ),
    _Kind(
        "head",
        shapes.logits,
        "{heads_of_model}",
        "^head(_distillation)?/",
        "/head(_distillation)?$",
    ),
)
