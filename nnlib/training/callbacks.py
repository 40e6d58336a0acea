"""What watches a training: words, a bar, numbers about every layer, and warnings of what goes wrong."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.network.losses import softmax
from nnlib.network.mlp import MLP
from nnlib.training.rundir import Record, describe
from nnlib.types import Array

if TYPE_CHECKING:
    from nnlib.training.trainer import Trainer

LOOKED_AT = 500  # validation images that tell how a layer is


class Callback:
    """Base class for callbacks: each method gets the ``Trainer``, which has a ``stop(why)``. Override what you need.

    An exception in a callback ends the run: what was learnt is saved in its ``run_dir``, the other callbacks get their
    ``on_end``, and the exception goes on with the run so far as its attribute ``run``.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Called once before the first step."""

    def on_step(self, trainer: "Trainer") -> None:
        """Called after each step; ``trainer.last_loss`` is the loss of its batch."""

    def measure(self, trainer: "Trainer") -> Record:
        """Called after each epoch's validation; what it returns goes into the epoch's record, and is saved with it."""
        return {}

    def on_epoch(self, trainer: "Trainer") -> None:
        """Called after each epoch is saved; ``trainer.history[-1]`` is its record."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called once at the end, whatever ended the run."""


MOMENTS = [name for name in vars(Callback) if name[0] != "_"]


def refuse_uncallable(callbacks: Any) -> None:
    """Raise HyperparameterError for what is no list of objects that do something at one of the MOMENTS."""
    for each in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        own = [
            m
            for m in MOMENTS
            if hasattr(each, m) and getattr(type(each), m, None) is not getattr(Callback, m)
        ]
        if each is callbacks or isinstance(each, type) or not own:
            allowed = ", ".join(MOMENTS)
            raise HyperparameterError(
                f"callbacks: {each!r} is not allowed; a list of objects with some of {allowed}."
            )


class EpochLines(Callback):
    """Prints one line an epoch."""

    def on_epoch(self, trainer: "Trainer") -> None:
        print(describe(trainer.history[-1], trainer.hp.epochs))


class ProgressBar(Callback):
    """Shows epoch, step, loss, images per second and time left in a terminal or a notebook."""

    bar: Any = None

    def on_start(self, trainer: "Trainer") -> None:
        from tqdm.auto import tqdm

        total = trainer.steps_per_epoch * trainer.until
        self.bar = tqdm(
            total=total, initial=trainer.step, unit="step", dynamic_ncols=True, mininterval=0.2
        )

    def on_step(self, trainer: "Trainer") -> None:
        self.bar.update(1)
        if trainer.step % 10 == 0:
            t = trainer.tally
            text = (
                f"loss {t.loss / max(t.seen, 1):.3f}, {t.seen / max(t.seconds, 1e-9):,.0f} images/s"
            )
            valid = (
                f", valid accuracy {trainer.history[-1]['valid_accuracy']:.4f}"
                if trainer.history
                else ""
            )
            self.bar.set_description(
                f"epoch {min(trainer.epoch + 1, trainer.until)}/{trainer.until}", refresh=False
            )
            self.bar.set_postfix_str(text + valid, refresh=False)

    def on_end(self, trainer: "Trainer") -> None:
        if self.bar is not None:
            self.bar.close()


