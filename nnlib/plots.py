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
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.activations import get_activation
from nnlib.checkpoints import write_atomically
from nnlib.datasets import Dataset, Split
from nnlib.evaluation import Evaluation
from nnlib.gradcheck import GradientReport
from nnlib.model import Array

# seaborn's palette "colorblind", written out: importing seaborn for ten colours would take a second
BLUE, ORANGE, GREEN, RED, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#949494"
PALETTE = [BLUE, ORANGE, GREEN, RED, "#cc78bc", "#ca9161", "#fbafe4", GREY, "#ece133", "#56b4e9"]
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": cycler(color=PALETTE),
    "image.interpolation": "nearest",
    "svg.hashsalt": "nnlib",  # names inside an SVG come from this, not from chance
}
SIGNS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (share of images)"}
_one_at_a_time = threading.RLock()  # Matplotlib's settings are global, and it promises nothing about threads


@contextmanager
def style() -> Iterator[None]:
    """The one look of all figures, for the time of a ``with`` block or, as ``@style()``, of a function."""
    with _one_at_a_time, matplotlib.rc_context(STYLE):
        yield


@style()
def draw(figure: Figure, kind: str = "png", dpi: int = 100, **options: Any) -> bytes:
    """Return ``figure`` as a file of ``kind`` png or svg: the same bytes for the same figure."""
    out = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    figure.savefig(out, format=kind, dpi=dpi, metadata=undated, **options)
    return out.getvalue()


