"""Figures of a network's weights: histograms, heat maps, and the first layer's as images."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nnlib.network.mlp import MLP
from nnlib.plots.drawing import BLUE, subplots
from nnlib.plots.images import image_grid
from nnlib.types import Array

CIFAR_SHAPE = (3, 32, 32)


def weight_histograms(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Draw histograms of every layer's weights and biases, initial and trained, in the same bins.

    ``before`` and ``after`` hold arrays by name, as ``model.parameters`` does.
    """
    rows = math.ceil(len(after) / 2)
    figure, axes = subplots(rows, 2, height=2.4 * rows, xlabel="value", ylabel="count")
    for ax, name in zip(axes, after, strict=False):
        ax.set_yscale("log")
        initial = before[name].ravel()
        trained = after[name].ravel()
        low, high = np.quantile(np.concatenate([initial, trained]), [0.0005, 0.9995])
        bins = np.linspace(low, high + 1e-9, 81)  # not empty even if all values are the same
        ax.hist(initial, bins, color="0.75", histtype="stepfilled", label="initial")
        ax.hist(trained, bins, color=BLUE, histtype="step", lw=1.5, label="trained")
        ax.set_title(f"{name}: σ from {initial.std():.3g} to {trained.std():.3g}")
    axes[0].legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def weight_heatmaps(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Draw weights and biases: initial, trained, and the difference.

    Each row has one symmetric color scale. Large matrices are drawn as means of blocks.
    """
    heights = [1.2 * value.ndim for value in after.values()]
    figure, axes = subplots(len(after), 3, height=sum(heights))
    axes[0].get_gridspec().set_height_ratios(heights)
    for row, name in zip(axes.reshape(-1, 3), after, strict=True):
        is_matrix = after[name].ndim == 2
        fan_in, n_units = _as_matrix(after[name]).shape
        initial = _block_means(_as_matrix(before[name]))
        trained = _block_means(_as_matrix(after[name]))
        maps = {"initial": initial, "trained": trained, "difference": trained - initial}
        # A few outliers must not turn everything else pale.
        limit = max(np.quantile(np.abs([*maps.values()]), 0.995), 1e-12)
        for ax, (when, values) in zip(row, maps.items(), strict=True):
            shown = ax.imshow(
                values.T,
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                aspect="auto",
                interpolation="nearest",
                extent=(0, fan_in, n_units, 0),
            )
            ax.set_title(f"{name}, {when}")
            ax.grid(False)
            if is_matrix:
                ax.set_xlabel("input to the layer")
            else:
                ax.set(xlabel="unit", yticks=[])
        if is_matrix:
            row[0].set_ylabel("unit")
        label = "value" if trained.shape == (fan_in, n_units) else "block mean"
        figure.colorbar(shown, ax=row.tolist(), label=label)
    return figure


def _as_matrix(values: Array) -> Array:
    """Return weights as they are, and a bias (H,) as a matrix with one column."""
    if values.ndim == 1:
        return values[:, None]
    return values


def _block_means(weights: Array, largest: int = 80) -> Array:
    """Return the means of blocks of ``weights``: at most ``largest`` rows and columns of them."""
    for axis, n in enumerate(weights.shape):
        starts = np.arange(0, n, math.ceil(n / largest))
        sizes = np.diff(starts, append=n)
        if axis == 0:
            sizes = sizes[:, None]
        weights = np.add.reduceat(weights, starts, axis) / sizes
    return weights


def first_layer_images(filters: Array, n: int = 64, columns: int = 16) -> Figure:
    """Draw the ``n`` rows of ``filters`` (H, 3072) with the largest norms as images.

    ``filters`` are the first layer's weights for each pixel; see ``filters_of``.
    """
    title = "First-layer weights, largest norm first (gray: zero; each image has its own scale)"
    largest = np.argsort(-np.linalg.norm(filters, axis=1), kind="stable")[:n]
    return image_grid(as_images(filters[largest], CIFAR_SHAPE), columns=columns, title=title)


def filters_of(model: MLP, weights: Array) -> Array:
    """Return what first-layer ``weights`` (D, H) of ``model`` multiply each pixel by: (H, pixels).

    They differ from ``weights`` if the model standardizes or whitens its inputs.
    """
    if model.preprocessing:
        return model.preprocessing.filters(weights)
    return weights.T


def as_images(filters: Array, shape: Sequence[int]) -> Array:
    """Return rows of ``filters`` as images of ``shape``: 0 is gray, the largest black or white."""
    scale = np.maximum(np.abs(filters).max(axis=1, keepdims=True), 1e-12)
    return (0.5 + 0.5 * filters / scale).reshape(-1, *shape)
