"""The folder of one training run: what was asked, what happened epoch by epoch, the best weights, the last state."""

import csv
import json
import os
import platform
import shutil
import subprocess
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnlib.errors import CheckpointError
from nnlib.files import write_text
from nnlib.network import saving as checkpoints

if TYPE_CHECKING:
    from nnlib.training.trainer import Trainer

Record = dict[str, Any]


def describe(record: Record, epochs: int) -> str:
    """Return one epoch's record as a line of text."""
    text = "epoch {epoch:3d}/{epochs}  learning rate {learning_rate:.5f}  train loss {train_loss:.4f} accuracy "
    text += "{train_accuracy:.4f}  valid loss {valid_loss:.4f} accuracy {valid_accuracy:.4f}  {seconds:.1f} s"
    return text.format_map(record | {"epochs": epochs})


class RunDirectory:
    """Reads and writes ``hyperparameters.json``, ``environment.json``, ``history.csv``, ``log.txt`` and checkpoints.

    ``last.npz`` holds all that an exact resume needs, ``previous.npz`` the one before it, ``best.npz`` the best model,
    and ``best-epoch-0007.npz`` that of epoch 7 if it is among the next best and as many are wanted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best, self.last, self.previous = (
            self.path / f"{n}.npz" for n in ("best", "last", "previous")
        )

    def locked(self, wait: float = 0) -> AbstractContextManager[Any]:
        """Hold the folder for this process. Raises CheckpointError if another trains in it (after ``wait`` seconds)."""
        from filelock import (
            FileLock,
            Timeout,
        )  # imported here: `import nnlib` stays as fast as `import numpy`

        try:
            return FileLock(self.path / ".lock").acquire(timeout=wait)  # which makes the folder
        except Timeout:
            problem = "another process is training in this folder; wait for it"
        except OSError as error:
            problem = f"no folder can be made here ({error.strerror}); name another"
        raise CheckpointError(f"{self.path}: {problem}.")

    def open(self, trainer: "Trainer", resume: bool) -> None:
        """Bring ``trainer`` to the state that is saved here, or start the folder anew.

        Raises CheckpointError, naming what differs, if the folder belongs to another run.
        """
        for part in self.path.glob(".*.part"):
            part.unlink()  # what a killed process was writing
        if resume and (self.last.exists() or self.previous.exists()):
            self._refuse_other_run(trainer)
            self._restore(trainer)
            trainer.stop_early()
            self._write_history(trainer)
        else:
            if resume and self.best.exists() and not (self.path / "hyperparameters.json").exists():
                remedy = "name another run_dir, or write over it with resume=False (--no-resume)"
                raise CheckpointError(
                    f"{self.path}: the model in it is of no run that can go on; {remedy}."
                )
            for path in (self.last, self.previous):
                path.unlink(missing_ok=True)
        if (
            trainer.history
        ):  # the state knows the best weights: a file that is damaged, or ahead of it, is put right
            checkpoints.save_model(trainer.result().model, self.best)
        self._prune(trainer)
        write_text(
            self.path / "hyperparameters.json", json.dumps(trainer.hp.to_dict(), indent=2) + "\n"
        )
        write_text(
            self.path / "environment.json", json.dumps(self._environment(trainer), indent=2) + "\n"
        )

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a file of JSON. Raises CheckpointError if it cannot be read."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / name}: it cannot be read ({error}); is this a run folder?"
            ) from None
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{self.path / name}: it holds {type(value).__name__}, but an object is needed."
            )
        return value

    def read_history(self) -> list[Record]:
        """Return the records in ``history.csv``, numbers as numbers."""
        try:
            with (self.path / "history.csv").open(newline="", encoding="utf-8") as file:
                whole = ("epoch", "step")
                return [
                    {k: int(v) if k in whole else float(v) for k, v in row.items()}
                    for row in csv.DictReader(file)
                ]
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.path / 'history.csv'}: it cannot be read ({error})."
            ) from None

    def save(self, trainer: "Trainer", finished: bool = False) -> None:
        """Write the trainer's whole state; the one before it becomes ``previous.npz``.

        At the end of an epoch, ``finished``, its model is written too if it is among the best.
        """
        if finished:
            self._save_best(trainer)
        groups = self._groups(trainer)
        if trainer.history and trainer.history.best(trainer.hp.select_by)["step"] == trainer.step:
            del groups["best."]  # they are the present ones
        arrays = {group + name: a for group, values in groups.items() for name, a in values.items()}
        meta = {
            "kind": "state",
            "step": trainer.step,
            "tally": asdict(trainer.tally),
            "history": trainer.history,
        }
        meta |= {"warnings": trainer.warnings, "fingerprint": trainer.data.fingerprint}
        if self.last.exists():
            self.last.replace(self.previous)
        arrays |= checkpoints.preprocessing_arrays(trainer.model.preprocessing)
        checkpoints.write_arrays(self.last, arrays, meta)
        self._write_history(trainer)
        self._prune(trainer)

    def _groups(self, trainer: "Trainer") -> dict[str, dict[str, Any]]:
        """Return all arrays that a state consists of, by the beginnings of their names."""
        sgd = trainer.optimizer
        groups = {
            "parameters.": trainer.model.parameters,
            "velocity.": sgd.velocity,
            "average.": sgd.average,
        }
        return groups | {"best.": trainer.best_parameters}

    def _models(self, trainer: "Trainer") -> dict[Path, Record]:
        """Return which files hold the best models, the best first, and the records of their epochs."""
        ranked = trainer.history.ranked(trainer.hp.select_by)[: trainer.keep_best]
        names = ["best.npz", *(f"best-epoch-{record['epoch']:04d}.npz" for record in ranked[1:])]
        return {self.path / name: record for name, record in zip(names, ranked, strict=False)}

    def _save_best(self, trainer: "Trainer") -> None:
        """Write the finished epoch's model if it is among the best; a best one before it becomes the second."""
        models, record = self._models(trainer), trainer.history[-1]
        if record is models[self.best] and len(models) > 1:
            self.best.replace([*models][1])
        for path in [path for path, best in models.items() if best is record]:
            checkpoints.save_model(trainer.snapshot(trainer.evaluated.parameters, record), path)

    def _prune(self, trainer: "Trainer") -> None:
        """Delete the models that are not, or no longer, among the best."""
        for path in set(self.path.glob("best*.npz")) - set(self._models(trainer)):
            path.unlink()

    def _write_history(self, trainer: "Trainer") -> None:
        """Write history.csv and log.txt anew from the history, so that they always agree with the saved state."""
        if not trainer.history:
            return
        names = dict.fromkeys(name for record in trainer.history for name in record)
        rows = [names, *([record.get(name, "nan") for name in names] for record in trainer.history)]
        write_text(
            self.path / "history.csv", "".join(",".join(map(str, row)) + "\n" for row in rows)
        )
        lines = [describe(record, trainer.hp.epochs) for record in trainer.history]
        lines += [*trainer.warnings.values(), trainer.stopped]
        write_text(self.path / "log.txt", "\n".join(filter(None, lines)) + "\n")

    def _restore(self, trainer: "Trainer") -> None:
        arrays, meta = self._read_state()
        if "best.W1" not in arrays:  # they are the present ones
            present = "average." if trainer.hp.ema else "parameters."
            arrays |= {
                name.replace(present, "best."): a
                for name, a in arrays.items()
                if name.startswith(present)
            }
        for group, targets in self._groups(trainer).items():
            checkpoints.copy_arrays(targets, arrays, self.last, group)
        trainer.model.preprocessing = trainer.evaluated.preprocessing = (
            checkpoints.preprocessing_from(arrays)
        )
        trainer.step = trainer.optimizer.steps = meta["step"]
        trainer.history[:], trainer.warnings = meta["history"], meta["warnings"]
        trainer.tally = replace(trainer.tally, **meta["tally"])

    def _read_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the last state, or the one before it where the last is damaged."""
        try:
            return checkpoints.read_arrays(self.last)
        except CheckpointError as error:
            if not self.previous.exists():
                raise CheckpointError(
                    f"{error} Or say resume=False (--no-resume) to start again."
                ) from None
            print(f"{error}\nGoing on from the state before it, {self.previous.name}.")
            state = checkpoints.read_arrays(self.previous)
            self.last.unlink(
                missing_ok=True
            )  # or the next save would put it in the place of the good one
            return state

    def _refuse_other_run(self, trainer: "Trainer") -> None:
        now, was = trainer.hp.to_dict(), self.read_json("hyperparameters.json")
        differ = [
            f"{k} was {was.get(k)!r}, now {v!r}"
            for k, v in now.items()
            if was.get(k) != v and k != "epochs"
        ]
        known = self.read_json("environment.json")
        if known.get("fingerprint") != trainer.data.fingerprint:
            differ.append(
                f"the data had the fingerprint {known.get('fingerprint')}, now {trainer.data.fingerprint}"
            )
        if not differ and known.get("initial_weights") != trainer.initial["sha256"]:
            differ.append("it began with other weights (init=...)")
        if differ:
            remedy = (
                "Name another run_dir, or say resume=False (--no-resume) to start this one again."
            )
            raise CheckpointError(
                f"{self.path}: it holds another run: {'; '.join(differ)}. {remedy}"
            )
        if was["epochs"] != now["epochs"] and now["schedule"] in ("cosine", "one_cycle"):
            print(
                f"epochs was {was['epochs']}, now {now['epochs']}: the schedule follows the new length from here."
            )

    def _environment(self, trainer: "Trainer") -> dict[str, Any]:
        data = trainer.data
        images = {name: len(getattr(data, name)) for name in ("train", "valid", "test")}
        about = {"data": data.source, "fingerprint": data.fingerprint, "images": images}
        return (
            about | {"initial_weights": trainer.initial["sha256"]} | machine() | {"blas": _blas()}
        )


@cache
def machine() -> dict[str, Any]:
    """Return versions and hardware, and the commit of the checkout that nnlib runs from, if it is one."""
    versions = {
        "python": platform.python_version(),
        **{n: version(n) for n in ("nnlib", "numpy", "scipy")},
    }
    machine = {"platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    return versions | machine | {"commit": _commit(Path(__file__).parents[2])}


def _cpu() -> str:
    """Return the processor's name, which Python does not know on Linux."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _blas() -> list[dict[str, Any]]:
    """Return name, version, kernels and threads of each BLAS in this process: NumPy's and SciPy's, which trains."""
    import scipy.linalg.blas  # noqa: F401
    from threadpoolctl import threadpool_info

    names = ("internal_api", "version", "architecture", "num_threads")
    return [
        {name: info.get(name) for name in names}
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]


def _commit(checkout: Path) -> str | None:
    """Return the checkout's commit, with ``-dirty`` behind it if files differ from it; None if there is none."""
    if not (checkout / ".git").exists() or not shutil.which("git"):
        return None
    command = [
        "git",
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    return (
        subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip() or None
    )
