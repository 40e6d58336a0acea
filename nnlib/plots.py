"""Figures: every function takes arrays, histories or models and returns a Matplotlib ``Figure``.

They are made without pyplot, whose state is one for the whole process, so that widgets may draw in a thread. Such a
figure does not display itself: ``show`` puts it on the page with its alt text, and into the folder of figures.
"""

import io
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnlib.activations import get_activation
from nnlib.checkpoints import write_atomically
from nnlib.cifar10 import HOME
from nnlib.datasets import Dataset, Split
from nnlib.evaluation import Evaluation
from nnlib.gradcheck import GradientReport
from nnlib.losses import softmax
from nnlib.model import MLP, Array

# seaborn's palette "colorblind", written out: importing seaborn for ten colours would take a second
BLUE, ORANGE, GREEN, RED, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#949494"
PALETTE = [BLUE, ORANGE, GREEN, RED, "#cc78bc", "#ca9161", "#fbafe4", GREY, "#ece133", "#56b4e9"]
LOOK: Any = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True}
LOOK |= {"axes.prop_cycle": cycler(color=PALETTE), "font.size": 10.5, "axes.titlesize": 12, "grid.color": "0.9"}
LOOK |= {"svg.hashsalt": "nnlib"}  # names inside an SVG come from this, not from chance
UNITS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (share of images)"}
SQUARE = (3, 32, 32)
Names = Sequence[str]
_one_at_a_time = threading.RLock()  # Matplotlib's settings are global, and it promises nothing about threads


@contextmanager
def style() -> Iterator[None]:
    """The one look of all figures, for the time of a ``with`` block; for one's own figures too."""
    with _one_at_a_time, matplotlib.rc_context(LOOK):
        yield


@style()
def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return ``figure`` as PNG: the same bytes for the same figure."""
    out = io.BytesIO()
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)  # draws once, where savefig draws twice
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


@style()
def _trimmed(figure: Figure, kind: str, *undated: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, bbox_inches="tight", metadata=dict.fromkeys(undated))
    return out.getvalue()


def show(figure: Figure, name: str = "", alt: str = "") -> None:
    """Display ``figure`` with ``alt`` (default: its titles) for those who cannot see it, and save it as ``name``.png.

    Line drawings are saved as SVG too. The folder is NNLIB_FIGURES_DIR, else figures/ of the checkout, else ./figures.
    """
    from IPython.display import Image, display

    files = {".png": _trimmed(figure, "png", "Software")}
    if not any(ax.images or len(ax.collections) for ax in figure.axes):
        files[".svg"] = _trimmed(figure, "svg", "Date", "Creator")
    folder = Path(os.environ.get("NNLIB_FIGURES_DIR") or HOME / "figures")
    for suffix, content in files.items() if name else ():
        write_atomically(folder / (name + suffix), methodcaller("write", content))
    alt = alt or "; ".join(filter(None, (ax.get_title() for ax in figure.axes)))
    width = int.from_bytes(files[".png"][16:20]) * 100 // 150  # of the page's pixels: the image has three for each two
    display(Image(files[".png"], width=width, alt=alt))  # type: ignore[no-untyped-call]


def _figure(rows: int = 1, columns: int = 1, height: float = 3.6, share: bool = False, **labels: Any) -> Any:
    """Return a figure, 9 by ``height`` inches, and an array of its axes, which all have ``labels``."""
    figure = Figure(figsize=(9, height), layout="constrained")
    with style():
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for ax in axes:
        ax.tick_params(labelsize=10, grid_color="0.9")  # ticks are made when they are needed, outside of the style
        ax.set(**labels)
    return figure, axes


def _lines(ax: Axes, named: Mapping[str, tuple[Any, Any]], gap: float = 0.075, **look: Any) -> None:
    """Draw a line for each pair of x and y, with its name beside its end."""
    for name, (x, y) in named.items():
        ax.plot(x, y, label=name, **look)
    _label_lines(ax, gap=gap)


def _label_lines(*axes: Axes, gap: float = 0.075) -> None:
    """Write each line's label beside its end, in its colour, moved apart where two would overlap."""
    for ax in axes:
        ax.autoscale_view()
        to_axes = ax.transData + ax.transAxes.inverted()
        lines = [(line, np.asarray(line.get_ydata(), float)) for line in ax.lines if str(line.get_label())[0] != "_"]
        ends = [(to_axes.transform((1, y[np.isfinite(y)][-1]))[1], line) for line, y in lines if np.isfinite(y).any()]
        ends.sort(key=lambda end: end[0])
        above = 1 + gap
        places = [above := min(height, above - gap) for height, _ in ends[::-1]][::-1]  # from the top down
        for place, (_, line) in zip(places, ends, strict=True):
            ax.text(1.02, place, str(line.get_label()), color=line.get_color(), transform=ax.transAxes, va="center")


