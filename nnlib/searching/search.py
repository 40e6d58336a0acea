"""Hyperparameter search: trials run here, in processes or on a cluster.

Each trial is recorded as it ends, and none runs twice.
"""

import itertools
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nnlib.data.dataset import Dataset
from nnlib.errors import CheckpointError, HyperparameterError, NNLibError, TrainingDiverged, one_of
from nnlib.extras import EXTRAS, need
from nnlib.files import AnyPath, user_path, write_bytes
from nnlib.searching.results import (
    SearchResults,
    Trial,
    by_setting,
    describe,
    load_results,
    mean_merit,
)
from nnlib.searching.spaces import Range, Settings, checked, draw, grid
from nnlib.training.callbacks import Callback, in_notebook
from nnlib.training.history import History
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.rundir import RunDirectory, machine
from nnlib.training.trainer import Trainer

METHODS = ("grid", "random", "tpe", "halving")
STATE = ("hyperparameters.json", "environment.json", "last.npz")  # files that an exact resume needs
State = dict[str, bytes]
Outcome = tuple[Trial, State]
Pool = Callable[[], Executor]


class Rung(NamedTuple):
    """One round of training: all methods but halving have a single one."""

    settings: int  # how many settings are trained
    end: int  # the epoch after which they stop
    epochs: int  # how many epochs that is after the rung before


def search(
    space: Mapping[str, Any],
    data: Dataset,
    base: Hyperparameters | None = None,
    method: str = "grid",
    n_trials: int | None = None,
    seed: int = 0,
    workers: int = 1,
    executor: Any = None,
    directory: AnyPath | None = None,
    progress: bool = True,
    seeds: int = 1,
) -> SearchResults:
    """Train ``base`` with the settings in ``space``, record every trial, and rank by validation.

    ``space`` maps fields of Hyperparameters to lists of values or to ranges (``loguniform``,
    ``uniform``, ``integers``).

    - ``grid`` tries all combinations of lists, or the first ``n_trials``.
    - ``random`` and ``tpe`` (Bergstra et al. 2011) draw ``n_trials`` settings (default: 20).
    - ``halving`` starts ``n_trials`` settings (default: the whole grid, or 27 if there are ranges)
      for a few epochs, continues with the best third for three times as many, and so on, until the
      last ones are trained for all epochs (Jamieson and Talwalkar 2016).

    Each setting is trained with ``seeds`` seeds, counted up from ``base.seed``. ``seed`` fixes what
    is drawn.

    Trials run in this process, in ``workers`` processes that share the cores, or on an
    ``executor``: one of concurrent.futures, or a Dask cluster (its address, "tcp://host:8786", or a
    ``dask.distributed.Client``). With ``directory``, the results are saved there after each trial,
    and the same call continues an interrupted search, also with more ``n_trials``. Ctrl-C returns
    the results so far.

    Raises HyperparameterError before the first trial for an empty space or a value that is not
    allowed, and CheckpointError if ``directory`` holds another search.
    """
    need("search", *EXTRAS["search"])
    if base is None:
        base = Hyperparameters()
    about = {
        "source": data.source,
        "fingerprint": data.fingerprint,
        "valid_images": len(data.valid),
    }
    results = SearchResults(base, about, method, space=checked(space, base), seed=seed, seeds=seeds)
    rungs = plan(results, n_trials, workers)
    with ExitStack() as stack:
        pool = _pool(executor, workers, data, stack)
        if directory is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = user_path(directory)
        stack.enter_context(RunDirectory(folder).locked())
        results.trials = _known(folder, results)
        show = _Progress(rungs, seeds, progress)
        stack.callback(show.bar.close)
        ladder = Ladder(
            results,
            data,
            rungs,
            pool,
            workers=0 if executor else workers,
            folder=folder,
            keep=directory is not None or len(rungs) > 1,
        )
        try:
            for trial, end in ladder.climb():
                show(results, trial, end)
            shutil.rmtree(folder / "trials", ignore_errors=True)
        except KeyboardInterrupt:
            results.interrupted = True
            place = f" in {directory}: the same call continues from there" if directory else ""
            print(f"interrupted: {len(results.trials)} trials are recorded{place}.")
    return results


