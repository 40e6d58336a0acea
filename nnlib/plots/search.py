"""Figures of a search: what each hyperparameter did, alone and with others, and at what cost.

``table`` is what ``results.to_dataframe()`` returns: a pandas DataFrame with one row per trial.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.extras import need
from nnlib.plots.drawing import BLUE, quantity_words, subplots
from nnlib.plots.training import histories
from nnlib.types import Array

FEW = 8  # fewer values than this are drawn as steps, not on a scale


def search_curves(results: Any) -> Figure:
    """Draw the validation accuracy of all trials: the four best in color, with settings."""
    named = {}
    for trial in results.trials:
        settings = [str(value) for value in trial.settings.values()]
        named[", ".join(settings)] = trial.history
    return histories(named, top=4)


def search_heatmap(table: Any, x: str, y: str, value: str = "valid_accuracy") -> Figure:
    """Draw the best ``value`` in ``table`` for each pair of hyperparameters ``x`` and ``y``."""
    need("notebooks", "seaborn")
    import seaborn

    words = quantity_words(value)
    figure, (ax,) = subplots(height=4.5, title=f"Best {words} for each pair")
    for name in (x, y):
        if table[name].dtype == object:  # for example hidden_sizes, which are tuples
            table = table.assign(**{name: table[name].map(str)})
    best_is = "min" if value.endswith("loss") else "max"
    best = table.pivot_table(values=value, index=y, columns=x, aggfunc=best_is)
    seaborn.heatmap(best, ax=ax, annot=True, fmt=".3f", cmap="viridis", cbar_kws={"label": words})
    return figure


def search_strips(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """Draw ``value`` of all trials over each hyperparameter in ``names``: what matters slopes."""
    figure, axes = subplots(1, len(names), share=True)
    for ax, name in zip(axes, names, strict=True):
        rows = table.sort_values(name)
        column = rows[name]
        as_text = column.map(str)
        if as_text.nunique() < FEW:  # then each value has a place of its own
            ax.plot(as_text, rows[value], "o", alpha=0.7)
            ax.tick_params(axis="x", labelrotation=15)
        else:
            ax.plot(column, rows[value], "o", alpha=0.7)
            if _spans_decades(column.min(), column.max()):
                ax.set_xscale("log")
        ax.set_xlabel(name)
        ax.tick_params(axis="x", which="minor", labelbottom=False)
    axes[0].set_ylabel(quantity_words(value))
    return figure


def _spans_decades(low: float, high: float) -> bool:
    """Return whether numbers from ``low`` to ``high`` are better drawn on a logarithmic axis."""
    return 0 < 20 * low <= high


def search_parallel(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """Draw one line per trial through its hyperparameters in ``names``.

    ``value`` is the color of the line and the height of its end.
    """
    figure, (ax,) = subplots(height=4.5, title="Each line is one trial")
    worst_first = not value.endswith("loss")  # so that the best lines are on top
    rows = table.dropna(subset=value).sort_values(value, ascending=worst_first)
    columns = [*names, value]
    scales = [_draw_scale(ax, x, rows[name].tolist()) for x, name in enumerate(columns)]
    colors = matplotlib.colormaps["viridis"]
    for heights in zip(*scales, strict=True):
        ax.plot(heights, color=colors(heights[-1]), alpha=0.8)
    ax.set(xticks=range(len(columns)), xticklabels=[*names, quantity_words(value)], yticks=[])
    ax.set_xlabel("hyperparameters, and the result on the right")
    return figure


def _draw_scale(ax: Axes, x: int, values: list[Any]) -> Array:
    """Write a few of ``values`` (N) along an upright axis at ``x``, and return the height of each.

    Heights go from 0 to 1.
    """
    known = sorted(set(values), key=_sort_key)
    few = len(known) < FEW
    if few:  # each has a place of its own
        places = np.array([known.index(value) for value in values])
    elif _spans_decades(known[0], known[-1]):
        places = np.log(values)
    else:
        places = np.array(values)
    heights = (places - places.min()) / (np.ptp(places) or 1)
    height_of = dict(zip(values, heights, strict=True))
    box = {"color": "white", "alpha": 0.7, "pad": 1}
    for value, height in height_of.items():
        if few or height in (0, 1):  # of many values only the lowest and the highest
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            ax.text(x, height, text, va="center", fontsize=9, bbox=box)
    return heights


def _sort_key(value: Any) -> tuple[str, Any]:
    """Values of different types cannot be compared: sort by type first."""
    return str(type(value)), value


def search_importance(shares: Mapping[str, float]) -> Figure:
    """Draw how much each hyperparameter matters: ``shares`` is ``SearchResults.importance()``."""
    title = "Which hyperparameters put a trial into the best quarter?"
    figure, (ax,) = subplots(height=2.4, title=title, xlabel="importance (sums to 1)")
    names = list(shares)[::-1]  # barh draws from the bottom up
    values = list(shares.values())[::-1]
    bars = ax.barh(names, values, color=BLUE)
    ax.bar_label(bars, fmt=" %.2f")
    return figure


def search_cost(named: Mapping[str, Any], value: str = "valid_accuracy") -> Figure:
    """Draw ``value`` of every trial against its training time, for the tables of some searches."""
    title = "Training time and result of each trial"
    figure, (ax,) = subplots(title=title, xlabel="training time (seconds)", xscale="log")
    ax.set_ylabel(quantity_words(value))
    for (name, table), marker in zip(named.items(), "osD^v", strict=False):
        ax.plot(table.seconds, table[value], marker, alpha=0.7, label=name)
    ax.legend()
    return figure
