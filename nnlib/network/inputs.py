"""What comes before the first layer: arrays from users, and a linear map from pixels to inputs."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nnlib.errors import DataError, HyperparameterError
from nnlib.network.blas import Workspace, product, sum_of_squares
from nnlib.types import Array, Arrays

# Images that are scaled together: few enough to stay in the cache, enough for NumPy's loops.
ROWS = 16


@dataclass(frozen=True)
class Preprocessing:
    """The linear map x = (pixels * scale + offset) @ M, where pixels run from 0 to 255.

    ``scale`` and ``offset`` are (D,) float32. M is one of three:

    - the identity, if nothing else is given;
    - ``matrix`` (D, P) float32;
    - I + axes @ diag(gains) @ axes', with orthonormal ``axes`` (D, k) and ``gains`` (k,). This is a
      (D, D) matrix that changes only k directions. It costs two thin products and is never built.
    """

    scale: Array
    offset: Array
    matrix: Array | None = None
    axes: Array | None = None
    gains: Array | None = None

    @property
    def n_inputs(self) -> int:
        """How many numbers the network sees of each image."""
        if self.matrix is None:
            return len(self.scale)
        return self.matrix.shape[1]

    @property
    def arrays(self) -> Arrays:
        """The arrays that define the map, by name."""
        everything = {
            "scale": self.scale,
            "offset": self.offset,
            "matrix": self.matrix,
            "axes": self.axes,
            "gains": self.gains,
        }
        return {name: array for name, array in everything.items() if array is not None}

    def transform(self, images: Array, workspace: Workspace | None = None) -> Array:
        """Return the network's inputs (B, n_inputs) float32 for ``images`` (B, ...) uint8.

        With a ``workspace`` they lie in its memory, until the next call.
        """
        if workspace is None:
            workspace = Workspace()
        pixels = flatten(images)
        if pixels.shape[1] != len(self.scale):
            raise HyperparameterError(
                f"images: {pixels.shape[1]} numbers an image, but the network was made for "
                f"{len(self.scale)}."
            )
        x = workspace.array("pixels", pixels.shape)
        self._scale_and_shift(pixels, x)
        if self.matrix is not None:
            out = workspace.array("inputs", (len(x), self.n_inputs))
            return product(x, self.matrix, out=out)
        if self.axes is not None and self.gains is not None:
            # x + (x @ axes * gains) @ axes': project, stretch, add
            along = workspace.array("along", (len(x), len(self.gains)))
            product(x, self.axes, out=along)
            along *= self.gains
            return product(along, self.axes.T, out=x, factor=1.0)
        return x

    def _scale_and_shift(self, pixels: Array, out: Array) -> None:
        """Write pixels * scale + offset into ``out``, a few rows at a time."""
        scale, offset = self._repeated
        for start in range(0, len(out), ROWS):
            part = out[start : start + ROWS]
            part[...] = pixels[start : start + ROWS]  # convert first: mixed products are slower
            part *= scale[: len(part)]
            part += offset[: len(part)]

    @cached_property
    def _repeated(self) -> tuple[Array, Array]:
        """Scale and offset, each repeated in ROWS rows (ROWS, D).

        Two arrays of the same shape multiply twice as fast as many rows by a single one.
        """
        return np.tile(self.scale, (ROWS, 1)), np.tile(self.offset, (ROWS, 1))

    def fold(self, weights: Array, bias: Array) -> tuple[Array, Array]:
        """Return first-layer weights (D, H) and bias (H,) for raw pixels: the map multiplied in.

        ``weights`` (n_inputs, H) and ``bias`` (H,) are those for the inputs of ``transform``.
        """
        # (pixels * scale + offset) @ M @ W = pixels @ (scale * M W) + offset @ M W
        MW = weights
        if self.matrix is not None:
            MW = self.matrix @ weights
        elif self.axes is not None and self.gains is not None:
            MW = weights + self.axes @ (self.gains[:, None] * (self.axes.T @ weights))
        return self.scale[:, None] * MW, bias + self.offset @ MW

    def filters(self, weights: Array) -> Array:
        """Return how each first-layer unit of ``weights`` (n_inputs, H) weighs pixels: (H, D)."""
        no_bias = np.zeros(weights.shape[1], weights.dtype)
        pixel_weights, _ = self.fold(weights, no_bias)
        return pixel_weights.T


def flatten(images: Array) -> Array:
    """Return ``images`` (N, ...) as rows (N, D). Unlike reshape(N, -1), this works for N = 0."""
    return images.reshape(len(images), math.prod(images.shape[1:]))


# Arrays that users give: lists, tensors and tables become arrays here, once, where they enter.


def as_numbers(values: Any, name: str, dtype: Any = None) -> Array:
    """Return a list, tensor, DataFrame or array of numbers as an array, without a copy if possible.

    Raises HyperparameterError, which calls the values ``name``, if they are anything else.
    """
    try:
        array = np.asarray(values, dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: PyTorch's tensors
        raise HyperparameterError(
            f"{name}: this cannot be read as an array of numbers ({error}). Give a NumPy array, or "
            "a list whose rows have equal lengths."
        ) from None
    if array.dtype.kind not in "biufc":  # bool, int, unsigned, float, complex
        raise HyperparameterError(
            f"{name}: {array.dtype} values are not numbers; convert them with np.asarray({name}, "
            "float), or int."
        )
    return array


def as_images(images: Any) -> Array:
    """Return ``images`` (N, ...) as an array of uint8 pixels or of floats, the network's inputs.

    Lists, tensors and DataFrames are converted. Raises HyperparameterError for other numbers and
    for a single image, DataError for images with their channels last.
    """
    array = as_numbers(images, "images")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise HyperparameterError(
            f"images: {array.dtype} is not allowed; uint8 pixels, or floats as inputs. Use "
            "np.asarray(images, np.uint8) if they are pixels, np.asarray(images, float) if not."
        )
    if array.ndim < 2:
        raise HyperparameterError(
            f"images: their shape is {array.shape}, but (N, ...) is needed; a single image is "
            "np.asarray(image)[np.newaxis]."
        )
    refuse_channels_last(array)
    return array


def as_labels(labels: Any, n: int) -> Array:
    """Return ``labels`` of ``n`` images as (n,) int64.

    Lists, tensors and columns (n, 1) are converted. Raises HyperparameterError for anything but
    whole numbers, and for another number of them.
    """
    array = as_numbers(labels, "labels")
    if array.shape == (n, 1):
        array = array[:, 0]
    if array.shape != (n,) or array.dtype.kind not in "iu":
        remedy = "np.asarray(labels).astype(int) makes whole numbers"
        if array.ndim == 2:
            remedy = "np.argmax(labels, axis=1) turns one-hot rows into labels"
        elif array.shape != (n,):
            remedy = "give one label for each image"
        raise HyperparameterError(
            f"labels: {array.dtype} of shape {array.shape}, but whole numbers of shape ({n},) are "
            f"needed; {remedy}."
        )
    return array.astype(np.int64, copy=False)


def as_inputs(x: Any, width: int, dtype: np.dtype[Any]) -> Array:
    """Return ``x`` as the inputs (B, ``width``) of a network of this ``dtype``.

    Lists and DataFrames are converted to ``dtype``. Arrays and tensors have a dtype of their own,
    and must have the right one: a silent copy at every step would be slow. Raises
    HyperparameterError for another dtype or shape.
    """
    x = as_numbers(x, "x", None if hasattr(x, "dtype") else dtype)
    if x.ndim != 2 or x.shape[1] != width or not len(x):
        raise HyperparameterError(
            f"x: its shape is {x.shape}, but (B, {width}) with B of at least 1 is needed; images "
            "go through model.inputs(images) first."
        )
    if x.dtype != dtype:
        raise HyperparameterError(
            f"x: it is {x.dtype}, but the network is {dtype}; use np.asarray(x, model.dtype), or "
            "model.inputs(images) for uint8 images, or MLP(..., dtype=...)."
        )
    return x


def refuse_infinite(x: Array, z: Array) -> None:
    """Raise HyperparameterError if ``x`` holds NaN or infinity. ``z`` is x @ W + b.

    Looking at all of x at every step would be slow. But z is smaller, and has NaN or infinity
    wherever x has, so we look at z first. Its squares can overflow for other reasons, such as huge
    weights; therefore x has the last word.
    """
    if np.isfinite(sum_of_squares(z)):
        return
    if not np.isfinite(x).all():
        raise HyperparameterError(
            "x: it holds NaN or infinity; look for a division by zero before it."
        )


def refuse_channels_last(images: Array) -> None:
    """Raise DataError for images (N, H, W, C): the network would mix up colors and positions."""
    if images.ndim != 4:
        return
    height, width, channels = images.shape[1:]
    if channels <= 4 < min(height, width):
        raise DataError(
            f"images {images.shape} have their channels last: give images.transpose(0, 3, 1, 2)."
        )
