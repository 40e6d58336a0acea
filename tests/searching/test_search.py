"""The search: every trial on record, none run twice, all methods, in processes too."""

import contextlib
import importlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import nnlib
from nnlib.searching import Range, checked, plan, search
from nnlib.searching.spaces import draw

BASE = nnlib.Hyperparameters(hidden_sizes=(8,), epochs=3, batch_size=50, momentum=0.9)
SPACE = {"learning_rate": [0.003, 0.03], "hidden_sizes": [(8,), (12, 6)]}


# The name nnlib.searching.search is the function; this is the file, for monkeypatch.
module = importlib.import_module("nnlib.searching.search")


@pytest.fixture(scope="module")
def data():
    return nnlib.load_dataset("standin", n_train=300, n_valid=100, n_test=50)


def losses(history):
    return [record["valid_loss"] for record in history]


def test_grid_trains_every_combination_and_agrees_with_train(data):
    results = search(SPACE, data, BASE, progress=False)
    settings = {(t.settings["learning_rate"], t.settings["hidden_sizes"]) for t in results.trials}
    assert settings == set(itertools.product(SPACE["learning_rate"], SPACE["hidden_sizes"]))
    assert all(t.status == "complete" and t.epochs == len(t.history) == 3 for t in results.trials)
    assert results.best.valid_accuracy == max(t.valid_accuracy for t in results.trials)
    alone = nnlib.train(results.best_hyperparameters, data, progress=False)
    assert alone.best["valid_accuracy"] == results.best.valid_accuracy
    assert min(record["valid_loss"] for record in alone.history) == results.best.valid_loss


def test_a_grid_can_be_cut_short(data):
    base = BASE.replace(epochs=1)
    whole = search(SPACE, data, base, progress=False)
    cut = search(SPACE, data, base, n_trials=3, progress=False)
    assert [t.settings for t in cut.trials] == [t.settings for t in whole.trials][:3]


def test_best_by_loss_is_the_lowest_loss(data):
    results = search(SPACE, data, BASE.replace(select_by="valid_loss"), progress=False)
    assert results.best.valid_loss == min(t.valid_loss for t in results.trials)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_sampling_stays_in_its_ranges_and_is_fixed_by_its_seed(data, method):
    space = {
        "learning_rate": nnlib.loguniform(1e-3, 1e-1),
        "batch_size": nnlib.integers(20, 60),
        "flip": [True, False],
    }

    def drawn() -> list[dict[str, object]]:
        base = BASE.replace(epochs=1)
        results = search(space, data, base, method, n_trials=5, seed=3, progress=False)
        return [t.settings for t in results.trials]

    settings = drawn()
    assert settings == drawn() and len({json.dumps(s) for s in settings}) == 5
    assert all(1e-3 <= s["learning_rate"] <= 1e-1 for s in settings)
    assert all(20 <= s["batch_size"] <= 60 for s in settings)


def test_the_ladder_of_halving():
    asked = nnlib.SearchResults(BASE.replace(epochs=9), {}, "halving", space={"seed": [1, 2, 3]})
    # Three settings for three epochs, then the best for six more.
    assert plan(asked, None, 1) == [(3, 3, 3), (1, 9, 6)]
    assert plan(asked, 2, 1) == [(2, 9, 9)]


