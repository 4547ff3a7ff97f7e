"""Tests of FLOPs against closed forms and published numbers."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import architecture_from_variant
from vit_jax.plan import flops
from vit_jax.train.setup import set_up


def of(variant, size=224, classes=1000, **fields):
    return flops.count(
        architecture_from_variant(
            variant, image_size=(size, size), num_classes=classes, **fields
        )
    )


def closed_form(width, depth, mlp, patch, size, classes):
    """Computes total and attention FLOPs, 2 per term.

    The total has embedding, projections, MLPs, head, and attention's core.
    """
    patches = (size // patch) ** 2
    tokens = patches + 1
    core = depth * 2 * 2 * tokens**2 * width
    block = tokens * (4 * width**2 + 2 * width * mlp)
    rest = patches * patch**2 * 3 * width + depth * block + width * classes
    return core + 2 * rest, core


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [("B/16", (768, 12, 3072, 16, 224, 1000)), ("Ti/32", (192, 12, 768, 32, 64, 10))],
)
def test_vision_transformer_count_is_exact(variant, sizes):
    found = of(variant, sizes[4], sizes[5])
    assert tuple(found) == closed_form(*sizes)
    assert found.training == 3 * found.total


# Multiply-accumulates, in 10⁹: DeiT (arXiv:2012.12877) table 1 and timm's
# results/model_benchmark for the hybrids and Mixers.
@pytest.mark.parametrize(
    ("variant", "published", "tolerance"),
    [
        ("S/16", 4.6, 0.01),
        ("B/16", 17.6, 0.005),
        ("R26+S/32", 3.5, 0.03),
        ("Mixer-B/16", 12.6, 0.005),
    ],
)
def test_counts_match_published_numbers(variant, published, tolerance):
    found = of(variant)
    assert found.total / 2e9 == pytest.approx(published, rel=tolerance)
    assert (found.attention == 0) == variant.startswith("Mixer")


def test_prompts_count_where_they_are_computed():
    registers = of("Ti/32", registers=5)
    assert of("Ti/32", prompts=5) == registers
    # Deep prompts are keys and values only, of new ones in every block.
    plain, deep = of("Ti/32"), of("Ti/32", prompts=5, prompts_deep=True)
    core = 12 * 2 * 2 * 50 * 5 * 192
    assert deep.attention - plain.attention == core
    assert deep.total - plain.total == core + 12 * 5 * 2 * 2 * 192**2


def test_pooling_by_attention_counts_as_attention():
    plain, pooled = of("Ti/32", pooling="gap"), of("Ti/32", pooling="map")
    one_query = 2 * 2 * 49 * 192
    assert pooled.attention - plain.attention == one_query


def test_loops_and_inner_functions_are_counted():
    def step(x, _):
        return jax.jit(lambda x: x @ x)(x), None

    traced = jax.make_jaxpr(lambda x: jax.lax.scan(step, x, length=5)[0])
    assert flops.of_program(traced(jnp.zeros((4, 4))).jaxpr) == (5 * 2 * 4**3, 0)


def test_training_counts_only_the_gradients_that_are_needed(tiny_config):
    def training(**values):
        setup = set_up(tiny_config(**values))
        found = flops.count(setup.architecture)
        return found, flops.count_training(setup.architecture, setup.groups)

    found, whole = training()
    assert whole == 3 * found.total
    # The head's kernel: 16 inputs, 10 classes.
    assert training(train_only="head")[1] == found.total + 2 * 16 * 10
    # The images need no gradient: 4 patches of 4 × 4 pixels in 3 channels.
    assert training(freeze="cls")[1] == 3 * found.total - 2 * 4 * 48 * 16
    # Of the last block, the head and their inputs, both gradients.
    per_block = (found.total - 2 * 4 * 48 * 16 - 2 * 16 * 10) // 2
    norm = training(train_only="norm/.*,head")[1]
    assert norm == found.total + 2 * 2 * 16 * 10
    block = training(train_only="blocks_01/norm1/.*,norm/.*,head")[1]
    assert found.total + per_block < block < found.total + 2 * per_block
