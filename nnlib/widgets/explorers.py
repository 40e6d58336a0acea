"""Widgets to look around with: images, activations, search results, predictions and weights.

Each draws a figure, without pyplot, and puts its PNG into an ``Image``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure

from nnlib import plots
from nnlib.data.dataset import Dataset, Split
from nnlib.errors import HyperparameterError, NNLibError
from nnlib.network.activations import ACTIVATIONS
from nnlib.network.mlp import MLP
from nnlib.searching.results import SearchResults, describe
from nnlib.types import Array
from nnlib.widgets.controls import Panel


def browse_images(data: Dataset, n: int = 32) -> Panel:
    """Look through the images of a split and a class, ``n`` per page."""
    classes = [("all", -1)]
    for k, name in enumerate(data.classes):
        classes.append((name, k))
    split = w.Dropdown(options=["train", "valid", "test"], description="split")
    label = w.Dropdown(options=classes, description="class")
    page = w.IntSlider(1, 1, 1, description="page", continuous_update=False)

    def draw(split: str, label: int, **_: int) -> Figure:
        part = getattr(data, split)
        chosen = np.flatnonzero((part.labels == label) | (label < 0))
        # A lower maximum moves the slider's value down to it, so read the value only now.
        page.max = max(math.ceil(len(chosen) / n), 1)
        start = (page.value - 1) * n
        part = part.take(chosen[start : start + n])
        return plots.image_grid(part.images, [data.classes[k] for k in part.labels])

    return Panel(draw, 560, split=split, label=label, page=page)


def activation_explorer() -> Panel:
    """Compare values and derivatives of activations; the slider is the slope of leaky_relu."""
    names = w.SelectMultiple(
        options=[*ACTIVATIONS], value=["leaky_relu"], rows=5, description="activation"
    )
    slope = w.FloatSlider(
        0.1, min=0, max=0.99, step=0.01, description="slope", continuous_update=False
    )

    def draw(names: tuple[str, ...], slope: float) -> Figure:
        shown = []
        for name in names:
            if name == "leaky_relu":
                name = f"leaky_relu({slope:g})"
            shown.append(name)
        return plots.activation_functions(shown)

    return Panel(draw, 360, names=names, slope=slope)


def search_explorer(results: SearchResults) -> Any:
    """Explore a search: the best result for each pair of hyperparameters, and single trials.

    Sliders narrow the trials down. A hyperparameter against itself shows all trials. Click on a
    line of the list to see the curves of that trial.
    """
    table = results.to_dataframe()
    varied = list(results.trials[0].settings)
    known = {name: sorted(set(table[name])) for name in varied}
    x = w.Dropdown(options=varied, value=varied[0], description="across")
    y = w.Dropdown(options=varied, value=varied[-1], description="down")
    value = w.Dropdown(options=["valid_accuracy", "valid_loss", "seconds"], description="shown")
    limits = {}
    for name, values in known.items():
        if len(values) > 1:
            limits[name] = _limits(name, values)
    trial = w.Select(rows=8, description="trial", layout={"width": "95%"})

    def draw(x: str, y: str, value: str, **limits: tuple[int, int]) -> Figure:
        rows = table.sort_values(value, ascending=value != "valid_accuracy")
        for name, (low, high) in limits.items():
            places = rows[name].map(known[name].index)
            rows = rows[places.between(low, high)]
        lines = []
        for i in rows.index:
            lines.append((f"{value} {rows[value][i]:.4f}, {describe(results.trials[i])}", i))
        trial.options = lines
        trial.index = 0 if lines else None  # the best one is selected
        if not lines:
            raise NNLibError("No trial is within all of these limits. Widen one of them.")
        if x == y:
            return plots.search_strips(rows, [x], value)
        return plots.search_heatmap(rows, x, y, value)

    def curves(trial: int | None) -> Figure:
        if trial is None:
            return plots.history([])
        return plots.history(results.trials[trial].history)

    overview = Panel(draw, 450, x=x, y=y, value=value, **limits)
    return w.VBox([overview, Panel(curves, 360, trial=trial)])


def _limits(name: str, values: Sequence[Any]) -> Any:
    """Return a slider with two ends; its values are places in the sorted ``values``."""
    marks = []
    for i, value in enumerate(values):
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        marks.append((text, i))
    return w.SelectionRangeSlider(
        options=marks, value=(0, len(marks) - 1), description=name, continuous_update=False
    )


def prediction_explorer(model: MLP, split: Split) -> Panel:
    """Look at one image after the other, with the probability that ``model`` gives each class.

    A checkbox leaves only the model's mistakes.
    """
    probabilities = model.predict_proba(split.images)
    every_image = np.arange(len(split))
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.labels)
    mistakes = w.Checkbox(description="only mistakes")
    index = w.IntSlider(0, 0, len(split) - 1, description="image", continuous_update=False)

    def choose(only_mistakes: bool) -> Array:
        return wrong if only_mistakes else every_image

    def adapt_slider(change: Any) -> None:
        index.max = max(len(choose(change.new)) - 1, 0)

    def draw(mistakes: bool, index: int) -> Figure:
        chosen = choose(mistakes)
        if len(chosen) == 0:
            raise NNLibError("The network makes no mistakes on these images.")
        i = chosen[index]
        label = int(split.labels[i])
        return plots.prediction(split.images[i], probabilities[i], model.classes, label)

    # Registered before the panel's own observer: the slider fits when the panel draws.
    mistakes.observe(adapt_slider, "value")
    return Panel(draw, 360, mistakes=mistakes, index=index)


def weight_browser(model: MLP, films: Mapping[int, Mapping[str, Array]] | None = None) -> Panel:
    """Look at the weights of each layer, initial and trained: histograms, heat maps, images.

    ``films`` (optional) holds copies of the parameters by epoch; a slider then chooses the epoch
    whose weights are shown as the trained ones.
    """
    before = model.initial_parameters()
    if not films:
        films = {0: model.parameters}
    layers = [f"W{i}" for i in range(1, model.n_layers + 1)]
    layer = w.Dropdown(options=layers, description="layer")
    kind = w.ToggleButtons(options=["histogram", "heat map", "images, initial", "images, trained"])
    epoch = w.SelectionSlider(
        options=sorted(films), value=max(films), description="epoch", continuous_update=False
    )
    if len(films) == 1:
        epoch.layout.display = "none"

    def draw(layer: str, kind: str, epoch: int) -> Figure:
        after = films[epoch]
        if kind.startswith("images"):
            if layer != "W1":
                raise HyperparameterError(
                    "Only the first layer reads pixels. Choose W1 to see its weights as images."
                )
            weights = before["W1"] if kind == "images, initial" else after["W1"]
            return plots.first_layer_images(plots.filters_of(model, weights))
        bias = layer.replace("W", "b")
        names = [name for name in (layer, bias) if name in after]
        shown_before = {name: before[name] for name in names}
        shown_after = {name: after[name] for name in names}
        if kind == "histogram":
            return plots.weight_histograms(shown_before, shown_after)
        return plots.weight_heatmaps(shown_before, shown_after)

    return Panel(draw, 280, layer=layer, kind=kind, epoch=epoch)