def show(figure: Figure, name: str = "", alt: str = "") -> None:
    """Display ``figure`` with ``alt`` (default: its titles) for those who cannot see it, and save it as ``name``.png.

    Line drawings are saved as SVG too. The folder is NNLIB_FIGURES_DIR, else figures/ of the checkout, else ./figures.
    """
    from IPython.display import Image, display

    png = draw(figure, dpi=150, bbox_inches="tight")
    checkout = Path(__file__).resolve().parents[1]
    default = checkout if (checkout / "pyproject.toml").exists() else Path()
    path = Path(os.environ.get("NNLIB_FIGURES_DIR") or default / "figures") / f"{name}.png"
    if name:
        write_atomically(path, lambda file: file.write(png))
    if name and not any(ax.images or len(ax.collections) or len(ax.patches) > 100 for ax in figure.axes):
        svg = draw(figure, "svg", bbox_inches="tight")
        write_atomically(path.with_suffix(".svg"), lambda file: file.write(svg))
    titles = [figure.get_suptitle(), *(ax.get_title("left") for ax in figure.axes)]
    width = int.from_bytes(png[16:20]) * 100 // 150  # of the page's pixels: the image has three for each two
    display(Image(png, width=width, alt=alt or "; ".join(filter(None, titles))))  # type: ignore[no-untyped-call]


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _figure(rows: int = 1, columns: int = 1, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    """Return a figure, 9 by ``height`` inches, and its axes: one, or an array of all."""
    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _label_lines(ax: Axes, gap: float = 0.075) -> None:
    """Write each line's label beside its end, in its colour, moved apart where two would overlap."""
    ax.autoscale_view()
    ends, below = [], -math.inf
    for line in ax.lines:
        y = np.asarray(line.get_ydata(), float)
        y = y[np.isfinite(y)]
        if len(y) and not str(line.get_label()).startswith("_"):
            height = ax.transAxes.inverted().transform(ax.transData.transform((1, y[-1])))[1]
            ends.append((float(np.clip(height, 0, 1)), str(line.get_label()), line.get_color()))
    for height, label, color in sorted(ends):
        below = max(height, below + gap)
        ax.text(1.02, below, label, color=color, transform=ax.transAxes, va="center")


def _draw_images(ax: Axes, images: Array, columns: int, titles: Sequence[str], rows: Sequence[str] = ()) -> None:
    """Draw images (N, C, H, W), uint8 or from 0 to 1, on one sheet, with ``titles`` and names of ``rows``."""
    images = images / 255 if images.dtype == np.uint8 else images
    n, _, height, width = images.shape
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    top = height + 1 + math.ceil(n_lines * 0.018 * width * columns)  # an image, and the room above it for its title
    sheet = np.ones((math.ceil(n / columns) * columns, top, width + 1, 3), np.float32)
    sheet[:n, top - height :, 1:] = images.transpose(0, 2, 3, 1)  # a grey channel is spread over the three
    sheet = sheet.reshape(-1, columns, top, width + 1, 3).swapaxes(1, 2)
    ax.imshow(sheet.reshape(-1, columns * (width + 1), 3))
    for i, title in enumerate(titles):
        x, y = (i % columns + 0.5) * (width + 1), (i // columns + 1) * top - height - 1
        ax.text(x, y, title, ha="center", va="bottom", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([(i + 1) * top - height / 2 for i in range(len(rows))], rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _column(run: Any, name: str) -> Array:
    """Return one quantity over the records of a run or a history; NaN where a record has none."""
    return np.array([record.get(name, math.nan) for record in getattr(run, "history", run)], float)


# ---- data ------------------------------------------------------------------------------------------------------------


@style()
def image_grid(
    images: Array, titles: Sequence[str] = (), columns: int = 8, title: str = "", rows: Sequence[str] = ()
) -> Figure:
    """Images (N, C, H, W), uint8 or from 0 to 1, side by side, with a title above each or a name beside each row."""
    n_rows = max(math.ceil(len(images) / columns), 1)
    n_lines = max((each.count("\n") + 1 for each in titles), default=0)
    figure, ax = _figure(height=n_rows * (9 / columns + 0.17 * n_lines) + 0.4)
    _draw_images(ax, images, columns, titles, rows)
    ax.set_title(title)
    return figure


def samples_by_class(split: Split, classes: Sequence[str], n: int = 8) -> Figure:
    """The first ``n`` images of each class, one row a class."""
    chosen = [np.flatnonzero(split.labels == k)[:n] for k in range(len(classes))]
    blank = np.full((n, *split.images.shape[1:]), split.images.max(), split.images.dtype)
    images = np.concatenate([np.concatenate([split.images[i], blank])[:n] for i in chosen])
    return image_grid(images, columns=n, title=f"The first {n} images of each class", rows=classes)


@style()
def class_balance(data: Dataset) -> Figure:
    """How many images of each class every split has."""
    figure, axes = _figure(1, 3, sharey=True)
    for ax, name in zip(axes, ("train", "valid", "test"), strict=True):
        counts = np.bincount(getattr(data, name).labels, minlength=len(data.classes))
        ax.bar_label(ax.barh(data.classes, counts), fmt="{:,.0f}", label_type="center", color="white", fontsize=9)
        ax.set(title=f"{name}: {counts.min():,} to {counts.max():,} a class", xlabel="images")
    axes[0].invert_yaxis()
    return figure


def mean_images(split: Split, classes: Sequence[str]) -> Figure:
    """The mean of all images of each class."""
    means = [split.images[split.labels == k].mean(axis=0) / 255 for k in range(len(classes))]
    return image_grid(np.array(means), classes, columns=5, title="Mean image of each class: colour, hardly any shape")


# ---- functions, training, gradients ----------------------------------------------------------------------------------


@style()
def activation_functions(names: Sequence[str]) -> Figure:
    """Value and derivative of activations, side by side."""
    figure, axes = _figure(1, 2)
    z = np.linspace(-4, 4, 801)
    for name in names:
        f = get_activation(name)
        axes[0].plot(z, f.value(z), label=name)
        axes[1].plot(z, f.derivative(z, f.value(z)), label=name)
    for ax, what in zip(axes, ("value f(z)", "derivative f′(z)"), strict=True):
        ax.set(title=f"Activation: {what}", xlabel="pre-activation z", ylabel=what)
        _label_lines(ax)
    return figure


@style()
def schedules(named: Mapping[str, Callable[[int], float]], total_steps: int) -> Figure:
    """The learning rate of each schedule over ``total_steps`` steps."""
    figure, ax = _figure()
    steps = np.unique(np.linspace(0, total_steps - 1, 1000).astype(int)).tolist()
    for name, rate in named.items():
        ax.plot(steps, [rate(step) for step in steps], label=name)
    ax.set(title="Learning rate over the steps of a run", xlabel="step (one update)", ylabel="learning rate")
    _label_lines(ax)
    return figure


@style()
def history(run: Any, other: Any = None, filters: Array | None = None, shape: Any = (3, 32, 32)) -> Figure:
    """Loss and accuracy of a run or history by epoch, its best epoch marked; ``other`` (one or a list) drawn faintly.

    With ``filters`` (H, D) the first layer's weights stand beside the curves, as images of ``shape``.
    """
    figure, axes = _figure(1, 2 if filters is None else 3)
    others = other if isinstance(other, list) and other and not isinstance(other[0], dict) else [other] * bool(other)
    for ax, what in zip(axes, SIGNS, strict=False):
        for faint in others:
            _draw_curves(ax, faint, what, labels=("_", "_"), alpha=0.3)
        _draw_curves(ax, run, what)
        ax.set(title=f"{what.capitalize()} by epoch", xlabel="epoch", ylabel=SIGNS[what])
        _label_lines(ax)
    if filters is not None:
        _draw_images(axes[2], _as_images(filters, 36, shape), 6, ())
        axes[2].set_title("First layer's weights")
    return figure


def _draw_curves(ax: Axes, run: Any, what: str, labels: Sequence[str] = ("train", "valid"), alpha: float = 1) -> None:
    for split, label, color in zip(("train", "valid"), labels, (BLUE, ORANGE), strict=True):
        epochs, values = _column(run, "epoch"), _column(run, f"{split}_{what}")
        seen = np.isfinite(values)
        ax.plot(epochs[seen], values[seen], color=color, label=label, alpha=alpha)
    if seen.any() and alpha == 1:
        score = _column(run, "valid_accuracy")
        best = run.best_epoch if hasattr(run, "best_epoch") else epochs[np.nanargmax(score)]
        value = values[seen][epochs[seen] == best][0]
        ax.plot([best], [value], "o", color=ORANGE, label="_")
        ax.annotate(f"best: {value:.3f}", (best, value), (0, 8), textcoords="offset points", color=ORANGE, ha="right")


@style()
def histories(named: Mapping[str, Any], quantity: str = "valid_accuracy", top: int = 6) -> Figure:
    """One quantity of several runs or histories by epoch: the ``top`` best in colour with their names, others grey."""
    figure, ax = _figure()
    sign = 1 if quantity.endswith("loss") else -1
    ranked = sorted(named, key=lambda name: float(np.nanmin(sign * _column(named[name], quantity), initial=math.inf)))
    for place, name in reversed(list(enumerate(ranked))):
        look: dict[str, Any] = {"label": name, "color": PALETTE[place]} if place < top else {"color": "0.8", "lw": 1}
        ax.plot(_column(named[name], "epoch"), _column(named[name], quantity), **look)
    split, what = quantity.split("_")
    ax.set(title=f"{what.capitalize()} ({split}), {len(named)} runs", xlabel="epoch", ylabel=SIGNS[what])
    _label_lines(ax)
    return figure


@style()
def gradient_errors(report: GradientReport) -> Figure:
    """The worst relative error of each parameter's gradient, against the tolerance."""
    figure, ax = _figure()
    errors = {name: max(error, 1e-17) for name, error in report.errors.items()}
    colors = [BLUE if error <= report.tolerance else RED for error in errors.values()]
    ax.bar_label(ax.bar(list(errors), list(errors.values()), color=colors), fmt="%.0e", fontsize=9)
    ax.axhline(report.tolerance, color=RED, ls="--", label=f"tolerance\n{report.tolerance:.0e}")
    ax.set(yscale="log", title="Backpropagation against numerical derivatives: every bar must end below the line")
    ax.set(xlabel="parameter", ylabel="worst relative error")
    _label_lines(ax)
    return figure


@style()
def error_against_step(hs: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of numerical derivatives over their step length h, on logarithmic axes."""
    figure, ax = _figure()
    for name, values in errors.items():
        ax.loglog(hs, np.maximum(values, 1e-17), "o-", ms=3, label=name)
    ax.set(title="Too long a step is inexact, too short a one drowns in rounding", xlabel="step length h")
    ax.set(ylabel="relative error")
    _label_lines(ax)
    return figure


# ---- evaluation ------------------------------------------------------------------------------------------------------


@style()
def confusion(evaluation: Evaluation) -> Figure:
    """Who is taken for whom: the share of each true class, in per cent."""
    import seaborn

    figure, ax = _figure(height=6)
    share = 100 * evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    names = {"xticklabels": evaluation.classes, "yticklabels": evaluation.classes}
    bar = {"label": "share of the true class (%)"}
    seaborn.heatmap(share, ax=ax, cmap="Blues", vmin=0, vmax=100, annot=True, fmt=".0f", cbar_kws=bar, **names)
    ax.set(title="Who is taken for whom: each row adds up to 100 %", xlabel="predicted class", ylabel="true class")
    return figure


@style()
def per_class(evaluation: Evaluation) -> Figure:
    """The accuracy on each class, best first, and on all images."""
    figure, ax = _figure()
    ranked = dict(sorted(evaluation.per_class.items(), key=lambda item: item[1]))
    ax.bar_label(ax.barh(list(ranked), list(ranked.values())), fmt="%.3f", padding=3)
    ax.axvline(evaluation.accuracy, color=ORANGE, ls="--")
    ax.text(evaluation.accuracy, 1, f"all: {evaluation.accuracy:.3f}", color=ORANGE, transform=ax.get_xaxis_transform())
    ax.set(xlabel="accuracy (share of the class's images)", title="Accuracy of each class", xlim=(0, 1))
    return figure


def mistakes(images: Array, true: Array, predicted: Array, probabilities: Array, classes: Sequence[str]) -> Figure:
    """Images with their true and predicted class and the probability (N, K) that the network gave the latter."""
    sure = np.asarray(probabilities)[np.arange(len(true)), predicted]
    rows = zip(true, predicted, sure, strict=True)
    titles = [f"{classes[t]}\n→ {classes[p]} {100 * q:.0f} %" for t, p, q in rows]
    return image_grid(images, titles, columns=6, title="True class → predicted class, with its probability")


@style()
def prediction(image: Array, probabilities: Array, classes: Sequence[str], label: int) -> Figure:
    """One image (C, H, W) and the probability of each class; the true class is green, a wrong guess red."""
    figure, axes = _figure(1, 2)
    _draw_images(axes[0], image[None], 1, ())
    guess = int(np.argmax(probabilities))
    colors = [GREEN if k == label else RED if k == guess else GREY for k in range(len(classes))]
    axes[1].bar_label(axes[1].barh(classes, probabilities, color=colors), fmt="%.2f", padding=3, fontsize=9)
    axes[1].set(xlim=(0, 1.1), xlabel="probability", title=f"Predicted: {classes[guess]}")
    axes[1].invert_yaxis()
    axes[0].set_title(f"True class: {classes[label]}")
    return figure


# ---- weights ---------------------------------------------------------------------------------------------------------


@style()
def weight_histograms(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Histograms of every layer's weights and biases, initial and trained, in the same bins."""
    names = [name for name in after if name.startswith(("W", "b"))]
    figure, axes = _figure(math.ceil(len(names) / 2), 2, height=2.4 * math.ceil(len(names) / 2), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        pair = {"initial": before[name], "trained": after[name]}
        low, high = np.quantile(np.concatenate([np.ravel(w) for w in pair.values()]), [0.0005, 0.9995])
        for (when, values), color in zip(pair.items(), (GREY, BLUE), strict=True):
            label = f"{when}: σ = {values.std():.3g}"
            bins = np.linspace(low, high + 1e-9, 81)
            ax.hist(np.ravel(values), bins, color=color, alpha=0.6, label=label, histtype="stepfilled")
        ax.set(title=f"{name}: {values.size:,} values", xlabel="value", ylabel="count", yscale="log")
        ax.legend(frameon=False, fontsize=9)
    return figure


@style()
def weight_heatmaps(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Every weight matrix, initial and trained, on one symmetric scale a layer; large ones as means of blocks."""
    names = [name for name in after if name.startswith("W")]
    figure, axes = _figure(len(names), 2, height=2.8 * len(names), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        pair = {"initial": _block_means(before[name]), "trained": _block_means(after[name])}
        limit = max(np.quantile(np.abs(w), 0.995) for w in pair.values())
        for ax, (when, means) in zip(row, pair.items(), strict=True):
            extent = (0, len(after[name]), after[name].shape[1], 0)
            shown = ax.imshow(means.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", extent=extent)
            ax.set(title=f"{name}, {when}", xlabel="input of the layer", ylabel="unit")
            ax.grid(False)
        figure.colorbar(shown, ax=row, label="weight")
    return figure


def _block_means(weights: Array, largest: int = 200) -> Array:
    """Return the means of blocks of ``weights``, so many that no side is longer than ``largest``."""
    for axis, n in enumerate(weights.shape):
        starts = np.linspace(0, n, min(n, largest), endpoint=False).astype(int)
        sizes = np.diff(np.append(starts, n)).reshape([-1, 1] if axis == 0 else [1, -1])
        weights = np.add.reduceat(weights, starts, axis) / sizes
    return weights


def first_layer_images(filters: Array, n: int = 64, columns: int = 16, shape: Any = (3, 32, 32)) -> Figure:
    """What ``n`` first-layer units weigh each pixel by, ``filters`` (H, D), longest first, as images of ``shape``."""
    title = "First layer's weights as images, longest first: grey is zero, each scaled to its own largest weight"
    return image_grid(_as_images(filters, n, shape), columns=columns, title=title)


def _as_images(filters: Array, n: int, shape: Any) -> Array:
    longest = np.argsort(-np.linalg.norm(filters, axis=1), kind="stable")[:n]
    chosen = filters[longest]
    scale = np.maximum(np.abs(chosen).max(axis=1, keepdims=True), 1e-12)
    return (0.5 + 0.5 * chosen / scale).reshape(-1, *shape)


# ---- search ----------------------------------------------------------------------------------------------------------


@style()
def search_heatmap(table: Any, x: str, y: str, value: str = "valid_accuracy") -> Figure:
    """The best ``value`` in a search's table (pandas) for each pair of two hyperparameters."""
    import seaborn

    figure, ax = _figure(height=4.5)
    as_text = {name: table[name].map(str) if table[name].dtype == object else table[name] for name in (x, y)}
    best = table.assign(**as_text).pivot_table(value, y, x, "min" if value.endswith("loss") else "max")
    seaborn.heatmap(best, ax=ax, cmap="viridis", annot=True, fmt=".3f", cbar_kws={"label": value})
    ax.set_title(f"Best {value} of each pair: yellow is high")
    return figure


@style()
def search_strips(table: Any, names: Sequence[str], value: str = "valid_accuracy") -> Figure:
    """``value`` of every trial over each hyperparameter in ``names``: what matters shows a slope, the rest is flat."""
    figure, axes = _figure(1, len(names), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=True):
        column = table[name] if table[name].dtype.kind in "if" else table[name].map(str)
        ax.plot(column, table[value], "o", alpha=0.7)
        if column.dtype.kind in "if" and column.min() > 0 and column.max() >= 20 * column.min():
            ax.set_xscale("log")
        ax.set(xlabel=name, title=name)
    axes[0, 0].set_ylabel(value)
    return figure
