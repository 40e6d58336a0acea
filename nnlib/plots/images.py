"""Figures of a data set: its images, its classes, and how many of each there are."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnlib.data.dataset import Dataset, Split
from nnlib.plots.drawing import draw_images, subplots
from nnlib.types import Array

SPLITS = {"train": "training", "valid": "validation", "test": "test"}


def image_grid(
    images: Array,
    titles: Sequence[str] = (),
    columns: int = 8,
    title: str = "",
    rows: Sequence[str] = (),
) -> Figure:
    """Draw images (N, C, H, W), uint8 or from 0 to 1, side by side.

    ``titles`` go above the images, the names in ``rows`` beside the rows, ``title`` above them all.
    """
    title_lines = max((text.count("\n") + 1 for text in titles), default=0)
    row_height = 9 / columns + 0.17 * title_lines
    n_rows = math.ceil(len(images) / columns)
    figure, (ax,) = subplots(height=n_rows * row_height + 0.4, title=title)
    draw_images(ax, images, columns, titles, rows)
    return figure


def samples_by_class(split: Split, classes: Sequence[str], n: int = 8) -> Figure:
    """Draw the first ``n`` images of each class, one row per class."""
    shape = (n, *split.images.shape[1:])
    blank = np.full(shape, split.images.max(), split.images.dtype)
    rows = []
    for k in range(len(classes)):
        found = split.images[split.labels == k][:n]
        rows.append(np.concatenate([found, blank])[:n])  # blank images, if the class has too few
    title = f"The first {n} images of each class"
    return image_grid(np.concatenate(rows), columns=n, title=title, rows=classes)


def class_balance(data: Dataset) -> Figure:
    """Draw how many images of each class are in the training, validation and test images."""
    figure, axes = subplots(1, 3, share=True, xlabel="images")
    for ax, name in zip(axes, SPLITS, strict=True):
        counts = np.bincount(getattr(data, name).labels, minlength=len(data.classes))
        bars = ax.barh(data.classes, counts)
        ax.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white", fontsize=9)
        ax.set_title(f"{SPLITS[name]}: {counts.min():,} to {counts.max():,} per class")
    axes[0].invert_yaxis()
    return figure


def mean_images(split: Split, classes: Sequence[str]) -> Figure:
    """Draw the mean of all images of each class."""
    means = [split.images[split.labels == k].mean(axis=0) / 255 for k in range(len(classes))]
    title = "Mean image of each class: some color, hardly any shape"
    return image_grid(np.array(means), classes, columns=5, title=title)
