import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.models import positions

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
with np.load(GOLDEN / "posemb_references.npz") as file:
    REFERENCES = dict(file)
SOURCE = REFERENCES.pop("source")  # grid 5×4
GRIDS = [(7, 9), (3, 2), (5, 8), (2, 8), (12, 4), (1, 1)]


@pytest.mark.parametrize("name", REFERENCES)
def test_resize_equals_stored_outputs_of_torch_and_timm(name):
    method, grid = name.split("/")
    grid = tuple(int(side) for side in grid.split("x"))
    resized = positions.resize(SOURCE, grid, method)
    np.testing.assert_allclose(resized, REFERENCES[name], atol=2e-6)


def test_stored_outputs_cover_the_methods_of_torch_both_ways():
    assert {name.split("/")[0] for name in REFERENCES} == {
        "bicubic",
        "bicubic_torch",
        "bicubic_offset",
        "bilinear",
    }
    assert set(positions.METHODS) == {
        "bicubic",
        "bicubic_torch",
        "bicubic_offset",
        "bilinear",
        "google",
        "linear",  # of JAX: tests/models/test_flexible.py
    }
    assert len(REFERENCES) == 28


@pytest.mark.parametrize("grid", GRIDS)
def test_bicubic_equals_jaxs_antialiased_resize(grid):
    expected = jax.image.resize(
        SOURCE,
        (1, *grid, 3),
        "cubic",
        antialias=True,
        precision=jax.lax.Precision.HIGHEST,
    )
    resized = positions.resize(SOURCE, grid, "bicubic")
    np.testing.assert_allclose(resized, expected, atol=1e-6)


def test_google_golden_value():
    square = jnp.array([[0.0, 1.0], [2.0, 3.0]])[None, :, :, None]
    resized = positions.resize(square, (3, 3), "google")
    expected = [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]]
    np.testing.assert_allclose(resized[0, :, :, 0], expected, atol=1e-7)


@pytest.mark.parametrize("grid", [*GRIDS, (24, 24)])
def test_google_equals_scipys_linear_zoom(grid):
    zoom = (grid[0] / 5, grid[1] / 4, 1)
    expected = scipy.ndimage.zoom(SOURCE[0], zoom, order=1)
    resized = positions.resize(SOURCE, grid, "google")
    np.testing.assert_allclose(resized[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", positions.METHODS)
def test_equal_grids_leave_every_bit(method):
    np.testing.assert_array_equal(positions.resize(SOURCE, (5, 4), method), SOURCE)


@pytest.mark.parametrize("method", positions.METHODS)
@pytest.mark.parametrize("grid", GRIDS)
def test_resizing_keeps_a_constant_and_is_float32(method, grid):
    constant = jnp.full((1, 5, 4, 2), 0.7, jnp.bfloat16)
    resized = positions.resize(constant, grid, method)
    assert resized.shape == (1, *grid, 2)
    assert resized.dtype == jnp.float32
    np.testing.assert_allclose(resized, float(constant[0, 0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize("method", positions.METHODS)
def test_height_and_width_are_not_confused(method):
    transposed = np.swapaxes(SOURCE, 1, 2)
    resized = positions.resize(SOURCE, (7, 3), method)
    also = positions.resize(transposed, (3, 7), method)
    np.testing.assert_allclose(resized, np.swapaxes(also, 1, 2), atol=1e-6)


def test_methods_differ_from_each_other():
    results = [positions.resize(SOURCE, (3, 7), method) for method in positions.METHODS]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert np.abs(one - other).max() > 1e-2


def test_unknown_method_and_empty_grid_are_refused():
    with pytest.raises(ValueError, match="'lanczos', expected one of bicubic, "):
        positions.resize(SOURCE, (3, 3), "lanczos")
    with pytest.raises(ValueError, match=r"to the grid \(0, 3\)"):
        positions.resize(SOURCE, (0, 3), "bilinear")


@pytest.mark.parametrize(
    ("denominator", "last"),
    [
        (
            "big_vision",
            [0.909297, 0.000200, -0.416147, 1.0, 0.841471, 0.000100, 0.540302, 1.0],
        ),
        (
            "mae",
            [0.909297, 0.019999, -0.416147, 0.9998, 0.841471, 0.01, 0.540302, 0.99995],
        ),
    ],
)
def test_sincos2d_golden_values(denominator, last):
    embedding = positions.sincos2d((2, 3), 8, denominator)
    assert embedding.shape == (1, 2, 3, 8)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding[0, 1, 2], last, atol=6e-7)
    np.testing.assert_array_equal(embedding[0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1])


def test_sincos2d_rejects_invalid_arguments():
    with pytest.raises(ValueError, match="width of 8, 12, 16, …, got 10"):
        positions.sincos2d((2, 3), 10, "mae")
    with pytest.raises(ValueError, match="'moco', expected one of big_vision, mae"):
        positions.sincos2d((2, 3), 8, "moco")
