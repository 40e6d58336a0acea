"""The folder of one training run: what was asked, what happened epoch by epoch, the best weights, the last state."""

import csv
import io
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnlib.checkpoints import (
    preprocessing_arrays,
    preprocessing_from,
    read_arrays,
    write_arrays,
    write_text,
)
from nnlib.errors import CheckpointError

if TYPE_CHECKING:
    from nnlib.training import Trainer

Record = dict[str, Any]


def describe(record: Record, epochs: int) -> str:
    """Return one epoch's record as a line of text."""
    return (
        f"epoch {record['epoch']:3d}/{epochs}  learning rate {record['learning_rate']:.5f}  "
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:.4f}  "
        f"valid loss {record['valid_loss']:.4f} accuracy {record['valid_accuracy']:.4f}  {record['seconds']:.1f} s"
    )


class RunDirectory:
    """Reads and writes ``hyperparameters.json``, ``environment.json``, ``history.csv``, ``log.txt`` and checkpoints.

    ``last.npz`` holds all that an exact resume needs, ``previous.npz`` the one before it, ``best.npz`` the best model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best, self.last, self.previous = (self.path / f"{n}.npz" for n in ("best", "last", "previous"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises CheckpointError while another process trains in it."""
        from filelock import FileLock, Timeout  # imported here: `import nnlib` stays as fast as `import numpy`

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise CheckpointError(
                f"{self.path}: another process is training in this folder; wait, or name another."
            ) from None

    def open(self, trainer: "Trainer", resume: bool) -> None:
        """Bring ``trainer`` to the state that is saved here, or start the folder anew.

        Raises CheckpointError, naming what differs, if the folder belongs to another run.
        """
        for part in self.path.glob(".*.part"):
            part.unlink()  # what a killed process was writing
        if not resume:
            for path in (self.best, self.last, self.previous):
                path.unlink(missing_ok=True)
        elif self.last.exists() or self.previous.exists():
            self._refuse_other_run(trainer)
            self._restore(trainer)
            trainer.stop_early()
            self._write_history(trainer)
        write_text(self.path / "hyperparameters.json", json.dumps(trainer.hp.to_dict(), indent=2) + "\n")
        write_text(self.path / "environment.json", json.dumps(self._environment(trainer), indent=2) + "\n")

    def read_hyperparameters(self) -> dict[str, Any]:
        """Return the fields in ``hyperparameters.json``. Raises CheckpointError if it cannot be read."""
        return self._read_json("hyperparameters.json")

    def read_history(self) -> list[dict[str, Any]]:
        """Return the records in ``history.csv``, numbers as numbers."""
        try:
            with (self.path / "history.csv").open(newline="", encoding="utf-8") as file:
                whole = ("epoch", "step")
                return [{k: int(v) if k in whole else float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path / 'history.csv'}: it cannot be read ({error}).") from None

    def save(self, trainer: "Trainer") -> None:
        """Write the trainer's whole state; the state before it becomes ``previous.npz``."""
        groups = {
            "parameters": trainer.model.parameters,
            "velocity": trainer.optimizer.velocity,
            "average": trainer.optimizer.average,
        }
        arrays = {f"{group}.{name}": a for group, values in groups.items() for name, a in values.items()}
        meta = {
            "kind": "state",
            "step": trainer.step,
            "tally": asdict(trainer.tally),
            "history": trainer.history,
            "fingerprint": trainer.data.fingerprint,
        }
        if self.last.exists():
            self.last.replace(self.previous)
        write_arrays(self.last, arrays | preprocessing_arrays(trainer.model.preprocessing), meta)
        self._write_history(trainer)

    def _write_history(self, trainer: "Trainer") -> None:
        """Write history.csv and log.txt anew from the history, so that they always agree with the saved state."""
        if not trainer.history:
            return
        rows = io.StringIO()
        writer = csv.DictWriter(rows, list(trainer.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(trainer.history)
        write_text(self.path / "history.csv", rows.getvalue())
        lines = [describe(record, trainer.hp.epochs) for record in trainer.history]
        write_text(self.path / "log.txt", "\n".join(lines + [trainer.stopped] * bool(trainer.stopped)) + "\n")

    def _restore(self, trainer: "Trainer") -> None:
        arrays, meta = self._read_state()
        groups = {"parameters": trainer.model.parameters, "velocity": trainer.optimizer.velocity}
        groups |= {"average": trainer.optimizer.average}
        for group, values in groups.items():
            for name, a in values.items():
                a[...] = arrays[f"{group}.{name}"]
        trainer.model.preprocessing = trainer.evaluated.preprocessing = preprocessing_from(arrays)
        trainer.step = trainer.optimizer.steps = meta["step"]
        trainer.history[:] = meta["history"]
        for name, value in meta["tally"].items():
            setattr(trainer.tally, name, value)
        if trainer.history:
            best, _ = read_arrays(self.best)
            for name, a in trainer.best_parameters.items():
                a[...] = best[name]

    def _read_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the last state, or the one before it where the last is damaged."""
        try:
            return read_arrays(self.last)
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            print(f"{error}\nGoing on from the state before it, {self.previous.name}.")
            state = read_arrays(self.previous)
            self.last.unlink(missing_ok=True)  # or the next save would put it in the place of the good one
            return state

    def _refuse_other_run(self, trainer: "Trainer") -> None:
        asked, found = trainer.hp.to_dict(), self.read_hyperparameters()
        differ = [
            f"{k} was {found.get(k)!r}, now {v!r}" for k, v in asked.items() if found.get(k) != v and k != "epochs"
        ]
        fingerprint = self._read_json("environment.json").get("fingerprint")
        if fingerprint != trainer.data.fingerprint:
            differ.append(f"the data had the fingerprint {fingerprint}, now {trainer.data.fingerprint}")
        if differ:
            remedy = "Name another run_dir, or say resume=False to start this one again."
            raise CheckpointError(f"{self.path}: it holds another run: {'; '.join(differ)}. {remedy}")
        if found["epochs"] != asked["epochs"] and asked["schedule"] in ("cosine", "one_cycle"):
            print(
                f"epochs was {found['epochs']}, now {asked['epochs']}: the schedule follows the new length from here."
            )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / name}: it cannot be read ({error}); is this a run folder?") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path / name}: it holds {type(value).__name__}, but an object is needed.")
        return value

    def _environment(self, trainer: "Trainer") -> dict[str, Any]:
        return {
            "data": trainer.data.source,
            "fingerprint": trainer.data.fingerprint,
            "images": {n: len(getattr(trainer.data, n).labels) for n in ("train", "valid", "test")},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": version("scipy"),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        }
