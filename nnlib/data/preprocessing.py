"""From uint8 pixels to the network's inputs: a linear map fitted on training images, and random flips and shifts."""

import math
import zlib
from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError, one_of
from nnlib.network.blas import Workspace, add_gram
from nnlib.network.inputs import Preprocessing
from nnlib.types import Array

PREPROCESSING = ("scale", "standardise", "whiten", "zca")

_last_fit: dict[tuple[Any, ...], Preprocessing] = {}


def fit_preprocessing(
    kind: str, images: Array, *, components: int = 0, floor: float = 0.1, mirrored: bool = False
) -> Preprocessing:
    """Fit a preprocessing on training ``images`` (N, C, H, W) uint8, or (N, D) uint8.

    ``scale`` divides by 255. ``standardise`` gives each channel mean 0 and variance 1. ``whiten`` removes each
    pixel's mean, turns to the principal axes of the covariance C = V diag(e) V' and divides by sqrt(e + floor mean(e)),
    which makes the inputs uncorrelated (LeCun et al. 1998, Krizhevsky 2009); ``components`` > 0 keeps the first ones.
    ``zca`` turns them back: each input stays near its pixel, and looks like an image (Bell and Sejnowski 1997). There
    ``components`` > 0 gives each of the first axes its own factor and all further ones a common factor,
    1/sqrt(their mean variance + floor mean(e)): nothing is dropped, and two thin products replace the D × D matrix.
    ``mirrored`` fits zca on the images (N, C, H, W) and their mirror images together: whitening a mirrored image is
    then the same as mirroring a whitened one.
    Statistics come from at most 20,000 images, always the same ones of as many. What was fitted last is kept, for
    images of the same content: whitening takes seconds.
    """
    key = (
        zlib.crc32(np.ascontiguousarray(images).data),
        images.shape,
        kind,
        components,
        floor,
        mirrored,
    )
    if key not in _last_fit:
        _last_fit.clear()
        _last_fit[key] = _fit(kind, images, components, floor, mirrored)
    return _last_fit[key]


def _fit(kind: str, images: Array, components: int, floor: float, mirrored: bool) -> Preprocessing:
    n_pixels = math.prod(images.shape[1:])
    if one_of(PREPROCESSING, "preprocessing", kind) == "scale":
        return Preprocessing(np.full(n_pixels, 1 / 255, np.float32), np.zeros(n_pixels, np.float32))
    rows = np.sort(
        np.random.default_rng(0).choice(len(images), min(len(images), 20_000), replace=False)
    )
    # in pieces: all of the images at once, as wider numbers, would need many times their memory
    pieces = [rows[start : start + 2000] for start in range(0, len(rows), 2000)]
    flat = images.reshape(len(images), n_pixels)
    if kind == "standardise":
        mean, std = _channel_statistics(flat, pieces, images.shape[1] if images.ndim == 4 else 1)
        return Preprocessing((1 / std).astype(np.float32), (-mean / std).astype(np.float32))
    mean, covariance = _covariance(
        flat, pieces, images.shape[1:] if mirrored and kind == "zca" else None
    )
    if kind == "zca" and 0 < components < n_pixels:
        return _thin_zca(mean, covariance, components, floor)
    return _whitening(mean, covariance, components, floor, turn_back=kind == "zca")


def _channel_statistics(flat: Array, pieces: list[Array], n_channels: int) -> tuple[Array, Array]:
    """Return mean and standard deviation of each channel, repeated for each of its pixels: two arrays (D,)."""
    counts, levels = np.zeros((n_channels, 256)), np.arange(256)
    for rows in pieces:
        for count, channel in zip(counts, np.split(flat[rows], n_channels, axis=1), strict=True):
            count += np.bincount(channel.ravel(), minlength=256)
    means, squares = (counts @ (levels**power) / counts.sum(axis=1) for power in (1, 2))
    repeats = flat.shape[1] // n_channels
    return np.repeat(means, repeats), np.repeat(
        np.sqrt(np.maximum(squares - means**2, 1e-6)), repeats
    )


def _covariance(
    flat: Array, pieces: list[Array], mirrored_shape: tuple[int, ...] | None
) -> tuple[Array, Array]:
    """Return mean (D,) and covariance (D, D) of pixels from 0 to 1; of the latter only the lower triangle is right.

    With ``mirrored_shape`` (C, H, W) they are those of the images and their mirror images together.
    """
    n_pixels, n = flat.shape[1], sum(map(len, pieces))
    mirror = np.arange(n_pixels)
    if mirrored_shape:
        mirror = mirror.reshape(mirrored_shape)[..., ::-1].ravel()
    mean = sum(flat[rows].sum(axis=0, dtype=np.float64) for rows in pieces) / n
    mean = ((mean + mean[mirror]) / 2).astype(np.float32)
    covariance = np.zeros((n_pixels, n_pixels), np.float32)
    for rows in pieces:
        add_gram(covariance, (flat[rows] - mean) / 255)
    covariance /= n
    if mirrored_shape:
        covariance = np.tril(covariance) + np.tril(covariance, -1).T
        covariance = (covariance + covariance[np.ix_(mirror, mirror)]) / 2
    return mean / 255, covariance


