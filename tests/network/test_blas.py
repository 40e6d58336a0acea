"""The in-place matrix product: any shape and transposition, every dtype, the memory it is given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnlib.network.blas import add_gram, add_scaled, product, sum_of_squares

EPSILON = {np.float32: 2.0**-23, np.float64: 2.0**-52, np.complex128: 2.0**-52}
sizes = st.integers(1, 7)


def draw(rng: np.random.Generator, rows: int, columns: int, dtype, layout: str) -> np.ndarray:
    """A matrix stored by rows, by columns, or as every other row and column of a larger one."""
    a = rng.standard_normal((2 * rows, 2 * columns)) + 1j * rng.standard_normal(
        (2 * rows, 2 * columns)
    )
    a = (a if dtype is np.complex128 else a.real).astype(dtype)[::2, ::2]
    return {"rows": np.ascontiguousarray, "columns": np.asfortranarray, "strided": lambda m: m}[
        layout
    ](a)


layouts = st.sampled_from(["rows", "columns", "strided"])


@settings(deadline=None)
@given(
    sizes,
    sizes,
    sizes,
    st.sampled_from(list(EPSILON)),
    layouts,
    layouts,
    st.sampled_from([0.0, 1.0, 0.9]),
)
def test_product(m, k, n, dtype, layout_a, layout_b, factor):
    rng = np.random.default_rng([m, k, n])
    a, b = draw(rng, m, k, dtype, layout_a), draw(rng, k, n, dtype, layout_b)
    out = draw(rng, m, n, dtype, "rows")
    kept_a, kept_b, kept_out = a.copy(), b.copy(), out.copy()
    wide = np.complex128 if dtype is np.complex128 else np.float64
    expected = factor * kept_out.astype(wide) + a.astype(wide) @ b.astype(wide)
    size = factor * abs(kept_out) + abs(a) @ abs(b)  # the rounding of a sum grows with its terms
    assert product(a, b, out=out, factor=factor) is out
    assert (abs(out - expected) <= (k + 2) * 2 * EPSILON[dtype] * size).all()
    np.testing.assert_array_equal(a, kept_a)
    np.testing.assert_array_equal(b, kept_b)
    np.testing.assert_array_equal(product(a, b), product(a, b, out=np.empty_like(kept_out)))


def test_what_lay_in_out_does_not_matter_with_factor_zero():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(product(a, b, out=np.full((2, 4), np.nan)), a @ b)


def test_transposed_views():
    a, b = np.arange(6.0).reshape(3, 2), np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(product(a.T, b.T), a.T @ b.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_add_scaled_in_place(dtype):
    out, a = np.ones((2, 3), dtype), np.arange(6, dtype=dtype).reshape(2, 3)
    assert add_scaled(out, a, -0.5) is out and out.dtype == dtype
    np.testing.assert_array_equal(out, [[1, 0.5, 0], [-0.5, -1, -1.5]])
    np.testing.assert_array_equal(a.real, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_sum_of_squares(dtype):
    a = (np.arange(12).reshape(3, 4) + (1j if dtype is np.complex128 else 0)).astype(dtype)
    np.testing.assert_allclose(sum_of_squares(a), (a * a).sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_gram_fills_the_lower_triangle_alone(dtype):
    x, out = np.arange(12, dtype=dtype).reshape(4, 3), np.ones((3, 3), dtype)
    assert add_gram(out, x) is out
    np.testing.assert_array_equal(out, np.where(np.tri(3), 1 + x.T @ x, 1))
