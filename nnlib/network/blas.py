"""Products and sums in place, computed by the BLAS that SciPy carries.

``product`` is the heart: out <- factor * out + a @ b. In plain NumPy this needs a temporary array
and a second pass over the result; BLAS adds while it multiplies. All large products of a training
step go through here, for another reason too: NumPy and SciPy each carry a BLAS with its own
threads, and two such pools fight over the cores if calls alternate.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from nnlib.types import Array


@cache
def _blas(name: str, dtype: np.dtype[Any]) -> Callable[..., Array]:
    """Return the BLAS function ``name`` for arrays of ``dtype``."""
    # imported at the first product, so that `import nnlib` stays fast
    from scipy.linalg.blas import get_blas_funcs

    return get_blas_funcs(name, dtype=dtype)


def product(a: Array, b: Array, out: Array | None = None, factor: float = 0.0) -> Array:
    """Write ``factor * out + a @ b`` into ``out`` and return it. Without ``out``: return a @ b.

    a is (m, k), b is (k, n) and out is (m, n), C-contiguous, all of one dtype (float32, float64 or
    complex128). a and b may be transposed views of C-contiguous arrays; they are not copied. With
    factor 0 it doesn't matter what ``out`` holds, even if it is NaN.
    """
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), a.dtype)
        factor = 0.0
    if not len(a):
        return out  # BLAS refuses empty arrays
    # BLAS expects arrays that are stored column by column; ours are stored row by row, and look to
    # BLAS like their transposes. So we ask for out' = b' a', where ' is the transpose.
    left = b.T if b.flags.c_contiguous else b
    right = a.T if a.flags.c_contiguous else a
    gemm = _blas("gemm", out.dtype)
    gemm(
        1.0,
        left,
        right,
        beta=factor,
        c=out.T,
        trans_a=not b.flags.c_contiguous,
        trans_b=not a.flags.c_contiguous,
        overwrite_c=True,
    )
    return out


def sum_of_squares(a: Array) -> Any:
    """Return the sum of the squares of all entries of a C-contiguous array.

    For complex entries z it adds z², not |z|², so that the complex step can pass through.
    """
    vector = a.reshape(-1)
    dot = _blas("dotu" if a.dtype.kind == "c" else "dot", a.dtype)
    return dot(vector, vector)


def add_scaled(out: Array, a: Array, factor: float) -> Array:
    """Add ``factor * a`` to ``out`` in one pass, without a temporary array; both C-contiguous."""
    axpy = _blas("axpy", out.dtype)
    axpy(a.reshape(-1), out.reshape(-1), a=factor)
    return out


def add_gram(out: Array, x: Array) -> Array:
    """Add the lower triangle of x' x to that of ``out`` (n, n), in place; both C-contiguous.

    The matrix is symmetric, and one triangle costs half of the whole.
    """
    syrk = _blas("syrk", out.dtype)
    syrk(1.0, x.T, beta=1.0, c=out.T, overwrite_c=True)
    return out


class Workspace(dict[str, Array]):
    """Arrays by name that reuse the same memory at every step: a step allocates nothing large."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Return an uninitialized array of this shape over the memory called ``name``.

        The memory grows to the largest shape that was ever asked for.
        """
        last = self.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        size = math.prod(shape)
        memory = None if last is None else last.base
        if memory is None or memory.size < size or memory.dtype != dtype:
            memory = np.empty(size, dtype)
        self[name] = memory[:size].reshape(shape)
        return self[name]


@cache
def _controller() -> Any:
    """Return the object that sees every BLAS of this process."""
    from threadpoolctl import ThreadpoolController

    _blas("gemm", np.dtype(np.float32))  # the controller only knows libraries that are loaded
    return ThreadpoolController()


@contextmanager
def blas_threads(most: int | None) -> Iterator[None]:
    """Let each BLAS of this process use at most ``most`` threads until the end of the ``with``.

    None changes nothing. A BLAS that is already limited to fewer threads, by an environment
    variable or by threadpoolctl, keeps its limit.
    """
    if most is None:
        yield
        return
    blas = _controller().select(user_api="blas")
    present = [library["num_threads"] for library in blas.info()]
    with blas.limit(limits=min([most, *present])):
        yield