def test_halving_trains_few_to_the_end_and_its_winner_as_if_alone(data):
    base = BASE.replace(epochs=9)
    space = {"learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3]}
    results = search(space, data, base, "halving", progress=False)
    assert sorted(t.epochs for t in results.trials) == [1] * 6 + [3] * 2 + [9]
    assert [t.status for t in results.trials].count("complete") == 1
    alone = nnlib.train(results.best_hyperparameters, data, progress=False)
    assert losses(alone.history) == losses(results.best.history)


def test_a_diverging_and_a_crashing_trial_are_recorded_and_stop_nobody(data):
    # Two names for one hidden layer.
    space = {"learning_rate": [0.01, 900.0], "activation": ["leaky_relu", ("relu", "tanh")]}
    with pytest.raises(nnlib.HyperparameterError, match="activation"):
        search(space, data, BASE, progress=False)
    space = {
        "activation": ["leaky_relu", ("relu", "tanh")],
        "hidden_sizes": [(8, 4), (8,)],
        "learning_rate": [0.01, 900.0],
    }
    results = search(space, data, BASE.replace(hidden_sizes=(8, 4)), progress=False)
    trials = {}
    for t in results.trials:
        layers = len(t.settings["hidden_sizes"])
        trials[layers, t.settings["activation"], t.settings["learning_rate"]] = t
    failed = trials[1, ("relu", "tanh"), 0.01]
    assert failed.status == "failed" and "activation" in failed.error
    diverged = trials[2, "leaky_relu", 900.0]
    assert diverged.status == "diverged" and "learning rate" in diverged.error
    assert math.isnan(diverged.valid_accuracy)
    assert trials[2, "leaky_relu", 0.01].status == "complete"


def test_an_interrupted_search_goes_on_and_runs_no_trial_twice(data, tmp_path, monkeypatch, capsys):
    real, calls = module.run_trial, []

    def counted(data, trial, *rest):
        calls.append(trial.number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(data, trial, *rest)

    monkeypatch.setattr(module, "run_trial", counted)
    broken = search(SPACE, data, BASE, directory=tmp_path, progress=False)
    assert len(broken.trials) == 2 and broken.interrupted
    assert not nnlib.load_results(tmp_path).interrupted
    words = f"2 trials are recorded in {tmp_path}: the same call continues from there."
    assert words in capsys.readouterr().out
    whole = search(SPACE, data, BASE, directory=tmp_path, progress=False)
    assert calls == [0, 1, 2, 2, 3] and [t.number for t in whole.trials] == [0, 1, 2, 3]
    assert nnlib.load_results(tmp_path) == whole
    with pytest.raises(nnlib.CheckpointError, match="differs in base"):
        search(SPACE, data, BASE.replace(epochs=4), directory=tmp_path, progress=False)


@pytest.mark.parametrize("kind", ["loky", "threads"])
def test_other_executors_give_the_same_results(data, kind):
    here = search(SPACE, data, BASE, progress=False)
    with ThreadPoolExecutor(2) as pool:
        who = {"workers": 2} if kind == "loky" else {"executor": pool}
        there = search(SPACE, data, BASE, progress=False, **who)
    for a, b in zip(here.trials, there.trials, strict=True):
        assert a.settings == b.settings and abs(a.valid_loss - b.valid_loss) < 1e-5


def test_the_table_has_a_row_a_trial(data):
    table = search(SPACE, data, BASE, progress=False).to_dataframe()
    assert list(table.columns[:3]) == ["trial", "learning_rate", "hidden_sizes"] and len(table) == 4


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: {} is not allowed; give lists or ranges"),
        (BASE, r"space: Hyperparameters\("),
        ({"learning_rat": [0.1]}, "Did you mean 'learning_rate'"),
        ({"learning_rate": []}, "learning_rate: .* at least one value"),
        ({"learning_rate": [0.1, -1]}, "learning_rate: -1 is not allowed; a number from 0"),
        ({"hidden_sizes": [(8,), (0,)]}, "hidden_sizes: .* is not allowed"),
        ({"learning_rate": nnlib.uniform(0.1, 1)}, "a grid needs a list"),
        ({"momentum": nnlib.uniform(0.1, 2)}, "momentum: 2 is not allowed"),
    ],
)
def test_a_bad_space_is_refused_before_the_first_trial(data, space, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        search(space, data, BASE, progress=False)
    with pytest.raises(nnlib.HyperparameterError, match="Did you mean 'halving'"):
        search(SPACE, data, BASE, "halvin", progress=False)


def test_results_that_are_none_are_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(nnlib.CheckpointError, match="results"):
        nnlib.load_results(tmp_path)


def test_equal_values_are_one():
    assert checked({"l2": [0, 0.0, 0.1]}, BASE) == {"l2": [0.0, 0.1]}
    sizes = checked({"hidden_sizes": ([8], (8,), [8, 4])}, BASE)
    assert sizes == {"hidden_sizes": [(8,), (8, 4)]}


@pytest.mark.parametrize(
    ("low", "high", "options", "words"),
    [
        (3, 1, {}, "is empty; low must be less than high"),
        (0, 1, {"log": True}, "a logarithmic scale starts above 0"),
        (0.5, 3, {"whole": True}, "whole numbers need whole ends"),
    ],
)
def test_a_bad_range_is_refused(low, high, options, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        Range(low, high, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_trials": 0}, "n_trials: 0 is not allowed; a whole number from 1"),
        ({"seeds": 1.5}, "seeds: 1.5 is not allowed"),
        ({"workers": -1}, "workers: -1 is not allowed"),
        ({"executor": 3}, "executor: 3 is not allowed; an address"),
    ],
)
def test_other_bad_arguments_are_refused_too(data, options, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        search(SPACE, data, BASE, progress=False, **options)


def test_seeds_and_a_space_of_seeds_exclude_each_other(data):
    words = "seeds: 2 is not allowed with seed in the space"
    with pytest.raises(nnlib.HyperparameterError, match=words):
        search({"seed": [0, 1]}, data, BASE, seeds=2, progress=False)


def test_a_field_of_whole_numbers_refuses_a_range_of_fractions(data):
    words = r"batch_size: 3\d\.\d+ is not allowed; a whole number"
    with pytest.raises(nnlib.HyperparameterError, match=words):
        search({"batch_size": nnlib.uniform(20, 60)}, data, BASE, "random", progress=False)


def test_the_record_of_a_trial_says_all(data, tmp_path):
    search(SPACE, data, BASE, directory=tmp_path, progress=False)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["data"] == {
        "source": "stand-in",
        "fingerprint": data.fingerprint,
        "valid_images": 100,
    }
    for number, trial in enumerate(document["trials"]):
        assert trial["number"] == number
        assert (trial["status"], trial["seed"], trial["error"]) == ("complete", 0, "")
        assert trial["fingerprint"] == data.fingerprint
        assert {"nnlib", "numpy", "python"} <= set(trial["versions"])
        history = trial["history"]
        assert [record["epoch"] for record in history] == [1, 2, 3] and trial["epochs"] == 3
        assert trial["valid_loss"] == min(record["valid_loss"] for record in history)
        assert trial["valid_accuracy"] == max(record["valid_accuracy"] for record in history)
        assert trial["seconds"] == pytest.approx(sum(record["seconds"] for record in history))
    assert not (tmp_path / "trials").exists()  # states of trials that are done are not kept


def test_several_seeds_are_trials_of_one_setting(data):
    space = {"learning_rate": [0.0001, 0.001, 0.03], "hidden_sizes": [(8,), (12, 6)]}
    results = search(space, data, BASE.replace(seed=5), "halving", seeds=2, progress=False)
    assert [t.seed for t in results.trials] == [5, 6] * 6
    assert [t.settings["seed"] for t in results.trials] == [5, 6] * 6
    # A setting continues with all of its seeds.
    assert sorted(t.epochs for t in results.trials) == [1] * 8 + [3] * 4
    table = results.mean_over_seeds()
    best = [t for t in results.trials if t.setting == results.best.setting]
    row = table[(table.learning_rate == best[0].settings["learning_rate"])]
    row = row[row.hidden_sizes == best[0].settings["hidden_sizes"]].iloc[0]
    a, b = (t.valid_accuracy for t in best)
    assert row.seeds == 2 and row.valid_accuracy_mean == pytest.approx((a + b) / 2)
    assert row.valid_accuracy_std == pytest.approx(abs(a - b) / 2**0.5)
    alone = nnlib.train(results.best_hyperparameters, data, progress=False)
    assert alone.best["valid_accuracy"] == max(a, b)


def test_a_resumed_tpe_search_proposes_what_the_whole_one_does_and_repeats_nothing(data, tmp_path):
    space = {"learning_rate": nnlib.loguniform(1e-4, 1), "flip": [True, False]}
    base = BASE.replace(epochs=1)
    whole = search(space, data, base, "tpe", n_trials=14, progress=False)
    search(space, data, base, "tpe", n_trials=12, directory=tmp_path, progress=False)
    more = search(space, data, base, "tpe", n_trials=14, directory=tmp_path, progress=False)
    assert [t.settings for t in more.trials] == [t.settings for t in whole.trials]


def test_a_space_with_few_settings_ends_the_draws(data):
    space = {"l2": [0, 0.1, 0.2], "flip": [True, False]}
    few = search(space, data, BASE.replace(epochs=1), "random", n_trials=50, progress=False)
    assert len({json.dumps(t.settings) for t in few.trials}) == len(few.trials) == 6


def test_tpe_learns_from_what_it_is_told():
    space = {"learning_rate": nnlib.loguniform(1e-4, 1)}
    # The best is 0.001.
    known = [({"learning_rate": 10 ** (-4 + i / 10)}, -abs(i - 10) / 40) for i in range(40)]
    drawn = [draw(space, "tpe", (seed,), known)["learning_rate"] for seed in range(20)]
    assert sum(3e-4 < rate < 3e-3 for rate in drawn) > 15  # a quarter by chance
    # Now the best ones have diverged.
    lost = [(settings, -math.inf if merit > -0.3 else merit) for settings, merit in known]
    drawn = [draw(space, "tpe", (seed,), lost)["learning_rate"] for seed in range(20)]
    assert sum(3e-4 < rate < 3e-3 for rate in drawn) < 5


def test_a_crashing_process_fails_its_trial_alone(data, monkeypatch):
    real = module.run_trial

    def deadly(data, trial, *rest):
        if trial.settings["learning_rate"] == 0.02:
            os._exit(9)
        return real(data, trial, *rest)

    monkeypatch.setattr(module, "run_trial", deadly)
    space = {"learning_rate": [0.01, 0.02, 0.03, 0.04]}
    results = search(space, data, BASE.replace(epochs=1), workers=2, progress=False)
    assert [t.status for t in results.trials] == ["complete", "failed", "complete", "complete"]
    assert "Terminated" in results.trials[1].error


@pytest.mark.parametrize("method", ["grid", "halving"])
def test_a_failed_and_a_diverged_trial_do_not_run_again(data, tmp_path, monkeypatch, method):
    real = module.run_trial

    def scarce(data, trial, base, epochs, *rest):
        if trial.settings["learning_rate"] == 0.03 and epochs == 3:
            raise MemoryError("no room")
        return real(data, trial, base, epochs, *rest)

    monkeypatch.setattr(module, "run_trial", scarce)
    space = {"learning_rate": [1e-6, 0.03, 900.0]}
    first = search(space, data, BASE, method, directory=tmp_path, progress=False)
    status = ["complete" if method == "grid" else "pruned", "failed", "diverged"]
    assert [t.status for t in first.trials] == status
    assert first.trials[1].error == "MemoryError: no room"
    assert len(first.trials[1].history) == (method == "halving")  # what it had done before is kept
    monkeypatch.setattr(module, "run_trial", None)
    again = search(space, data, BASE, method, directory=tmp_path, progress=False)
    for a, b in zip(again.trials, first.trials, strict=True):
        assert (a.status, a.error, a.history) == (b.status, b.error, b.history)


KILLED = """
import sys
import nnlib
from nnlib.searching.search import search
data = nnlib.load_dataset("standin", n_train=300, n_valid=100, n_test=50)
base = nnlib.Hyperparameters(hidden_sizes=(8,), epochs=9, batch_size=10, momentum=0.9)
rates = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 900.0]
method, workers, folder = sys.argv[1:]
space = {"learning_rate": nnlib.loguniform(1e-4, 0.1) if method == "tpe" else rates}
module = sys.modules["nnlib.searching.search"]
real = module.Ladder._submit
def submit(self, trial, epochs):
    known = self._recorded(trial)
    if not known or not module._replayed(known, epochs, base):
        print("run", trial.number, epochs, flush=True)
    return real(self, trial, epochs)
module.Ladder._submit = submit
n_trials = 6 if method == "tpe" else None
search(space, data, base, method, n_trials, workers=int(workers), directory=folder, progress=False)
print("done", flush=True)
"""


@pytest.fixture
def sessions():
    """The sessions of started processes; whatever loky left in them is ended with the test."""
    started = []
    yield started
    for session in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)


@pytest.mark.parametrize(
    ("method", "workers"), [("halving", 1), ("halving", 2), ("tpe", 1), ("grid", 2)]
)
def test_a_search_that_is_killed_again_and_again_loses_nothing_and_repeats_nothing(
    tmp_path, sessions, method, workers
):
    def call(folder, kill_after=None):
        """Run the search in a process, kill it, and return the trials that it began to train."""
        command = [sys.executable, "-c", KILLED, method, str(workers), folder]
        with (tmp_path / "printed").open("w+") as printed:
            process = subprocess.Popen(command, stdout=printed, start_new_session=True)
            if kill_after is not None:
                # What comes before the first trial is of no interest.
                while process.poll() is None and not (tmp_path / "printed").stat().st_size:
                    time.sleep(0.01)
                time.sleep(kill_after)
                process.kill()  # this one alone: its workers have to notice by themselves
            process.wait()
            sessions.append(process.pid)
            lines = (tmp_path / "printed").read_text().splitlines()
        begun = []
        for line in lines:
            if line.startswith("run"):
                _, number, epochs = line.split()
                begun.append((int(number), int(epochs)))
        return begun, lines[-1:]

    def finished():
        """Return the trials on record by number."""
        if not (tmp_path / "killed/results.json").exists():
            return {}
        return {t.number: t for t in nnlib.load_results(tmp_path / "killed").trials}

    rng, last, kills = random.Random(0), [], 0
    while last != ["done"]:
        before = finished()
        kill_after = rng.uniform(0, 0.15) if kills < 6 else None
        begun, last = call(tmp_path / "killed", kill_after)
        if last != ["done"]:
            kills += 1
        for number, epochs in begun:
            known = before.get(number)
            unfinished = not known or (known.status == "pruned" and len(known.history) < epochs)
            assert unfinished, "it has been trained before"
        assert set(before) <= set(finished())
    assert kills
    call(tmp_path / "whole")
    whole, killed = (nnlib.load_results(tmp_path / name).trials for name in ("whole", "killed"))
    for a, b in zip(whole, killed, strict=True):
        assert (a.settings, a.status, a.epochs) == (b.settings, b.status, b.epochs)
        assert losses(a.history) == losses(b.history)


def test_without_dask_the_error_names_the_command(data, monkeypatch):
    # As if an import in it failed.
    monkeypatch.setitem(sys.modules, "nnlib.searching.cluster", None)
    words = r'executor: a Dask cluster needs .*: pip install "dask\[distributed\]"'
    with pytest.raises(nnlib.NNLibError, match=words):
        search(SPACE, data, BASE, executor="tcp://localhost:8786", progress=False)


def test_a_search_that_is_refused_leaves_no_folder(data, tmp_path):
    with pytest.raises(nnlib.NNLibError, match="executor: 3 is not allowed"):
        search(SPACE, data, BASE, directory=tmp_path / "s", executor=3, progress=False)
    assert not list(tmp_path.iterdir())


def test_processes_know_ones_own_activations(data, monkeypatch):
    class Half(nnlib.Activation):
        def value(self, z, out=None):
            return np.multiply(z, 0.5, out=out)

        def derivative(self, z, a, out=None):
            return np.multiply(z * 0 + 1, 0.5, out=out)

    monkeypatch.setitem(nnlib.ACTIVATIONS, "half", Half)
    results = search({"activation": ["half", "relu"]}, data, BASE, workers=2, progress=False)
    assert [trial.status for trial in results.trials] == ["complete"] * 2, results.trials


def test_progress_is_a_line_a_trial_where_there_is_no_terminal(data, capsys):
    search(SPACE, data, BASE.replace(epochs=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for i, line in enumerate(lines):
        assert line.startswith("complete: accuracy 0.")
        assert f"(trial {i}: learning_rate=" in line


def test_a_notebook_has_one_table_that_follows_the_trials():
    code = """import nnlib
data = nnlib.load_dataset("standin", n_train=300, n_valid=100, n_test=50)
base = nnlib.Hyperparameters(hidden_sizes=(8,), epochs=1)
results = nnlib.search({"l2": [0, 0.1, 0.2]}, data, base)"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    quiet = ["--log-level=40"]
    NotebookClient(notebook, timeout=120, kernel_name="python3", extra_arguments=quiet).execute()
    bar, table = notebook.cells[0].outputs
    assert "epoch/s" in bar["data"]["text/plain"]
    assert table["output_type"] == "display_data"
    assert table["data"]["text/plain"].count("complete") == 3
