"""One matrix product, in place: out <- factor * out + a @ b, by the BLAS that SciPy carries.

The plain formula costs a temporary array and a second pass over the result; BLAS adds while it multiplies. All large
products of a training step go through here, because NumPy and SciPy each carry a BLAS with threads of its own, and
two such pools fight over the cores when calls alternate.
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
    from scipy.linalg.blas import (
        get_blas_funcs,
    )  # imported at the first product: `import nnlib` stays fast

    return get_blas_funcs(name, dtype=dtype)


def product(a: Array, b: Array, out: Array | None = None, factor: float = 0.0) -> Array:
    """Write ``factor * out + a @ b`` into ``out`` and return it.

    a is (m, k), b is (k, n), out is (m, n), C-contiguous and of the same dtype (float32, float64 or complex128); a new
    array stands in where ``out`` is None. a and b may be transposed views of C-contiguous arrays; no copy is made.
    """
    if out is None:
        out, factor = np.empty((a.shape[0], b.shape[1]), a.dtype), 0.0
    # BLAS thinks in columns: it is asked for out' = b' a', whose transposes are the arrays as they lie in memory.
    left, flip_left = (b.T, False) if b.flags.c_contiguous else (b, True)
    right, flip_right = (a.T, False) if a.flags.c_contiguous else (a, True)
    _blas("gemm", out.dtype)(
        1.0, left, right, factor, out.T, trans_a=flip_left, trans_b=flip_right, overwrite_c=True
    )
    return out


def sum_of_squares(a: Array) -> Any:
    """Return the sum of the squares of all entries of a C-contiguous array; of a complex one, not of their moduli."""
    v = a.reshape(-1)
    return _blas("dotu" if v.dtype.kind == "c" else "dot", v.dtype)(v, v)


def add_scaled(out: Array, a: Array, factor: float) -> Array:
    """Add ``factor * a`` to ``out`` in place, in one pass and without a temporary array; both C-contiguous."""
    _blas("axpy", out.dtype)(a.reshape(-1), out.reshape(-1), a=factor)
    return out


def add_gram(out: Array, x: Array) -> Array:
    """Add x' x to the lower triangle of ``out`` (n, n) in place, at half the cost of the whole; both C-contiguous."""
    _blas("syrk", out.dtype)(1.0, x.T, beta=1.0, c=out.T, overwrite_c=True)
    return out


class Workspace(dict[str, Array]):
    """Arrays by name that are the same memory at every step, so that a step allocates nothing large."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Return an uninitialised array over the memory called ``name``, which grows to the largest shape asked for."""
        last = self.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        size, memory = math.prod(shape), None if last is None else last.base
        if memory is None or memory.size < size or memory.dtype != dtype:
            memory = np.empty(size, dtype)
        self[name] = memory[:size].reshape(shape)
        return self[name]


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    _blas(
        "gemm", np.dtype(np.float32)
    )  # the controller knows the libraries that are loaded when it is made
    return ThreadpoolController()


@contextmanager
def blas_threads(most: int | None) -> Iterator[None]:
    """Let each BLAS of this process use at most ``most`` threads until the end of the ``with``, then as many as before.

    None changes nothing, and a BLAS that was already limited to fewer, by an environment variable or by threadpoolctl,
    stays so.
    """
    blas = _controller().select(user_api="blas")
    with blas.limit(
        limits=most and min([most, *(library["num_threads"] for library in blas.info())])
    ):
        yield
