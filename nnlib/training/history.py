"""What a run is made of: one record per epoch, the history, a state to go on from, the result."""

from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.network.mlp import MLP
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.types import Array, Arrays

Record = dict[str, Any]


def describe(record: Record, epochs: int) -> str:
    """Return one epoch's record as a line of text."""
    parts = [
        "epoch {epoch:3d}/{epochs}",
        "learning rate {learning_rate:.5f}",
        "train loss {train_loss:.4f} accuracy {train_accuracy:.4f}",
        "valid loss {valid_loss:.4f} accuracy {valid_accuracy:.4f}",
        "{seconds:.1f} s",
    ]
    return "  ".join(parts).format_map(record | {"epochs": epochs})


class History(list[Record]):
    """One record per epoch: epoch, step, learning_rate, train/valid loss and accuracy, seconds."""

    def column(self, name: str) -> Array:
        """Return one quantity over the epochs (E,), such as ``"valid_accuracy"``."""
        return np.array([record[name] for record in self])

    def ranked(self, select_by: str) -> list[Record]:
        """Return the records by falling accuracy or rising loss; ties keep their order."""
        higher_is_better = select_by == "valid_accuracy"
        return sorted(self, key=itemgetter(select_by), reverse=higher_is_better)

    def best(self, select_by: str) -> Record:
        """Return the record with the highest accuracy or the lowest loss; the first of ties."""
        return self.ranked(select_by)[0]


@dataclass
class Tally:
    """Running sums of the current epoch."""

    loss: float = 0.0  # summed over images, not batches
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """All that an exact resume needs. ``trainer.state()`` makes one, ``trainer.load`` takes one.


    ``arrays`` are copies, named by what they are and whose: ``parameters.W1``, ``velocity.W1``,
    ``average.W1`` (with ``ema``), ``best.W1`` and ``preprocessing.scale``. The ``best.`` weights
    are left out when they are the current ones. ``fingerprint`` is that of the data.
    """

    arrays: Arrays
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    history: History = field(default_factory=History)
    warnings: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass
class TrainingRun:
    """The result of training: a ``model`` with the best weights by validation, its ``history``.


    ``stopped`` is empty for a run that finished all its epochs; otherwise it says why the run
    ended. ``warnings`` lists what was noticed on the way, such as dead units.
    """

    model: MLP
    history: History
    hyperparameters: Hyperparameters
    stopped: str = ""
    run_dir: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Record:
        """The record of the epoch whose weights ``model`` has."""
        return self.history.best(self.hyperparameters.select_by)

    @property
    def best_epoch(self) -> int:
        """The number of that epoch, counted from 1; 0 if no epoch was finished."""
        return int(self.best["epoch"]) if self.history else 0

    @property
    def seconds(self) -> float:
        """Training and validation time of all epochs."""
        return float(sum(record["seconds"] for record in self.history))

    def __repr__(self) -> str:
        if not self.history:
            return f"TrainingRun: no finished epoch ({self.stopped})"
        best = self.best
        text = (
            f"TrainingRun: {len(self.history)} epochs in {self.seconds:.0f} s, "
            f"best validation accuracy {best['valid_accuracy']:.4f} "
            f"(loss {best['valid_loss']:.4f}) after epoch {best['epoch']}"
        )
        return f"{text}; {self.stopped}" if self.stopped else text
