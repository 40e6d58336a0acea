"""Widgets (ipywidgets 8): controls around the plots and the trainer, without pyplot and without mathematics.

Each draws a figure and puts its PNG into an ``Image``. Long training runs in a daemon thread that looks at two events
after each step, so that the notebook stays responsive. Names and limits of controls are those of ``Hyperparameters``.
"""

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from IPython import display
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageOps

from nnlib import plots
from nnlib.activations import ACTIVATIONS
from nnlib.callbacks import Callback, Diagnostics, in_notebook
from nnlib.datasets import Dataset, Split
from nnlib.errors import DataError, HyperparameterError, NNLibError, TrainingDiverged
from nnlib.hyperparameters import Hyperparameters
from nnlib.model import MLP, Array
from nnlib.results import SearchResults, describe
from nnlib.training import Trainer

FIELDS = {f.name: f for f in fields(Hyperparameters)}
PLAYED: tuple[str, ...] = ("hidden_sizes", "activation", "preprocessing", "learning_rate", "schedule")
PLAYED += ("momentum", "nesterov", "l2", "flip", "shift", "batch_size", "epochs")
FRAME = 0.35  # seconds from one picture of a running training to the next
_training = threading.Lock()


def _alone() -> ExitStack:
    """Let one widget train at a time, while a ``with`` lasts: two would fight for the threads of one BLAS."""
    if not _training.acquire(blocking=False):
        raise NNLibError("Another widget is training: stop it first.")
    stack = ExitStack()
    stack.callback(_training.release)
    return stack


def _steps(hp: Hyperparameters, data: Dataset, n: int) -> Iterator[Trainer]:
    """Train for ``n`` steps; yield the trainer before the first and after each."""
    trainer = Trainer(hp, data, progress=False)
    with _alone():
        yield trainer
        while trainer.step < n:
            trainer.train_step()
            yield trainer


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

    return w.VBox([Panel(draw, 450, x=x, y=y, value=value, **limits), Panel(curves, 360, trial=trial)])


def _limits(name: str, values: Sequence[Any]) -> Any:
    """Return a slider with two ends over the places of sorted ``values``."""
    marks = [(f"{v:.4g}" if isinstance(v, float) else str(v), i) for i, v in enumerate(values)]
    return w.SelectionRangeSlider(options=marks, value=(0, len(marks) - 1), description=name, continuous_update=False)


def prediction_explorer(model: MLP, split: Split) -> Panel:
    """One image after the other with the probability that ``model`` gives each class; all, or only its mistakes."""
    probabilities = model.predict_proba(split.images)
    rows = {False: np.arange(len(split)), True: np.flatnonzero(probabilities.argmax(axis=1) != split.labels)}
    mistakes = w.Checkbox(description="only mistakes")
    index = w.IntSlider(0, 0, len(split) - 1, description="image", continuous_update=False)

    def draw(mistakes: bool, index: int) -> Figure:
        if not len(rows[mistakes]):
            raise NNLibError("The network makes no mistakes on these images.")
        i = rows[mistakes][index]
        return plots.prediction(split.images[i], probabilities[i], model.classes, int(split.labels[i]))

    mistakes.observe(lambda change: setattr(index, "max", max(len(rows[change.new]) - 1, 0)), "value")
    return Panel(draw, 360, mistakes=mistakes, index=index)


