"""Widgets (ipywidgets 8): controls around the plots and the trainer, without pyplot and without mathematics.

Each draws a figure and puts its PNG into an ``Image``. Training runs in a daemon thread that looks at two events after
each step, so that the notebook stays responsive. Names and limits of controls are those of ``Hyperparameters``.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from html import escape
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from IPython.display import Image, display
from matplotlib.figure import Figure

from nnlib import plots
from nnlib.activations import ACTIVATIONS
from nnlib.callbacks import Callback, in_notebook
from nnlib.datasets import Dataset, Split
from nnlib.errors import HyperparameterError, NNLibError
from nnlib.hyperparameters import Hyperparameters
from nnlib.model import MLP, Array
from nnlib.results import SearchResults, describe
from nnlib.training import Trainer

FIELDS = {f.name: f for f in fields(Hyperparameters)}
PLAYED: tuple[str, ...] = ("hidden_sizes", "activation", "preprocessing", "learning_rate", "schedule")
PLAYED += ("momentum", "nesterov", "l2", "flip", "shift", "batch_size", "epochs")
FRAME = 0.35  # seconds from one picture of a running training to the next
_training = threading.Lock()  # two trainings in one process would fight for the threads of one BLAS


def _in_words(error: Exception) -> str:
    text = str(error) if isinstance(error, NNLibError) else f"{type(error).__name__}: {error}"
    return f'<b role="alert" style="color: {plots.RED}">{escape(text)}</b>'


def _picture(height: int) -> Any:
    fit = {"max_width": "100%", "object_fit": "contain", "object_position": "left"}
    return w.Image(layout={"height": f"{height}px", **fit})


def _row(controls: Any) -> Any:
    return w.HBox([*controls], layout={"flex_flow": "row wrap"})


class Panel(w.VBox):  # type: ignore[misc]
    """``controls`` by name, and below them the picture that ``draw(**values)`` makes; an error is told in words."""

    def __init__(self, draw: Callable[..., Figure], height: int, **controls: Any) -> None:
        self.draw, self.controls = draw, controls
        self.message, self.picture = w.HTML(layout={"min_height": "32px"}), _picture(height)
        super().__init__([_row(controls.values()), self.message, self.picture])
        for control in controls.values():
            control.observe(self.update, "value")
        self.update()

    def update(self, change: Any = None) -> None:
        """Draw again with the present values."""
        try:
            self.picture.value = plots.png(self.draw(**{name: c.value for name, c in self.controls.items()}))
            self.message.value = ""
        except Exception as error:
            self.message.value = _in_words(error)


def browse_images(data: Dataset, n: int = 32) -> Panel:
    """Look through the images of a split and a class, ``n`` a page."""
    split = w.Dropdown(options=["train", "valid", "test"], description="split")
    label = w.Dropdown(options=[("all", -1), *((name, k) for k, name in enumerate(data.classes))], description="class")
    page = w.IntSlider(1, 1, 1, description="page", continuous_update=False)

    def chosen() -> Array:
        return np.flatnonzero((getattr(data, split.value).labels == label.value) | (label.value < 0))

    def fit(change: Any = None) -> None:
        page.max = max(-(-len(chosen()) // n), 1)

    def draw(**_: Any) -> Figure:
        part = getattr(data, split.value).take(chosen()[(page.value - 1) * n : page.value * n])
        return plots.image_grid(part.images, [data.classes[k] for k in part.labels])

    split.observe(fit, "value")
    label.observe(fit, "value")
    fit()
    return Panel(draw, 560, split=split, label=label, page=page)


def activation_explorer() -> Panel:
    """Value and derivative of one or several activations; the slope is that of leaky_relu."""
    names = w.SelectMultiple(options=[*ACTIVATIONS], value=["leaky_relu"], rows=5, description="activation")
    slope = w.FloatSlider(0.1, min=0, max=0.99, step=0.01, description="slope", continuous_update=False)

    def draw(names: tuple[str, ...], slope: float) -> Figure:
        return plots.activation_functions([f"{n}({slope:g})" if n == "leaky_relu" else n for n in names])

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
        kept = np.ones(len(table), bool)
        for name, (low, high) in limits.items():
            kept &= table[name].map(known[name].index).between(low, high).to_numpy()
        rows = table[kept].sort_values(value, ascending=value != "valid_accuracy")
        trial.options = [(f"{value} {rows[value][i]:.4f}, {describe(results.trials[i])}", i) for i in rows.index]
        trial.index = None if rows.empty else 0
        if rows.empty:
            raise NNLibError("No trial lies between all of these limits: widen one.")
        return plots.search_strips(rows, [x], value) if x == y else plots.search_heatmap(rows, x, y, value)

    def curves(trial: int | None) -> Figure:
        return plots.history([] if trial is None else results.trials[trial].history)

    panels = [Panel(draw, 450, x=x, y=y, value=value, **limits), Panel(curves, 360, trial=trial)]
    return w.VBox(panels)


def _limits(name: str, values: Sequence[Any]) -> Any:
    """Return a slider with two ends over the places of sorted ``values``."""
    options = [(f"{v:.4g}" if isinstance(v, float) else str(v), i) for i, v in enumerate(values)]
    ends = (0, len(values) - 1)
    return w.SelectionRangeSlider(options=options, value=ends, description=name, continuous_update=False)


def prediction_explorer(model: MLP, split: Split) -> Panel:
    """One image after the other with the probability that ``model`` gives each class; all, or only its mistakes."""
    probabilities = model.predict_proba(split.images)
    rows = {False: np.arange(len(split)), True: np.flatnonzero(probabilities.argmax(axis=1) != split.labels)}
    mistakes = w.Checkbox(description="only mistakes")
    index = w.IntSlider(0, 0, len(split) - 1, description="image", continuous_update=False)

    def fit(change: Any) -> None:
        index.max = max(len(rows[mistakes.value]) - 1, 0)

    def draw(mistakes: bool, index: int) -> Figure:
        if not len(rows[mistakes]):
            raise NNLibError("The network makes no mistakes on these images.")
        i = rows[mistakes][index]
        return plots.prediction(split.images[i], probabilities[i], model.classes, int(split.labels[i]))

    mistakes.observe(fit, "value")
    return Panel(draw, 360, mistakes=mistakes, index=index)


def weight_browser(model: MLP) -> Panel:
    """The weights of each layer, initial and trained: histogram, heat map, and the first layer's as images."""
    before, after = model.initial_parameters(), model.parameters
    layer = w.Dropdown(options=[f"W{i}" for i in range(1, model.n_layers + 1)], description="layer")
    kind = w.ToggleButtons(options=["histogram", "heat map", "images, initial", "images, trained"])

    def draw(layer: str, kind: str) -> Figure:
        if kind.startswith("images"):
            if layer != "W1":
                raise HyperparameterError("Only the first layer weighs pixels: choose W1 to see its weights as images.")
            return plots.first_layer_images(_filters(model, (after if "trained" in kind else before)["W1"]))
        names = (layer, layer.replace("W", "b"))
        plot = plots.weight_histograms if kind == "histogram" else plots.weight_heatmaps
        return plot({name: before[name] for name in names}, {name: after[name] for name in names})

    return Panel(draw, 280, layer=layer, kind=kind)


