"""Widgets (ipywidgets 8): controls around the plots and the trainer, without pyplot and without mathematics.

Each draws a figure and puts its PNG into an ``Image``. Names and limits of controls are those of ``Hyperparameters``.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageOps

from nnlib import plots
from nnlib.data.dataset import Dataset, Split
from nnlib.errors import DataError, HyperparameterError, NNLibError, TrainingDiverged
from nnlib.network.activations import ACTIVATIONS
from nnlib.network.mlp import MLP
from nnlib.plots.drawing import UNITS
from nnlib.searching.results import SearchResults, describe
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.trainer import Trainer
from nnlib.types import Array
from nnlib.widgets.controls import Panel, alone, control_for
from nnlib.widgets.playground import Playground


def _steps(hp: Hyperparameters, data: Dataset, n: int) -> Iterator[Trainer]:
    """Train for ``n`` steps; yield the trainer before the first and after each."""
    trainer = Trainer(hp, data, progress=False)
    with alone():
        yield trainer
        while trainer.step < n:
            trainer.train_step()
            yield trainer


def browse_images(data: Dataset, n: int = 32) -> Panel:
    """Look through the images of a split and a class, ``n`` a page."""
    split = w.Dropdown(options=["train", "valid", "test"], description="split")
    label = w.Dropdown(
        options=[("all", -1), *((name, k) for k, name in enumerate(data.classes))],
        description="class",
    )
    page = w.IntSlider(1, 1, 1, description="page", continuous_update=False)

    def draw(split: str, label: int, **_: int) -> Figure:
        part = getattr(data, split)
        chosen = np.flatnonzero((part.labels == label) | (label < 0))
        page.max = max(
            math.ceil(len(chosen) / n), 1
        )  # which moves the slider's value where it is above
        part = part.take(chosen[(page.value - 1) * n : page.value * n])
        return plots.image_grid(part.images, [data.classes[k] for k in part.labels])

    return Panel(draw, 560, split=split, label=label, page=page)


def activation_explorer() -> Panel:
    """Value and derivative of one or several activations; the slope is that of leaky_relu."""
    names = w.SelectMultiple(
        options=[*ACTIVATIONS], value=["leaky_relu"], rows=5, description="activation"
    )
    slope = w.FloatSlider(
        0.1, min=0, max=0.99, step=0.01, description="slope", continuous_update=False
    )

    def draw(names: tuple[str, ...], slope: float) -> Figure:
        return plots.activation_functions(
            [f"{n}({slope:g})" if n == "leaky_relu" else n for n in names]
        )

    return Panel(draw, 360, names=names, slope=slope)


def search_explorer(results: SearchResults) -> Any:
    """The best of a search for each pair of hyperparameters, of the trials between limits; and a trial's curves.

    For one hyperparameter against itself, all trials. A click on a line of the list shows that trial.
    """
    table = results.to_dataframe()
    varied = list(results.trials[0].settings)
    known = {name: sorted(set(table[name])) for name in varied}
    x = w.Dropdown(options=varied, value=varied[0], description="across")
    y = w.Dropdown(options=varied, value=varied[-1], description="down")
    value = w.Dropdown(options=["valid_accuracy", "valid_loss", "seconds"], description="shown")
    limits = {n: _limits(n, values) for n, values in known.items() if len(values) > 1}
    trial = w.Select(rows=8, description="trial", layout={"width": "95%"})

    def draw(x: str, y: str, value: str, **limits: tuple[int, int]) -> Figure:
        rows = table.sort_values(value, ascending=value != "valid_accuracy")
        for name, ends in limits.items():
            rows = rows[rows[name].map(known[name].index).between(*ends)]
        trial.options = [
            (f"{value} {rows[value][i]:.4f}, {describe(results.trials[i])}", i) for i in rows.index
        ]
        trial.index = None if rows.empty else 0
        if rows.empty:
            raise NNLibError("No trial lies between all of these limits: widen one.")
        return (
            plots.search_strips(rows, [x], value)
            if x == y
            else plots.search_heatmap(rows, x, y, value)
        )

    def curves(trial: int | None) -> Figure:
        return plots.history([] if trial is None else results.trials[trial].history)

    return w.VBox(
        [Panel(draw, 450, x=x, y=y, value=value, **limits), Panel(curves, 360, trial=trial)]
    )


def _limits(name: str, values: Sequence[Any]) -> Any:
    """Return a slider with two ends over the places of sorted ``values``."""
    marks = [(f"{v:.4g}" if isinstance(v, float) else str(v), i) for i, v in enumerate(values)]
    return w.SelectionRangeSlider(
        options=marks, value=(0, len(marks) - 1), description=name, continuous_update=False
    )


def prediction_explorer(model: MLP, split: Split) -> Panel:
    """One image after the other with the probability that ``model`` gives each class; all, or only its mistakes."""
    probabilities = model.predict_proba(split.images)
    rows = {
        False: np.arange(len(split)),
        True: np.flatnonzero(probabilities.argmax(axis=1) != split.labels),
    }
    mistakes = w.Checkbox(description="only mistakes")
    index = w.IntSlider(0, 0, len(split) - 1, description="image", continuous_update=False)

    def draw(mistakes: bool, index: int) -> Figure:
        if not len(rows[mistakes]):
            raise NNLibError("The network makes no mistakes on these images.")
        i = rows[mistakes][index]
        return plots.prediction(
            split.images[i], probabilities[i], model.classes, int(split.labels[i])
        )

    mistakes.observe(
        lambda change: setattr(index, "max", max(len(rows[change.new]) - 1, 0)), "value"
    )
    return Panel(draw, 360, mistakes=mistakes, index=index)


def weight_browser(model: MLP, films: Mapping[int, Mapping[str, Array]] | None = None) -> Panel:
    """The weights of each layer, initial and trained: histogram, heat map, and the first layer's as images.

    With ``films``, a dict of copied parameters for each of some epochs, a slider chooses which are the trained ones.
    """
    before, films = model.initial_parameters(), films or {0: model.parameters}
    layer = w.Dropdown(options=[f"W{i}" for i in range(1, model.n_layers + 1)], description="layer")
    kind = w.ToggleButtons(options=["histogram", "heat map", "images, initial", "images, trained"])
    epoch = w.SelectionSlider(
        options=sorted(films), value=max(films), description="epoch", continuous_update=False
    )
    epoch.layout.display = None if len(films) > 1 else "none"

    def draw(layer: str, kind: str, epoch: int) -> Figure:
        after = films[epoch]
        if kind.startswith("images"):
            if layer != "W1":
                raise HyperparameterError(
                    "Only the first layer weighs pixels: choose W1 to see its weights as images."
                )
            return plots.first_layer_images(
                plots.filters_of(model, (after if "trained" in kind else before)["W1"])
            )
        names = [name for name in (layer, layer.replace("W", "b")) if name in after]
        plot = plots.weight_histograms if kind == "histogram" else plots.weight_heatmaps
        return plot({name: before[name] for name in names}, {name: after[name] for name in names})

    return Panel(draw, 280, layer=layer, kind=kind, epoch=epoch)


def learning_rate_explorer(
    data: Dataset, hp: Hyperparameters | None = None, steps: int = 100
) -> Panel:
    """The loss in the first ``steps`` of a training by ``hp``, small by default, at the rates tried last."""
    hp = hp or Hyperparameters(hidden_sizes=(32,), activation="relu", batch_size=200)
    few, tried = data.subset(min(1000, len(data.train))), dict[str, Array]()

    def draw(**rates: float) -> Figure:
        losses = list[float]()
        with suppress(TrainingDiverged):
            losses.extend(trainer.last_loss for trainer in _steps(hp.replace(**rates), few, steps))
        name = " and ".join(f"{rate:.3g}" for rate in rates.values() if rate)
        end = (
            f"goes from {losses[1]:.3g} to {losses[-1]:.3g}"
            if len(losses) > steps
            else "stops being a number"
        )
        tried[name] = np.minimum(losses[1:], 5)  # what diverges leaves the picture
        return plots.curves(
            dict([*tried.items()][-5:]), f"At {name} the loss {end}", "step", UNITS["loss"]
        )

    return Panel(
        draw,
        360,
        **{name: control_for(name, getattr(hp, name)) for name in ("learning_rate", "momentum")},
    )


PATTERNS: dict[
    str, Callable[[Array, Array], Sequence[Array]]
] = {  # points at t, from 0 to 1, of class k, 0 or 1
    "moons": lambda t, k: (
        (1 - 2 * k) * np.cos(np.pi * t) + k - 0.5,
        (1 - 2 * k) * (np.sin(np.pi * t) - 0.25),
    ),
    "rings": lambda t, k: (
        (0.5 + 0.7 * k) * np.array([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)])
    ),
    "spiral": lambda t, k: (
        1.5 * t * np.array([np.cos(np.pi * (3 * t + k)), np.sin(np.pi * (3 * t + k))])
    ),
    "XOR": lambda t, k: (
        (np.sign(t - 0.5), np.sign(t - 0.5) * (1 - 2 * k))
        * (0.3 + np.array([t % 0.5, 7 * t % 0.5]))
    ),
}


def decision_boundary(n: int = 300) -> Panel:
    """A small network that divides ``n`` points in the plane, each of its hidden units, and a film of its training."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    t, noise = rng.random(n), 0.1 * rng.standard_normal((n, 2))
    data = {
        name: Dataset.from_arrays(np.transpose(f(t, labels)) + noise, labels)
        for name, f in PATTERNS.items()
    }

    @lru_cache(8)
    def film(points: str, first: int, second: int, **more: Any) -> list[MLP]:
        hp = Hyperparameters(
            hidden_sizes=(first, second)[: 1 + (second > 0)], momentum=0.9, batch_size=32, **more
        )
        return [
            t.model.astype(np.float32) for t in _steps(hp, data[points], 1000) if t.step % 40 == 0
        ]

    def draw(points: str, step: int, **settings: Any) -> Figure:
        model, seen = film(points, **settings)[step // 40], data[points].train
        right = (model.predict(seen.images) == seen.labels).mean()
        return plots.hidden_units(
            model, seen.images, seen.labels, f"Step {step}: {right:.0%} of the points are right"
        )

    controls = {"points": w.Dropdown(options=[*PATTERNS], description="points")}
    controls["first"] = w.IntSlider(6, 1, 12, description="layer 1", continuous_update=False)
    controls["second"] = w.IntSlider(0, 0, 8, description="layer 2", continuous_update=False)
    controls |= {
        name: control_for(name, value)
        for name, value in (("activation", "tanh"), ("learning_rate", 0.1))
    }
    controls["step"] = w.IntSlider(1000, 0, 1000, 40, description="step", continuous_update=False)
    play = w.Play(1000, 0, 1000, 40, interval=500)
    w.jslink((play, "value"), (controls["step"], "value"))
    return Panel(draw, 460, play, **controls)


def read_image(content: bytes, name: str = "the file") -> Array:
    """Return the square in the middle of any image file as (3, 32, 32) uint8, each pixel the mean of a block.

    Raises DataError for what is no image.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    except Exception:  # Pillow raises many kinds, and what they say is for programmers
        raise DataError(
            f"{name}: this is no image that can be read; take a PNG or a JPEG file."
        ) from None
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.array(ImageOps.fit(opaque, (32, 32), Image.Resampling.BOX)).transpose(2, 0, 1).copy()


def draw(model: MLP) -> Panel:
    """An image to upload, or 8 × 8 squares to paint on by mouse or keyboard, and what ``model`` takes it for."""
    painted = {i: "#9cc3e6" if i < 40 else "#2f5d8a" for i in range(64)}  # the sky, the sea,
    painted |= dict.fromkeys((27, 28, 34, 35, 36, 37), "#ffffff")  # and a ship
    upload = w.FileUpload(
        accept="image/*", description="Upload an image", layout={"width": "180px"}
    )
    colour, fill = (
        w.ColorPicker(value="#8c510a", description="colour"),
        w.Button(description="Fill all"),
    )
    square = {"width": "30px", "height": "30px", "margin": "1px"}
    squares = [
        w.Button(tooltip=f"row {i // 8 + 1}, column {i % 8 + 1}", layout=square) for i in range(64)
    ]

    def predict(upload: Any) -> Figure:
        image = (
            read_image(upload[-1]["content"], upload[-1]["name"])
            if upload
            else np.zeros((3, 32, 32), np.uint8)
        )
        blocks = image.reshape(3, 8, 4, 8, 4)
        for i, button in enumerate(squares):
            button.style.button_color = painted.get(i)
            if i in painted:
                blocks[:, i // 8, :, i % 8] = np.reshape(ImageColor.getrgb(painted[i]), (3, 1, 1))
        figure = plots.prediction(
            image, p := model.predict_proba(image[None])[0], model.classes, int(p.argmax())
        )
        figure.axes[0].set_title("What the network sees")
        return figure

    def paint(places: Iterable[int]) -> None:
        painted.update(dict.fromkeys(places, colour.value))
        panel.update()

    for i, button in enumerate([*squares, fill]):
        button.on_click(lambda _, i=i: paint([i] if i < 64 else range(64)))
    upload.observe(lambda _: painted.clear(), "value")  # before the panel's own look at it
    panel = Panel(
        predict,
        360,
        w.GridBox(squares, layout={"grid_template_columns": "repeat(8, 32px)"}),
        upload=upload,
    )
    panel.children[0].children += (colour, fill)
    return panel


training_playground = Playground  # named as the other widgets are