def weight_browser(model: MLP, films: Mapping[int, Mapping[str, Array]] | None = None) -> Panel:
    """The weights of each layer, initial and trained: histogram, heat map, and the first layer's as images.

    With ``films``, a dict of copied parameters for each of some epochs, a slider chooses which are the trained ones.
    """
    before, films = model.initial_parameters(), films or {0: model.parameters}
    layer = w.Dropdown(options=[f"W{i}" for i in range(1, model.n_layers + 1)], description="layer")
    kind = w.ToggleButtons(options=["histogram", "heat map", "images, initial", "images, trained"])
    epoch = w.SelectionSlider(options=sorted(films), value=max(films), description="epoch", continuous_update=False)
    epoch.layout.display = None if len(films) > 1 else "none"

    def draw(layer: str, kind: str, epoch: int) -> Figure:
        after = films[epoch]
        if kind.startswith("images"):
            if layer != "W1":
                raise HyperparameterError("Only the first layer weighs pixels: choose W1 to see its weights as images.")
            return plots.first_layer_images(_filters(model, (after if "trained" in kind else before)["W1"]))
        names = [name for name in (layer, layer.replace("W", "b")) if name in after]
        plot = plots.weight_histograms if kind == "histogram" else plots.weight_heatmaps
        return plot({name: before[name] for name in names}, {name: after[name] for name in names})

    return Panel(draw, 280, layer=layer, kind=kind, epoch=epoch)


def _filters(model: MLP, weights: Array) -> Array:
    return model.preprocessing.filters(weights) if model.preprocessing else weights.T


def learning_rate_explorer(data: Dataset, hp: Hyperparameters | None = None, steps: int = 100) -> Panel:
    """The loss in the first ``steps`` of a training by ``hp``, small by default, at the rates tried last."""
    hp = hp or Hyperparameters(hidden_sizes=(32,), activation="relu", batch_size=200)
    few, tried = data.subset(min(1000, len(data.train))), dict[str, Array]()

    def draw(**rates: float) -> Figure:
        losses = list[float]()
        with suppress(TrainingDiverged):
            losses.extend(trainer.last_loss for trainer in _steps(hp.replace(**rates), few, steps))
        name = " and ".join(f"{rate:.3g}" for rate in rates.values() if rate)
        end = f"goes from {losses[1]:.3g} to {losses[-1]:.3g}" if len(losses) > steps else "stops being a number"
        tried[name] = np.minimum(losses[1:], 5)  # what diverges leaves the picture
        return plots.curves(dict([*tried.items()][-5:]), f"At {name} the loss {end}", "step", plots.UNITS["loss"])

    return Panel(draw, 360, **{name: _control(name, getattr(hp, name)) for name in ("learning_rate", "momentum")})


PATTERNS: dict[str, Callable[[Array, Array], Sequence[Array]]] = {  # points at t, from 0 to 1, of class k, 0 or 1
    "moons": lambda t, k: ((1 - 2 * k) * np.cos(np.pi * t) + k - 0.5, (1 - 2 * k) * (np.sin(np.pi * t) - 0.25)),
    "rings": lambda t, k: (0.5 + 0.7 * k) * np.array([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)]),
    "spiral": lambda t, k: 1.5 * t * np.array([np.cos(np.pi * (3 * t + k)), np.sin(np.pi * (3 * t + k))]),
    "XOR": lambda t, k: (np.sign(t - 0.5), np.sign(t - 0.5) * (1 - 2 * k)) * (0.3 + np.array([t % 0.5, 7 * t % 0.5])),
}


