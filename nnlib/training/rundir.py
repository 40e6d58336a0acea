"""The folder of one training run: its settings, its history, the best weights, the last state."""

import csv
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnlib.errors import CheckpointError, HyperparameterError
from nnlib.files import user_path, write_text
from nnlib.network.mlp import MLP
from nnlib.network.saving import read_arrays, save_model, write_arrays
from nnlib.training.history import History, Record, State, Tally, describe
from nnlib.training.hyperparameters import Hyperparameters

HYPERPARAMETERS = "hyperparameters.json"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
LOG = "log.txt"
ANEW = "name another run_dir, or write over it with resume=False (--no-resume)"


class RunDirectory:
    """Reads and writes ``hyperparameters.json``, ``environment.json``, ``history.csv``, ``log.txt``
    and checkpoints.

    ``best.npz`` is the best model so far, ``last.npz`` the ``State`` that an exact resume needs.
    One state is enough: it is written beside the old one, flushed to the disk and then renamed, so
    that a process or a machine that dies at any moment leaves the old state or the new one, and a
    run may go on from either. (Earlier versions also kept the state before it, ``previous.npz``. A
    run that has only this one resumes from it.)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.best = self.path / "best.npz"
        self.last = self.path / "last.npz"
        self.previous = self.path / "previous.npz"

    def locked(self, wait: float = 0) -> AbstractContextManager[Any]:
        """Make the folder and hold it for this process.

        Raises CheckpointError if another process trains in it (after ``wait`` seconds), or if it
        can't be made.
        """
        # imported here: `import nnlib` stays as fast as `import numpy`
        from filelock import FileLock, Timeout

        try:
            return FileLock(self.path / ".lock").acquire(timeout=wait)  # this makes the folder
        except Timeout:
            problem = "another process is training in this folder; wait for it"
        except OSError as error:
            problem = f"no folder can be made here ({error.strerror}); name another"
        raise CheckpointError(f"{self.path}: {problem}.")

    def claim(
        self, hyperparameters: Mapping[str, Any], environment: Mapping[str, Any], resume: bool
    ) -> State | None:
        """Decide whether the run described here may use this folder, and return the state to go on
        from.

        None means: start at the first step; what an earlier run left is deleted. Raises
        CheckpointError, naming what is in the way, if the folder holds another run, the results of
        a run whose state is lost, or files of our names that no run has written. With
        ``resume=False`` all of that is given up and deleted.
        """
        if not resume:
            self._clear()
            return None
        if not self._made_by_a_run():
            found = [path.name for path in self._files() if path.exists()]
            if found:
                problem = f"{', '.join(found)} in it: of no run that can go on"
                raise CheckpointError(f"{self.path}: {problem}; {ANEW}.")
        path = self._state_file()
        if path is not None:
            self._refuse_other_run(hyperparameters, environment)
            state = self._read_state(path)
            self._delete_parts()
            return state
        if (self.path / HISTORY).exists():
            problem = f"it holds a run whose {self.last.name} is gone, which cannot go on"
            raise CheckpointError(f"{self.path}: {problem}; {ANEW}.")
        self._clear()
        return None

    def describe_run(
        self, hyperparameters: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        """Write down which run this folder belongs to; the first thing that a run writes."""
        self._write_json(HYPERPARAMETERS, hyperparameters)
        self._write_json(ENVIRONMENT, environment)

    def save(self, state: State) -> None:
        """Write all that an exact resume needs. Raises CheckpointError if there is no room."""
        meta = {
            "kind": "state",
            "step": state.step,
            "tally": asdict(state.tally),
            "history": state.history,
            "warnings": state.warnings,
            "fingerprint": state.fingerprint,
        }
        write_arrays(self.last, state.arrays, meta)
        self.previous.unlink(missing_ok=True)  # of an earlier version; never needed from now on

    def save_best(self, model: MLP) -> None:
        """Write the model with the best weights so far."""
        save_model(model, self.best)

    def write_history(self, history: History, epochs: int, remarks: Sequence[str] = ()) -> None:
        """Write ``history.csv`` and ``log.txt`` anew, so that they always agree with the state.

        ``epochs`` is how many there will be; ``remarks`` are the lines below the epochs in
        ``log.txt``.
        """
        if not history:
            return
        # a callback that measures may have been added in the middle of a run: a column begins there
        names: dict[str, None] = {}
        for record in history:
            names.update(dict.fromkeys(record))
        rows = [list(names)]
        for record in history:
            rows.append([str(record.get(name, "nan")) for name in names])
        write_text(self.path / HISTORY, "".join(",".join(row) + "\n" for row in rows))
        lines = [describe(record, epochs) for record in history]
        lines += [remark for remark in remarks if remark]
        write_text(self.path / LOG, "\n".join(lines) + "\n")

    def read_history(self) -> list[Record]:
        """Return the records in ``history.csv``, numbers as numbers."""
        path = self.path / HISTORY
        records = []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    record: Record = {name: float(text) for name, text in row.items()}
                    record["epoch"] = int(row["epoch"])
                    record["step"] = int(row["step"])
                    records.append(record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: it cannot be read ({error}).") from None
        return records

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file. Raises CheckpointError if it can't be read."""
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: it cannot be read ({error}); is this a run folder?"
            ) from None
        if not isinstance(value, dict):
            found = type(value).__name__
            raise CheckpointError(f"{path}: it holds {found}, but an object is needed.")
        return value

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def _files(self) -> list[Path]:
        """Return the files a run writes here, last the one that says whose they are."""
        return [
            self.path / HISTORY,
            self.path / LOG,
            self.best,
            *sorted(self.path.glob("best-epoch-????.npz")),  # of earlier versions
            self.last,
            self.previous,
            self.path / ENVIRONMENT,
            self.path / HYPERPARAMETERS,
        ]

    def _clear(self) -> None:
        """Delete what an earlier run left."""
        self._delete_parts()
        for path in self._files():
            path.unlink(missing_ok=True)

    def _delete_parts(self) -> None:
        """Delete what a killed process was writing."""
        for path in self._files():
            for part in self.path.glob(f".{path.name}.*.part"):
                part.unlink()

    def _made_by_a_run(self) -> bool:
        """Return whether a run has written its settings here, as it does before all else."""
        if not (self.path / HYPERPARAMETERS).exists():
            return False
        return "hidden_sizes" in self.read_json(HYPERPARAMETERS)

    def _state_file(self) -> Path | None:
        """Return the file with the last state, None if there is none."""
        for path in (self.last, self.previous):
            if path.exists():
                return path
        return None

    def _read_state(self, path: Path) -> State:
        """Return the state in ``path``. Raises CheckpointError if it is damaged."""
        remedy = "say resume=False (--no-resume) to start again"
        if path != self.previous and self.previous.exists():
            remedy = f"delete it to go on from {self.previous.name}, or {remedy}"
        try:
            arrays, meta = read_arrays(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Or {remedy}.") from None
        try:
            return State(
                arrays=arrays,
                step=meta["step"],
                tally=Tally(**meta["tally"]),
                history=History(meta["history"]),
                warnings=dict(meta["warnings"]),
                fingerprint=meta.get("fingerprint", ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: it holds no training state ({error}); {remedy}."
            ) from None

    def _refuse_other_run(
        self, hyperparameters: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        """Raise CheckpointError, naming every difference, if the folder holds another run."""
        was = _in_todays_words(self.read_json(HYPERPARAMETERS))
        known = self.read_json(ENVIRONMENT)
        differ = []
        for name, value in hyperparameters.items():
            if name != "epochs" and was.get(name) != value:
                differ.append(f"{name} was {was.get(name)!r}, now {value!r}")
        before, now = known.get("fingerprint"), environment["fingerprint"]
        if before != now:
            differ.append(f"the data had the fingerprint {before}, now {now}")
        # other settings begin with other weights, too: worth saying only if nothing else differs
        if not differ and known.get("initial_weights") != environment["initial_weights"]:
            differ.append("it began with other weights (init=...)")
        if differ:
            remedy = "Name another run_dir, or say resume=False (--no-resume) to start again here."
            raise CheckpointError(
                f"{self.path}: it holds another run: {'; '.join(differ)}. {remedy}"
            )
        epochs = hyperparameters["epochs"]
        if was["epochs"] != epochs and hyperparameters["schedule"] in ("cosine", "one_cycle"):
            print(
                f"epochs was {was['epochs']}, now {epochs}: "
                "the schedule follows the new length from here."
            )


def blas_libraries() -> list[dict[str, Any]]:
    """Return name, version, kernels and threads of NumPy's BLAS and of SciPy's, which trains."""
    import scipy.linalg.blas  # noqa: F401
    from threadpoolctl import threadpool_info

    libraries = []
    for info in threadpool_info():
        if info["user_api"] == "blas":
            names = ("internal_api", "version", "architecture", "num_threads")
            libraries.append({name: info.get(name) for name in names})
    return libraries


@cache
def machine() -> dict[str, Any]:
    """Return versions, hardware, and the commit if nnlib runs from a checkout."""
    return {
        "python": platform.python_version(),
        "nnlib": version("nnlib"),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "commit": _commit(Path(__file__).parents[2]),
    }


def _cpu() -> str:
    """Return the processor's name, which Python does not know on Linux."""
    known = Path("/proc/cpuinfo")
    if known.exists():
        for line in known.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def _commit(checkout: Path) -> str | None:
    """Return the commit, None if there is none; it ends in ``-dirty`` if files differ from it."""
    if not (checkout / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip() or None


def _in_todays_words(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Return saved hyperparameters with today's names; fields that are newer have their defaults.

    Values that are not allowed any more stay as they are: they belong to another run.
    """
    try:
        return Hyperparameters.from_dict(hyperparameters).to_dict()
    except HyperparameterError:
        return hyperparameters
