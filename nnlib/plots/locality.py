"""Pictures of local receptive fields: filters, patterns, and how far a unit's weights lie apart.

The numbers come from ``nnlib.training.locality``; every function here returns a ``Figure``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nnlib.plots.drawing import BLUE, GREY, ORANGE, PALETTE, UNITS, draw_images, subplots
from nnlib.training.locality import SHAPE, mass
from nnlib.types import Array


def as_images(rows: Array, shape: Sequence[int] = SHAPE) -> Array:
    """Return rows of numbers (n, D) as images (n, *shape) from 0 to 1.

    Zero is grey. Each row is scaled to its own largest number; a row of zeros stays grey.
    """
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.maximum(largest, 1e-12)
    return (0.5 + 0.5 * scaled).reshape(-1, *shape)


def filters_and_patterns(
    filters: Array, patterns: Array, pairs: int = 4, shape: Sequence[int] = SHAPE
) -> Figure:
    """Each unit's filter (left) beside its pattern (right), both (n, D), ``pairs`` in a row.

    The last row may be shorter. Both are scaled to their own largest number.
    """
    images = np.stack([as_images(filters, shape), as_images(patterns, shape)], axis=1)
    rows = -(-len(images) // pairs)
    height, width = shape[1:]
    gap = 3  # white pixels between units; one pixel within a pair
    sheet = np.ones((rows * (height + gap), pairs * (2 * width + 1 + gap), 3), np.float32)
    for i, pair in enumerate(images):
        top, left = (i // pairs) * (height + gap), (i % pairs) * (2 * width + 1 + gap)
        for each in pair:
            sheet[top : top + height, left : left + width] = each.transpose(1, 2, 0)
            left += width + 1
    sheet = sheet[:-gap, :-gap]
    figure, (ax,) = subplots(height=9 * sheet.shape[0] / sheet.shape[1] + 0.25)
    _bare(ax)
    ax.imshow(sheet, interpolation="nearest")
    ax.set_title("What a unit multiplies by (left), and what it reacts to (right)")
    return figure


def filter_rows(named: Mapping[str, Array], title: str, shape: Sequence[int] = SHAPE) -> Figure:
    """One row of filters (n, D) for each name: epochs of one network, or networks over λ."""
    columns = max(len(filters) for filters in named.values())
    images = []
    for filters in named.values():
        row = np.ones((columns, *shape), np.float32)  # white, where there are fewer
        row[: len(filters)] = as_images(filters.astype(np.float32), shape)
        images.append(row)
    figure, (ax,) = subplots(height=8 * len(named) / columns + 0.6, title=title)
    draw_images(ax, np.concatenate(images), columns, (), [*named])
    return figure


def weight_spike(weights: Array, others: Mapping[str, Array] | None = None) -> Figure:
    """Histogram of ``weights``, the exact zeros as one bar; ``others`` faintly behind."""
    values = weights.ravel()
    zeros = np.count_nonzero(values == 0)
    limit = float(np.quantile(np.abs(values[values != 0]), 0.999)) if zeros < len(values) else 1.0
    bins = np.linspace(-limit, limit, 101)
    figure, (ax,) = subplots(xlabel="weight", ylabel="count", yscale="log")
    for name, other in (others or {}).items():
        ax.hist(other.ravel(), bins, color="0.8", histtype="stepfilled", label=name)
    ax.hist(values[values != 0], bins, color=BLUE, histtype="step", lw=1.5, label="not zero")
    width = 2 * limit / 100
    ax.bar([0], [zeros], width, color=ORANGE, label="exactly zero")
    ax.set_title(f"{zeros / len(values):.1%} of the weights are exactly zero")
    ax.legend(frameon=False, fontsize=9)
    return figure


def pixel_counts(named: Mapping[str, Array], n_pixels: int = 1024) -> Figure:
    """Histograms of how many of the ``n_pixels`` pixels each unit uses, one for each name."""
    figure, (ax,) = subplots(xlabel="pixels with a weight that isn't zero", ylabel="units")
    ax.set_title("How many pixels a unit uses")
    bins = np.linspace(0, n_pixels, 65)
    for name, counts in named.items():
        label = f"{name}: median {np.median(counts):.0f} of {n_pixels:,}"
        ax.hist(counts, bins, histtype="stepfilled", alpha=0.7, label=label)
    ax.legend(frameon=False)
    return figure


def spread_histogram(named: Mapping[str, Array], block: int = 3) -> Figure:
    """Histograms of the units' spatial spread, one for each name, with their medians.

    A dotted line marks the spread of an even ``block`` × ``block`` square, sqrt((block² - 1) / 6).
    Units without weights (NaN) are left out.
    """
    figure, (ax,) = subplots(ylabel="units")
    ax.set_title("How far apart a unit's weights lie")
    finite = {name: values[np.isfinite(values)] for name, values in named.items()}
    top = max(values.max(initial=1.0) for values in finite.values())
    bins = np.linspace(0, 1.02 * top, 80)
    colors = [BLUE, GREY, ORANGE, *PALETTE[3:]]
    for color, (name, values) in zip(colors, finite.items(), strict=False):
        label = f"{name}: median {np.median(values):.1f}"
        ax.hist(values, bins, histtype="stepfilled", alpha=0.65, color=color, label=label)
    square = np.sqrt((block**2 - 1) / 6)
    ax.axvline(square, color="0.3", ls=":", label=f"an even {block} × {block} square: {square:.1f}")
    ax.set_xlabel("spread: rms distance of |w| from its center (pixels)")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.1, 1))
    return figure


def center_map(
    weights: Array, centers: Array, spreads: Array, shape: Sequence[int] = SHAPE
) -> Figure:
    """Where on the image the units look: how many use each pixel, and each unit's center.

    ``weights`` (D, H), ``centers`` (H, 2) as (row, column), ``spreads`` (H,) for the colors.
    """
    figure, (left, right) = subplots(1, 2, height=4.2)
    users = np.count_nonzero(mass(weights, shape), axis=0)
    shown = left.imshow(users, cmap="Blues", vmin=0, interpolation="nearest")
    left.set_title("How many units use each pixel")
    figure.colorbar(shown, ax=left, label="units", shrink=0.8)
    order = np.argsort(-spreads)  # the most local ones are drawn last, on top
    look: dict[str, Any] = {"cmap": "viridis", "s": 14, "linewidths": 0}
    points = right.scatter(centers[order, 1], centers[order, 0], c=spreads[order], **look)
    right.set(title="The center of each unit", aspect="equal")
    figure.colorbar(points, ax=right, label="spread (pixels)", shrink=0.8)
    for ax in (left, right):
        ax.set(xlim=(-0.5, shape[2] - 0.5), ylim=(shape[1] - 0.5, -0.5))
        ax.set(xlabel="column", ylabel="row")
        ax.grid(False)
    return figure


def pruning(trained: Sequence[Mapping[str, Any]], pruned: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy and spread against the share of weights left: networks trained with L1, or pruned.

    Both are rows with ``share_nonzero``, ``valid_accuracy`` and ``spread``, as in
    data/benchmarks/locality.json.
    """
    figure, axes = subplots(1, 2, height=3.9, xlabel="share of W1 that isn't zero", xscale="log")
    labels = {"valid_accuracy": UNITS["accuracy"], "spread": "median spread (pixels)"}
    titles = {"valid_accuracy": "Validation accuracy", "spread": "Spread of a unit's weights"}
    looks = {
        "trained with L1": (trained, BLUE, "o-"),
        "largest weights kept": (pruned, ORANGE, "s--"),
    }
    for ax, what in zip(axes, titles, strict=True):
        for name, (rows, color, line) in looks.items():
            share = [row["share_nonzero"] for row in rows]
            value = [row[what] for row in rows]
            ax.plot(share, value, line, color=color, ms=5, label=name)
        ax.set(title=titles[what], ylabel=labels[what])
        ax.set_ylim(bottom=0)
    axes[0].legend(frameon=False, loc="lower right")
    return figure


