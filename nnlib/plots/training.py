"""Figures of training: curves of one or more runs, learning rates, and each layer's diagnostics."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.plots.drawing import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    UNITS,
    draw_images,
    draw_lines,
    label_lines,
    quantity_words,
    subplots,
)
from nnlib.plots.weights import CIFAR_SHAPE, as_images
from nnlib.types import Array


def curves(named: Mapping[str, Any], title: str, x: str, y: str, log: bool = False) -> Figure:
    """Draw sequences of numbers as lines over 1, 2, 3, …, with ``log`` on a logarithmic y axis."""
    scale = "log" if log else "linear"
    figure, (ax,) = subplots(title=title, xlabel=x, ylabel=y, yscale=scale)
    lines = {}
    for name, values in named.items():
        lines[name] = (np.arange(1, len(values) + 1), values)
    draw_lines(ax, lines)
    return figure


def schedules(named: Mapping[str, Callable[[int], float]], total_steps: int) -> Figure:
    """Draw the learning rate of each schedule over ``total_steps`` steps."""
    title = "Learning rate at each step of a run"
    figure, (ax,) = subplots(title=title, xlabel="step (one update)", ylabel="learning rate")
    steps = np.unique(np.linspace(0, total_steps - 1, 1000).astype(int)).tolist()
    lines = {}
    for name, rate in named.items():
        lines[name] = (steps, [rate(step) for step in steps])
    draw_lines(ax, lines)
    return figure


def history(
    run: Any, others: Any = (), filters: Array | None = None, shape: Sequence[int] = CIFAR_SHAPE
) -> Figure:
    """Draw loss and accuracy of a run or history by epoch, and mark the best epoch.

    ``others``, runs or histories to compare with, are drawn faintly. With ``filters`` (H, D), the
    weights of the first 36 units are drawn beside the curves, as images of ``shape``.
    """
    figure, axes = subplots(1, 2 if filters is None else 3, xlabel="epoch")
    for ax, what in zip(axes, UNITS, strict=False):
        for other in others:
            _draw_curves(ax, other, what, alpha=0.3, label="_")
        _draw_curves(ax, run, what)
        _mark_best(ax, run, what)
        ax.set_ylabel(UNITS[what])
        if ax.dataLim.y1 > 20:  # a loss that diverges
            ax.set_yscale("log")
        label_lines(ax)
    if filters is not None:
        draw_images(axes[2], as_images(filters[:36], shape), 6)
        axes[2].set(title="First-layer weights", xlabel="")
    return figure


def _draw_curves(ax: Axes, run: Any, what: str, **look: Any) -> None:
    """Draw the training and the validation curve of the loss or the accuracy."""
    epochs = _column(run, "epoch")
    for split, color in (("train", BLUE), ("valid", ORANGE)):
        values = _column(run, f"{split}_{what}")
        known = np.isfinite(values)
        ax.plot(epochs[known], values[known], **{"color": color, "label": split, **look})


def _mark_best(ax: Axes, run: Any, what: str) -> None:
    """Put a dot on the validation curve at the best epoch, and its value into the title."""
    epochs = _column(run, "epoch")
    values = _column(run, f"valid_{what}")
    known = np.isfinite(values)
    if not known.any():
        return
    if hasattr(run, "best_epoch"):
        best = run.best_epoch
    else:
        best = epochs[np.nanargmax(_column(run, "valid_accuracy"))]
    value = values[known & (epochs == best)][0]
    ax.plot([best], [value], "o", color=ORANGE, label="_")
    ax.set_title(f"{what.capitalize()} {value:.3f} at best epoch {best:.0f}")


def _column(run: Any, name: str) -> Array:
    """Return one quantity of a run or history, record by record; NaN where it is missing."""
    records = getattr(run, "history", run)
    return np.array([record.get(name, math.nan) for record in records], float)


def histories(named: Mapping[str, Any], quantity: str = "valid_accuracy", top: int = 6) -> Figure:
    """Draw one quantity of runs or histories by epoch, the ``top`` best in color, with names."""
    _, what = quantity.split("_")
    title = quantity_words(quantity).capitalize()
    figure, (ax,) = subplots(title=title, xlabel="epoch", ylabel=UNITS[what])
    sign = 1 if what == "loss" else -1

    def rank(name: str) -> float:
        values = sign * _column(named[name], quantity)
        return float(np.fmin.reduce(values, initial=math.inf))

    ranked = sorted(named, key=rank)
    for i in reversed(range(len(ranked))):  # the best are drawn last, on top of the others
        name = ranked[i]
        epochs = _column(named[name], "epoch")
        values = _column(named[name], quantity)
        if i < top:
            ax.plot(epochs, values, color=PALETTE[i % len(PALETTE)], label=name)
        else:
            ax.plot(epochs, values, color="0.8", label="_")
    label_lines(ax)
    return figure


def small_multiples(
    panels: Mapping[str, Mapping[str, Any]], quantity: str = "valid_loss"
) -> Figure:
    """Draw one quantity of runs by epoch: one panel per hyperparameter, one line per value."""
    rows = math.ceil(len(panels) / 3)
    figure, axes = subplots(rows, 3, height=2.9 * rows, share=True, xlabel="epoch")
    for ax, (name, runs) in zip(axes, panels.items(), strict=False):
        ax.set_title(name)
        lines = {}
        for value, run in runs.items():
            lines[value] = (_column(run, "epoch"), _column(run, quantity))
        draw_lines(ax, lines, gap=0.1)
    for ax in axes[::3]:
        ax.set_ylabel(UNITS[quantity.split("_")[1]])
    return figure


def learning_rate_test(test: Any) -> Figure:
    """Draw loss against learning rate, and the rate that ``nnlib.find_learning_rate`` suggests."""
    suggestion = f"{test.suggestion:.2g}, a tenth of the rate with the lowest loss"
    title = f"Learning rate range test: try {suggestion}"
    figure, (ax,) = subplots(title=title)
    ax.set(xlabel="learning rate", xscale="log", ylabel=UNITS["loss"])
    ax.plot(test.rates, test.losses)
    ax.axvline(test.suggestion, color=ORANGE, ls="--")
    ax.set_ylim(None, np.quantile(test.losses, 0.9) * 1.2)  # the divergence at its end is cut off
    return figure


def diagnostics(run: Any) -> Figure:
    """Draw what ``nnlib.Diagnostics`` put into a run's history, layer by layer, by epoch."""
    panels = {
        "gradient_norm": ("Gradient", "norm"),
        "weight_norm": ("Weights", "norm"),
        "update_ratio": ("Update / weights", "ratio of norms"),
        "dead": ("Dead units", "fraction of the layer"),
    }
    figure, axes = subplots(2, 2, height=5.4, xlabel="epoch", yscale="log")
    records = getattr(run, "history", run)
    for ax, (name, (title, unit)) in zip(axes, panels.items(), strict=True):
        _draw_layers(ax, records, name)
        ax.set(title=title, ylabel=unit)
    axes[2].axhline(1e-3, color=GREY, ls="--", label="_")  # the usual rule of thumb for updates
    axes[3].set(yscale="linear", ylim=(-0.02, 1.02))
    label_lines(*axes, gap=0.1)
    return figure


def gradient_norms(records: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the norm of each layer's gradient by epoch, from records of ``nnlib.Diagnostics``."""
    title = "Norm of each layer's gradient"
    figure, (ax,) = subplots(height=2.4, title=title, xlabel="epoch", ylabel="norm")
    measured = [record for record in records if "gradient_norm_1" in record]
    _draw_layers(ax, measured, "gradient_norm")
    label_lines(ax, gap=0.15)
    return figure


def _draw_layers(ax: Axes, records: Sequence[Mapping[str, float]], name: str) -> None:
    """Draw a line for each layer whose ``name``, as in ``nnlib.Diagnostics``, is in ``records``."""
    names = []
    for record in records:
        for key in record:
            if key.startswith(f"{name}_") and key not in names:
                names.append(key)
    for key in names:
        label = key.replace(f"{name}_", "layer ")
        ax.plot(_column(records, "epoch"), _column(records, key), label=label)
