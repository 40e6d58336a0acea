"""Figures of a search's table: what each hyperparameter did, alone and with others, and at what cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.extras import need
from nnlib.plots.drawing import BLUE, subplots
from nnlib.types import Array


def search_heatmap(table: Any, x: str, y: str, value: str = "valid_accuracy") -> Figure:
    """The best ``value`` in a search's table (pandas) for each pair of two hyperparameters."""
    need("notebooks", "seaborn")
    import seaborn

    figure, (ax,) = subplots(height=4.5, title=f"Best {value} of each pair")
    as_text = {name: table[name].map(str) for name in (x, y) if table[name].dtype == object}
    best = table.assign(**as_text).pivot_table(
        value, y, x, "min" if value.endswith("loss") else "max"
    )
    seaborn.heatmap(best, ax=ax, annot=True, fmt=".3f", cmap="viridis", cbar_kws={"label": value})
    return figure


def search_strips(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """``value`` of every trial over each hyperparameter in ``names``: what matters shows a slope, the rest is flat."""
    figure, axes = subplots(1, len(names), share=True)
    for ax, name in zip(axes, names, strict=True):
        rows = table.sort_values(name)
        column, few = (
            rows[name],
            rows[name].map(str).nunique() < 8,
        )  # then each value has a place of its own
        ax.plot(column.map(str) if few else column, rows[value], "o", alpha=0.7)
        if not few and 0 < 20 * column.min() <= column.max():
            ax.set_xscale("log")
        ax.set_xlabel(name)
        ax.tick_params(axis="x", which="minor", labelbottom=False)
        ax.tick_params(axis="x", labelrotation=15 if few else 0)
    axes[0].set_ylabel(value)
    return figure


def search_parallel(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """One line a trial through its values of the hyperparameters in ``names``, its colour and its end ``value``."""
    figure, (ax,) = subplots(
        height=4.5, title="Each line is a trial", xlabel="hyperparameter, and what came of it"
    )
    rows = table.dropna(subset=value).sort_values(
        value, ascending=not value.endswith("loss")
    )  # the best on top
    columns = [*names, value]
    for heights in zip(
        *(_draw_scale(ax, x, rows[name].tolist()) for x, name in enumerate(columns)), strict=True
    ):
        ax.plot(heights, color=matplotlib.colormaps["viridis"](heights[-1]), alpha=0.8)
    ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=[])
    return figure


def _draw_scale(ax: Axes, x: int, values: list[Any]) -> Array:
    """Write a few of ``values`` (N) along an upright axis at ``x``, and return the height of each, from 0 to 1."""
    known = sorted(set(values), key=lambda value: (str(type(value)), value))
    if few := len(known) < 8:  # each has a place of its own
        places = np.array([known.index(value) for value in values])
    else:
        places = np.log(values) if 0 < 20 * known[0] <= known[-1] else np.array(values)
    heights = (places - places.min()) / (np.ptp(places) or 1)
    for value, height in dict(zip(values, heights, strict=True)).items():
        if few or height in (0, 1):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            ax.text(
                x,
                height,
                text,
                va="center",
                fontsize=9,
                bbox={"color": "white", "alpha": 0.7, "pad": 1},
            )
    return heights


def search_importance(shares: Mapping[str, float]) -> Figure:
    """How much each hyperparameter matters: ``SearchResults.importance()``."""
    figure, (ax,) = subplots(
        height=2.4, title="What decides whether a trial is among the best quarter", xlabel="share"
    )
    ax.bar_label(ax.barh([*shares][::-1], [*shares.values()][::-1], color=BLUE), fmt=" %.2f")
    return figure


def search_cost(named: Mapping[str, Any], value: str = "valid_accuracy") -> Figure:
    """``value`` of every trial against its seconds of training, for the tables of one or several searches."""
    title = "What a trial has cost, and what it has reached"
    figure, (ax,) = subplots(title=title, xlabel="training (s)", xscale="log", ylabel=value)
    for (name, table), marker in zip(named.items(), "osD^v", strict=False):
        ax.plot(table.seconds, table[value], marker, alpha=0.7, label=name)
    ax.legend()
    return figure
