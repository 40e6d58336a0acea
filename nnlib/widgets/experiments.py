"""Widgets that train a small network each time you move a control."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure

from nnlib import plots
from nnlib.data.dataset import Dataset
from nnlib.errors import TrainingDiverged
from nnlib.network.mlp import MLP
from nnlib.plots.drawing import UNITS
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.trainer import Trainer
from nnlib.types import Array
from nnlib.widgets.controls import Panel, alone, control_for


def _steps(hp: Hyperparameters, data: Dataset, n: int) -> Iterator[Trainer]:
    """Train for ``n`` steps; yield the trainer before the first and after each."""
    trainer = Trainer(hp, data, progress=False)
    with alone():
        yield trainer
        while trainer.step < n:
            trainer.train_step()
            yield trainer


def learning_rate_explorer(
    data: Dataset, hp: Hyperparameters | None = None, steps: int = 100
) -> Panel:
    """Draw the loss in the first ``steps`` of a training, at the last five rates you chose.

    ``hp`` holds the other hyperparameters; by default the network is small.
    """
    if hp is None:
        hp = Hyperparameters(hidden_sizes=(32,), activation="relu", batch_size=200)
    few = data.subset(min(1000, len(data.train)))
    tried: dict[str, Array] = {}

    def draw(**rates: float) -> Figure:
        losses = []
        with suppress(TrainingDiverged):
            for trainer in _steps(hp.replace(**rates), few, steps):
                losses.append(trainer.last_loss)
        losses = losses[1:]  # before the first step there is none
        if len(losses) == steps:
            end = f"goes from {losses[0]:.3g} to {losses[-1]:.3g}"
        else:
            end = "stops being a number"
        name = " and ".join(f"{rate:.3g}" for rate in rates.values() if rate)
        tried[name] = np.minimum(losses, 5)  # a loss that diverges leaves the picture
        last_five = dict(list(tried.items())[-5:])
        return plots.curves(last_five, f"At {name} the loss {end}", "step", UNITS["loss"])

    return Panel(
        draw,
        360,
        learning_rate=control_for("learning_rate", hp.learning_rate),
        momentum=control_for("momentum", hp.momentum),
    )


# Patterns in the plane: x and y of the points at t (N,), from 0 to 1, of class k (N,), 0 or 1.


def _moons(t: Array, k: Array) -> tuple[Array, Array]:
    side = 1 - 2 * k
    return side * np.cos(np.pi * t) + k - 0.5, side * (np.sin(np.pi * t) - 0.25)


def _rings(t: Array, k: Array) -> tuple[Array, Array]:
    radius = 0.5 + 0.7 * k
    return radius * np.cos(2 * np.pi * t), radius * np.sin(2 * np.pi * t)


def _spiral(t: Array, k: Array) -> tuple[Array, Array]:
    radius = 1.5 * t
    angle = np.pi * (3 * t + k)
    return radius * np.cos(angle), radius * np.sin(angle)


def _xor(t: Array, k: Array) -> tuple[Array, Array]:
    side = np.sign(t - 0.5)
    return side * (0.3 + t % 0.5), side * (1 - 2 * k) * (0.3 + 7 * t % 0.5)


PATTERNS: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "moons": _moons,
    "rings": _rings,
    "spiral": _spiral,
    "XOR": _xor,
}
FILM_STEPS = 1000
FRAME_STEPS = 40  # steps from one frame of the film to the next


def decision_boundary(n: int = 300) -> Panel:
    """Watch a small network learn to divide ``n`` points in the plane, and what each unit does."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    t = rng.random(n)
    noise = 0.1 * rng.standard_normal((n, 2))
    data = {}
    for name, pattern in PATTERNS.items():
        points = np.stack(pattern(t, labels), axis=1) + noise
        data[name] = Dataset.from_arrays(points, labels)

    @lru_cache(8)  # the last few films, so that the step slider needn't train again
    def film(points: str, first: int, second: int, **more: Any) -> list[MLP]:
        sizes = (first, second) if second > 0 else (first,)
        hp = Hyperparameters(hidden_sizes=sizes, momentum=0.9, batch_size=32, **more)
        frames = []
        for trainer in _steps(hp, data[points], FILM_STEPS):
            if trainer.step % FRAME_STEPS == 0:
                frames.append(trainer.model.astype(np.float32))
        return frames

    def draw(points: str, step: int, **settings: Any) -> Figure:
        model = film(points, **settings)[step // FRAME_STEPS]
        seen = data[points].train
        right = (model.predict(seen.images) == seen.labels).mean()
        title = f"Step {step}: {right:.0%} of the points are right"
        return plots.hidden_units(model, seen.images, seen.labels, title)

    step = w.IntSlider(
        FILM_STEPS, 0, FILM_STEPS, FRAME_STEPS, description="step", continuous_update=False
    )
    play = w.Play(FILM_STEPS, 0, FILM_STEPS, FRAME_STEPS, interval=500)
    w.jslink((play, "value"), (step, "value"))
    return Panel(
        draw,
        460,
        play,
        points=w.Dropdown(options=[*PATTERNS], description="points"),
        first=w.IntSlider(6, 1, 12, description="layer 1", continuous_update=False),
        second=w.IntSlider(0, 0, 8, description="layer 2", continuous_update=False),
        activation=control_for("activation", "tanh"),
        learning_rate=control_for("learning_rate", 0.1),
        step=step,
    )
