"""Hyperparameter search: who proposes settings, who trains them, and a record of every trial."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnlib.checkpoints import write_text
from nnlib.datasets import Dataset
from nnlib.errors import CheckpointError, HyperparameterError, TrainingDiverged, did_you_mean
from nnlib.hyperparameters import Hyperparameters
from nnlib.training import History, Trainer

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("grid", "random", "tpe", "halving")
Settings = dict[str, Any]
Submit = Callable[["Trial", int], Future["Trial"]]


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``: drawn evenly, or evenly in their logarithm; whole numbers if asked."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise HyperparameterError(f"range: {self} is empty, or begins at or below 0 on a logarithmic scale.")


def uniform(low: float, high: float) -> Range:
    """All numbers from ``low`` to ``high``."""
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """All numbers from ``low`` to ``high``, as many from 0.001 to 0.01 as from 0.01 to 0.1."""
    return Range(low, high, log=True)


def integers(low: int, high: int) -> Range:
    """All whole numbers from ``low`` to ``high``, both included."""
    return Range(low, high, whole=True)


@dataclass
class Trial:
    """One setting and what came of it. ``status`` is complete, pruned (stopped early), diverged or failed."""

    number: int
    settings: Settings
    status: str = "complete"
    valid_accuracy: float = float("nan")
    valid_loss: float = float("nan")
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SearchResults:
    """All trials of a search, in the order in which they were asked for."""

    base: Hyperparameters
    data: dict[str, str]
    method: str
    trials: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Put a trial in its place, instead of an earlier record of it."""
        self.trials = sorted([t for t in self.trials if t.number != trial.number] + [trial], key=lambda t: t.number)

    @property
    def best(self) -> Trial:
        """The complete trial that is best by ``base.select_by``. Raises HyperparameterError if none is complete."""
        complete = [t for t in self.trials if t.status == "complete"]
        if not complete:
            raise HyperparameterError("search: no trial is complete; the reasons stand in results.trials[i].error.")
        return max(complete, key=lambda t: _merit(t, self.base.select_by))

    @property
    def best_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of the best trial, to train with."""
        return self.base.replace(**self.best.settings)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a trial: its number, its settings, status, best validation accuracy and loss, cost."""
        import pandas as pd

        measured = ("status", "valid_accuracy", "valid_loss", "best_epoch", "epochs", "seconds")
        rows = [{"trial": t.number, **t.settings, **{m: getattr(t, m) for m in measured}} for t in self.trials]
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write everything, histories included, to ``path`` as JSON, atomically."""
        document = {"base": self.base.to_dict(), "data": self.data, "method": self.method}
        return write_text(path, json.dumps(document | {"trials": [asdict(t) for t in self.trials]}, indent=1) + "\n")


def _merit(trial: Trial, select_by: str) -> float:
    """Return a number that is larger for a better trial."""
    return trial.valid_accuracy if select_by == "valid_accuracy" else -trial.valid_loss


def load_results(path: str | Path) -> SearchResults:
    """Return what ``save`` wrote to a file, or a search to its folder. Raises CheckpointError if it cannot be read."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        trials = [Trial(**{**t, "settings": _tuples(t["settings"])}) for t in document["trials"]]
        return SearchResults(Hyperparameters.from_dict(document["base"]), document["data"], document["method"], trials)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: it does not hold the results of a search ({error}).") from None


