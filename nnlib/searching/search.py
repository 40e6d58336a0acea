"""Hyperparameter search: trials here, in processes or on a cluster, each recorded as it ends, none run twice."""

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
from pathlib import Path
from typing import Any

from nnlib.data.dataset import Dataset
from nnlib.errors import CheckpointError, HyperparameterError, NNLibError, TrainingDiverged, one_of
from nnlib.files import write_bytes
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


Rung = tuple[
    int, int, int
]  # how many settings are trained, to the end of which epoch, for how many epochs more


def search(
    space: Mapping[str, Any],
    data: Dataset,
    base: Hyperparameters | None = None,
    method: str = "grid",
    n_trials: int | None = None,
    seed: int = 0,
    workers: int = 1,
    executor: Any = None,
    directory: str | Path | None = None,
    progress: bool = True,
    seeds: int = 1,
) -> SearchResults:
    """Train ``base`` with the settings in ``space`` and record every trial; validation decides, never the test set.

    ``space`` maps fields of Hyperparameters to lists of values (``choice``) or ranges (``loguniform``, ``uniform``,
    ``integers``). ``grid`` tries all combinations of lists, or the first ``n_trials``; ``random`` and ``tpe`` (Bergstra
    et al. 2011) draw ``n_trials`` (20); ``halving`` starts ``n_trials`` (the grid, or 27) for few epochs, and goes on
    with the best third for three times as many, until few are trained for all (Jamieson and Talwalkar 2016). Each
    setting is trained with ``seeds`` seeds from ``base.seed`` on. ``seed`` fixes what is drawn.

    Trials are trained here, or by ``workers`` processes that share the cores, or by an ``executor``: one of
    concurrent.futures, or a Dask cluster (its address, "tcp://host:8786", or a ``dask.distributed.Client``). With
    ``directory`` the results are saved there after each trial, and the same call goes on where it was, also with more
    ``n_trials``. Ctrl-C returns what there is. Raises HyperparameterError before the first trial for a space that is
    empty or has a value that is not allowed, CheckpointError if ``directory`` holds another search.
    """
    base = base or Hyperparameters()
    about = {
        "source": data.source,
        "fingerprint": data.fingerprint,
        "valid_images": len(data.valid),
    }
    results = SearchResults(base, about, method, space=checked(space, base), seed=seed, seeds=seeds)
    rungs = plan(results, n_trials, workers)
    with ExitStack() as stack:
        pool, keep = _pool(executor, workers, data, stack), directory is not None or len(rungs) > 1
        folder = Path(directory or stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(RunDirectory(folder).locked())
        results.trials = _known(folder, results)
        show = _Progress(rungs, seeds, progress)
        stack.callback(show.bar.close)
        try:
            for trial, epochs in Ladder(
                results, data, rungs, pool, 0 if executor else workers, folder, keep
            ).climb():
                show(results, trial, epochs)
            shutil.rmtree(folder / "trials", ignore_errors=True)
        except KeyboardInterrupt:
            results.interrupted = True
            place = f" in {directory}: the same call goes on from there" if directory else ""
            print(f"interrupted: {len(results.trials)} trials are recorded{place}.")
    return results


@dataclass
class Ladder:
    """Trains settings on the first of the ``rungs``, and on each further one the best of those before.

    All methods but halving have one rung. ``results`` may hold trials of an earlier call: what they have done is taken
    from there. The record and the states of trials lie in ``folder``.
    """

    results: SearchResults
    data: Dataset
    rungs: list[Rung]
    pool: Pool
    workers: int  # of our own, on this machine; 0 for an executor that was given
    folder: Path
    keep: bool  # states of trials that end on the last rung, too

    def climb(self) -> Iterator[tuple[Trial, int]]:
        """Yield each trial that has ended on a rung, and is on record, with the rung's epochs."""
        base, waiting = self.results.base, self._first_trials()
        for n, epochs, _ in self.rungs:
            ended = []
            for trial in self._as_they_end(
                itertools.islice(waiting, n * self.results.seeds), epochs
            ):
                if trial.status == "complete" and epochs < base.epochs:
                    trial.status = "pruned"  # until it is asked for again
                ended.append(trial)
                self._record(trial)
                if trial.status != "pruned":  # it is on record now, and will not go on
                    shutil.rmtree(self._home(trial), ignore_errors=True)
                yield trial, epochs
            alive = [s for s in by_setting(ended) if all(t.status == "pruned" for t in s)]
            alive.sort(key=lambda s: (-mean_merit(s, base.select_by), min(t.number for t in s)))
            waiting = itertools.chain.from_iterable(alive)

    def _first_trials(self) -> Iterator[Trial]:
        base, seeds = self.results.base, self.results.seeds
        for index, settings in enumerate(self._settings()):
            for i in range(seeds):
                own = settings | ({"seed": base.seed + i} if seeds > 1 else {})
                yield Trial(
                    index * seeds + i,
                    own,
                    seed=own.get("seed", base.seed),
                    fingerprint=self.data.fingerprint,
                )

    def _settings(self) -> Iterator[Settings]:
        """Yield settings to try: those of the grid, or known ones and then new draws that learn from all before."""
        asked = self.results
        if asked.method == "grid" or (
            asked.method == "halving" and self.rungs[0][0] == _size(asked.space)
        ):
            yield from grid(asked.space)
            return
        told = {
            t.number // asked.seeds: {name: t.settings[name] for name in asked.space}
            for t in asked.trials
        }
        for index in itertools.count():
            if index not in told:
                known = [(settings, self._merit(i)) for i, settings in told.items()]
                settings = draw(asked.space, asked.method, (asked.seed, index), known)
                if settings is None:
                    return
                told[index] = settings
            yield told[index]

    def _merit(self, index: int) -> float | None:
        """Return what came of a setting: -inf for nothing, None if it is not known yet."""
        trials = [t for t in self.results.trials if t.number // self.results.seeds == index]
        if len(trials) < self.results.seeds:
            return None
        usable = all(t.status in ("complete", "pruned") for t in trials)
        return mean_merit(trials, self.results.base.select_by) if usable else -math.inf

    def _recorded(self, trial: Trial) -> Trial | None:
        return next((t for t in self.results.trials if t.number == trial.number), None)

    def _record(self, trial: Trial) -> None:
        """Put the trial into the results, unless they know more of it from an earlier call, and save them."""
        known = self._recorded(trial)
        if known is None or (known.status == "pruned" and len(trial.history) >= len(known.history)):
            self.results.add(trial)
            self.results.save(self.folder / "results.json")

    def _home(self, trial: Trial) -> Path:
        return self.folder / "trials" / f"{trial.number:04d}"

    def _as_they_end(self, trials: Iterator[Trial], epochs: int) -> Iterator[Trial]:
        """Keep all workers busy; a trial is asked for only when there is room, so that it can learn from the others.

        When a process dies, all that it shared a pool with are tried again, one at a time: the one that dies alone too
        has failed.
        """
        running: dict[Future[Outcome], Trial] = {}
        suspects: list[Trial] = []
        alone: set[int] = set()
        try:
            while True:
                if not suspects:
                    room = getattr(self.pool(), "_max_workers", 2) - len(running)
                    for trial in itertools.islice(trials, max(room, 0)):
                        running[self._submit(trial, epochs)] = trial
                elif not running:
                    trial = suspects.pop()
                    alone.add(trial.number)
                    running[self._submit(trial, epochs)] = trial
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    trial = running.pop(future)
                    died = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
                    if died and trial.number not in alone:
                        suspects.append(trial)
                    else:
                        yield self._outcome(future, trial)
        finally:
            for future in running:  # Ctrl-C, or an error here
                future.cancel()
            if (
                running and self.workers > 1
            ):  # processes of our own are ended: files are written atomically
                self.pool().shutdown(kill_workers=True)  # type: ignore[call-arg]

    def _submit(self, trial: Trial, epochs: int) -> Future[Outcome]:
        """Have a trial trained: on this machine in its folder, elsewhere from the state that lies there."""
        base, known, home = self.results.base, self._recorded(trial), self._home(trial)
        if known and (done := _replayed(known, epochs, base)):
            return InProcess().submit(lambda: (done, {}))
        arguments = (self.data, trial, base, epochs)
        if not self.workers:
            return self.pool().submit(run_trial, *arguments, None, _packed(home))
        return self.pool().submit(
            run_trial, *arguments, home if self.keep else None, {}, os.getpid()
        )

    def _outcome(self, future: Future[Outcome], trial: Trial) -> Trial:
        """Return the trial's record and keep its state; a crash becomes a record too, so that it stops no other."""
        try:
            ended, state = future.result()
        except CancelledError:
            remedy = "Start workers and repeat the call: with a directory, it goes on where it was."
            raise NNLibError(f"executor: it has given up trial {trial.number}. {remedy}") from None
        except (
            CheckpointError
        ):  # the disk is full or the folder forbidden, which is not the trial's fault
            raise
        except Exception as error:
            return replace(trial, status="failed", error=f"{type(error).__name__}: {error}")
        for name, content in state.items():
            write_bytes(self._home(trial) / name, content)
        return ended


def run_trial(
    data: Dataset,
    trial: Trial,
    base: Hyperparameters,
    epochs: int,
    home: Path | None,
    state: State,
    parent: int = 0,
) -> Outcome:
    """Train one trial to the end of epoch ``epochs``; return its record, and its state if that is to travel.

    In the folder ``home`` it goes on from what lies there, and leaves its state there; without one it goes on from
    ``state``, and returns the next. It ends with the process ``parent``, if there is one that waits for it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, travels = home or Path(scratch), home is None and epochs < base.epochs
        with RunDirectory(folder).locked(
            wait=60
        ):  # a worker whose parent was killed may need a moment to notice it
            for name, content in state.items():
                (folder / name).write_bytes(content)
        hp, run_dir = base.replace(**trial.settings), folder if home or state or travels else None
        trainer = Trainer(hp, data, run_dir, progress=False, callbacks=[EndsWith(parent)])
        try:
            if trainer.run(until=epochs).stopped == "interrupted":
                raise KeyboardInterrupt
            ended = replace(trial, status="complete")
        except TrainingDiverged as error:
            ended = replace(trial, status="diverged", error=str(error))
        ended = replace(ended, history=list(trainer.history), versions=machine())
        return _summarised(ended, base.select_by), _packed(folder) if travels else {}


@dataclass
class EndsWith(Callback):
    """Ends the process when another, which waits for it, has gone; 0 is nobody."""

    parent: int

    def on_step(self, trainer: Trainer) -> None:
        if self.parent not in (0, os.getpid(), os.getppid()):
            os._exit(1)


def _packed(folder: Path) -> State:
    return {name: (folder / name).read_bytes() for name in STATE if (folder / name).exists()}


def _summarised(trial: Trial, select_by: str) -> Trial:
    """Fill in the best figures and the cost from the trial's history."""
    if not trial.history:
        return trial
    history = History(trial.history)
    figures = {by: history.best(by)[by] for by in ("valid_accuracy", "valid_loss")}
    figures |= {"best_epoch": history.best(select_by)["epoch"], "epochs": len(history)}
    return replace(trial, **figures, seconds=sum(record["seconds"] for record in history))


def _replayed(known: Trial, epochs: int, base: Hyperparameters) -> Trial | None:
    """Return what a recorded trial was after ``epochs``, or None if it has to be trained so far yet."""
    if len(known.history) >= epochs:
        return _summarised(
            replace(known, history=known.history[:epochs], status="complete", error=""),
            base.select_by,
        )
    return known if known.status != "pruned" else None


class InProcess(Executor):
    """Makes each call at once, in this process: training already uses every core."""

    _max_workers = 1  # the name that executors of concurrent.futures have for it

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _processes(workers: int) -> Executor:
    """Return loky's processes, new ones if one has died, with BLAS threads divided among them."""
    from loky import get_reusable_executor

    env = {
        f"{blas}_NUM_THREADS": str(max((os.cpu_count() or 1) // workers, 1))
        for blas in ("OPENBLAS", "OMP", "MKL")
    }
    return get_reusable_executor(max_workers=workers, env=env)


def _pool(executor: Any, workers: int, data: Dataset, stack: ExitStack) -> Pool:
    """Return what returns who trains: this process, loky's, the executor that was given, or a Dask cluster."""
    if executor is None:
        return (lambda: _processes(workers)) if workers > 1 else InProcess
    client = getattr(executor, "_client", executor)
    if isinstance(client, str) or hasattr(client, "get_executor"):
        try:
            from nnlib.searching.cluster import DaskExecutor
        except ImportError as error:
            remedy = 'pip install "dask[distributed]"'
            raise NNLibError(
                f"executor: a Dask cluster needs a package that is missing ({error}): {remedy}"
            ) from None
        executor = stack.enter_context(DaskExecutor(client, data))
    elif not isinstance(executor, Executor):
        allowed = "an address (tcp://host:8786), a dask.distributed.Client or an executor of concurrent.futures"
        raise HyperparameterError(f"executor: {executor!r} is not allowed; {allowed}.")
    return lambda: executor


def plan(asked: SearchResults, n_trials: int | None, workers: int) -> list[Rung]:
    """Return the rungs of the ladder; HyperparameterError for what is not allowed."""
    method, space, epochs = one_of(METHODS, "method", asked.method), asked.space, asked.base.epochs
    for name, count in {"n_trials": n_trials, "workers": workers, "seeds": asked.seeds}.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise HyperparameterError(f"{name}: {count!r} is not allowed; a whole number from 1.")
    if asked.seeds > 1 and "seed" in space:
        raise HyperparameterError(
            f"seeds: {asked.seeds} is not allowed with seed in the space; give one of them."
        )
    if method == "grid":
        grid(space)  # refuses ranges
    size = _size(space)
    whole = (
        int(size)
        if method in ("grid", "halving") and size < math.inf
        else 27
        if method == "halving"
        else 20
    )
    n = int(min(n_trials or whole, size))
    levels = sum(3**i <= min(n, epochs) for i in range(1, 20)) if method == "halving" else 0
    ends = [0, *(epochs // 3**level for level in range(levels, -1, -1))]
    return [(n // 3**i, end, end - ends[i]) for i, end in enumerate(ends[1:])]


def _size(space: Mapping[str, Any]) -> float:
    """Return how many settings there are: all combinations of lists, or infinitely many."""
    return math.prod(
        math.inf if isinstance(values, Range) else len(values) for values in space.values()
    )


def _known(directory: Path, results: SearchResults) -> list[Trial]:
    """Return the trials that an earlier call recorded in ``directory``."""
    if not (directory / "results.json").exists():
        return []
    earlier = load_results(directory)
    was, now = earlier.identity(), results.identity()
    if differ := [name for name in now if was[name] != now[name]]:
        raise CheckpointError(
            f"{directory}: the search in it differs in {', '.join(differ)}; name another directory."
        )
    return earlier.trials


class _Progress:
    """Shows trials that have ended: a bar with the best so far and the time left, in a notebook a table as well.

    Where there is neither terminal nor notebook, it prints a line for each.
    """

    def __init__(self, rungs: list[Rung], seeds: int, wanted: bool) -> None:
        from tqdm.auto import tqdm

        self.gain = {epochs: more for _, epochs, more in rungs}
        self.table, self.handle = wanted and in_notebook(), None
        live = wanted and (self.table or sys.stderr.isatty())
        self.lines, total = wanted and not live, sum(n * seeds * more for n, _, more in rungs)
        self.bar = tqdm(
            total=total, unit="epoch", dynamic_ncols=True, **{} if live else {"disable": True}
        )

    def __call__(self, results: SearchResults, trial: Trial, epochs: int) -> None:
        """Show ``trial``, which has ended on the rung with ``epochs``."""
        select_by = results.base.select_by
        self.bar.update(self.gain[epochs])
        if self.lines:
            failed = f"trial {trial.number} {trial.status}: {trial.error}"
            print(failed if trial.error else f"{trial.status}: {describe(trial)}")
        if ended := [t for t in results.trials if t.epochs]:
            self.bar.set_postfix_str(
                f"best: {describe(max(ended, key=lambda t: t.merit(select_by)))}"
            )
        if self.table:
            from IPython.display import display

            table = (
                results.to_dataframe()
                .sort_values(select_by, ascending=select_by == "valid_loss")
                .head(10)
            )
            if self.handle:
                self.handle.update(table)
            else:
                self.handle = display(table, display_id=True)  # type: ignore[no-untyped-call]
