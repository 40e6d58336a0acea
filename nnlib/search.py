"""Hyperparameter search: who proposes settings, who trains them, and a record of every trial."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    ``grid`` tries all combinations of lists, ``random`` and ``tpe`` (Bergstra et al. 2011) ``n_trials`` of them,
    ``halving`` starts ``n_trials`` (or the grid), and goes on with the best third at a ninth, then a third of the
    epochs (Jamieson and Talwalkar 2016). ``workers`` processes, or any ``executor`` of concurrent.futures, train.
    With ``directory`` the results are saved there after each trial, and the same call goes on where it was.
    Raises HyperparameterError before the first trial for a space that is empty or has a value that is not allowed.
    """
    base = base or Hyperparameters()
    strategy = _strategy(method, _checked(space, base), base, n_trials, seed)
    results = SearchResults(base, {"source": data.source, "fingerprint": data.fingerprint}, method)
    known = _known(directory, results)
    with tempfile.TemporaryDirectory() as scratch, _bar(strategy.total, progress) as bar:
        pool = executor or (_processes(workers) if workers > 1 else InProcess())

        def submit(trial: Trial, epochs: int) -> Future[Trial]:
            done = known.get(_key(trial.settings))
            if done and len(done.history) >= epochs:
                return _finished(_summarised(replace(trial, history=done.history[:epochs]), base.select_by))
            run_dir = Path(directory or scratch) / "trials" / f"{trial.number:04d}"
            return pool.submit(run_trial, trial, base, epochs, data, run_dir)

        def record(trial: Trial) -> None:
            results.trials = sorted(
                [t for t in results.trials if t.number != trial.number] + [trial], key=lambda t: t.number
            )
            bar.set_postfix_str(_so_far(results))
            bar.update(1)
            if directory is not None:
                results.save(Path(directory) / "results.json")

        try:
            _drive(strategy, submit, record, workers if executor is None else getattr(executor, "_max_workers", 2))
        except KeyboardInterrupt:
            print(f"interrupted: {len(results.trials)} trials are recorded.")
    return results


def _drive(
    strategy: "Strategy", submit: Callable[[Trial, int], Future[Trial]], record: Callable[[Trial], None], most: int
) -> None:
    """Keep ``most`` trials running until the strategy asks for no more."""
    running: dict[Future[Trial], Trial] = {}
    while True:
        while len(running) < most and (asked := strategy.ask()) is not None:
            running[submit(*asked)] = asked[0]
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            trial = _outcome(future, running.pop(future))
            strategy.tell(trial)
            record(trial)


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


def _finished(trial: Trial) -> Future[Trial]:
    future: Future[Trial] = Future()
    future.set_result(trial)
    return future


