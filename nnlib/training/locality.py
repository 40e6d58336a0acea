"""Measures of a first layer's units: how much each matters, what it reacts to, how local it is.

Weights are (D, H), as in ``model.parameters["W1"]``: one column for each unit. The D inputs are the
pixels of an image of ``shape`` (channels, rows, columns), whitened by ZCA or not at all.
"""

import math
from collections.abc import Sequence

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.network.mlp import MLP
from nnlib.types import Array

SHAPE = (3, 32, 32)  # channels, rows, columns


def influence(model: MLP, images: Array) -> Array:
    """Return how much each first-layer unit moves the second layer: (H,).

    influence_j = std(a_j) · ‖W2[j]‖, where a_j is unit j's activation over ``images`` (N, ...) and
    W2[j] its outgoing weights. A unit whose activation never changes, or that nobody listens to,
    gets 0.
    Raises HyperparameterError for a network without a hidden layer.
    """
    if model.n_layers < 2:
        raise HyperparameterError(f"model: {model} has no hidden layer, so it has no hidden units.")
    activation = model.activations(model.inputs(images))[0]
    outgoing = np.linalg.norm(model.parameters["W2"], axis=1)
    return activation.std(axis=0) * outgoing


def patterns(x: Array, weights: Array) -> Array:
    """Return what each unit reacts to, its pattern Cov(x) w: (H, D), for ``x`` (N, D).

    A filter w says what a unit multiplies the inputs by. Its pattern says how the inputs change, on
    average, when the unit's value changes (Haufe et al. 2014, NeuroImage 87,
    doi 10.1016/j.neuroimage.2013.10.067).
    The two differ because neighboring pixels vary together. It is computed as Cov(x, x w), so no
    D × D matrix is needed.

    For patterns in pixels, give pixels and ``model.preprocessing.filters(W1).T``.
    """
    centered = x - x.mean(axis=0)
    return (centered @ weights).T @ centered / len(x)


def mass(weights: Array, shape: Sequence[int] = SHAPE) -> Array:
    """Return the sum of |w| over the channels, for each unit and pixel: (H, rows, columns)."""
    channels, rows, columns = shape
    return np.abs(weights).T.reshape(-1, channels, rows, columns).sum(axis=1, dtype=np.float64)


def pixels_used(weights: Array, shape: Sequence[int] = SHAPE) -> Array:
    """Return how many pixels each unit has a nonzero weight for, in any channel: (H,)."""
    return np.count_nonzero(mass(weights, shape), axis=(1, 2))


def centers(weights: Array, shape: Sequence[int] = SHAPE) -> Array:
    """Return the center of each unit's |w|, as (row, column): (H, 2); NaN without weights."""
    share = _shares(mass(weights, shape))
    row = share.sum(axis=2) @ np.arange(shape[1])
    column = share.sum(axis=1) @ np.arange(shape[2])
    return np.stack([row, column], axis=1)


def spread(weights: Array, shape: Sequence[int] = SHAPE) -> Array:
    """Return the rms distance of each unit's |w| from its center, in pixels: (H,).

    spread² = Σ_p m_p ‖p - c‖² / Σ_p m_p, with m_p the unit's |w| at pixel p, summed over the
    channels, and c = Σ_p m_p p / Σ_p m_p their center. An even 3 × 3 block has sqrt(4/3) = 1.15, an
    even image of 32 × 32 sqrt(2 · 1023/12) = 13.06, a unit without weights NaN.
    """
    share = _shares(mass(weights, shape))
    variance = np.zeros(len(share))
    for along in (share.sum(axis=2), share.sum(axis=1)):  # the rows, then the columns
        place = np.arange(along.shape[1])
        center = along @ place
        variance += (along * (place - center[:, None]) ** 2).sum(axis=1)
    return np.sqrt(variance)


def _shares(masses: Array) -> Array:
    """Return each unit's mass divided by its sum; NaN where a unit has none."""
    total = masses.sum(axis=(1, 2), keepdims=True)
    return np.divide(masses, total, out=np.full_like(masses, math.nan), where=total > 0)


def shuffled(weights: Array, seed: int = 0, shape: Sequence[int] = SHAPE) -> Array:
    """Return ``weights`` (D, H) with each unit's pixels moved to random places.

    This is the control for ``spread``. A pixel's channels move together, so each unit keeps its
    weights, their number and the number of pixels it uses. Only where they lie is lost.
    """
    rng = np.random.default_rng(seed)
    channels, rows, columns = shape
    by_pixel = weights.reshape(channels, rows * columns, -1)
    order = np.arange(rows * columns)[:, None].repeat(by_pixel.shape[2], axis=1)
    order = rng.permuted(order, axis=0)  # another order for each unit
    return np.take_along_axis(by_pixel, order[None], axis=1).reshape(weights.shape)


def keep_largest(weights: Array, n: int) -> Array:
    """Return a copy of ``weights`` with only the ``n`` largest left: pruning by magnitude.

    Raises HyperparameterError if ``n`` is negative or more than there are.
    """
    if not 0 <= n <= weights.size:
        raise HyperparameterError(f"n: {n} is not allowed; from 0 to {weights.size}.")
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")
    kept = np.zeros_like(weights)
    kept.flat[order[:n]] = weights.flat[order[:n]]
    return kept
