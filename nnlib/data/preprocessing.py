"""From pixels to the network's inputs: a linear map fitted on training images; augmentation."""

import math
import zlib
from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError, one_of, our_spelling
from nnlib.network.blas import Workspace, add_gram
from nnlib.network.inputs import Preprocessing
from nnlib.types import Array

PREPROCESSING = ("scale", "standardize", "whiten", "zca")

_last_fit: dict[tuple[Any, ...], Preprocessing] = {}


def fit_preprocessing(
    kind: str, images: Array, *, components: int = 0, floor: float = 0.1, mirrored: bool = False
) -> Preprocessing:
    """Fit a preprocessing on training ``images`` (N, C, H, W) uint8, or (N, D) uint8.

    - ``scale`` divides by 255.
    - ``standardize`` gives each channel mean 0 and variance 1.
    - ``whiten`` subtracts each pixel's mean, turns to the principal axes of the covariance
      C = V diag(e) V' and divides by sqrt(e + floor mean(e)). This makes the inputs uncorrelated
      (LeCun et al. 1998, Krizhevsky 2009). ``components`` > 0 keeps only the first axes.
    - ``zca`` then turns back: each input stays near its pixel, and looks like an image (Bell and
      Sejnowski 1997). Here ``components`` > 0 gives each of the first axes its own factor and all
      others a common one, 1/sqrt(their mean variance + floor mean(e)). Nothing is dropped, and two
      thin products replace the D × D matrix. ``mirrored`` fits zca on the images (N, C, H, W) and
      their mirror images together: whitening a mirrored image is then the same as mirroring a
      whitened one.

    Statistics come from at most 20,000 images, chosen by their number alone. Whitening takes
    seconds, so the last fit is kept and returned again for images with the same content. Raises
    HyperparameterError for an unknown ``kind``.
    """
    content = zlib.crc32(np.ascontiguousarray(images).data)
    key = (content, images.shape, kind, components, floor, mirrored)
    if key not in _last_fit:
        _last_fit.clear()
        _last_fit[key] = _fit(kind, images, components, floor, mirrored)
    return _last_fit[key]


def _fit(kind: str, images: Array, components: int, floor: float, mirrored: bool) -> Preprocessing:
    kind = our_spelling(kind)
    one_of(PREPROCESSING, "preprocessing", kind)
    n_pixels = math.prod(images.shape[1:])
    if kind == "scale":
        return Preprocessing(np.full(n_pixels, 1 / 255, np.float32), np.zeros(n_pixels, np.float32))

    n = min(len(images), 20_000)
    rows = np.sort(np.random.default_rng(0).choice(len(images), n, replace=False))
    # All images at once, as wider numbers, would need many times their memory.
    pieces = [rows[start : start + 2000] for start in range(0, n, 2000)]
    flat = images.reshape(len(images), n_pixels)
    if kind == "standardize":
        n_channels = images.shape[1] if images.ndim == 4 else 1
        mean, std = _channel_statistics(flat, pieces, n_channels)
        return Preprocessing((1 / std).astype(np.float32), (-mean / std).astype(np.float32))

    mirrored_shape = images.shape[1:] if mirrored and kind == "zca" else None
    mean, covariance = _covariance(flat, pieces, mirrored_shape)
    if kind == "zca" and 0 < components < n_pixels:
        return _thin_zca(mean, covariance, components, floor)
    return _whitening(mean, covariance, components, floor, turn_back=kind == "zca")


def _channel_statistics(flat: Array, pieces: list[Array], n_channels: int) -> tuple[Array, Array]:
    """Return each channel's mean and standard deviation, repeated for its pixels: two (D,)."""
    levels = np.arange(256)
    counts = np.zeros((n_channels, 256))  # how often each channel has each level
    for rows in pieces:
        channels = np.split(flat[rows], n_channels, axis=1)
        for count, channel in zip(counts, channels, strict=True):
            count += np.bincount(channel.ravel(), minlength=256)
    means = counts @ levels / counts.sum(axis=1)
    squares = counts @ levels**2 / counts.sum(axis=1)
    stds = np.sqrt(np.maximum(squares - means**2, 1e-6))  # a constant channel has none
    repeats = flat.shape[1] // n_channels
    return np.repeat(means, repeats), np.repeat(stds, repeats)