class Diagnostics(Callback):
    """Adds numbers about every layer 1, 2, ... to each epoch's record, and so to ``history.csv``; costs about a step.

    ``gradient_norm_1`` is the length of W1's gradient on the first ``batch_size`` training images, ``weight_norm_1``
    that of W1, ``update_ratio_1`` the length of the epoch's last change of W1 by that of W1: about 0.001 is a good
    pace (Karpathy). ``dead_1`` is the share of the first hidden layer's units that no validation image (of 500) moves.
    """

    def __init__(self) -> None:
        self._before: dict[str, Array] = {}
        self._changes: dict[str, float] = {}

    def on_start(self, trainer: "Trainer") -> None:
        self._remember(trainer)

    def on_step(self, trainer: "Trainer") -> None:
        if trainer.step % trainer.steps_per_epoch == 0:
            self._changes = {
                n: float(np.linalg.norm(trainer.model.parameters[n] - W))
                for n, W in self._before.items()
            }
        self._remember(trainer)

    def _remember(self, trainer: "Trainer") -> None:
        """Copy the weights in front of an epoch's last step."""
        if (trainer.step + 1) % trainer.steps_per_epoch == 0:
            self._before = {
                name: p.copy() for name, p in trainer.model.parameters.items() if name[0] == "W"
            }

    def measure(self, trainer: "Trainer") -> Record:
        model, n = trainer.model, trainer.hp.batch_size
        x, labels = model.inputs(trainer.data.train.images[:n]), trainer.data.train.labels[:n]
        _, gradients = model.loss_and_gradients(x, labels, trainer.l2, loss=trainer.loss_function)
        record: Record = {}
        for layer in range(1, model.n_layers + 1):
            name = f"W{layer}"
            norm = float(np.linalg.norm(model.parameters[name]))
            record |= {
                f"gradient_norm_{layer}": float(np.linalg.norm(gradients[name])),
                f"weight_norm_{layer}": norm,
            }
            record[f"update_ratio_{layer}"] = self._changes.get(name, np.nan) / max(norm, 1e-12)
        health = layer_health(model, trainer.data.valid.images[:LOOKED_AT])
        return record | {f"dead_{layer}": dead for layer, (dead, _) in enumerate(health, 1)}


def layer_health(model: MLP, images: Array) -> list[tuple[float, float]]:
    """Return for each hidden layer its share of dead units, and of saturated activations, on ``images`` (at most 2500).

    A unit is dead if its derivative is below 0.0001 for every image: no gradient passes it. An activation is saturated
    if the derivative is below 0.01 at z and at -z: sigmoid and tanh have such ends on both sides, ReLU's kin have not.
    """
    model.activations(model.inputs(images))  # leaves the pre-activations; predictions don't
    pairs = zip(model.functions, model.pre_activations, strict=True)
    slopes = (
        [abs(function.derivative(x, function.value(x))) for x in (z, abs(z))]
        for function, z in pairs
    )
    return [
        (float((slope < 1e-4).all(axis=0).mean()), float((steep < 0.01).mean()))
        for slope, steep in slopes
    ]


def warnings_of(trainer: "Trainer") -> Iterator[tuple[str, str]]:
    """Yield (what is wrong with the network though its loss is finite, details)."""
    split, model = trainer.data.valid.take(slice(LOOKED_AT)), trainer.evaluated
    for layer, (dead, flat) in enumerate(layer_health(model, split.images), 1):
        if dead > 0.9:
            yield (
                f"layer {layer} is dead",
                f"no image moves {dead:.0%} of its units, they learn nothing more",
            )
        if flat > 0.9:
            yield (
                f"layer {layer} is saturated",
                f"{flat:.0%} of its activations pass on almost no gradient",
            )
    logits = model.predict_logits(split.images)
    certain, wrong = (
        (softmax(logits).max(axis=1) > 0.9999).mean(),
        (logits.argmax(axis=1) != split.labels).mean(),
    )
    if certain > 0.9 and wrong > 0.1:
        yield (
            "the outputs are saturated",
            f"certain of {certain:.0%} of the validation images, wrong about {wrong:.0%}",
        )
    for name, first in trainer.first_norms.items():
        growth = np.linalg.norm(trainer.model.parameters[name]) / max(first, 1e-12)
        if growth > 100:
            yield f"the weights {name} explode", f"they are {growth:.0f} times as long as at first"


def reporter() -> Callback:
    """Return what tells of progress here: a bar in a terminal or a notebook, lines elsewhere."""
    return ProgressBar() if sys.stderr.isatty() or in_notebook() else EpochLines()


def in_notebook() -> bool:
    """Return whether this code runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")  # a kernel has loaded it
    return hasattr(ipython and ipython.get_ipython(), "kernel")


@contextmanager
def interrupts(trainer: "Trainer") -> Iterator[None]:
    """Let Ctrl-C stop ``trainer`` after its present step; a second one interrupts at once."""
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
