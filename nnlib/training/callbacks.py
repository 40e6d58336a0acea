"""What watches training: progress as lines or a bar, numbers about every layer, and Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.training.health import LOOKED_AT, layer_health
from nnlib.training.history import Record, describe
from nnlib.types import Array

if TYPE_CHECKING:
    from nnlib.training.trainer import Trainer


class Callback:
    """Base class for callbacks. Override what you need; each method gets the ``Trainer``.

    ``trainer.stop(why)`` ends the run after the current step.

    An exception in a callback ends the run: what was learned is saved in its ``run_dir``, the other
    callbacks get their ``on_end``, and the exception is raised with the run so far as its attribute
    ``run``.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Called once before the first step."""

    def on_step(self, trainer: "Trainer") -> None:
        """Called after each step; ``trainer.last_loss`` is the loss of its batch."""

    def measure(self, trainer: "Trainer") -> Record:
        """Called after each epoch's validation; what it returns goes into the epoch's record."""
        return {}

    def on_epoch(self, trainer: "Trainer") -> None:
        """Called after each epoch is saved; ``trainer.history[-1]`` is its record."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called once at the end, however the run ended."""


MOMENTS = [name for name in vars(Callback) if not name.startswith("_")]


def refuse_uncallable(callbacks: Any) -> None:
    """Raise HyperparameterError unless every callback overrides at least one hook."""
    allowed = f"a list of objects with some of {', '.join(MOMENTS)}"
    if not isinstance(callbacks, list | tuple):
        raise HyperparameterError(f"callbacks: {callbacks!r} is not allowed; {allowed}.")
    for callback in callbacks:
        if isinstance(callback, type) or not any(_overrides(callback, m) for m in MOMENTS):
            raise HyperparameterError(f"callbacks: {callback!r} is not allowed; {allowed}.")


def _overrides(callback: Any, moment: str) -> bool:
    """Return whether ``callback``, which need not be a Callback, does something at ``moment``."""
    inherited = getattr(type(callback), moment, None) is getattr(Callback, moment)
    return hasattr(callback, moment) and not inherited


class EpochLines(Callback):
    """Prints one line per epoch."""

    def on_epoch(self, trainer: "Trainer") -> None:
        print(describe(trainer.history[-1], trainer.hp.epochs))


class ProgressBar(Callback):
    """Shows epoch, step, loss, images per second and time left in a terminal or a notebook."""

    bar: Any = None

    def on_start(self, trainer: "Trainer") -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(
            total=trainer.steps_per_epoch * trainer.until,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def on_step(self, trainer: "Trainer") -> None:
        self.bar.update(1)
        if trainer.step % 10 == 0:
            epoch = min(trainer.epoch + 1, trainer.until)
            tally = trainer.tally
            loss = tally.loss / max(tally.seen, 1)
            speed = tally.seen / max(tally.seconds, 1e-9)
            text = f"loss {loss:.3f}, {speed:,.0f} images/s"
            if trainer.history:
                text += f", valid accuracy {trainer.history[-1]['valid_accuracy']:.4f}"
            self.bar.set_description(f"epoch {epoch}/{trainer.until}", refresh=False)
            self.bar.set_postfix_str(text, refresh=False)

    def on_end(self, trainer: "Trainer") -> None:
        if self.bar is not None:
            self.bar.close()


class Diagnostics(Callback):
    """Adds numbers about every layer 1, 2, ... to each epoch's record, and so to ``history.csv``.


    ``gradient_norm_1`` is the norm of W1's gradient on the first ``batch_size`` training images,
    ``weight_norm_1`` that of W1. ``update_ratio_1`` is the norm of the epoch's last change of W1
    divided by that of W1: about 0.001 is a good pace (Karpathy). ``dead_1`` is the share of the
    first hidden layer's units that no validation image (of 500) moves. All of
    it costs about a step.
    """

    def __init__(self) -> None:
        self._before: dict[str, Array] = {}
        self._changes: dict[str, float] = {}

    def on_start(self, trainer: "Trainer") -> None:
        self._remember(trainer)

    def on_step(self, trainer: "Trainer") -> None:
        if trainer.step % trainer.steps_per_epoch == 0:
            self._changes = {}
            for name, before in self._before.items():
                change = trainer.model.parameters[name] - before
                self._changes[name] = float(np.linalg.norm(change))
        self._remember(trainer)

    def _remember(self, trainer: "Trainer") -> None:
        """Copy the weights right before an epoch's last step."""
        if (trainer.step + 1) % trainer.steps_per_epoch == 0:
            for name, p in trainer.model.parameters.items():
                if name.startswith("W"):
                    self._before[name] = p.copy()

    def measure(self, trainer: "Trainer") -> Record:
        model = trainer.model
        batch = trainer.data.train.take(slice(trainer.hp.batch_size))
        _, gradients = model.loss_and_gradients(
            model.inputs(batch.images), batch.labels, trainer.l2, loss=trainer.loss_function
        )
        record: Record = {}
        for layer in range(1, model.n_layers + 1):
            name = f"W{layer}"
            norm = float(np.linalg.norm(model.parameters[name]))
            change = self._changes.get(name, np.nan)
            record[f"gradient_norm_{layer}"] = float(np.linalg.norm(gradients[name]))
            record[f"weight_norm_{layer}"] = norm
            record[f"update_ratio_{layer}"] = change / max(norm, 1e-12)
        health = layer_health(model, trainer.data.valid.images[:LOOKED_AT])
        for layer, found in enumerate(health, 1):
            record[f"dead_{layer}"] = found.dead
        return record


def reporter() -> Callback:
    """Return the progress callback: a bar in a terminal or notebook, else one line per epoch."""
    if sys.stderr.isatty() or in_notebook():
        return ProgressBar()
    return EpochLines()


def in_notebook() -> bool:
    """Return whether this code runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")  # a kernel has loaded it
    if ipython is None:
        return False
    return hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def interrupts(trainer: "Trainer") -> Iterator[None]:
    """Let Ctrl-C stop ``trainer`` after the current step; a second one interrupts at once."""
    # only the main thread may set signal handlers
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        trainer.stop("interrupted")
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