def _covariance(
    flat: Array, pieces: list[Array], mirrored_shape: tuple[int, ...] | None
) -> tuple[Array, Array]:
    """Return mean (D,) and covariance (D, D) of pixels from 0 to 1.

    Only the lower triangle of the covariance is filled in. With ``mirrored_shape`` (C, H, W) they
    are those of the images and their mirror images together.
    """
    n_pixels = flat.shape[1]
    n = sum(len(rows) for rows in pieces)
    mirror = np.arange(n_pixels)  # which pixel each pixel becomes in the mirror image
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
    """Return the map onto the principal axes, each divided by its deviation.

    With ``turn_back`` the result is turned back to the pixels.
    """
    mean_variance = np.trace(covariance) / len(covariance)
    variances, axes = _largest(covariance, components or len(covariance))
    deviations = np.sqrt(variances + floor * mean_variance + 1e-8)
    matrix = np.ascontiguousarray(axes / deviations, np.float32)
    if turn_back:
        matrix = np.ascontiguousarray(matrix @ axes.T, np.float32)
    return Preprocessing(np.full(len(mean), 1 / 255, np.float32), -mean, matrix)


def _thin_zca(mean: Array, covariance: Array, components: int, floor: float) -> Preprocessing:
    """Return ZCA in which all axes but the first ``components`` share one factor."""
    n_pixels = len(covariance)
    total = np.trace(covariance)
    variances, axes = _largest(covariance, components)
    rest = (total - variances.sum()) / (n_pixels - components)  # mean variance of the other axes
    own = 1 / np.sqrt(variances + floor * total / n_pixels + 1e-8)
    common = 1 / np.sqrt(max(rest, 0) + floor * total / n_pixels + 1e-8)
    # The common factor goes into the scale; the gains are what the first axes have beyond it.
    return Preprocessing(
        scale=np.full(n_pixels, common / 255, np.float32),
        offset=(-mean * common).astype(np.float32),
        axes=np.ascontiguousarray(axes),
        gains=(own / common - 1).astype(np.float32),
    )


def _largest(covariance: Array, n: int) -> tuple[Array, Array]:
    """Return the ``n`` largest variances (n,), falling, and their axes (D, n) float32.

    Overwrites ``covariance``.
    """
    from scipy.linalg import eigh  # imported here: `import nnlib` stays as fast as `import numpy`

    n_pixels = len(covariance)
    chosen = [n_pixels - min(n, n_pixels), n_pixels - 1]
    # It reads the lower triangle only, and returns rising variances.
    variances, axes = eigh(covariance, subset_by_index=chosen, overwrite_a=True)
    return np.maximum(variances[::-1], 0), axes[:, ::-1].astype(np.float32)


def augment(
    images: Array,
    rng: np.random.Generator,
    *,
    flip: bool = False,
    shift: int = 0,
    workspace: Workspace | None = None,
) -> Array:
    """Move ``images`` (B, C, H, W) by up to ``shift`` pixels each way, and mirror half of them.

    Edge pixels are repeated where a moved image would be empty. The numbers drawn from ``rng`` are
    the same, in the same order, whatever the images show. With a ``workspace``, the result lies in
    it until the next call. Raises HyperparameterError for arrays of other dimensions.
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
    # Slices copy whole rows, which is faster than gathering all pixels by their indices.
    for i, mirror in enumerate(mirrored.tolist()):
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
    # One column at a time: NumPy is slow where rows are as short as an edge is wide.
    for i in range(by):
        padded[..., by:-by, i] = images[..., 0]
        padded[..., by:-by, -1 - i] = images[..., -1]
    padded[..., :by, :] = padded[..., by : by + 1, :]
    padded[..., -by:, :] = padded[..., -by - 1 : -by, :]
    return padded
