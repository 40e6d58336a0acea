"""A training to watch as it goes: the live plot of ``nnlib.train``, and the playground with its controls and buttons.

The playground trains in a daemon thread that looks at two events after each step: the notebook stays responsive.
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

PLAYED: tuple[str, ...] = (
    "hidden_sizes",
    "activation",
    "preprocessing",
    "learning_rate",
    "schedule",
)
PLAYED += ("momentum", "nesterov", "l2", "flip", "shift", "batch_size", "epochs")
FRAME = 0.35  # seconds from one picture of a running training to the next


class LivePlot(Callback):
    """Loss and accuracy of a training as it goes, in a notebook: ``nnlib.train(..., callbacks=[nnlib.LivePlot()])``.

    The picture is renewed in its place, with ten points of the curves an epoch; a plain image of it stays at the end.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.noted, self.drawn = (0, 0.0, 0), 0.0
        self.picture, self.handle = picture(360), None

    def on_start(self, trainer: Trainer) -> None:
        self.records[:] = trainer.history  # of a run that goes on
        self.draw(trainer)

    def on_step(self, trainer: Trainer) -> None:
        if (
            trainer.step % max(trainer.steps_per_epoch // 10, 1) == 0
        ):  # note what it was since the last time
            now = (trainer.tally.seen, trainer.tally.loss, trainer.tally.correct)
            seen, loss, correct = (new - old for new, old in zip(now, self.noted, strict=True))
            self.noted = now
            epoch = trainer.step / trainer.steps_per_epoch
            self.records.append(
                {"epoch": epoch, "train_loss": loss / seen, "train_accuracy": correct / seen}
            )
        if time.monotonic() - self.drawn > FRAME:
            self.drawn = time.monotonic()
            self.draw(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        self.noted = (0, 0.0, 0)
        self.records.append(
            {name: trainer.history[-1][name] for name in ("epoch", "valid_loss", "valid_accuracy")}
        )

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
        filters = (
            plots.filters_of(trainer.model, trainer.model.parameters["W1"][:, :36])
            if len(shape) == 3
            else None
        )
        self.view.show(self.records, filters, shape)
        done = f"{trainer.epoch} of {trainer.hp.epochs} epochs, {trainer.step} steps"
        self.view.status.value = ", ".join(filter(None, [done, trainer.stopped]))


class Playground(Panel):
    """Hyperparameters to set, buttons to start, pause, stop and reset, and the training as it goes."""

    def __init__(self, data: Dataset, hp: Hyperparameters | None = None) -> None:
        self.data = data
        self.base = hp or Hyperparameters.recipe(
            "quick", hidden_sizes=(128, 64), epochs=5, warmup_steps=20
        )
        self.buttons = {name: w.Button(description=name) for name in ("Start", "Stop", "Reset")}
        self.pause = w.ToggleButton(description="Pause")
        self.code, self.status, self.gradients = w.HTML(), w.Label(), picture(220)
        self.going, self.stopping = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.runs: list[list[dict[str, float]]] = []
        between = (self.code, row([*self.buttons.values(), self.pause]), self.status)
        controls = {name: control_for(name, getattr(self.base, name)) for name in PLAYED}
        super().__init__(plots.history, 340, *between, **controls)
        self.children += (self.gradients,)
        self.defaults = {name: control.value for name, control in controls.items()}
        for button, action in zip(
            self.buttons.values(), (self.start, self.stop, self.reset), strict=True
        ):
            button.on_click(action)
        self.pause.observe(self._pause, "value")
        self._view_count = (
            0  # from now on the browser keeps it: 0 again means that the last view was closed
        )
        self.observe(
            lambda change: None if change.new else self.stop(), ["_view_count", "comm"]
        )  # comm: close()
        self.show([])

    def hyperparameters(self) -> Hyperparameters:
        """The present setting. Raises HyperparameterError for a combination that makes no sense."""
        now = {name: control.value for name, control in self.controls.items()}
        now |= {
            n: float(f"{v:.4g}") for n, v in now.items() if isinstance(v, float)
        }  # sliders give 0.8900000001
        now["hidden_sizes"] = [
            int(s) if s.isdecimal() else s for s in now["hidden_sizes"].replace(",", " ").split()
        ]
        return self.base.replace(**now)

    def update(self, change: Any = None) -> None:
        """Write the present setting as a line of code, which a click selects, or say what is wrong with it."""
        try:
            hp = self.hyperparameters()
        except HyperparameterError as error:
            self.message.value, self.buttons["Start"].disabled = in_words(error), True
            return
        changed = [
            f"{n}={getattr(hp, n)!r}" for n, f in FIELDS.items() if getattr(hp, n) != f.default
        ]
        line = f"nnlib.train(nnlib.Hyperparameters({', '.join(changed)}), data)"
        self.code.value = (
            f'<code style="white-space: pre-wrap; user-select: all">{escape(line)}</code>'
        )
        self.message.value, self.buttons["Start"].disabled = "", False

    def show(self, records: Any, filters: Array | None = None, shape: Any = ()) -> None:
        """Draw a run in the making before the earlier ones."""
        self.picture.value = plots.png(self.draw(records, self.runs[-5:], filters, shape))
        self.gradients.value = plots.png(plots.gradient_norms(records))

    def start(self, button: Any = None) -> None:
        """Begin to train in a thread, unless one is training."""
        if self.thread and self.thread.is_alive():
            return
        self.message.value = ""
        self.stopping.clear()
        self.going.set()
        self.thread = threading.Thread(
            target=self._train, args=(self.hyperparameters(),), daemon=True
        )
        self.thread.start()

    def _train(self, hp: Hyperparameters) -> None:
        live = _Live()
        live.view = self
        try:
            self.status.value = "preparing the images"
            with alone():
                Trainer(hp, self.data, progress=False, callbacks=[live]).run()
            self.runs.append(
                live.records
            )  # not those that diverged: beside their losses all others look alike
        except Exception as error:
            self.message.value = in_words(error)

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