def _whitening(
    mean: Array, covariance: Array, components: int, floor: float, turn_back: bool
) -> Preprocessing:
    """Return the map onto the principal axes, each divided by its deviation; with ``turn_back`` back to the pixels."""
    mean_variance = np.trace(covariance) / len(covariance)
    variances, axes = _largest(covariance, components or len(covariance))
    matrix = np.ascontiguousarray(
        axes / np.sqrt(variances + floor * mean_variance + 1e-8), np.float32
    )
    if turn_back:
        matrix = np.ascontiguousarray(matrix @ axes.T, np.float32)
    return Preprocessing(np.full(len(mean), 1 / 255, np.float32), -mean, matrix)


def _thin_zca(mean: Array, covariance: Array, components: int, floor: float) -> Preprocessing:
    """Return ZCA in which all axes but the first ``components`` share one factor."""
    n_pixels, total = len(covariance), np.trace(covariance)
    variances, axes = _largest(covariance, components)
    rest = (total - variances.sum()) / (n_pixels - components)  # mean variance of the further axes
    own = 1 / np.sqrt(variances + floor * total / n_pixels + 1e-8)
    common = 1 / np.sqrt(max(rest, 0) + floor * total / n_pixels + 1e-8)
    scale, offset = np.full(n_pixels, common / 255, np.float32), (-mean * common).astype(np.float32)
    return Preprocessing(
        scale, offset, axes=np.ascontiguousarray(axes), gains=(own / common - 1).astype(np.float32)
    )


def _largest(covariance: Array, n: int) -> tuple[Array, Array]:
    """Return the ``n`` largest variances (n,), falling, and their axes (D, n) float32; overwrites ``covariance``."""
    from scipy.linalg import eigh  # imported here: `import nnlib` stays as fast as `import numpy`

    n_pixels = len(covariance)
    chosen = [n_pixels - min(n, n_pixels), n_pixels - 1]
    variances, axes = eigh(
        covariance, subset_by_index=chosen, overwrite_a=True
    )  # reads the lower triangle
    return np.maximum(variances[::-1], 0), axes[:, ::-1].astype(np.float32)


def augment(
    images: Array,
    rng: np.random.Generator,
    *,
    flip: bool = False,
    shift: int = 0,
    workspace: Workspace | None = None,
) -> Array:
    """Return ``images`` (B, C, H, W), all moved by up to ``shift`` pixels each way and then half of them mirrored.

    The edge pixels are repeated where a moved image would be empty. Draws the same numbers from ``rng`` in the same
    order whatever the images are. With a ``workspace`` the result lies in it, until the next call. Raises
    HyperparameterError for arrays of other dimensions.
    """
    if images.ndim != 4:
        raise HyperparameterError(
            f"flip, shift: they need images (B, C, H, W), not {images.shape}; images[:, None]?"
        )
    workspace = Workspace() if workspace is None else workspace
    n, _, height, width = images.shape
    mirrored = rng.random(n) < (0.5 if flip else 0)
    top, left = rng.integers(0, 2 * shift + 1, (2, n)).tolist()
    padded = _padded(images, shift, workspace)
    out = workspace.array("augmented", images.shape, images.dtype)
    for i, mirror in enumerate(
        mirrored.tolist()
    ):  # slices copy whole rows: faster than one gather of all pixels
        window = padded[i, :, top[i] : top[i] + height, left[i] : left[i] + width]
        out[i] = window[..., ::-1] if mirror else window
    return out


def _padded(images: Array, by: int, workspace: Workspace) -> Array:
    """Return images with their edge pixels repeated ``by`` times on every side."""
    if not by:
        return images
    n, channels, height, width = images.shape
    padded = workspace.array("padded", (n, channels, height + 2 * by, width + 2 * by), images.dtype)
    padded[..., by:-by, by:-by] = images
    for i in range(
        by
    ):  # a column at a time: NumPy is slow where rows are as short as an edge is wide
        padded[..., by:-by, i], padded[..., by:-by, -1 - i] = images[..., 0], images[..., -1]
    padded[..., :by, :], padded[..., -by:, :] = (
        padded[..., by : by + 1, :],
        padded[..., -by - 1 : -by, :],
    )
    return padded