def unit_portrait(
    filters: Array,
    patterns: Array,
    chosen: int,
    images: Array,
    title: str = "",
    shape: Sequence[int] = SHAPE,
) -> Figure:
    """A sheet of ``filters`` (n, D), the ``chosen`` one framed, and that unit in large.

    ``patterns`` (n, D) are the units' patterns; ``images`` (m, C, H, W) what excites it most.
    """
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[1.7, 1, 1], height_ratios=[1, 0.62])
    columns = 8
    sheet = figure.add_subplot(grid[:, 0])
    draw_images(sheet, as_images(filters, shape), columns)
    sheet.set_title("Units, the most influential first")
    height, width = shape[1] + 1, shape[2] + 1  # each image has a white edge above and left
    corner = ((chosen % columns) * width + 0.5, (chosen // columns) * height + 0.5)
    frame = Rectangle(corner, width - 1, height - 1, fill=False, edgecolor=ORANGE, lw=2.5)
    sheet.add_patch(frame)
    named = {"Filter": filters, "Pattern": patterns}
    for column, (name, rows) in enumerate(named.items(), 1):
        ax = figure.add_subplot(grid[0, column])
        draw_images(ax, as_images(rows[chosen : chosen + 1], shape), 1)
        ax.set_title(name)
    below = figure.add_subplot(grid[1, 1:])
    draw_images(below, images, max(len(images) // 2, 1))
    below.set_title("Images that excite it most", fontsize=10.5)
    figure.suptitle(title, fontsize=11)
    return figure


def _bare(ax: Axes) -> None:
    """Leave nothing of ``ax`` but what is drawn in it."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
