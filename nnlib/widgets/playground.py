"""A training to watch as it goes: the live plot of ``nnlib.train``, and the playground.

The playground trains in a daemon thread that looks at two events after each step, so the notebook
stays responsive.
"""

import threading
import time
from html import escape
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from IPython import display

from nnlib import plots
from nnlib.data.dataset import Dataset
from nnlib.errors import HyperparameterError
from nnlib.training.callbacks import Callback, Diagnostics, in_notebook
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.trainer import Trainer
from nnlib.types import Array
from nnlib.widgets.controls import FIELDS, Panel, alone, control_for, in_words, picture, row

PLAYED = (  # the hyperparameters that have a control
    "hidden_sizes",
    "activation",
    "preprocessing",
    "learning_rate",
    "schedule",
    "momentum",
    "nesterov",
    "l2",
    "flip",
    "shift",
    "batch_size",
    "epochs",
)
FRAME = 0.35  # seconds from one picture of a running training to the next
POINTS_PER_EPOCH = 10  # of the training curves


class LivePlot(Callback):
    """Loss and accuracy of a training as it goes, in a notebook.

    ``nnlib.train(..., callbacks=[nnlib.LivePlot()])``. The picture is updated in place, with ten
    points of the curves per epoch; a plain image of it stays at the end.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.noted = (0, 0.0, 0)  # the epoch's running sums at the last point of the curves
        self.drawn = 0.0  # when the picture was last drawn
        self.picture = picture(360)
        self.handle = None  # IPython's handle of the displayed picture

    def on_start(self, trainer: Trainer) -> None:
        self.records[:] = trainer.history  # a run that is resumed has some
        self.draw(trainer)

    def on_step(self, trainer: Trainer) -> None:
        steps_per_point = max(trainer.steps_per_epoch // POINTS_PER_EPOCH, 1)
        if trainer.step % steps_per_point == 0:
            self._note(trainer)
        if time.monotonic() - self.drawn > FRAME:
            self.draw(trainer)
            self.drawn = time.monotonic()  # after drawing: a slow machine has time to train, too

    def _note(self, trainer: Trainer) -> None:
        """Add a point to the training curves: the means since the last point."""
        tally = trainer.tally
        seen_before, loss_before, correct_before = self.noted
        seen = tally.seen - seen_before
        self.records.append(
            {
                "epoch": trainer.step / trainer.steps_per_epoch,
                "train_loss": (tally.loss - loss_before) / seen,
                "train_accuracy": (tally.correct - correct_before) / seen,
            }
        )
        self.noted = (tally.seen, tally.loss, tally.correct)

    def on_epoch(self, trainer: Trainer) -> None:
        self.noted = (0, 0.0, 0)
        last = trainer.history[-1]
        names = ("epoch", "valid_loss", "valid_accuracy")
        self.records.append({name: last[name] for name in names})

    def on_end(self, trainer: Trainer) -> None:
        self.draw(trainer)
        if self.handle:
            self.handle.update(display.Image(self.picture.value, alt="Loss and accuracy by epoch"))
            self.picture.close()

    def draw(self, trainer: Trainer) -> None:
        """Update the picture."""
        if not in_notebook():
            return
        self.picture.value = plots.png(plots.history(self.records))
        if not self.handle:
            show_updatable: Any = display.display  # IPython's functions have no types
            self.handle = show_updatable(self.picture, display_id=True)


class _Live(LivePlot):
    """A training in the playground: it shows weights and gradients too, and obeys the buttons."""

    def __init__(self, view: "Playground") -> None:
        super().__init__()
        self.view = view

    def on_step(self, trainer: Trainer) -> None:
        super().on_step(trainer)
        self.view.going.wait()
        if self.view.stopping.is_set():
            trainer.stop("stopped")

    def draw(self, trainer: Trainer) -> None:
        epoch = trainer.step / trainer.steps_per_epoch
        with np.errstate(all="ignore"):  # a run that diverges has numbers that are not finite
            self.records.append({"epoch": epoch, **Diagnostics().measure(trainer)})
        shape = trainer.data.train.images.shape[1:]
        filters = None
        if len(shape) == 3:  # these are images
            filters = plots.filters_of(trainer.model, trainer.model.parameters["W1"][:, :36])
        self.view.show(self.records, filters, shape)
        status = f"{trainer.epoch} of {trainer.hp.epochs} epochs, {trainer.step} steps"
        if trainer.stopped:
            status += f", {trainer.stopped}"
        self.view.status.value = status


class Playground(Panel):
    """Set hyperparameters; start, pause, stop and reset a training; watch it as it goes."""

    def __init__(self, data: Dataset, hp: Hyperparameters | None = None) -> None:
        self.data = data
        if hp is None:
            hp = Hyperparameters.recipe("quick", hidden_sizes=(128, 64), epochs=5, warmup_steps=20)
        self.base = hp
        self.buttons = {name: w.Button(description=name) for name in ("Start", "Stop", "Reset")}
        self.pause = w.ToggleButton(description="Pause")
        self.code = w.HTML()
        self.status = w.Label()
        self.gradients = picture(220)
        self.going = threading.Event()  # cleared while the training is paused
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.runs: list[list[dict[str, float]]] = []  # the records of the finished runs

        controls = {name: control_for(name, getattr(self.base, name)) for name in PLAYED}
        buttons = row([*self.buttons.values(), self.pause])
        super().__init__(plots.history, 340, self.code, buttons, self.status, **controls)
        self.children += (self.gradients,)
        self.defaults = {name: control.value for name, control in controls.items()}
        self.buttons["Start"].on_click(self.start)
        self.buttons["Stop"].on_click(self.stop)
        self.buttons["Reset"].on_click(self.reset)
        self.pause.observe(self._pause, "value")
        # From now on the browser counts the views. Both are empty once nobody sees the playground:
        # the count is 0 when the last view was closed, and close() sets comm to None.
        self._view_count = 0
        self.observe(self._stop_unless_shown, ["_view_count", "comm"])
        self.show([])

    def hyperparameters(self) -> Hyperparameters:
        """Return the current settings.

        Raises HyperparameterError for a combination that makes no sense.
        """
        settings = {}
        for name, control in self.controls.items():
            value = control.value
            if isinstance(value, float):
                value = float(f"{value:.4g}")  # sliders give 0.8900000001
            settings[name] = value
        words = settings["hidden_sizes"].replace(",", " ").split()
        settings["hidden_sizes"] = [int(word) if word.isdecimal() else word for word in words]
        return self.base.replace(**settings)

    def update(self, change: Any = None) -> None:
        """Show the current settings as a line of code, or say what is wrong with them."""
        start = self.buttons["Start"]
        try:
            hp = self.hyperparameters()
        except HyperparameterError as error:
            self.message.value = in_words(error)
            start.disabled = True
            return
        changed = []
        for name, field in FIELDS.items():
            value = getattr(hp, name)
            if value != field.default:
                changed.append(f"{name}={value!r}")
        line = f"nnlib.train(nnlib.Hyperparameters({', '.join(changed)}), data)"
        style = "white-space: pre-wrap; user-select: all"  # one click selects all of it
        self.code.value = f'<code style="{style}">{escape(line)}</code>'
        self.message.value = ""
        start.disabled = False

    def show(self, records: Any, filters: Array | None = None, shape: Any = ()) -> None:
        """Draw a run as it goes, with the last five runs faintly behind it."""
        self.picture.value = plots.png(self.draw(records, self.runs[-5:], filters, shape))
        self.gradients.value = plots.png(plots.gradient_norms(records))

    def start(self, button: Any = None) -> None:
        """Start a training in a thread, unless one is running."""
        if self.thread and self.thread.is_alive():
            return
        self.message.value = ""
        self.stopping.clear()
        self.going.set()
        hp = self.hyperparameters()
        self.thread = threading.Thread(target=self._train, args=(hp,), daemon=True)
        self.thread.start()

    def _train(self, hp: Hyperparameters) -> None:
        live = _Live(self)
        try:
            self.status.value = "preparing the images"
            with alone():
                Trainer(hp, self.data, progress=False, callbacks=[live]).run()
        except Exception as error:
            self.message.value = in_words(error)
        else:
            # A run that diverged isn't kept: beside its losses, all others look alike.
            self.runs.append(live.records)

    def _pause(self, change: Any) -> None:
        if change.new:
            self.going.clear()
            self.pause.description = "Resume"
        else:
            self.going.set()
            self.pause.description = "Pause"

    def _stop_unless_shown(self, change: Any) -> None:
        if not change.new:
            self.stop()

    def stop(self, button: Any = None) -> None:
        """Stop after the current step."""
        self.stopping.set()
        self.going.set()  # a paused run must go on to see that it should stop
        self.pause.value = False

    def reset(self, button: Any = None) -> None:
        """Stop, forget all runs, and go back to the first settings."""
        self.stop()
        if self.thread:
            self.thread.join(30)
        for name, control in self.controls.items():
            control.value = self.defaults[name]
        self.runs.clear()
        self.show([])
        self.status.value = ""


training_playground = Playground  # named as the other widgets are
