"""What stands before the first layer: a fixed linear map from pixels to the network's inputs."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnlib.errors import DataError, HyperparameterError
from nnlib.network.blas import Workspace, product
from nnlib.types import Array

ARRAYS = ("scale", "offset", "matrix", "axes", "gains")
ROWS = (
    16  # images that are scaled together: few enough to stay in the cache, enough for NumPy's loops
)


@dataclass(frozen=True)
class Preprocessing:
    """The linear map x = (pixels * scale + offset) @ M, where pixels run from 0 to 255.

    ``scale`` and ``offset`` are (D,) float32. M is one of three: nothing (the identity); ``matrix`` (D, P) float32; or
    I + ``axes`` diag(``gains``) ``axes``', with orthonormal ``axes`` (D, k) and ``gains`` (k,), a D × D matrix that
    costs two thin products and is never written out.
    """

    scale: Array
    offset: Array
    matrix: Array | None = None
    axes: Array | None = None
    gains: Array | None = None

    @property
    def n_inputs(self) -> int:
        """How many numbers the network sees of one image."""
        return len(self.scale) if self.matrix is None else self.matrix.shape[1]

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays that say which map it is, by name."""
        return {name: a for name, a in vars(self).items() if name in ARRAYS and a is not None}

    def transform(self, images: Array, workspace: Workspace | None = None) -> Array:
        """Return the network's inputs (B, n_inputs) float32 for ``images`` (B, ...) uint8.

        With a ``workspace`` they lie in it, until the next call.
        """
        workspace = Workspace() if workspace is None else workspace
        flat = images.reshape(len(images), -1)
        if flat.shape[1] != len(self.scale):
            needed = f"but the network was made for {len(self.scale)}"
            raise HyperparameterError(f"images: {flat.shape[1]} numbers an image, {needed}.")
        x = workspace.array("pixels", flat.shape)
        for start in range(0, len(x), ROWS):
            part, (scale, offset) = x[start : start + ROWS], self._rows
            part[...] = flat[start : start + ROWS]  # faster than a product of integers and floats
            part *= scale[: len(part)]
            part += offset[: len(part)]
        if self.axes is not None:
            along = product(
                x, self.axes, out=workspace.array("along", (len(x), self.axes.shape[1]))
            )
            along *= self.gains
            return product(along, self.axes.T, out=x, factor=1.0)  # x + (x @ axes * gains) @ axes'
        if self.matrix is None:
            return x
        return product(x, self.matrix, out=workspace.array("inputs", (len(x), self.n_inputs)))

    @cached_property
    def _rows(self) -> Array:
        """Scale and offset for ROWS images, (2, ROWS, D): two equal arrays multiply twice as fast as rows by a row."""
        return np.stack([self.scale, self.offset])[:, None].repeat(ROWS, axis=1)

    def fold(self, weights: Array, bias: Array) -> tuple[Array, Array]:
        """Return first-layer weights (D, H) and bias (H,) that take raw pixels where the given ones take inputs."""
        W = weights
        if self.matrix is not None:
            W = self.matrix @ weights
        elif self.axes is not None and self.gains is not None:
            W = weights + self.axes @ (self.gains[:, None] * (self.axes.T @ weights))
        return self.scale[:, None] * W, bias + self.offset @ W

    def filters(self, weights: Array) -> Array:
        """Return what each first-layer unit of ``weights`` (n_inputs, H) weighs each pixel by: (H, D)."""
        return self.fold(weights, np.zeros(weights.shape[1], weights.dtype))[0].T


def refuse_channels_last(images: Array) -> None:
    """Raise DataError for images (N, H, W, C): the network would take columns for rows and colours for columns."""
    if images.ndim == 4 and images.shape[3] <= 4 < min(images.shape[1:3]):
        raise DataError(
            f"images {images.shape} have their channels last: give images.transpose(0, 3, 1, 2)."
        )