def _processes(workers: int) -> Executor:
    """Return ``workers`` processes that share the cores evenly between their BLAS threads."""
    from loky import get_reusable_executor

    threads = str(max((os.cpu_count() or 1) // workers, 1))
    env = {f"{blas}_NUM_THREADS": threads for blas in ("OPENBLAS", "OMP", "MKL")}
    return get_reusable_executor(max_workers=workers, env=env)


class Strategy:
    """Proposes trials, each with the epoch to train it to; ``ask`` returns None when there is nothing to ask now."""

    def __init__(self, settings: Iterable[Settings], total: int, epochs: int) -> None:
        self.waiting = (Trial(number, s) for number, s in enumerate(settings))
        self.total, self.epochs = total, epochs

    def ask(self) -> tuple[Trial, int] | None:
        """Return the next trial to train, and to which epoch."""
        trial = next(self.waiting, None)
        return None if trial is None else (trial, self.epochs)

    def tell(self, trial: Trial) -> None:
        """Learn what came of a trial."""


class Sampler(Strategy):
    """Asks Optuna for settings: at random, or by the tree-structured Parzen estimator from what it was told."""

    def __init__(self, space: Mapping[str, Any], base: Hyperparameters, n_trials: int, seed: int, method: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        self.study = optuna.create_study(direction="maximize", sampler=samplers[method](seed=seed))
        self.space, self.select_by = space, base.select_by
        self.asked: list[Any] = []
        super().__init__(self._settings(n_trials), n_trials, base.epochs)

    def _settings(self, n_trials: int) -> Iterator[Settings]:
        distributions = {name: _distribution(values) for name, values in self.space.items()}
        for _ in range(n_trials):
            self.asked.append(self.study.ask(distributions))
            drawn = self.asked[-1].params
            yield {n: drawn[n] if isinstance(v, Range) else v[drawn[n]] for n, v in self.space.items()}

    def tell(self, trial: Trial) -> None:
        import optuna

        state = optuna.trial.TrialState
        if trial.status == "complete":
            self.study.tell(self.asked[trial.number], _merit(trial, self.select_by))
        else:
            self.study.tell(self.asked[trial.number], state=state.FAIL)


def _distribution(values: Any) -> Any:
    """Return Optuna's name for a range, or for the places in a list (it takes no tuples as choices)."""
    import optuna

    if not isinstance(values, Range):
        return optuna.distributions.CategoricalDistribution(range(len(values)))
    if values.whole:
        return optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)


class Halving(Strategy):
    """Trains all to a ninth of the epochs, the best third of them to a third, the best third of those to the end."""

    def __init__(self, settings: list[Settings], base: Hyperparameters) -> None:
        budgets = sorted({max(base.epochs // 9, 1), max(base.epochs // 3, 1), base.epochs})
        super().__init__(settings, 0, budgets[0])
        self.budgets, self.by = budgets, base.select_by
        sizes = [max(len(settings) // 3**rung, 1) for rung in range(len(budgets))]
        self.total, self.open, self.sizes = sum(sizes), sizes[0], sizes
        self.told: list[Trial] = []

    def tell(self, trial: Trial) -> None:
        """When the last trial of a rung has come in, send the best of them on to the next."""
        if trial.status == "complete" and len(self.budgets) > 1:
            trial.status = "pruned"  # until it is asked for again
        self.told.append(trial)
        if len(self.told) < self.open or len(self.budgets) == 1:
            return
        self.budgets, self.sizes = self.budgets[1:], self.sizes[1:]
        self.epochs = self.budgets[0]
        alive = [t for t in self.told if t.status == "pruned"]
        chosen = sorted(alive, key=lambda t: _merit(t, self.by), reverse=True)[: self.sizes[0]]
        self.waiting = (Trial(t.number, t.settings) for t in chosen)
        self.open, self.told = len(chosen), []


def _strategy(
    method: str, space: Mapping[str, Any], base: Hyperparameters, n_trials: int | None, seed: int
) -> Strategy:
    if method not in METHODS:
        raise HyperparameterError(f"method: {method!r} is not known. {did_you_mean(method, METHODS)}")
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if method in ("random", "tpe"):
        return Sampler(space, base, n_trials or 20, seed, method)
    if method == "halving" and (n_trials or ranges):
        drawn = list(Sampler(space, base, n_trials or 27, seed, "random")._settings(n_trials or 27))
        return Halving(drawn, base)
    if ranges:
        raise HyperparameterError(
            f"{ranges[0]}: a grid needs a list of values; a range goes with random, tpe or halving."
        )
    grid = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return Halving(grid, base) if method == "halving" else Strategy(grid, len(grid), base.epochs)


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


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _known(directory: str | Path | None, results: SearchResults) -> dict[str, Trial]:
    """Return the trials that an earlier call recorded in ``directory``, by their settings."""
    if directory is None or not (Path(directory) / "results.json").exists():
        return {}
    earlier = load_results(directory)
    if (earlier.base, earlier.data) != (results.base, results.data):
        raise CheckpointError(
            f"{directory}: it holds a search with another base or other data; name another directory."
        )
    return {_key(t.settings): t for t in earlier.trials}


def _so_far(results: SearchResults) -> str:
    """Return the best so far in words."""
    finished = [t for t in results.trials if t.history]
    if not finished:
        return "no trial finished yet"
    best = max(finished, key=lambda t: _merit(t, results.base.select_by))
    return f"best validation accuracy {best.valid_accuracy:.4f} with {best.settings}"


def _bar(total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="trial", disable=not progress or None)