@dataclass
class Ladder:
    """Trains settings on the first of the ``rungs``, and the best of each rung on the next.

    ``results`` may hold trials of an earlier call: what they have done is not done again. The
    record and the states of trials are kept in ``folder``.
    """

    results: SearchResults
    data: Dataset
    rungs: list[Rung]
    pool: Pool
    workers: int  # our own processes on this machine; 0 for an executor that was given
    folder: Path
    keep: bool  # whether trials leave a state in the folder

    def climb(self) -> Iterator[tuple[Trial, int]]:
        """Yield each trial that has ended on a rung and is on record, with the rung's end."""
        base = self.results.base
        waiting = self._first_trials()
        for rung in self.rungs:
            trials = itertools.islice(waiting, rung.settings * self.results.seeds)
            ended = []
            for trial in self._as_they_end(trials, rung.end):
                if trial.status == "complete" and rung.end < base.epochs:
                    trial.status = "pruned"  # unless the next rung takes it
                ended.append(trial)
                self._record(trial)
                if trial.status != "pruned":  # nobody needs its state any more
                    shutil.rmtree(self._home(trial), ignore_errors=True)
                yield trial, rung.end
            waiting = iter(_best_first(ended, base.select_by))

    def _first_trials(self) -> Iterator[Trial]:
        """Yield the trials of each setting, one for each seed."""
        base = self.results.base
        seeds = self.results.seeds
        for index, settings in enumerate(self._settings()):
            for i in range(seeds):
                own = dict(settings)
                if seeds > 1:
                    own["seed"] = base.seed + i
                yield Trial(
                    index * seeds + i,
                    own,
                    seed=own.get("seed", base.seed),
                    fingerprint=self.data.fingerprint,
                )

    def _settings(self) -> Iterator[Settings]:
        """Yield the grid's settings, or known ones followed by new draws.

        A draw learns from the merits of all settings before it.
        """
        asked = self.results
        whole_grid = asked.method == "halving" and self.rungs[0].settings == _size(asked.space)
        if asked.method == "grid" or whole_grid:
            yield from grid(asked.space)
            return
        told: dict[int, Settings] = {}
        for trial in asked.trials:
            index = trial.number // asked.seeds
            told[index] = {name: trial.settings[name] for name in asked.space}
        for index in itertools.count():
            if index not in told:
                known = [(settings, self._merit(i)) for i, settings in told.items()]
                settings = draw(asked.space, asked.method, (asked.seed, index), known)
                if settings is None:
                    return
                told[index] = settings
            yield told[index]

    def _merit(self, index: int) -> float | None:
        """Return a setting's mean merit: -inf if a trial of it failed, None while some run."""
        seeds = self.results.seeds
        trials = [t for t in self.results.trials if t.number // seeds == index]
        if len(trials) < seeds:
            return None
        if any(t.status not in ("complete", "pruned") for t in trials):
            return -math.inf
        return mean_merit(trials, self.results.base.select_by)

    def _recorded(self, trial: Trial) -> Trial | None:
        for known in self.results.trials:
            if known.number == trial.number:
                return known
        return None

    def _record(self, trial: Trial) -> None:
        """Add the trial to the results and save them, unless an earlier call knows more of it."""
        known = self._recorded(trial)
        if known is None or (known.status == "pruned" and len(trial.history) >= len(known.history)):
            self.results.add(trial)
            self.results.save(self.folder / "results.json")

    def _home(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.number:04d}"

    def _as_they_end(self, trials: Iterator[Trial], end: int) -> Iterator[Trial]:
        """Keep all workers busy, and yield the trials as they end.

        A trial is taken only when there is room for it, so that it can learn from the others. When
        a process dies, all trials in its pool run again, one at a time: the one that also dies
        alone has failed.
        """
        running: dict[Future[Outcome], Trial] = {}
        suspects: list[Trial] = []
        alone: set[int] = set()
        try:
            while True:
                if not suspects:
                    room = getattr(self.pool(), "_max_workers", 2) - len(running)
                    for trial in itertools.islice(trials, max(room, 0)):
                        running[self._submit(trial, end)] = trial
                elif not running:
                    trial = suspects.pop()
                    alone.add(trial.number)
                    running[self._submit(trial, end)] = trial
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    trial = running.pop(future)
                    died = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
                    if died and trial.number not in alone:
                        suspects.append(trial)
                    else:
                        yield self._outcome(future, trial)
        finally:  # with trials still running: after Ctrl-C, or an error here
            for future in running:
                future.cancel()
            if running and self.workers > 1:
                # Our own processes can be killed at any time: they write files whole or not at all.
                self.pool().shutdown(kill_workers=True)  # type: ignore[call-arg]

    def _submit(self, trial: Trial, end: int) -> Future[Outcome]:
        """Start a trial: on this machine in its folder, elsewhere from the state in that folder."""
        base = self.results.base
        known = self._recorded(trial)
        done = _replayed(known, end, base) if known else None
        if done:
            future: Future[Outcome] = Future()
            future.set_result((done, {}))
            return future
        home = self._home(trial)
        arguments = (self.data, trial, base, end)
        if not self.workers:
            return self.pool().submit(run_trial, *arguments, None, _packed(home))
        kept = home if self.keep else None
        return self.pool().submit(run_trial, *arguments, kept, {}, os.getpid())

    def _outcome(self, future: Future[Outcome], trial: Trial) -> Trial:
        """Return the trial's record and keep its state; a crash is recorded and stops no other."""
        try:
            ended, state = future.result()
        except CancelledError:
            remedy = "Start workers and repeat the call: with a directory, it continues from there."
            raise NNLibError(f"executor: it has given up trial {trial.number}. {remedy}") from None
        except CheckpointError:  # a full disk or a forbidden folder is not the trial's fault
            raise
        except Exception as error:
            return replace(trial, status="failed", error=f"{type(error).__name__}: {error}")
        for name, content in state.items():
            write_bytes(self._home(trial) / name, content)
        return ended


def _best_first(ended: list[Trial], select_by: str) -> list[Trial]:
    """Return the trials of the settings that can continue, the best setting first."""
    alive = []
    for group in by_setting(ended):
        if all(trial.status == "pruned" for trial in group):
            first = min(trial.number for trial in group)
            alive.append((-mean_merit(group, select_by), first, group))
    alive.sort(key=lambda entry: entry[:2])
    return [trial for _, _, group in alive for trial in group]


def run_trial(
    data: Dataset,
    trial: Trial,
    base: Hyperparameters,
    epochs: int,
    home: Path | None,
    state: State,
    parent: int = 0,
) -> Outcome:
    """Train one trial to the end of epoch ``epochs``; return its record and perhaps its state.

    With the folder ``home``, it continues from the state in there and leaves its own there. Without
    one, it continues from ``state``, and returns the next state if epochs remain. It ends when the
    process ``parent`` has gone; 0 means no process.
    """
    travels = home is None and epochs < base.epochs
    with tempfile.TemporaryDirectory() as scratch:
        folder = home or Path(scratch)
        # The worker of a parent that was killed may take a moment to notice that.
        with RunDirectory(folder).locked(wait=60):
            for name, content in state.items():
                (folder / name).write_bytes(content)
        hp = base.replace(**trial.settings)
        run_dir = folder if home or state or travels else None
        trainer = Trainer(hp, data, run_dir, progress=False, callbacks=[EndsWith(parent)])
        try:
            stopped = trainer.run(until=epochs).stopped
        except TrainingDiverged as error:
            ended = replace(trial, status="diverged", error=str(error))
        else:
            if stopped == "interrupted":
                raise KeyboardInterrupt
            ended = replace(trial, status="complete")
        ended = replace(ended, history=list(trainer.history), versions=machine())
        return _summarized(ended, base.select_by), _packed(folder) if travels else {}


@dataclass
class EndsWith(Callback):
    """Ends this process when its parent, which waits for it, has gone; 0 means no parent."""

    parent: int

    def on_step(self, trainer: Trainer) -> None:
        if self.parent not in (0, os.getpid(), os.getppid()):
            os._exit(1)


def _packed(folder: Path) -> State:
    """Return the contents of the files in ``folder`` that an exact resume needs."""
    return {name: (folder / name).read_bytes() for name in STATE if (folder / name).exists()}


def _summarized(trial: Trial, select_by: str) -> Trial:
    """Return the trial with its best figures and its cost, taken from its history."""
    if not trial.history:
        return trial
    history = History(trial.history)
    return replace(
        trial,
        valid_accuracy=history.best("valid_accuracy")["valid_accuracy"],
        valid_loss=history.best("valid_loss")["valid_loss"],
        best_epoch=history.best(select_by)["epoch"],
        epochs=len(history),
        seconds=sum(record["seconds"] for record in history),
    )


def _replayed(known: Trial, epochs: int, base: Hyperparameters) -> Trial | None:
    """Return what a recorded trial was after ``epochs``, or None if it has not come that far."""
    if len(known.history) >= epochs:
        cut = replace(known, history=known.history[:epochs], status="complete", error="")
        return _summarized(cut, base.select_by)
    return known if known.status != "pruned" else None


class InProcess(Executor):
    """Makes each call at once, in this process: training already uses every core."""

    _max_workers = 1  # what executors of concurrent.futures call it

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _processes(workers: int) -> Executor:
    """Return loky's processes, with the cores divided among them; new ones if one has died."""
    from loky import get_reusable_executor

    threads = str(max((os.cpu_count() or 1) // workers, 1))
    env = {f"{blas}_NUM_THREADS": threads for blas in ("OPENBLAS", "OMP", "MKL")}
    return get_reusable_executor(max_workers=workers, env=env)


def _pool(executor: Any, workers: int, data: Dataset, stack: ExitStack) -> Pool:
    """Return a function that gives the executor for the trials.

    That is this process, loky's processes, the executor that was given, or a Dask cluster. It is a
    function because loky replaces an executor whose process died.
    """
    if executor is None:
        return partial(_processes, workers) if workers > 1 else InProcess
    client = getattr(executor, "_client", executor)  # a Dask executor's own client
    if isinstance(client, str) or hasattr(client, "get_executor"):
        executor = stack.enter_context(_dask_executor(client, data))
    elif not isinstance(executor, Executor):
        allowed = (
            "an address (tcp://host:8786), a dask.distributed.Client "
            "or an executor of concurrent.futures"
        )
        raise HyperparameterError(f"executor: {executor!r} is not allowed; {allowed}.")

    def given() -> Executor:
        return executor

    return given


def _dask_executor(client: Any, data: Dataset) -> Executor:
    try:
        from nnlib.searching.cluster import DaskExecutor
    except ImportError as error:
        problem = f"a Dask cluster needs a package that is missing ({error})"
        raise NNLibError(f'executor: {problem}: pip install "dask[distributed]"') from None
    return DaskExecutor(client, data)


def plan(asked: SearchResults, n_trials: int | None, workers: int) -> list[Rung]:
    """Return the rungs of the ladder. Raises HyperparameterError for what is not allowed."""
    method = one_of(METHODS, "method", asked.method)
    counts = {"n_trials": n_trials, "workers": workers, "seeds": asked.seeds}
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise HyperparameterError(f"{name}: {count!r} is not allowed; a whole number from 1.")
    if asked.seeds > 1 and "seed" in asked.space:
        raise HyperparameterError(
            f"seeds: {asked.seeds} is not allowed with seed in the space; give one of them."
        )
    if method == "grid":
        grid(asked.space)  # refuses ranges
    n = _how_many(method, _size(asked.space), n_trials)
    epochs = asked.base.epochs
    levels = 0
    if method == "halving":  # each level needs three times the settings and the epochs
        while 3 ** (levels + 1) <= min(n, epochs):
            levels += 1
    rungs = []
    before = 0
    for level in range(levels + 1):
        end = epochs // 3 ** (levels - level)
        rungs.append(Rung(settings=n // 3**level, end=end, epochs=end - before))
        before = end
    return rungs


def _how_many(method: str, size: float, n_trials: int | None) -> int:
    """Return how many settings are tried first, of a space with ``size`` settings."""
    if n_trials is not None:
        wanted: float = n_trials
    elif method == "grid":
        wanted = size
    elif method == "halving":
        wanted = size if size < math.inf else 27
    else:
        wanted = 20
    return int(min(wanted, size))


def _size(space: Mapping[str, Any]) -> float:
    """Return the number of settings: all combinations of lists, infinitely many with a range."""
    size: float = 1
    for values in space.values():
        size *= math.inf if isinstance(values, Range) else len(values)
    return size


def _known(directory: Path, results: SearchResults) -> list[Trial]:
    """Return the trials that an earlier call recorded in ``directory``."""
    if not (directory / "results.json").exists():
        return []
    earlier = load_results(directory)
    was = earlier.identity()
    now = results.identity()
    differ = [name for name in now if was[name] != now[name]]
    if differ:
        raise CheckpointError(
            f"{directory}: the search in it differs in {', '.join(differ)}; name another directory."
        )
    return earlier.trials


class _Progress:
    """Shows trials as they end: a bar with the best so far and the time left.

    A notebook also gets a table. Where there is neither terminal nor notebook, it prints one line
    per trial.
    """

    def __init__(self, rungs: list[Rung], seeds: int, wanted: bool) -> None:
        from tqdm.auto import tqdm

        self.epochs = {rung.end: rung.epochs for rung in rungs}
        self.table = wanted and in_notebook()
        self.handle: Any = None  # of the table, once it is shown
        live = self.table or (wanted and sys.stderr.isatty())
        self.lines = wanted and not live
        total = sum(rung.settings * seeds * rung.epochs for rung in rungs)
        # Not disable=False: that would overrule TQDM_DISABLE, which the report sets.
        off = {} if live else {"disable": True}
        self.bar = tqdm(total=total, unit="epoch", dynamic_ncols=True, **off)

    def __call__(self, results: SearchResults, trial: Trial, end: int) -> None:
        """Show ``trial``, which has ended on the rung with this ``end``."""
        select_by = results.base.select_by
        self.bar.update(self.epochs[end])
        if self.lines and trial.error:
            print(f"trial {trial.number} {trial.status}: {trial.error}")
        elif self.lines:
            print(f"{trial.status}: {describe(trial)}")
        ended = [t for t in results.trials if t.epochs]
        if ended:
            best = max(ended, key=lambda t: t.merit(select_by))
            self.bar.set_postfix_str(f"best: {describe(best)}")
        if self.table:
            self._show_table(results)

    def _show_table(self, results: SearchResults) -> None:
        """Show the ten best trials so far, in place of the table before."""
        from IPython.display import display

        select_by = results.base.select_by
        rows = results.to_dataframe().sort_values(select_by, ascending=select_by == "valid_loss")
        if self.handle:
            self.handle.update(rows.head(10))
        else:
            self.handle = display(rows.head(10), display_id=True)  # type: ignore[no-untyped-call]
