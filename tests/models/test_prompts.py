"""Visual prompts: the published function, and no other change to what a model does."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import VisionTransformer, abstract_params, blocks, build
from vit_jax.models.architecture import architecture_from_variant
from vit_jax.models.blocks import Block
from vit_jax.models.prompts import Prompts, initial_bound
from vit_jax.models.taps import Taps

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts.npz"
DEEP = {"prompts": 3, "prompts_deep": True}
SHALLOW_POOLINGS = {
    "map": {"pooling": "map", "class_token": False, "class_token_position": False},
    "cls_gap": {"pooling": "cls_gap", "registers": 1},
}
DEEP_POOLINGS = {
    "gap": {"pooling": "gap", "registers": 1},
    "distilled": {"distillation_token": True},
}
NAMES = ("tokens", "attention", "prompt_attention", "normed", "pooled")


def run(model, params, *arguments, **how):
    """Applies a model as one program, compiled in little time."""
    apply = partial(model.apply, **how)
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(apply, compiler_options=options)({"params": params}, *arguments)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_equals_the_published_function_in_pytorch(kind, golden, tiny):
    architecture = tiny(
        patch_size=(4, 4),
        image_size=(8, 8),
        depth=3,
        num_classes=10,
        prompts=4,
        prompts_deep=kind == "deep",
    )
    params = jax.tree.map_with_path(
        lambda path, _: golden_of(golden, kind, path), abstract_params(architecture)
    )
    images = golden["images"] / np.float32(127.5) - 1
    found = run(VisionTransformer(architecture), params, images)
    np.testing.assert_allclose(found, golden[f"{kind}/logits"], atol=5e-6)


def golden_of(golden, kind, path):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("prompts"):
        return golden[f"params/{name}"]
    block = int(name[7:9]) if kind == "deep" else 0
    return golden[f"{kind}/prompts"][block][None]


@pytest.mark.parametrize("pooling", SHALLOW_POOLINGS)
def test_shallow_prompts_are_registers_in_another_place(
    pooling, tiny, random_params, random_images
):
    fields = SHALLOW_POOLINGS[pooling]
    prompted = tiny(**fields, prompts=3)
    params, images = random_params(prompted), random_images(prompted)
    registers = tiny(**fields | {"registers": 3 + fields.get("registers", 0)})
    parts = [params[name] for name in ("registers", "prompts") if name in params]
    others = {name: x for name, x in params.items() if name != "prompts"}
    others["registers"] = jnp.concatenate(parts, axis=1)
    model, other = VisionTransformer(prompted), VisionTransformer(registers)
    logits, found = run(model, params, images, intermediates=NAMES)
    expected, given = run(
        other, others, images, intermediates=("tokens", "attention", "normed")
    )
    np.testing.assert_allclose(logits, expected, atol=5e-6)
    # Without intermediates, the last block computes fewer tokens.
    read = run(model, params, images)
    np.testing.assert_allclose(read, expected, atol=5e-6)
    last = prompted.num_prefix_tokens
    order = np.r_[0:last, last + 3 : registers.num_tokens]
    tokens, normed = given["tokens"][:, :, order], given["normed"][:, order]
    np.testing.assert_allclose(found["tokens"], tokens, atol=5e-6)
    np.testing.assert_allclose(found["normed"], normed, atol=5e-6)
    weights = given["attention"][:, :, :, order]
    np.testing.assert_allclose(found["attention"], weights[..., order], atol=1e-6)
    of_prompts = weights[..., last : last + 3]
    np.testing.assert_allclose(found["prompt_attention"], of_prompts, atol=1e-6)


@pytest.mark.parametrize("pooling", DEEP_POOLINGS)
def test_deep_prompts_are_concatenated_in_every_block(
    pooling, tiny, random_params, random_images
):
    architecture = tiny(**DEEP_POOLINGS[pooling], **DEEP)
    params, images = random_params(architecture), random_images(architecture)
    model, block = VisionTransformer(architecture), Block(architecture.block)

    def by_hand(params, images):
        x = model.apply({"params": params}, images, method="embed")
        tokens, weights = [], []
        for number in range(2):
            own = params[f"blocks_{number:02d}"]
            prompts = jnp.broadcast_to(own["prompts"], (2, 3, 16))
            # Before all other tokens, and with their own queries.
            x = jnp.concatenate([prompts, x], axis=1)
            own = {"params": without(own)}
            taps = Taps(["attention"])
            x = block.apply(own, x, taps=taps)
            x = x[:, 3:]
            tokens.append(x)
            weights.append(taps.found["attention"][:, :, 3:])
        vectors = model.apply({"params": params}, x, method="pool")
        heads = model.apply({"params": params}, vectors, method="head")
        stacks = jnp.stack(tokens, 1), jnp.stack(weights, 1)
        return sum(heads) / len(heads), *stacks

    expected, tokens, weights = jax.jit(by_hand)(params, images)
    logits, found = run(model, params, images, intermediates=NAMES)
    np.testing.assert_allclose(logits, expected, atol=5e-6)
    read = run(model, params, images)
    np.testing.assert_allclose(read, expected, atol=5e-6)
    np.testing.assert_allclose(found["tokens"], tokens, atol=5e-6)
    np.testing.assert_allclose(found["attention"], weights[..., 3:], atol=1e-6)
    np.testing.assert_allclose(found["prompt_attention"], weights[..., :3], atol=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_that_nothing_reads_change_nothing(
    deep, tiny, random_params, random_images, monkeypatch
):
    architecture = tiny(pooling="gap", prompts=3, prompts_deep=deep)
    params, images = random_params(architecture), random_images(architecture)
    attend = blocks.attend

    def masked(query, key, value, **how):
        return attend(query, key[:, :-3], value[:, :-3], **how)

    base = VisionTransformer(tiny(pooling="gap"))
    expected = run(base, without(params), images)
    model = VisionTransformer(architecture)
    assert np.abs(run(model, params, images) - expected).max() > 0.05
    monkeypatch.setattr(blocks, "attend", masked)
    found = run(model, params, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def without(params):
    return {
        name: without(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name != "prompts"
    }


@pytest.mark.parametrize("deep", [False, True])
def test_ways_to_run_agree_in_draws_and_gradients(
    deep, tiny, random_params, random_images
):
    architecture = tiny(prompts=3, prompts_deep=deep, pooling="gap")
    params, images = random_params(architecture), random_images(architecture)

    def gradients_of(**how):
        model = VisionTransformer(
            architecture, prompt_dropout=0.3, dropout_rate=0.1, **how
        )

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        @jax.value_and_grad
        def loss(params):
            rngs = {"dropout": jax.random.key(1, impl="unsafe_rbg")}
            logits = model.apply({"params": params}, images, train=True, rngs=rngs)
            return jnp.sum(jnp.square(logits))

        return jax.device_get(loss(params))

    loss, gradients = gradients_of()
    paths = ["blocks_00", "blocks_01"] if deep else [""]
    for path in paths:
        of_prompts = (gradients[path] if path else gradients)["prompts"]
        assert np.abs(of_prompts).max() > 1e-3
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    how = {"scan": True, "remat": "full", "attention": "per_head"}
    found, other = gradients_of(**how)
    np.testing.assert_allclose(found, loss, rtol=5e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=5e-6 * largest),
        other,
        gradients,
    )


@pytest.mark.parametrize("deep", [False, True])
def test_a_subset_of_the_patches_is_encoded_with_all_prompts(
    deep, tiny, random_params, random_images
):
    """Checks the encoders of masked pretraining, which see fewer or other patches."""
    architecture = tiny(prompts=2, prompts_deep=deep)
    params, images = random_params(architecture), random_images(architecture)
    encode = partial(run, VisionTransformer(architecture), params, images)
    _, found = encode(intermediates=("normed",))
    backwards = jnp.broadcast_to(jnp.arange(6)[::-1], (2, 6))
    tokens = encode(backwards, method="encode_visible")
    order = np.r_[0, 6:0:-1]
    np.testing.assert_allclose(tokens, found["normed"][:, order], atol=5e-6)
    none = jnp.zeros((2, 6), bool)
    tokens = encode(none, jnp.zeros((1, 1, 16)), method="encode_masked")
    np.testing.assert_allclose(tokens, found["normed"], atol=5e-6)


def test_initial_values_are_uniform_within_the_published_bound(tiny):
    # The bound of the published code for B/16 and L/16.
    assert initial_bound(768, (16, 16), 3) == pytest.approx(0.0625)
    assert initial_bound(1024, (16, 16), 3) == pytest.approx(0.05787, abs=1e-5)
    architecture = tiny(width=64, **(DEEP | {"prompts": 50}))
    images = jnp.zeros((1, *architecture.image_size, 3))
    options = {"xla_backend_optimization_level": 0}
    model = VisionTransformer(architecture)
    init = jax.jit(model.init, compiler_options=options)
    params = init(jax.random.key(0), images)["params"]
    bound = np.sqrt(6 / (3 * 4 * 2 + 64))
    first, second = (params[f"blocks_{i:02d}"]["prompts"] for i in range(2))
    for values in (first, second):
        assert values.shape == (1, 50, 64)
        assert 0.99 * bound < np.abs(values).max() <= bound
        np.testing.assert_allclose(np.std(values), bound / np.sqrt(3), rtol=0.03)
    assert np.abs(first - second).max() > bound


def test_prompt_dropout_reaches_only_the_prompts(tiny, random_params, random_images):
    architecture = tiny(**DEEP, depth=1)
    params, images = random_params(architecture), random_images(architecture)
    nothing = jax.tree.map_with_path(
        lambda path, x: x * (path[-1].key != "prompts"), params
    )

    def logits(params, rate, train=True):
        model = VisionTransformer(architecture, dropout_rate=0.2, prompt_dropout=rate)
        rngs = {"dropout": jax.random.key(3)}
        return run(model, params, images, train=train, rngs=rngs)

    np.testing.assert_array_equal(logits(nothing, 0.5), logits(nothing, 0.0))
    assert jnp.abs(logits(params, 0.5) - logits(params, 0.0)).max() > 1e-3
    evaluated = (logits(params, rate, train=False) for rate in (0.5, 0.0))
    np.testing.assert_array_equal(*evaluated)


def test_each_image_drops_elements_of_its_own():
    tokens = jnp.zeros((3, 2, 64))

    class Module(blocks.nn.Module):
        @blocks.nn.compact
        def __call__(self, x, key):
            return Prompts(5, 1.0, 0.25).join(self, x, key)

    ones = {"params": {"prompts": jnp.ones((1, 5, 64))}}
    found = Module().apply(ones, tokens, jax.random.key(0))
    assert found.shape == (3, 7, 64)
    np.testing.assert_array_equal(found[:, :2], tokens)
    dropped = np.asarray(found[:, 2:])
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(4 / 3)}
    assert 0.2 < np.mean(dropped == 0) < 0.3
    assert (dropped[0] != dropped[1]).any()
    np.testing.assert_array_equal(Module().apply(ones, tokens, None)[:, 2:], 1)


def test_the_architecture_of_a_prompted_model(tiny):
    deep = tiny(**DEEP)
    assert (deep.num_tokens, tiny().num_tokens) == (1 + 6 + 3, 1 + 6)
    assert deep.num_prefix_tokens == 1
    # Released versions read the others, so they must not see the new fields.
    assert not {"prompts", "prompts_deep"} & tiny().to_dict().keys()
    assert "prompts_deep" not in tiny(prompts=3).to_dict()
    assert type(deep).from_dict(deep.to_dict()) == deep
    assert "prompts" in abstract_params(tiny(prompts=3))
    assert "prompts" not in abstract_params(deep)
    with pytest.raises(ValueError, match="prompts_deep needs prompts"):
        tiny(prompts_deep=True)
    with pytest.raises(ValueError, match="prompts is -1, expected a whole number"):
        tiny(prompts=-1)
    with pytest.raises(ValueError, match=r"prompt_attention.; choose from embedding"):
        VisionTransformer(tiny()).apply(
            {}, jnp.zeros((1, 8, 6, 3)), intermediates=("prompt_attention",)
        )


def test_prompts_of_hybrids_follow_the_patch_in_pixels():
    architecture = architecture_from_variant(
        "R50+B/16",
        image_size=(32, 32),
        num_classes=3,
        **{"width": 32, "depth": 1, "mlp_dim": 8, "num_heads": 2, "prompts": 4},
    )
    model = build(architecture)
    assert model._prompts.bound == pytest.approx(np.sqrt(6 / (768 + 32)))
    assert abstract_params(architecture)["prompts"].shape == (1, 4, 32)
