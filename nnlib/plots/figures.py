"""Figures: every function takes arrays, histories or models and returns a Matplotlib ``Figure``."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.data.dataset import Dataset, Split
from nnlib.extras import need
from nnlib.network.activations import get_activation
from nnlib.network.gradcheck import GradientReport
from nnlib.network.losses import softmax
from nnlib.network.mlp import MLP
from nnlib.plots.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    UNITS,
    draw_images,
    draw_lines,
    label_lines,
    subplots,
)
from nnlib.training.evaluation import Evaluation
from nnlib.types import Array

Names = Sequence[str]
SQUARE = (3, 32, 32)


def image_grid(
    images: Array, titles: Names = (), columns: int = 8, title: str = "", rows: Names = ()
) -> Figure:
    """Images (N, C, H, W), uint8 or from 0 to 1, side by side, with a title above each or a name beside each row."""
    room = 0.17 * max((each.count("\n") + 1 for each in titles), default=0)
    figure, (ax,) = subplots(
        height=math.ceil(len(images) / columns) * (9 / columns + room) + 0.4, title=title
    )
    draw_images(ax, images, columns, titles, rows)
    return figure


def samples_by_class(split: Split, classes: Sequence[str], n: int = 8) -> Figure:
    """The first ``n`` images of each class, one row a class."""
    blank = np.full((n, *split.images.shape[1:]), split.images.max(), split.images.dtype)
    rows = [
        np.concatenate([split.images[split.labels == k][:n], blank])[:n]
        for k in range(len(classes))
    ]
    return image_grid(np.concatenate(rows), (), n, f"The first {n} images of each class", classes)


def class_balance(data: Dataset) -> Figure:
    """How many images of each class every split has."""
    figure, axes = subplots(1, 3, share=True, xlabel="images")
    for ax, name in zip(axes, ("train", "valid", "test"), strict=True):
        counts = np.bincount(getattr(data, name).labels, minlength=len(data.classes))
        ax.bar_label(
            ax.barh(data.classes, counts),
            fmt="{:,.0f}",
            label_type="center",
            color="white",
            fontsize=9,
        )
        ax.set_title(f"{name}: {counts.min():,} to {counts.max():,} a class")
    axes[0].invert_yaxis()
    return figure


def mean_images(split: Split, classes: Sequence[str]) -> Figure:
    """The mean of all images of each class."""
    means = [split.images[split.labels == k].mean(axis=0) / 255 for k in range(len(classes))]
    return image_grid(
        np.array(means), classes, 5, "Mean image of each class: colour, hardly any shape"
    )


def activation_functions(names: Sequence[str]) -> Figure:
    """Value and derivative of activations, side by side."""
    figure, axes = subplots(1, 2, xlabel="pre-activation z")
    z = np.linspace(-4, 4, 801)
    functions = {name: get_activation(name) for name in names}
    axes[0].set(title="What a unit passes on", ylabel="value f(z)")
    axes[1].set(title="What it lets back through", ylabel="derivative f′(z)")
    draw_lines(axes[0], {name: (z, f.value(z)) for name, f in functions.items()})
    draw_lines(axes[1], {name: (z, f.derivative(z, f.value(z))) for name, f in functions.items()})
    return figure


def schedules(named: Mapping[str, Callable[[int], float]], total_steps: int) -> Figure:
    """The learning rate of each schedule over ``total_steps`` steps."""
    title = "Learning rate over the steps of a run"
    figure, (ax,) = subplots(title=title, xlabel="step (one update)", ylabel="learning rate")
    steps = np.unique(np.linspace(0, total_steps - 1, 1000).astype(int)).tolist()
    draw_lines(ax, {name: (steps, [rate(step) for step in steps]) for name, rate in named.items()})
    return figure


def _column(run: Any, name: str) -> Array:
    """Return one quantity over the records of a run or a history; NaN where a record has none."""
    return np.array([record.get(name, math.nan) for record in getattr(run, "history", run)], float)


def history(
    run: Any, others: Any = (), filters: Array | None = None, shape: Sequence[int] = SQUARE
) -> Figure:
    """Loss and accuracy of a run or history by epoch, the best one marked; ``others`` are drawn faintly.

    With ``filters`` (H, D) the weights of the first 36 units stand beside the curves, as images of ``shape``.
    """
    figure, axes = subplots(1, 2 if filters is None else 3, xlabel="epoch")
    for ax, what in zip(axes, UNITS, strict=False):
        for other in others:
            _draw_curves(ax, other, what, alpha=0.3, label="_")
        _draw_curves(ax, run, what)
        ax.set(
            ylabel=UNITS[what], yscale="log" if ax.dataLim.y1 > 20 else "linear"
        )  # a loss that diverges
        label_lines(ax)
    if filters is not None:
        draw_images(axes[2], _as_images(filters[:36], shape), 6)
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
    figure, (ax,) = subplots(
        xlabel="epoch", ylabel=UNITS[what], title=f"{what.capitalize()} ({split})"
    )
    sign = 1 if what == "loss" else -1
    ranked = sorted(
        named,
        key=lambda name: np.fmin.reduce(sign * _column(named[name], quantity), initial=math.inf),
    )
    for i, name in reversed([*enumerate(ranked)]):  # the best are drawn last, over the others
        look = (
            {"color": PALETTE[i % 10], "label": name} if i < top else {"color": "0.8", "label": "_"}
        )
        ax.plot(_column(named[name], "epoch"), _column(named[name], quantity), **look)
    label_lines(ax)
    return figure


def gradient_errors(report: GradientReport) -> Figure:
    """The worst relative error of each parameter's gradient, against the tolerance."""
    title = "Backpropagation against numerical derivatives: every bar must end below the line"
    figure, (ax,) = subplots(
        title=title, xlabel="parameter", ylabel="worst relative error", yscale="log"
    )
    errors = np.maximum([*report.errors.values()], 1e-17)
    colors = np.where(errors <= report.tolerance, BLUE, RED)
    ax.bar_label(ax.bar([*report.errors], errors, color=colors), fmt="%.0e", fontsize=9)
    ax.axhline(report.tolerance, color=RED, ls="--", label=f"tolerance\n{report.tolerance:.0e}")
    label_lines(ax)
    return figure


