"""Clipping of groups, and adaptive clipping against timm and NumPy."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.units import clip_adaptively, output_norms
from vit_jax.sharding import make_mesh, shardings

FILE = pathlib.Path(__file__).parents[1] / "golden" / "tuning.npz"
# Array of the file → our path, and the order of its axes here.
PLACES = {
    "linear": (("blocks_00", "mlp", "fc1", "kernel"), (1, 0)),
    "zeros": (("blocks_00", "mlp", "fc2", "kernel"), (1, 0)),
    "conv": (("patch_embed", "kernel"), (2, 3, 1, 0)),
    "bias": (("blocks_00", "mlp", "fc1", "bias"), (0,)),
    "token": (("cls",), (0, 1, 2)),
    "positions": (("pos_embed",), (0, 1, 2)),
}


def nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = leaf
    return tree


def golden(kind):
    with np.load(FILE) as file:
        return nested(
            {
                path: jnp.asarray(file[f"clipped/{name}/{kind}"].transpose(axes))
                for name, (path, axes) in PLACES.items()
            }
        ), float(file["factor"])


def test_adaptive_clipping_is_timms():
    (weights, factor), (grads, _), (expected, _) = map(
        golden, ("weights", "gradient", "result")
    )
    found, _ = clip_adaptively(factor).update(grads, (), weights)
    changed = [
        bool(np.any(x != y))
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(grads), strict=True)
    ]
    assert any(changed) and not all(changed)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
    )


def rows(values):
    config = default_config()
    config.update({"total_steps": 9, "optimizer": "sgd", "momentum": 0.0} | values)
    return config


def draw(seed, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = {
        ("blocks_00", "attention", "query", "bias"): (4,),
        ("blocks_00", "attention", "key", "bias"): (4,),
        ("blocks_00", "mlp", "fc1", "kernel"): (4, 6),
        ("head", "kernel"): (6, 3),
        ("head_distillation", "bias"): (3,),
        ("pos_embed",): (1, 2, 2, 4),
        ("pos_embed_prefix",): (1, 1, 4),
    }
    leaves = {
        path: jnp.asarray((size * rng.standard_normal(shape)).astype(np.float32))
        for path, shape in shapes.items()
    }
    return nested(leaves)


def clipped(grads, params, **values):
    """Returns the gradients that are left, by plain descent without momentum."""
    optimizer = make_optimizer(rows(values), params)
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_adaptive_clipping_joins_what_published_code_joins_and_spares_the_head():
    params, grads = draw(0), draw(1, 30.0)
    found = clipped(grads, params, grad_clip_norm=0.0, grad_clip_adaptive=0.1)
    for name in ("head", "head_distillation"):
        jax.tree.map(np.testing.assert_array_equal, found[name], grads[name])

    def norm(*arrays):
        return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays))

    # The biases of query and key, and both kinds of positions, have a norm together.
    for group in (
        [("blocks_00", "attention", name, "bias") for name in ("query", "key")],
        [("pos_embed",), ("pos_embed_prefix",)],
    ):
        p, g, f = (
            [_at(tree, path) for path in group] for tree in (params, grads, found)
        )
        scale = 0.1 * norm(*p) / norm(*g)
        assert scale < 1
        for before, after in zip(g, f, strict=True):
            np.testing.assert_allclose(after, before * scale, rtol=1e-6)
    kernel = ("blocks_00", "mlp", "fc1", "kernel")
    p, g, f = (np.float64(_at(tree, kernel)) for tree in (params, grads, found))
    for output in range(g.shape[1]):
        scale = 0.1 * norm(p[:, output]) / norm(g[:, output])
        np.testing.assert_allclose(f[:, output], g[:, output] * scale, rtol=1e-5)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_norms_are_by_output_for_kernels_alone():
    tree = {"cls": jnp.ones((1, 1, 4)), "conv1": {"kernel": jnp.ones((2, 2, 3, 5))}}
    tree |= {"adapter": jnp.ones((3, 2)), "scale": jnp.ones(9)}
    found = output_norms(tree)
    assert found["cls"] == 2.0 and found["scale"] == 3.0
    np.testing.assert_allclose(found["conv1"]["kernel"], np.full((1, 1, 1, 5), 12**0.5))
    np.testing.assert_allclose(found["adapter"], np.full((1, 2), 3**0.5))


def test_a_row_for_everything_is_the_global_clipping():
    params, grads = draw(0), draw(1)
    text = "head.*: lr=2; .*: clip=0.7"
    for size in (1.0, 0.01):
        grads = jax.tree.map(lambda x: size * x, draw(1))  # noqa: B023
        some = {name: x for name, x in grads.items() if "head" not in name}
        norm = optax.tree.norm(some)
        expected = jax.tree.map(lambda x: x * min(1, 0.7 / norm), some)  # noqa: B023
        found = clipped(grads, params, grad_clip_norm=0.0, groups=text)
        assert (float(norm) > 0.7) == (size == 1.0)
        for name in params:
            if name in some:
                jax.tree.map(
                    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
                    *(found[name], expected[name]),
                )
            else:
                jax.tree.map(np.testing.assert_array_equal, found[name], grads[name])


def test_limits_come_in_order_and_the_global_one_counts_what_is_left():
    params, grads = draw(0), draw(1, 10.0)
    text = "head/.*: clip=3; pos_embed.*: clip=4"
    found = clipped(grads, params, grad_clip_norm=0.0, groups=text)
    left = {name: float(optax.tree.norm(found[name])) for name in ("head", "pos_embed")}
    positions = [found["pos_embed"], found["pos_embed_prefix"]]
    assert left["head"] == pytest.approx(3.0)
    assert float(optax.tree.norm(positions)) == pytest.approx(4.0)
    jax.tree.map(np.testing.assert_array_equal, found["blocks_00"], grads["blocks_00"])
    whole = clipped(grads, params, grad_clip_norm=1.0, groups=text)
    norm = optax.tree.norm(found)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y / norm, rtol=1e-5), whole, found
    )
    # Adaptive clipping, too, is before the global one.
    alone = clipped(grads, params, grad_clip_norm=0.0, grad_clip_adaptive=0.1)
    both = clipped(grads, params, grad_clip_norm=1.0, grad_clip_adaptive=0.1)
    norm = optax.tree.norm(alone)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y / norm, rtol=1e-5), both, alone
    )


def test_clipping_over_eight_devices_is_that_of_one():
    params, grads, mesh = draw(0), draw(1, 10.0), make_mesh(2, 2, 2)
    optimizer = make_optimizer(
        rows({"grad_clip_adaptive": 0.1, "groups": "blocks.*: clip=2"}), params
    )
    state = optimizer.init(params)
    assert not jax.tree.leaves(state[:3])  # nothing is saved for it
    update = lambda g, p: optimizer.update(g, state, p)[0]  # noqa: E731
    spread = jax.device_put((grads, params), shardings((grads, params), mesh))
    for a, b in zip(
        jax.tree.leaves(jax.jit(update)(*spread)),
        jax.tree.leaves(update(grads, params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": "head/.*: clip=0"}, "clip=0: expected a number above 0"),
        ({"groups": "head/.*: clip=x"}, "clip=x: expected a number above 0"),
        ({"groups": "head/.*: frozen, clip=1"}, "frozen has no gradient to clip"),
        ({"groups": ".*: clip=2"}, "clip=2.0 is for all parameters that are trained"),
        (
            {"train_only": "head", "groups": "head.*: clip=2"},
            "so is grad_clip_norm=1.0; set grad_clip_norm to 0, or leave clip out",
        ),
        (
            {"train_only": "head.*", "grad_clip_adaptive": 0.01},
            "grad_clip_adaptive=0.01 has no effect: it leaves out the last layer of",
        ),
    ],
)
def test_clipping_without_sense_is_refused(values, message):
    with pytest.raises(UserError) as error:
        make_optimizer(rows(values), draw(0))
    assert message in str(error.value)