def _tuples(settings: Settings) -> Settings:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def search(
    space: Mapping[str, Any],
    data: Dataset,
    base: Hyperparameters | None = None,
    method: str = "grid",
    n_trials: int | None = None,
    seed: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    directory: str | Path | None = None,
    progress: bool = True,
) -> SearchResults:
    """Train ``base`` with the settings in ``space`` and record every trial; validation decides, never the test set.

    ``space`` maps fields of Hyperparameters to lists of values or ranges (``loguniform``, ``uniform``, ``integers``).
    ``grid`` tries all combinations of lists, or the first ``n_trials``; ``random`` and ``tpe`` (Bergstra et al.
    2011) draw ``n_trials``; ``halving`` starts ``n_trials`` (or the grid), and goes on with the best third at a ninth,
    then a third of the epochs (Jamieson and Talwalkar 2016). ``workers`` processes, or any ``executor`` of
    concurrent.futures, train. With ``directory`` the results are saved there after each trial, and the same call goes
    on where it was.
    Raises HyperparameterError before the first trial for a space that is empty or has a value that is not allowed.
    """
    from tqdm.auto import tqdm

    base = base or Hyperparameters()
    proposals, n = _propose(method, _checked(space, base), base, n_trials, seed)
    rungs = _rungs(method, n, base.epochs)
    results = SearchResults(base, {"source": data.source, "fingerprint": data.fingerprint}, method)
    known = _known(directory, results)
    pool, most = _pool(workers, executor)
    bar = tqdm(total=sum(n for n, _ in rungs), unit="trial", disable=not progress or None)
    with tempfile.TemporaryDirectory() as scratch, bar:

        def submit(trial: Trial, epochs: int) -> Future[Trial]:
            done = next((t for t in known if t.settings == trial.settings), None)
            if done and len(done.history) >= epochs:
                return InProcess().submit(_summarised, replace(trial, history=done.history[:epochs]), base.select_by)
            run_dir = Path(directory or scratch) / "trials" / f"{trial.number:04d}"
            return pool.submit(run_trial, trial, base, epochs, data, run_dir)

        try:
            for trial in _climb(proposals, rungs, submit, most, base.select_by):
                results.add(trial)
                bar.set_postfix_str(_so_far(results))
                bar.update(1)
                if directory is not None:
                    results.save(Path(directory) / "results.json")
        except KeyboardInterrupt:
            print(f"interrupted: {len(results.trials)} trials are recorded.")
    return results


def _climb(
    proposals: Iterable[Settings], rungs: Sequence[tuple[int, int]], submit: Submit, most: int, select_by: str
) -> Iterator[Trial]:
    """Train ``n`` trials for ``epochs`` on the first of the ``rungs``, on each further one the best of those before."""
    waiting = (Trial(number, settings) for number, settings in enumerate(proposals))
    for n, epochs in rungs:
        ended = []
        for trial in _as_they_end(itertools.islice(waiting, n), epochs, submit, most):
            if trial.status == "complete" and epochs < rungs[-1][1]:
                trial.status = "pruned"  # until it is asked for again
            if isinstance(proposals, Sampler):
                proposals.tell(trial)
            ended.append(trial)
            yield trial
        alive = [t for t in ended if t.status == "pruned"]
        alive.sort(key=lambda t: (-_merit(t, select_by), t.number))
        waiting = (Trial(t.number, t.settings) for t in alive)


def _as_they_end(trials: Iterator[Trial], epochs: int, submit: Submit, most: int) -> Iterator[Trial]:
    """Keep ``most`` trials running; each is asked for only when there is room, so that it can learn from the others."""
    running: dict[Future[Trial], Trial] = {}
    while True:
        for trial in itertools.islice(trials, most - len(running)):
            running[submit(trial, epochs)] = trial
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield _outcome(future, running.pop(future))


def run_trial(trial: Trial, base: Hyperparameters, epochs: int, data: Dataset, run_dir: Path) -> Trial:
    """Train one trial to the end of epoch ``epochs``, going on from what ``run_dir`` holds, and return its record."""
    trainer = Trainer(base.replace(**trial.settings), data, run_dir=run_dir, progress=False)
    try:
        run = trainer.run(until=epochs)
    except TrainingDiverged as error:
        return replace(trial, status="diverged", error=str(error), history=list(trainer.history))
    if run.stopped == "interrupted":
        raise KeyboardInterrupt
    return _summarised(replace(trial, history=list(run.history)), base.select_by)


def _summarised(trial: Trial, select_by: str) -> Trial:
    """Fill in the best epoch's figures and the cost from the trial's history."""
    best = History(trial.history).best(select_by)
    figures = {name: best[name] for name in ("valid_accuracy", "valid_loss")}
    seconds = sum(record["seconds"] for record in trial.history)
    return replace(trial, **figures, best_epoch=best["epoch"], epochs=len(trial.history), seconds=seconds)


def _outcome(future: Future[Trial], trial: Trial) -> Trial:
    """Return the trial's record; a crash becomes a record too, so that it does not stop the others."""
    try:
        return future.result()
    except Exception as error:
        return replace(trial, status="failed", error=f"{type(error).__name__}: {error}")


