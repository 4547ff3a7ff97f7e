"""Distances between outputs: values and gradients of the published definitions."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives import distances
from vit_jax.objectives.distances import DISTANCES, same_answers, same_class

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "distillation.npz")
CASES = {
    **{
        f"kl_{t}": functools.partial(distances.softmax_kl, temperature=float(t))
        for t in (1, 2, 3)
    },
    "hard": distances.softmax_hard,
    "hard_smoothed": functools.partial(distances.softmax_hard, smoothing=0.1),
    "l2": distances.l2,
    "euclidean": distances.euclidean,
    "logsoftmax_euclidean": distances.logsoftmax_euclidean,
    "sigmoid_kl_2": functools.partial(distances.sigmoid_kl, temperature=2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_pytorch(name):
    student, teacher = (
        jnp.asarray(GOLDEN[f"logits/{x}"]) for x in ("student", "teacher")
    )
    values, gradients = (
        CASES[name](student, teacher),
        jax.grad(lambda x: jnp.sum(CASES[name](x, teacher)))(student),
    )
    np.testing.assert_allclose(values, GOLDEN[f"{name}/values"], atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(
        gradients, GOLDEN[f"{name}/gradients"], atol=2e-6, rtol=2e-6
    )


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.379738), (2.0, 0.488732), (3.0, 0.495841)]
)
def test_divergences_of_three_classes_are_the_known_numbers(temperature, expected):
    student, teacher = jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[2.0, 0.0, -1.0]])
    [found] = distances.softmax_kl(student, teacher, temperature=temperature)
    assert found == pytest.approx(expected, abs=1e-6)
    # DeiT divides by the number of classes too.
    per_class = {1.0: 0.126579, 2.0: 0.162911, 3.0: 0.165280}
    assert found / 3 == pytest.approx(per_class[temperature], abs=1e-6)


@pytest.mark.parametrize(
    "compute", [compute for row in DISTANCES.values() for compute in row.values()]
)
def test_distances_of_extreme_outputs_are_finite(compute):
    student = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    teacher = jnp.array([[-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
    values, gradients = (
        compute(student, teacher),
        jax.grad(lambda x: jnp.sum(compute(x, teacher)))(student),
    )
    assert np.isfinite(values).all() and np.isfinite(gradients).all()
    assert values[0] > values[1] >= 0


def test_yes_or_no_for_one_class_is_a_softmax_of_two():
    student, teacher = jnp.array([[0.7]]), jnp.array([[-1.2]])
    pairs = (jnp.concatenate([x, 0 * x], axis=-1) for x in (student, teacher))
    found = distances.sigmoid_kl(student, teacher, temperature=3.0)
    expected = distances.softmax_kl(*pairs, temperature=3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_agreement_is_of_the_largest_or_of_every_answer():
    student = jnp.array([[1.0, 2.0, -3.0], [1.0, 0.0, -1.0]])
    teacher = jnp.array([[0.5, 0.7, 9.0], [3.0, -2.0, -2.0]])
    assert same_class(student, teacher).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(same_answers(student, teacher), [2 / 3, 1.0])