def _filters(model: MLP, weights: Array) -> Array:
    return model.preprocessing.filters(weights) if model.preprocessing else weights.T


def _control(name: str, value: Any) -> Any:
    """Return a control for one hyperparameter, which offers only what its field allows."""
    about = FIELDS[name].metadata
    look = {"value": value, "description": name.replace("_", " "), "tooltip": about["help"]}
    look["style"] = {"description_width": "100px"}
    options = ACTIVATIONS if name == "activation" else about.get("options")
    if options:
        return w.Dropdown(options=[*dict.fromkeys([value, *options])], **look)
    if name == "hidden_sizes":
        return w.Text(continuous_update=False, **look | {"value": ", ".join(map(str, value))})
    if isinstance(value, bool):
        return w.Checkbox(**look)
    low, high = about["range"]
    if name == "learning_rate":
        return w.FloatLogSlider(min=-4, max=1, step=0.05, readout_format=".4g", continuous_update=False, **look)
    if isinstance(value, int):
        return w.BoundedIntText(min=low, max=high, **look)
    if high == 1:
        return w.FloatSlider(min=low, max=0.99, step=0.01, continuous_update=False, **look)
    return w.BoundedFloatText(min=low, max=high, step=1e-4, **look)


class LivePlot(Callback):
    """Loss and accuracy of a training as it goes, in a notebook: ``nnlib.train(..., callbacks=[nnlib.LivePlot()])``.

    The picture is renewed in its place, with ten points of the curves an epoch; a plain image of it stays at the end.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.noted, self.drawn = (0, 0.0, 0), 0.0
        self.picture, self.handle = _picture(360), None

    def on_start(self, trainer: Trainer) -> None:
        self.records[:] = trainer.history  # of a run that goes on
        self.draw(trainer)

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step % max(trainer.steps_per_epoch // 10, 1) == 0:
            self._note(trainer)
        if time.monotonic() - self.drawn > FRAME:
            self.draw(trainer)

    def _note(self, trainer: Trainer) -> None:
        """Record loss and accuracy on the training images since the last time."""
        now = (trainer.tally.seen, trainer.tally.loss, trainer.tally.correct)
        seen, loss, correct = (new - old for new, old in zip(now, self.noted, strict=True))
        self.noted = now
        epoch = trainer.step / trainer.steps_per_epoch
        self.records.append({"epoch": epoch, "train_loss": loss / seen, "train_accuracy": correct / seen})

    def on_epoch(self, trainer: Trainer) -> None:
        self.noted = (0, 0.0, 0)
        self.records.append({name: trainer.history[-1][name] for name in ("epoch", "valid_loss", "valid_accuracy")})

    def on_end(self, trainer: Trainer) -> None:
        self.draw(trainer)
        if self.handle:
            self.handle.update(Image(self.picture.value, alt="Loss and accuracy by epoch"))
            self.picture.close()

    def draw(self, trainer: Trainer) -> None:
        """Renew the picture."""
        if in_notebook():
            self.picture.value = plots.png(plots.history(self.records))
            self.handle = self.handle or display(self.picture, display_id=True)  # type: ignore[no-untyped-call]
        self.drawn = time.monotonic()


class _Live(LivePlot):
    """One training as the playground shows it: with the first layer's weights, and buttons to pause and stop."""

    def __init__(self, view: "Playground") -> None:
        super().__init__()
        self.view = view

    def on_step(self, trainer: Trainer) -> None:
        super().on_step(trainer)
        self.view.going.wait()
        if self.view.stopping.is_set():
            trainer.stop("stopped")

    def draw(self, trainer: Trainer) -> None:
        self.drawn = time.monotonic()
        shape = trainer.data.train.images.shape[1:]
        filters = _filters(trainer.model, trainer.model.parameters["W1"][:, :36]) if len(shape) == 3 else None
        self.view.show(self.records, filters, shape)
        done = f"{trainer.epoch} of {trainer.hp.epochs} epochs, {trainer.step} steps"
        self.view.status.value = ", ".join(filter(None, [done, trainer.stopped]))