class InProcess(Executor):
    """Runs each call at once, in this process: training already uses every core."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(workers: int, executor: Executor | None) -> tuple[Executor, int]:
    """Return who trains, and how many trials at a time; processes share the cores evenly between their BLAS threads."""
    if executor:
        return executor, getattr(executor, "_max_workers", 2)
    if workers < 2:
        return InProcess(), 1
    from loky import get_reusable_executor

    threads = str(max((os.cpu_count() or 1) // workers, 1))
    env = {f"{blas}_NUM_THREADS": threads for blas in ("OPENBLAS", "OMP", "MKL")}
    return get_reusable_executor(max_workers=workers, env=env), workers


class Sampler:
    """Settings from Optuna: at random, or by the tree-structured Parzen estimator from what it was told."""

    def __init__(self, space: Mapping[str, Any], method: str, seed: int, select_by: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        self.study = optuna.create_study(direction="maximize", sampler=samplers[method](seed=seed))
        self.space, self.select_by = space, select_by
        self.asked: list[Any] = []

    def __iter__(self) -> Iterator[Settings]:
        while True:
            self.asked.append(self.study.ask())
            yield {name: _suggest(self.asked[-1], name, values) for name, values in self.space.items()}

    def tell(self, trial: Trial) -> None:
        """Learn what came of a trial, if anything did."""
        if trial.status == "complete":
            self.study.tell(self.asked[trial.number], _merit(trial, self.select_by))


def _suggest(asked: Any, name: str, values: Any) -> Any:
    """Let Optuna choose from a range, or a place in a list (it takes no tuples as choices)."""
    if not isinstance(values, Range):
        return values[asked.suggest_categorical(name, range(len(values)))]
    suggest = asked.suggest_int if values.whole else asked.suggest_float
    return suggest(name, values.low, values.high, log=values.log)


def _propose(
    method: str, space: Mapping[str, Any], base: Hyperparameters, n_trials: int | None, seed: int
) -> tuple[Iterable[Settings], int]:
    """Return settings to try, and how many of them."""
    if method not in METHODS:
        raise HyperparameterError(f"method: {method!r} is not known. {did_you_mean(method, METHODS)}")
    halving, ranges = method == "halving", [name for name, values in space.items() if isinstance(values, Range)]
    if method in ("random", "tpe") or (halving and (n_trials or ranges)):
        sampler = Sampler(space, "tpe" if method == "tpe" else "random", seed, base.select_by)
        return sampler, n_trials or (27 if halving else 20)
    if ranges:
        remedy = "a grid needs a list of values; a range goes with random, tpe or halving."
        raise HyperparameterError(f"{ranges[0]}: {remedy}")
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return grid, min(n_trials or len(grid), len(grid))


def _rungs(method: str, n: int, epochs: int) -> list[tuple[int, int]]:
    """Return how many trials are trained for how many epochs, then how many of these for how many, and so on."""
    budgets = sorted({max(epochs // 9, 1), max(epochs // 3, 1), epochs} if method == "halving" else {epochs})
    return [(max(n // 3**rung, 1), budget) for rung, budget in enumerate(budgets)]


def _checked(space: Mapping[str, Any], base: Hyperparameters) -> dict[str, Any]:
    """Return the space with every value made what Hyperparameters makes of it, or raise for the first bad one."""
    if not space:
        raise HyperparameterError("space: it is empty; give lists or ranges, such as {'learning_rate': [0.01, 0.1]}.")
    checked: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, Range):
            base.replace(**{name: values.low}), base.replace(**{name: values.high})
            checked[name] = values
        elif isinstance(values, str) or not isinstance(values, Iterable) or not list(values):
            raise HyperparameterError(f"{name}: {values!r} is not a list with at least one value, nor a range.")
        else:
            checked[name] = [getattr(base.replace(**{name: value}), name) for value in values]
    return checked


def _known(directory: str | Path | None, results: SearchResults) -> list[Trial]:
    """Return the trials that an earlier call recorded in ``directory``."""
    if directory is None or not (Path(directory) / "results.json").exists():
        return []
    earlier = load_results(directory)
    if (earlier.base, earlier.data) != (results.base, results.data):
        raise CheckpointError(f"{directory}: it holds a search with another base or data; name another directory.")
    return earlier.trials


def _so_far(results: SearchResults) -> str:
    """Return the best so far in words."""
    best = max((t for t in results.trials if t.epochs), key=lambda t: _merit(t, results.base.select_by), default=None)
    return f"best validation accuracy {best.valid_accuracy:.4f} with {best.settings}" if best else ""