def _draw_images(ax: Axes, images: Array, columns: int, titles: Sequence[str] = (), rows: Sequence[str] = ()) -> None:
    """Draw images (N, C, H, W), uint8 or from 0 to 1, on one sheet, with ``titles`` and names of ``rows``."""
    images = images / 255 if images.dtype == np.uint8 else images
    n, _, height, width = images.shape
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    top = height + 1 + math.ceil(n_lines * 0.018 * width * columns)  # an image, and the room above it for its title
    sheet = np.ones((max(math.ceil(n / columns), 1) * columns, top, width + 1, 3), np.float32)
    sheet[:n, top - height :, 1:] = images.transpose(0, 2, 3, 1)  # a grey channel is spread over the three
    sheet = sheet.reshape(-1, columns, top, width + 1, 3).swapaxes(1, 2)
    ax.imshow(sheet.reshape(-1, columns * (width + 1), 3), interpolation="nearest")
    for i, title in enumerate(titles):
        x, y = (i % columns + 0.5) * (width + 1), (i // columns + 1) * top - height - 1
        ax.text(x, y, title, ha="center", va="bottom", fontsize=9)
    ax.set(xticks=[], yticks=[(i + 1) * top - height / 2 for i in range(len(rows))], yticklabels=rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def image_grid(images: Array, titles: Names = (), columns: int = 8, title: str = "", rows: Names = ()) -> Figure:
    """Images (N, C, H, W), uint8 or from 0 to 1, side by side, with a title above each or a name beside each row."""
    room = 0.17 * max((each.count("\n") + 1 for each in titles), default=0)
    figure, (ax,) = _figure(height=math.ceil(len(images) / columns) * (9 / columns + room) + 0.4, title=title)
    _draw_images(ax, images, columns, titles, rows)
    return figure


def samples_by_class(split: Split, classes: Sequence[str], n: int = 8) -> Figure:
    """The first ``n`` images of each class, one row a class."""
    blank = np.full((n, *split.images.shape[1:]), split.images.max(), split.images.dtype)
    rows = [np.concatenate([split.images[split.labels == k][:n], blank])[:n] for k in range(len(classes))]
    return image_grid(np.concatenate(rows), (), n, f"The first {n} images of each class", classes)


def class_balance(data: Dataset) -> Figure:
    """How many images of each class every split has."""
    figure, axes = _figure(1, 3, share=True, xlabel="images")
    for ax, name in zip(axes, ("train", "valid", "test"), strict=True):
        counts = np.bincount(getattr(data, name).labels, minlength=len(data.classes))
        ax.bar_label(ax.barh(data.classes, counts), fmt="{:,.0f}", label_type="center", color="white", fontsize=9)
        ax.set_title(f"{name}: {counts.min():,} to {counts.max():,} a class")
    axes[0].invert_yaxis()
    return figure


def mean_images(split: Split, classes: Sequence[str]) -> Figure:
    """The mean of all images of each class."""
    means = [split.images[split.labels == k].mean(axis=0) / 255 for k in range(len(classes))]
    return image_grid(np.array(means), classes, 5, "Mean image of each class: colour, hardly any shape")


def activation_functions(names: Sequence[str]) -> Figure:
    """Value and derivative of activations, side by side."""
    figure, axes = _figure(1, 2, xlabel="pre-activation z")
    z = np.linspace(-4, 4, 801)
    functions = {name: get_activation(name) for name in names}
    axes[0].set(title="What a unit passes on", ylabel="value f(z)")
    axes[1].set(title="What it lets back through", ylabel="derivative f′(z)")
    _lines(axes[0], {name: (z, f.value(z)) for name, f in functions.items()})
    _lines(axes[1], {name: (z, f.derivative(z, f.value(z))) for name, f in functions.items()})
    return figure


def schedules(named: Mapping[str, Callable[[int], float]], total_steps: int) -> Figure:
    """The learning rate of each schedule over ``total_steps`` steps."""
    title = "Learning rate over the steps of a run"
    figure, (ax,) = _figure(title=title, xlabel="step (one update)", ylabel="learning rate")
    steps = np.unique(np.linspace(0, total_steps - 1, 1000).astype(int)).tolist()
    _lines(ax, {name: (steps, [rate(step) for step in steps]) for name, rate in named.items()})
    return figure


def _column(run: Any, name: str) -> Array:
    """Return one quantity over the records of a run or a history; NaN where a record has none."""
    return np.array([record.get(name, math.nan) for record in getattr(run, "history", run)], float)


def history(run: Any, other: Any = None, filters: Array | None = None, shape: Sequence[int] = SQUARE) -> Figure:
    """Loss and accuracy of a run or history by epoch, the best one marked; ``other`` (one or several) drawn faintly.

    With ``filters`` (H, D) the weights of the first 36 units stand beside the curves, as images of ``shape``.
    """
    figure, axes = _figure(1, 2 if filters is None else 3, xlabel="epoch")
    others = other if isinstance(other, tuple) else (other,) if other else ()
    for ax, what in zip(axes, UNITS, strict=False):
        for faint in others:
            _draw_curves(ax, faint, what, alpha=0.3, label="_")
        _draw_curves(ax, run, what)
        ax.set(ylabel=UNITS[what], yscale="log" if ax.dataLim.y1 > 20 else "linear")  # a loss that diverges
        _label_lines(ax)
    if filters is not None:
        _draw_images(axes[2], _as_images(filters[:36], shape), 6)
        axes[2].set(title="First layer's weights", xlabel="")
    return figure


def _draw_curves(ax: Axes, run: Any, what: str, **look: Any) -> None:
    """Draw a training and a validation curve; mark the best epoch, unless it is a run that is only to compare with."""
    epochs, score = _column(run, "epoch"), _column(run, "valid_accuracy")
    for split, color in (("train", BLUE), ("valid", ORANGE)):
        values = _column(run, f"{split}_{what}")
        seen = np.isfinite(values)
        ax.plot(epochs[seen], values[seen], **{"color": color, "label": split} | look)
    if seen.any() and not look:
        best = run.best_epoch if hasattr(run, "best_epoch") else epochs[np.nanargmax(score)]
        value = values[seen & (epochs == best)][0]
        ax.plot([best], [value], "o", color=ORANGE, label="_")
        ax.set_title(f"{what.capitalize()} {value:.3f} at best epoch {best:.0f}")


def histories(named: Mapping[str, Any], quantity: str = "valid_accuracy", top: int = 6) -> Figure:
    """One quantity of several runs or histories by epoch: the ``top`` best in colour with their names, others grey."""
    split, what = quantity.split("_")
    figure, (ax,) = _figure(xlabel="epoch", ylabel=UNITS[what], title=f"{what.capitalize()} ({split})")
    sign = 1 if what == "loss" else -1
    ranked = sorted(named, key=lambda name: np.fmin.reduce(sign * _column(named[name], quantity), initial=math.inf))
    for i, name in reversed([*enumerate(ranked)]):  # the best are drawn last, over the others
        look = {"color": PALETTE[i % 10], "label": name} if i < top else {"color": "0.8", "label": "_"}
        ax.plot(_column(named[name], "epoch"), _column(named[name], quantity), **look)
    _label_lines(ax)
    return figure


def gradient_errors(report: GradientReport) -> Figure:
    """The worst relative error of each parameter's gradient, against the tolerance."""
    title = "Backpropagation against numerical derivatives: every bar must end below the line"
    figure, (ax,) = _figure(title=title, xlabel="parameter", ylabel="worst relative error", yscale="log")
    errors = np.maximum([*report.errors.values()], 1e-17)
    colors = np.where(errors <= report.tolerance, BLUE, RED)
    ax.bar_label(ax.bar([*report.errors], errors, color=colors), fmt="%.0e", fontsize=9)
    ax.axhline(report.tolerance, color=RED, ls="--", label=f"tolerance\n{report.tolerance:.0e}")
    _label_lines(ax)
    return figure


def error_against_step(hs: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of numerical derivatives over their step length h, on logarithmic axes."""
    title = "Too long a step is inexact, too short a one drowns in rounding"
    figure, (ax,) = _figure(title=title, xlabel="step length h", xscale="log", ylabel="relative error", yscale="log")
    _lines(ax, {name: (hs, np.maximum(values, 1e-17)) for name, values in errors.items()}, marker="o", ms=3)
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Who is taken for whom: the share of each true class, in per cent."""
    share = 100 * evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    figure, (ax,) = _figure(height=6, title="Who is taken for whom: each row adds up to 100 %")
    _heatmap(ax, share, ".0f", "share of the true class (%)", cmap="Blues", vmin=0, vmax=100)
    ax.set(xlabel="predicted class", xticklabels=evaluation.classes, ylabel="true class")
    ax.tick_params(axis="x", rotation=45)
    return figure


def _heatmap(ax: Axes, values: Any, fmt: str, label: str, **look: Any) -> None:
    import seaborn

    seaborn.heatmap(values, ax=ax, annot=True, fmt=fmt, cbar_kws={"label": label}, **look)


def per_class(evaluation: Evaluation) -> Figure:
    """The accuracy on each class, best first, and on all images."""
    title = f"Accuracy of each class, and of all images: {evaluation.accuracy:.3f}"
    figure, (ax,) = _figure(title=title, xlabel="accuracy (share of the class's images)")
    ranked = dict(sorted(evaluation.per_class.items(), key=lambda item: item[1]))
    ax.bar_label(ax.barh([*ranked], [*ranked.values()]), fmt="%.3f", label_type="center", color="white", fontsize=9)
    ax.axvline(evaluation.accuracy, color=ORANGE, ls="--")
    return figure


def mistakes(images: Array, true: Array, predicted: Array, probabilities: Array, classes: Sequence[str]) -> Figure:
    """Images with their true and predicted class and the probability (N, K) that the network gave the latter."""
    sure = np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0]
    rows = zip(true, predicted, sure, strict=True)
    titles = [f"{classes[t]}\n→ {classes[p]} {100 * q:.0f} %" for t, p, q in rows]
    return image_grid(images, titles, 6, "True class → predicted class, with its probability")


def prediction(image: Array, probabilities: Array, classes: Sequence[str], label: int) -> Figure:
    """One image (C, H, W) and the probability of each class; the true class is green, a wrong guess red."""
    figure, (left, right) = _figure(1, 2)
    guess = int(np.argmax(probabilities))
    colors = [GREEN if k == label else RED if k == guess else GREY for k in range(len(classes))]
    _draw_images(left, image[None], 1)
    left.set_title(f"True class: {classes[label]}")
    right.bar_label(right.barh(classes, probabilities, color=colors), fmt="%.2f", padding=3, fontsize=9)
    right.set(xlim=(0, 1.1), xlabel="probability", title=f"Predicted: {classes[guess]}")
    right.invert_yaxis()
    return figure


def weight_histograms(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Histograms of every layer's weights and biases, initial and trained, in the same bins."""
    rows = math.ceil(len(after) / 2)
    figure, axes = _figure(rows, 2, height=2.4 * rows, xlabel="value", ylabel="count", yscale="log")
    for ax, name in zip(axes, after, strict=False):
        pair = [before[name].ravel(), after[name].ravel()]
        low, high = np.quantile(np.concatenate(pair), [0.0005, 0.9995])
        bins = np.linspace(low, high + 1e-9, 81)
        ax.hist(pair[0], bins, color="0.75", histtype="stepfilled", label="initial")
        ax.hist(pair[1], bins, color=BLUE, histtype="step", lw=1.5, label="trained")
        ax.set_title(f"{name}: σ from {pair[0].std():.3g} to {pair[1].std():.3g}")
    axes[0].legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def weight_heatmaps(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Weights and biases, initial, trained and their difference, on one symmetric scale a row.

    Large matrices are drawn as means of blocks.
    """
    figure, axes = _figure(len(after), 3, height=sum(2.4 if v.ndim == 2 else 1.2 for v in after.values()))
    ratios = [2 if value.ndim == 2 else 1 for value in after.values()]
    axes[0].get_gridspec().set_height_ratios(ratios)
    for row, (name, value) in zip(axes.reshape(-1, 3), after.items(), strict=True):
        n_inputs, n_units = value.shape if value.ndim == 2 else (len(value), 1)
        pair = [_block_means(np.atleast_2d(p[name].T).T) for p in (before, after)]
        maps = {"initial": pair[0], "trained": pair[1], "difference": pair[1] - pair[0]}
        limit = max(np.quantile(np.abs([*maps.values()]), 0.995), 1e-12)
        for ax, (when, mean) in zip(row, maps.items(), strict=True):
            extent, colors = (0, n_inputs, n_units, 0), {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            shown = ax.imshow(mean.T, aspect="auto", extent=extent, interpolation="nearest", **colors)
            ax.set(title=f"{name}, {when}", xlabel="input of the layer" if value.ndim == 2 else "unit")
            ax.grid(False)
            if value.ndim == 1:
                ax.set_yticks([])
        row[0].set_ylabel("unit" if value.ndim == 2 else "")
        whole = mean.shape == (n_inputs, n_units)
        figure.colorbar(shown, ax=row.tolist(), label="value" if whole else "block mean")
    return figure


def _block_means(weights: Array, largest: int = 100) -> Array:
    """Return the means of blocks of ``weights``, so large that at most ``largest`` stand side by side."""
    for axis, n in enumerate(weights.shape):
        starts = np.arange(0, n, math.ceil(n / largest))
        sizes = np.diff(starts, append=n)
        weights = np.add.reduceat(weights, starts, axis) / (sizes if axis else sizes[:, None])
    return weights


def first_layer_images(filters: Array, n: int = 64, columns: int = 16, shape: Sequence[int] = SQUARE) -> Figure:
    """What ``n`` first-layer units weigh each pixel by, ``filters`` (H, D), longest first, as images of ``shape``."""
    title = "First layer's weights as images, longest first: grey is zero, each scaled to its own largest weight"
    longest = np.argsort(-np.linalg.norm(filters, axis=1), kind="stable")[:n]
    return image_grid(_as_images(filters[longest], shape), (), columns, title)


def _as_images(filters: Array, shape: Sequence[int]) -> Array:
    scale = np.maximum(np.abs(filters).max(axis=1, keepdims=True), 1e-12)
    return (0.5 + 0.5 * filters / scale).reshape(-1, *shape)


def search_curves(results: Any, quantity: str = "valid_accuracy", top: int = 4) -> Figure:
    """The curves of all trials of a search, the ``top`` best in colour with their settings."""
    trials = {", ".join(map(str, t.settings.values())): t.history for t in results.trials}
    return histories(trials, quantity, top)


def search_heatmap(table: Any, x: str, y: str, value: str = "valid_accuracy") -> Figure:
    """The best ``value`` in a search's table (pandas) for each pair of two hyperparameters."""
    figure, (ax,) = _figure(height=4.5, title=f"Best {value} of each pair")
    as_text = {name: table[name].map(str) for name in (x, y) if table[name].dtype == object}
    best = table.assign(**as_text).pivot_table(value, y, x, "min" if value.endswith("loss") else "max")
    _heatmap(ax, best, ".3f", value, cmap="viridis")
    return figure


def search_strips(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """``value`` of every trial over each hyperparameter in ``names``: what matters shows a slope, the rest is flat."""
    figure, axes = _figure(1, len(names), share=True)
    for ax, name in zip(axes, names, strict=True):
        column = table[name]
        few = column.map(str).nunique() < 8  # then each value has a place of its own
        shown = table.sort_values(name)
        ax.plot(shown[name].map(str) if few else shown[name], shown[value], "o", alpha=0.7)
        if not few and column.min() > 0 and column.max() >= 20 * column.min():
            ax.set_xscale("log")
        ax.tick_params(axis="x", which="minor", labelbottom=False)
        ax.tick_params(axis="x", labelrotation=15 if few else 0)
        ax.set_xlabel(name)
    axes[0].set_ylabel(value)
    return figure


def search_parallel(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """One line a trial through its values of the hyperparameters in ``names``, its colour and its end ``value``."""
    figure, (ax,) = _figure(height=4.5, title="Each line is a trial", xlabel="hyperparameter, and what came of it")
    rows = table.dropna(subset=value).sort_values(value, ascending=not value.endswith("loss"))  # the best on top
    columns = [*names, value]
    heights = np.transpose([_draw_scale(ax, x, rows[name].tolist()) for x, name in enumerate(columns)])
    colors = matplotlib.colormaps["viridis"](heights[:, -1:].ravel())
    for height, color in zip(heights, colors, strict=True):
        ax.plot(height, color=color, alpha=0.8)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks([])
    return figure


def _draw_scale(ax: Axes, x: int, values: list[Any]) -> Array:
    """Write a few of ``values`` (N) along an upright axis at ``x``, and return the height of each, from 0 to 1."""
    known = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(known) < 8:  # each has a place of its own
        marks = {value: i / max(len(known) - 1, 1) for i, value in enumerate(known)}
        heights = np.array([marks[value] for value in values])
    else:
        scale = np.log if 0 < 20 * known[0] <= known[-1] else np.asarray
        low, high, at = (scale(np.array(v, float)) for v in (known[0], known[-1], values))
        heights, marks = (at - low) / (high - low), {known[0]: 0, known[-1]: 1}
    for value, height in marks.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        ax.text(x, height, text, va="center", fontsize=9, bbox={"color": "white", "alpha": 0.7, "pad": 1})
    return heights


def search_importance(shares: Mapping[str, float]) -> Figure:
    """How much each hyperparameter matters: ``SearchResults.importance()``."""
    figure, (ax,) = _figure(height=2.4, title="What decides whether a trial is among the best quarter", xlabel="share")
    ax.bar_label(ax.barh([*shares][::-1], [*shares.values()][::-1], color=BLUE), fmt=" %.2f")
    return figure


def search_cost(named: Mapping[str, Any], value: str = "valid_accuracy") -> Figure:
    """``value`` of every trial against its seconds of training, for the tables of one or several searches."""
    title = "What a trial has cost, and what it has reached"
    figure, (ax,) = _figure(title=title, xlabel="training (s)", xscale="log", ylabel=value)
    for (name, table), marker in zip(named.items(), "osD^v", strict=False):
        ax.plot(table.seconds, table[value], marker, alpha=0.7, label=name)
    ax.legend()
    return figure


def curves(named: Mapping[str, Any], title: str, x: str, y: str, log: bool = False) -> Figure:
    """Any sequences of numbers as lines, against 1, 2, 3, ...; ``log`` makes the vertical axis logarithmic."""
    figure, (ax,) = _figure(title=title, xlabel=x, ylabel=y, yscale="log" if log else "linear")
    _lines(ax, {name: (np.arange(1, len(values) + 1), values) for name, values in named.items()})
    return figure


def small_multiples(panels: Mapping[str, Mapping[str, Any]], quantity: str = "valid_loss") -> Figure:
    """One panel for each hyperparameter, in it one line for each value: a quantity of runs or histories by epoch."""
    rows = math.ceil(len(panels) / 3)
    figure, axes = _figure(rows, 3, height=2.9 * rows, share=True, xlabel="epoch")
    for ax, (name, runs) in zip(axes, panels.items(), strict=False):
        ax.set_title(name)
        _lines(ax, {value: (_column(run, "epoch"), _column(run, quantity)) for value, run in runs.items()}, gap=0.1)
    for ax in axes[::3]:
        ax.set_ylabel(UNITS[quantity.split("_")[1]])
    return figure


def calibration(confidence: Array, right: Array, bins: int = 10) -> Figure:
    """Share of right answers among predictions of each confidence, ``right`` and ``confidence`` (N,), and how many."""
    unit = "confidence (probability of the predicted class)"
    figure, (ax, below) = _figure(2, 1, height=5, xlim=(0, 1), xlabel=unit, ylabel="images")
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    share = np.bincount(place, weights=right, minlength=bins) / np.maximum(counts, 1)
    middles = (np.arange(bins) + 0.5) / bins
    ax.bar(middles, share, width=0.9 / bins, yerr=np.sqrt(share * (1 - share) / np.maximum(counts, 1)))
    ax.plot([0, 1], [0, 1], "--", color=RED, label="as sure\nas right")
    ax.set(title="How often is the network right when it is so sure?", ylabel="share of right answers", ylim=(0, 1))
    below.bar(middles, counts, width=0.9 / bins, color=GREY)
    _label_lines(ax)
    return figure


def computation_graph() -> Figure:
    """Two hidden layers as a graph: what each arrow computes forward, and the derivative that goes back along it."""
    names = ("$X$", "$Z_1$", "$A_1$", "$Z_2$", "$A_2$", "$Z_3$", "$L$")
    forward = ("$X W_1 + b_1$", "$f(Z_1)$", "$A_1 W_2 + b_2$", "$f(Z_2)$", "$A_2 W_3 + b_3$", "softmax,\ncross-entropy")
    back = [r"$\Delta_1 W_1^T$", r"$\odot f'(Z_1)$", r"$\Delta_2 W_2^T$", r"$\odot f'(Z_2)$", r"$\Delta_3 W_3^T$"]
    back += [r"$\Delta_3 = (P - Y)/B$"]
    figure, (ax,) = _figure(height=2.4, title="Forward: values. Backward: derivatives of the loss", xlim=(-0.4, 6.4))
    ax.set(ylim=(-1, 1), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    for i, name in enumerate(names):
        ax.text(i, 0, name, ha="center", va="center", fontsize=14, bbox={"boxstyle": "round", "fc": "w", "ec": GREY})
    for i, (ahead, behind) in enumerate(zip(forward, back, strict=True)):
        for text, y, ends, color in ((ahead, 0.25, (i + 0.2, i + 0.8), BLUE), (behind, -0.25, (i + 0.8, i + 0.2), RED)):
            ax.annotate("", (ends[1], y), (ends[0], y), arrowprops={"arrowstyle": "->", "color": color})
            ax.text(i + 0.5, 1.9 * y, text, color=color, ha="center", va="center", fontsize=9)
    return figure


def diagnostics(run: Any) -> Figure:
    """What ``nnlib.Diagnostics`` put into a run's history, layer by layer, by epoch."""
    panels = {"gradient_norm": "Gradient", "weight_norm": "Weights", "update_ratio": "Update / weights"}
    panels["dead"] = "Dead units (share of the layer)"
    figure, axes = _figure(2, 2, height=5.4, xlabel="epoch")
    records = getattr(run, "history", run)
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        for column in sorted({key for record in records for key in record if key.startswith(f"{name}_")}):
            ax.plot(_column(run, "epoch"), _column(run, column), label=f"layer {column.removeprefix(f'{name}_')}")
        ax.set(title=title, ylabel="share" if name == "dead" else "ratio" if name == "update_ratio" else "length")
        ax.set_yscale("linear" if name == "dead" else "log")
    axes[2].axhline(1e-3, color=GREY, ls="--", label="_")
    axes[3].set_ylim(-0.02, 1.02)
    _label_lines(*axes, gap=0.1)
    return figure


def learning_rate_test(test: Any) -> Figure:
    """The training loss over the learning rate, as ``nnlib.find_learning_rate`` found it, and its suggestion."""
    title = f"Learning rate range test: a tenth of the lowest point's rate is {test.suggestion:.2g}"
    figure, (ax,) = _figure(title=title, xlabel="learning rate", ylabel=UNITS["loss"], xscale="log")
    ax.plot(test.rates, test.losses)
    ax.axvline(test.suggestion, color=ORANGE, ls="--")
    ax.set_ylim(None, np.quantile(test.losses, 0.9) * 1.2)
    return figure


def gradient_norms(records: Sequence[Mapping[str, float]]) -> Figure:
    """The length of each layer's gradient by epoch, where ``records`` have it as ``gradient_norm_1`` and so on."""
    figure, (ax,) = _figure(height=2.4, title="Length of each layer's gradient", xlabel="epoch", ylabel="length")
    rows = [record for record in records if "gradient_norm_1" in record]
    names = [name for name in (rows[0] if rows else ()) if name.startswith("gradient_norm")]
    _lines(ax, {f"layer {n[14:]}": (_column(rows, "epoch"), _column(rows, n)) for n in names}, gap=0.15)
    return figure


def hidden_units(model: MLP, points: Array, labels: Array, title: str = "") -> Figure:
    """How a network with two classes divides the plane of ``points`` (N, 2), and what each hidden unit sees of it.

    A first-layer unit has a line where its z is 0, and a map under a number of the same colour; 2.1 is in layer 2.
    """
    figure, (left, right) = _figure(1, 2, height=4.8, title="Hidden units: white is active")
    n, edge = 60, 1.1 * float(np.abs(points).max())
    x = np.linspace(-edge, edge, n, dtype=model.dtype)
    *hidden, logits = model.activations(np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2))
    share, zs = softmax(logits)[:, 1], model.pre_activations[0].T
    left.imshow(share.reshape(n, n), cmap="BrBG", extent=(-edge, edge) * 2, origin="lower", vmin=-1, vmax=2, zorder=1)
    for values, color in [*zip(zs, PALETTE * 2, strict=False), (share - 0.5, "black")]:
        if values.min() < 0 < values.max():  # otherwise it is nowhere zero, and has no line
            left.contour(x, x, values.reshape(n, n), [0], colors=color, linewidths=1.5 + (color == "black"))
    for k, look in enumerate(("o#8c510a", "s#01665e")):
        left.plot(*points[labels == k].T, look[0], color=look[1:], ms=5, mec="white", mew=0.7)
    left.set(title=title, xlabel="first input", ylabel="second input")
    names = [f"\n\n{i}.{j}" for i, a in enumerate(hidden, 1) for j in range(1, a.shape[1] + 1)]
    _draw_images(right, _as_images(np.concatenate(hidden, axis=1).T, (1, n, n))[:, :, ::-1], 4, names)
    for text, color in zip(right.texts[: len(zs)], PALETTE * 2, strict=False):
        text.set(color=color, weight="bold")
    return figure