def decision_boundary(n: int = 300) -> Panel:
    """A small network that divides ``n`` points in the plane, each of its hidden units, and a film of its training."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    t, noise = rng.random(n), 0.1 * rng.standard_normal((n, 2))
    data = {name: Dataset.from_arrays(np.transpose(f(t, labels)) + noise, labels) for name, f in PATTERNS.items()}

    @lru_cache(8)
    def film(points: str, first: int, second: int, **more: Any) -> list[MLP]:
        hp = Hyperparameters(hidden_sizes=(first, second)[: 1 + (second > 0)], momentum=0.9, batch_size=32, **more)
        return [t.model.astype(np.float32) for t in _steps(hp, data[points], 1000) if t.step % 40 == 0]

    def draw(points: str, step: int, **settings: Any) -> Figure:
        model, seen = film(points, **settings)[step // 40], data[points].train
        right = (model.predict(seen.images) == seen.labels).mean()
        return plots.hidden_units(model, seen.images, seen.labels, f"Step {step}: {right:.0%} of the points are right")

    controls = {"points": w.Dropdown(options=[*PATTERNS], description="points")}
    controls["first"] = w.IntSlider(6, 1, 12, description="layer 1", continuous_update=False)
    controls["second"] = w.IntSlider(0, 0, 8, description="layer 2", continuous_update=False)
    controls |= {name: _control(name, value) for name, value in (("activation", "tanh"), ("learning_rate", 0.1))}
    controls["step"] = w.IntSlider(1000, 0, 1000, 40, description="step", continuous_update=False)
    panel, play = Panel(draw, 460, **controls), w.Play(1000, 0, 1000, 40, interval=500)
    panel.children = (*panel.children[:1], play, *panel.children[1:])
    w.jslink((play, "value"), (controls["step"], "value"))
    return panel


def read_image(content: bytes, name: str = "the file") -> Array:
    """Return the square in the middle of any image file as (3, 32, 32) uint8, each pixel the mean of a block.

    Raises DataError for what is no image.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    except Exception:  # Pillow raises many kinds, and what they say is for programmers
        raise DataError(f"{name}: this is no image that can be read; take a PNG or a JPEG file.") from None
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.array(ImageOps.fit(opaque, (32, 32), Image.Resampling.BOX)).transpose(2, 0, 1).copy()


