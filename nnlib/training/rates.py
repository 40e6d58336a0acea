"""A learning rate to begin with: a short run in which the rate grows until the loss explodes."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from nnlib.data.dataset import Dataset
from nnlib.errors import HyperparameterError, TrainingDiverged
from nnlib.training.callbacks import interrupts
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.trainer import Trainer
from nnlib.types import Array


@dataclass(frozen=True)
class RangeTest:
    """What ``find_learning_rate`` found: ``rates`` (S,), and smoothed training ``losses`` (S,)."""

    rates: Array
    losses: Array

    @property
    def suggestion(self) -> float:
        """A tenth of the rate with the lowest loss: it falls fast there, far from diverging."""
        return float(self.rates[self.losses.argmin()]) / 10

    def __repr__(self) -> str:
        n, last = len(self.rates), self.rates[-1]
        return f"RangeTest: suggestion {self.suggestion:.2g}, of {n} rates up to {last:.2g}"


def find_learning_rate(
    hp: Hyperparameters, data: Dataset, low: float = 1e-5, high: float = 10.0, steps: int = 200
) -> RangeTest:
    """Train as ``hp`` says, but at a rate that grows from ``low`` to ``high`` in ``steps`` steps
    (Smith 2017).

    It ends early if the loss, smoothed over about ten steps, is four times its best, or is not
    finite.
    """
    if not 0 < low < high or steps < 2:
        raise HyperparameterError(
            f"low, high, steps: {low}, {high}, {steps}; 0 < low < high and steps > 1 are needed."
        )
    rates = np.geomspace(low, high, steps)

    def growing(step: int) -> float:
        return float(rates[step])

    trainer = Trainer(hp, data, progress=False)
    trainer.learning_rate = growing
    losses: list[float] = []
    mean = 0.0
    with suppress(TrainingDiverged), trainer.limited_threads(), interrupts(trainer):
        while trainer.step < steps and not trainer.stopped:
            trainer.train_step()
            mean += 0.1 * (trainer.last_loss - mean)
            # the mean began at 0: the losses so far have only this share in it
            losses.append(mean / (1 - 0.9**trainer.step))
            if losses[-1] > 4 * min(losses):
                break
    return RangeTest(rates[: len(losses)], np.array(losses))