def error_against_step(hs: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of numerical derivatives over their step length h, on logarithmic axes."""
    title = "Too long a step is inexact, too short a one drowns in rounding"
    figure, (ax,) = subplots(
        title=title, xlabel="step length h", xscale="log", ylabel="relative error", yscale="log"
    )
    draw_lines(
        ax,
        {name: (hs, np.maximum(values, 1e-17)) for name, values in errors.items()},
        marker="o",
        ms=3,
    )
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Who is taken for whom: the share of each true class, in per cent."""
    need("notebooks", "seaborn")
    import seaborn

    share = (
        100 * evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    )
    figure, (ax,) = subplots(height=6, title="Who is taken for whom: each row adds up to 100 %")
    bar = {"label": "share of the true class (%)"}
    seaborn.heatmap(
        share, ax=ax, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar_kws=bar
    )
    ax.set(xlabel="predicted class", xticklabels=evaluation.classes, ylabel="true class")
    ax.tick_params(axis="x", rotation=45)
    return figure


def per_class(evaluation: Evaluation) -> Figure:
    """The accuracy on each class, best first, and on all images."""
    title = f"Accuracy of each class, and of all images: {evaluation.accuracy:.3f}"
    figure, (ax,) = subplots(title=title, xlabel="accuracy (share of the class's images)")
    ranked = dict(sorted(evaluation.per_class.items(), key=lambda item: item[1]))
    ax.bar_label(
        ax.barh([*ranked], [*ranked.values()]),
        fmt="%.3f",
        label_type="center",
        color="white",
        fontsize=9,
    )
    ax.axvline(evaluation.accuracy, color=ORANGE, ls="--")
    return figure


def mistakes(
    images: Array, true: Array, predicted: Array, probabilities: Array, classes: Sequence[str]
) -> Figure:
    """Images with their true and predicted class and the probability (N, K) that the network gave the latter."""
    rows = zip(true, predicted, probabilities, strict=True)
    titles = [f"{classes[t]}\n→ {classes[p]} {100 * shares[p]:.0f} %" for t, p, shares in rows]
    return image_grid(images, titles, 6, "True class → predicted class, with its probability")


def prediction(image: Array, probabilities: Array, classes: Sequence[str], label: int) -> Figure:
    """One image (C, H, W) and the probability of each class; the true class is green, a wrong guess red."""
    figure, (left, right) = subplots(1, 2)
    guess = int(np.argmax(probabilities))
    colors = [GREEN if k == label else RED if k == guess else GREY for k in range(len(classes))]
    draw_images(left, image[None], 1)
    left.set_title(f"True class: {classes[label]}")
    right.bar_label(
        right.barh(classes, probabilities, color=colors), fmt="%.2f", padding=3, fontsize=9
    )
    right.set(xlim=(0, 1.1), xlabel="probability", title=f"Predicted: {classes[guess]}")
    right.invert_yaxis()
    return figure


def weight_histograms(before: Mapping[str, Array], after: Mapping[str, Array]) -> Figure:
    """Histograms of every layer's weights and biases, initial and trained, in the same bins."""
    rows = math.ceil(len(after) / 2)
    figure, axes = subplots(
        rows, 2, height=2.4 * rows, xlabel="value", ylabel="count", yscale="log"
    )
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
    heights = [1.2 * value.ndim for value in after.values()]
    figure, axes = subplots(len(after), 3, height=sum(heights))
    axes[0].get_gridspec().set_height_ratios(heights)
    for row, (name, value) in zip(axes.reshape(-1, 3), after.items(), strict=True):
        pair = [
            np.atleast_2d(p[name].T).T for p in (before, after)
        ]  # a bias is a matrix with one column
        initial, trained = map(_block_means, pair)
        maps = {"initial": initial, "trained": trained, "difference": trained - initial}
        limit = max(np.quantile(np.abs([*maps.values()]), 0.995), 1e-12)
        look = {
            "cmap": "RdBu_r",
            "vmin": -limit,
            "vmax": limit,
            "aspect": "auto",
            "interpolation": "nearest",
        }
        words = (
            {"xlabel": "input of the layer"}
            if value.ndim == 2
            else {"xlabel": "unit", "yticks": []}
        )
        for ax, (when, mean) in zip(row, maps.items(), strict=True):
            shown = ax.imshow(mean.T, extent=(0, *pair[0].shape, 0), **look)
            ax.set(title=f"{name}, {when}", **words)
            ax.grid(False)
        row[0].set_ylabel("unit" if value.ndim == 2 else "")
        figure.colorbar(
            shown,
            ax=row.tolist(),
            label="value" if trained.shape == pair[1].shape else "block mean",
        )
    return figure


def _block_means(weights: Array, largest: int = 80) -> Array:
    """Return the means of blocks of ``weights``, so large that at most ``largest`` stand side by side."""
    for axis, n in enumerate(weights.shape):
        starts = np.arange(0, n, math.ceil(n / largest))
        sizes = np.diff(starts, append=n)
        weights = np.add.reduceat(weights, starts, axis) / (sizes if axis else sizes[:, None])
    return weights


def first_layer_images(filters: Array, n: int = 64, columns: int = 16) -> Figure:
    """What ``n`` first-layer units weigh each pixel by, ``filters`` (H, 3072), longest first, as images."""
    title = "First layer's weights as images, longest first: grey is zero, each scaled to its own largest weight"
    longest = np.argsort(-np.linalg.norm(filters, axis=1), kind="stable")[:n]
    return image_grid(_as_images(filters[longest], SQUARE), (), columns, title)


def filters_of(model: MLP, weights: Array) -> Array:
    """What first-layer ``weights`` (fan_in, H) of ``model`` weigh each pixel by, before its preprocessing: (H, D)."""
    return model.preprocessing.filters(weights) if model.preprocessing else weights.T


def _as_images(filters: Array, shape: Sequence[int]) -> Array:
    """Return rows of numbers as images of ``shape``: 0 is grey, and each row's largest number black or white."""
    scale = np.maximum(np.abs(filters).max(axis=1, keepdims=True), 1e-12)
    return (0.5 + 0.5 * filters / scale).reshape(-1, *shape)


def search_curves(results: Any) -> Figure:
    """The validation accuracy of all trials of a search by epoch, the four best in colour with their settings."""
    return histories(
        {", ".join(map(str, t.settings.values())): t.history for t in results.trials}, top=4
    )


def curves(named: Mapping[str, Any], title: str, x: str, y: str, log: bool = False) -> Figure:
    """Any sequences of numbers as lines, against 1, 2, 3, ...; ``log`` makes the vertical axis logarithmic."""
    figure, (ax,) = subplots(title=title, xlabel=x, ylabel=y, yscale="log" if log else "linear")
    draw_lines(
        ax, {name: (np.arange(1, len(values) + 1), values) for name, values in named.items()}
    )
    return figure


def small_multiples(
    panels: Mapping[str, Mapping[str, Any]], quantity: str = "valid_loss"
) -> Figure:
    """One panel for each hyperparameter, in it one line for each value: a quantity of runs or histories by epoch."""
    rows = math.ceil(len(panels) / 3)
    figure, axes = subplots(rows, 3, height=2.9 * rows, share=True, xlabel="epoch")
    for ax, (name, runs) in zip(axes, panels.items(), strict=False):
        ax.set_title(name)
        draw_lines(
            ax,
            {value: (_column(run, "epoch"), _column(run, quantity)) for value, run in runs.items()},
            gap=0.1,
        )
    for ax in axes[::3]:
        ax.set_ylabel(UNITS[quantity.split("_")[1]])
    return figure


def calibration(confidence: Array, right: Array, bins: int = 10) -> Figure:
    """Share of right answers among predictions of each confidence, ``right`` and ``confidence`` (N,), and how many."""
    unit = "confidence (probability of the predicted class)"
    figure, (ax, below) = subplots(2, 1, height=5, xlim=(0, 1), xlabel=unit, ylabel="images")
    counts, right_counts = (
        np.histogram(chosen, bins, (0, 1))[0] for chosen in (confidence, confidence[right > 0])
    )
    share = right_counts / np.maximum(counts, 1)
    middles = (np.arange(bins) + 0.5) / bins
    ax.bar(
        middles, share, width=0.9 / bins, yerr=np.sqrt(share * (1 - share) / np.maximum(counts, 1))
    )
    ax.plot([0, 1], [0, 1], "--", color=RED, label="as sure\nas right")
    ax.set(
        title="How often is the network right when it is so sure?",
        ylabel="share of right answers",
        ylim=(0, 1),
    )
    below.bar(middles, counts, width=0.9 / bins, color=GREY)
    label_lines(ax)
    return figure


def computation_graph() -> Figure:
    """Two hidden layers as a graph: what each arrow computes forward, and the derivative that goes back along it."""
    forward = (
        "$X W_1 + b_1$",
        "$f(Z_1)$",
        "$A_1 W_2 + b_2$",
        "$f(Z_2)$",
        "$A_2 W_3 + b_3$",
        "softmax,\ncross-entropy",
    )
    back = [
        r"$\Delta_1 W_1^T$",
        r"$\odot f'(Z_1)$",
        r"$\Delta_2 W_2^T$",
        r"$\odot f'(Z_2)$",
        r"$\Delta_3 W_3^T$",
    ]
    back += [r"$\Delta_3 = (P - Y)/B$"]
    figure, (ax,) = subplots(
        height=2.4, title="Forward: values. Backward: derivatives of the loss", xlim=(-0.4, 6.4)
    )
    ax.set(ylim=(-1, 1), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    for i, name in enumerate(("$X$", "$Z_1$", "$A_1$", "$Z_2$", "$A_2$", "$Z_3$", "$L$")):
        ax.text(
            i,
            0,
            name,
            ha="center",
            va="center",
            fontsize=14,
            bbox={"boxstyle": "round", "fc": "w", "ec": GREY},
        )
    for i, (ahead, behind) in enumerate(zip(forward, back, strict=True)):
        for text, y, ends, color in (
            (ahead, 0.25, (i + 0.2, i + 0.8), BLUE),
            (behind, -0.25, (i + 0.8, i + 0.2), RED),
        ):
            ax.annotate(
                "", (ends[1], y), (ends[0], y), arrowprops={"arrowstyle": "->", "color": color}
            )
            ax.text(i + 0.5, 1.9 * y, text, color=color, ha="center", va="center", fontsize=9)
    return figure


def _draw_layers(ax: Axes, records: Sequence[Mapping[str, float]], name: str) -> None:
    """Draw a line for each layer whose ``name``, as in ``nnlib.Diagnostics``, is in ``records``."""
    for column in dict.fromkeys(
        key for record in records for key in record if key.startswith(f"{name}_")
    ):
        ax.plot(
            _column(records, "epoch"),
            _column(records, column),
            label=column.replace(f"{name}_", "layer "),
        )


def diagnostics(run: Any) -> Figure:
    """What ``nnlib.Diagnostics`` put into a run's history, layer by layer, by epoch."""
    panels = {"gradient_norm": ("Gradient", "length"), "weight_norm": ("Weights", "length")}
    panels |= {
        "update_ratio": ("Update / weights", "ratio"),
        "dead": ("Dead units (share of the layer)", "share"),
    }
    figure, axes = subplots(2, 2, height=5.4, xlabel="epoch", yscale="log")
    for ax, (name, (title, unit)) in zip(axes, panels.items(), strict=True):
        _draw_layers(ax, getattr(run, "history", run), name)
        ax.set(title=title, ylabel=unit)
    axes[2].axhline(1e-3, color=GREY, ls="--", label="_")
    axes[3].set(yscale="linear", ylim=(-0.02, 1.02))
    label_lines(*axes, gap=0.1)
    return figure


def learning_rate_test(test: Any) -> Figure:
    """The training loss over the learning rate, as ``nnlib.find_learning_rate`` found it, and its suggestion."""
    title = f"Learning rate range test: a tenth of the lowest point's rate is {test.suggestion:.2g}"
    figure, (ax,) = subplots(
        title=title, xlabel="learning rate", ylabel=UNITS["loss"], xscale="log"
    )
    ax.plot(test.rates, test.losses)
    ax.axvline(test.suggestion, color=ORANGE, ls="--")
    ax.set_ylim(None, np.quantile(test.losses, 0.9) * 1.2)
    return figure


def gradient_norms(records: Sequence[Mapping[str, float]]) -> Figure:
    """The length of each layer's gradient by epoch, where ``records`` have it as ``gradient_norm_1`` and so on."""
    figure, (ax,) = subplots(
        height=2.4, title="Length of each layer's gradient", xlabel="epoch", ylabel="length"
    )
    _draw_layers(ax, [record for record in records if "gradient_norm_1" in record], "gradient_norm")
    label_lines(ax, gap=0.15)
    return figure


def hidden_units(model: MLP, points: Array, labels: Array, title: str = "") -> Figure:
    """How a network with two classes divides the plane of ``points`` (N, 2), and what each hidden unit sees of it.

    A first-layer unit has a line where its z is 0, and a map under a number of the same colour; 2.1 is in layer 2.
    """
    figure, (left, right) = subplots(1, 2, height=4.8, title="Hidden units: white is active")
    n, edge = 60, 1.1 * float(np.abs(points).max())
    x = np.linspace(-edge, edge, n, dtype=model.dtype)
    *hidden, logits = model.activations(np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2))
    share, zs = softmax(logits)[:, 1], model.pre_activations[0].T
    left.imshow(
        share.reshape(n, n),
        cmap="BrBG",
        extent=(-edge, edge) * 2,
        origin="lower",
        vmin=-1,
        vmax=2,
        zorder=1,
    )
    for values, color in [*zip(zs, PALETTE * 2, strict=False), (share - 0.5, "black")]:
        if values.min() < 0 < values.max():  # otherwise it is nowhere zero, and has no line
            left.contour(
                x, x, values.reshape(n, n), [0], colors=color, linewidths=1.5 + (color == "black")
            )
    for k, look in enumerate(("o#8c510a", "s#01665e")):
        left.plot(*points[labels == k].T, look[0], color=look[1:], ms=5, mec="white", mew=0.7)
    left.set(title=title, xlabel="first input", ylabel="second input")
    names = [f"\n\n{i}.{j}" for i, a in enumerate(hidden, 1) for j in range(1, a.shape[1] + 1)]
    draw_images(
        right, _as_images(np.concatenate(hidden, axis=1).T, (1, n, n))[:, :, ::-1], 4, names
    )
    for text, color in zip(right.texts[: len(zs)], PALETTE * 2, strict=False):
        text.set(color=color, weight="bold")
    return figure