def draw(model: MLP) -> Panel:
    """An image to upload, or 8 × 8 squares to paint on by mouse or keyboard, and what ``model`` takes it for."""
    painted = {i: "#9cc3e6" if i < 40 else "#2f5d8a" for i in range(64)}  # the sky, the sea,
    painted |= dict.fromkeys((27, 28, 34, 35, 36, 37), "#ffffff")  # and a ship
    upload = w.FileUpload(accept="image/*", description="Upload an image", layout={"width": "180px"})
    colour, fill = w.ColorPicker(value="#8c510a", description="colour"), w.Button(description="Fill all")
    square = {"width": "30px", "height": "30px", "margin": "1px"}
    squares = [w.Button(tooltip=f"row {i // 8 + 1}, column {i % 8 + 1}", layout=square) for i in range(64)]

    def predict(upload: Any) -> Figure:
        image = read_image(upload[-1]["content"], upload[-1]["name"]) if upload else np.zeros((3, 32, 32), np.uint8)
        blocks = image.reshape(3, 8, 4, 8, 4)
        for i, button in enumerate(squares):
            button.style.button_color = painted.get(i)
            if i in painted:
                blocks[:, i // 8, :, i % 8] = np.reshape(ImageColor.getrgb(painted[i]), (3, 1, 1))
        figure = plots.prediction(image, p := model.predict_proba(image[None])[0], model.classes, int(p.argmax()))
        figure.axes[0].set_title("What the network sees")
        return figure

    def paint(places: Iterable[int]) -> None:
        painted.update(dict.fromkeys(places, colour.value))
        panel.update()

    for i, button in enumerate([*squares, fill]):
        button.on_click(lambda _, i=i: paint([i] if i < 64 else range(64)))
    upload.observe(lambda _: painted.clear(), "value")  # before the panel's own look at it
    panel = Panel(predict, 360, upload=upload)
    panel.children[0].children += (colour, fill)
    panel.children = (
        panel.children[0],
        w.GridBox(squares, layout={"grid_template_columns": "repeat(8, 32px)"}),
        *panel.children[1:],
    )
    return panel


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
            self.drawn = time.monotonic()
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
            self.handle.update(display.Image(self.picture.value, alt="Loss and accuracy by epoch"))
            self.picture.close()

    def draw(self, trainer: Trainer) -> None:
        """Renew the picture."""
        if in_notebook():
            self.picture.value = plots.png(plots.history(self.records))
            self.handle = self.handle or display.display(self.picture, display_id=True)  # type: ignore[no-untyped-call]


class _Live(LivePlot):
    """One training as the playground shows it: with weights and gradients, and buttons to pause and stop."""

    view: "Playground"

    def on_step(self, trainer: Trainer) -> None:
        super().on_step(trainer)
        self.view.going.wait()
        if self.view.stopping.is_set():
            trainer.stop("stopped")

    def draw(self, trainer: Trainer) -> None:
        epoch, shape = trainer.step / trainer.steps_per_epoch, trainer.data.train.images.shape[1:]
        with np.errstate(all="ignore"):  # a run that diverges has numbers that are not finite
            self.records.append({"epoch": epoch, **Diagnostics().measure(trainer)})
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
        self.code, self.status, self.picture, self.gradients = w.HTML(), w.Label(), _picture(340), _picture(220)
        self.message = w.HTML(layout={"min_height": "32px"})  # so that the picture does not jump
        self.going, self.stopping = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.runs: list[list[dict[str, float]]] = []
        top = [_row(self.controls.values()), self.code, _row([*self.buttons.values(), self.pause])]
        super().__init__([*top, self.status, self.message, self.picture, self.gradients])
        for control in self.controls.values():
            control.observe(self._tell_code, "value")
        for button, action in zip(self.buttons.values(), (self.start, self.stop, self.reset), strict=True):
            button.on_click(action)
        self.pause.observe(self._pause, "value")
        self._view_count = 0  # from now on the browser keeps it: 0 again means that the last view was closed
        self.observe(lambda change: None if change.new else self.stop(), ["_view_count", "comm"])  # comm: close()
        self.show([])
        self._tell_code()

    def hyperparameters(self) -> Hyperparameters:
        """The present setting. Raises HyperparameterError for a combination that makes no sense."""
        now = {name: control.value for name, control in self.controls.items()}
        now |= {n: float(f"{v:.4g}") for n, v in now.items() if isinstance(v, float)}  # sliders give 0.8900000001
        now["hidden_sizes"] = [int(s) if s.isdecimal() else s for s in now["hidden_sizes"].replace(",", " ").split()]
        return self.base.replace(**now)

    def _tell_code(self, change: Any = None) -> None:
        """Write the present setting as a line of code, which a click selects, or say what is wrong with it."""
        try:
            hp = self.hyperparameters()
        except HyperparameterError as error:
            self.message.value, self.buttons["Start"].disabled = _in_words(error), True
            return
        changed = [f"{n}={getattr(hp, n)!r}" for n, f in FIELDS.items() if getattr(hp, n) != f.default]
        line = f"nnlib.train(nnlib.Hyperparameters({', '.join(changed)}), data)"
        self.code.value = f'<code style="white-space: pre-wrap; user-select: all">{escape(line)}</code>'
        self.message.value, self.buttons["Start"].disabled = "", False

    def show(self, records: Any, filters: Array | None = None, shape: Any = ()) -> None:
        """Draw a run in the making before the earlier ones."""
        self.picture.value = plots.png(plots.history(records, tuple(self.runs[-5:]), filters, shape))
        self.gradients.value = plots.png(plots.gradient_norms(records))

    def start(self, button: Any = None) -> None:
        """Begin to train in a thread, unless one is training."""
        if self.thread and self.thread.is_alive():
            return
        self.message.value = ""
        self.stopping.clear()
        self.going.set()
        self.thread = threading.Thread(target=self._train, args=(self.hyperparameters(),), daemon=True)
        self.thread.start()

    def _train(self, hp: Hyperparameters) -> None:
        live = _Live()
        live.view = self
        try:
            self.status.value = "preparing the images"
            with _alone():
                Trainer(hp, self.data, progress=False, callbacks=[live]).run()
            self.runs.append(live.records)  # not those that diverged: beside their losses all others look alike
        except Exception as error:
            self.message.value = _in_words(error)

    def _pause(self, change: Any) -> None:
        (self.going.clear if change.new else self.going.set)()
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


training_playground = Playground  # named as the other widgets are