class Playground(w.VBox):  # type: ignore[misc]
    """Hyperparameters to set, buttons to start, pause, stop and reset, and the training as it goes."""

    def __init__(self, data: Dataset, hp: Hyperparameters | None = None) -> None:
        self.data = data
        self.base = hp or Hyperparameters.recipe("quick", hidden_sizes=(128, 64), epochs=5, warmup_steps=20)
        self.controls = {name: _control(name, getattr(self.base, name)) for name in PLAYED}
        self.defaults = {name: control.value for name, control in self.controls.items()}
        self.buttons = {name: w.Button(description=name) for name in ("Start", "Stop", "Reset")}
        self.pause = w.ToggleButton(description="Pause")
        self.code, self.status, self.picture = w.HTML(), w.Label(), _picture(360)
        self.message = w.HTML(layout={"min_height": "32px"})  # so that the picture does not jump
        self.going, self.stopping = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.runs: list[list[dict[str, float]]] = []
        top = [_row(self.controls.values()), self.code, _row([*self.buttons.values(), self.pause])]
        super().__init__([*top, self.status, self.message, self.picture])
        for control in self.controls.values():
            control.observe(self._tell_code, "value")
        for button, action in zip(self.buttons.values(), (self.start, self.stop, self.reset), strict=True):
            button.on_click(action)
        self.pause.observe(self._pause, "value")
        self._view_count = 0  # from now on the browser keeps it: 0 again means that the last view was closed
        self.observe(lambda change: None if change.new else self.stop(), "_view_count")
        self.show([])
        self._tell_code()

    def hyperparameters(self) -> Hyperparameters:
        """The present setting. Raises HyperparameterError for a combination that makes no sense."""
        values = {name: control.value for name, control in self.controls.items()}
        values |= {n: float(f"{v:.4g}") for n, v in values.items() if isinstance(v, float)}  # sliders give 0.8900000001
        sizes = [size.strip() for size in values["hidden_sizes"].split(",") if size.strip()]
        values["hidden_sizes"] = [int(size) if size.isdecimal() else size for size in sizes]
        return self.base.replace(**values)

    def _tell_code(self, change: Any = None) -> None:
        """Write the present setting as a line of code, or say what is wrong with it."""
        try:
            hp = self.hyperparameters()
        except HyperparameterError as error:
            self.message.value, self.buttons["Start"].disabled = _in_words(error), True
            return
        changed = [f"{n}={getattr(hp, n)!r}" for n, f in FIELDS.items() if getattr(hp, n) != f.default]
        line = f"nnlib.train(nnlib.Hyperparameters({', '.join(changed)}), data)"
        self.code.value = f'<code style="white-space: pre-wrap">{escape(line)}</code>'
        self.message.value, self.buttons["Start"].disabled = "", False

    def show(self, records: Any, filters: Array | None = None, shape: Any = ()) -> None:
        """Draw a run in the making before the earlier ones."""
        self.picture.value = plots.png(plots.history(records, tuple(self.runs[-5:]), filters, shape))

    def start(self, button: Any = None) -> None:
        """Begin to train in a thread, unless one is training."""
        if self.thread and self.thread.is_alive():
            return
        if not _training.acquire(blocking=False):
            self.message.value = _in_words(NNLibError("Another playground is training: stop it first."))
            return
        self.message.value = ""
        self.stopping.clear()
        self.going.set()
        self.thread = threading.Thread(target=self._train, args=(self.hyperparameters(),), daemon=True)
        self.thread.start()

    def _train(self, hp: Hyperparameters) -> None:
        live = _Live(self)
        try:
            self.status.value = "preparing the images"
            Trainer(hp, self.data, progress=False, callbacks=[live]).run()
            self.runs.append(live.records)  # not those that diverged: beside their losses all others look alike
        except Exception as error:
            self.message.value = _in_words(error)
        finally:
            _training.release()

    def _pause(self, change: Any) -> None:
        if change.new:
            self.going.clear()
        else:
            self.going.set()
        self.pause.description = "Resume" if change.new else "Pause"

    def stop(self, button: Any = None) -> None:
        """Stop after the present step."""
        self.stopping.set()
        self.going.set()
        self.pause.value = False

    def reset(self, button: Any = None) -> None:
        """Stop, forget all runs, and go back to the first setting."""
        self.stop()
        if self.thread:
            self.thread.join(30)
        for name, control in self.controls.items():
            control.value = self.defaults[name]
        self.runs.clear()
        self.show([])
        self.status.value = ""

    def close(self) -> None:
        """Stop, and take the widget away."""
        self.stop()
        super().close()


training_playground = Playground  # named as the other widgets are
