"""The search: every trial on record, none run twice, all methods, in processes too."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

import nnlib
from nnlib.search import search

BASE = nnlib.Hyperparameters(hidden_sizes=(8,), epochs=3, batch_size=50, momentum=0.9)
SPACE = {"learning_rate": [0.003, 0.03], "hidden_sizes": [(8,), (12, 6)]}


@pytest.fixture(scope="module")
def data():
    return nnlib.load_dataset("standin", n_train=300, n_valid=100, n_test=50)


def test_grid_trains_every_combination_and_agrees_with_train(data):
    results = search(SPACE, data, BASE, progress=False)
    settings = {(t.settings["learning_rate"], t.settings["hidden_sizes"]) for t in results.trials}
    assert settings == {(rate, sizes) for rate in SPACE["learning_rate"] for sizes in SPACE["hidden_sizes"]}
    assert all(t.status == "complete" and t.epochs == len(t.history) == 3 for t in results.trials)
    assert results.best.valid_accuracy == max(t.valid_accuracy for t in results.trials)
    alone = nnlib.train(results.best_hyperparameters, data, progress=False)
    assert alone.best["valid_accuracy"] == results.best.valid_accuracy
    assert min(record["valid_loss"] for record in alone.history) == results.best.valid_loss


def test_a_grid_can_be_cut_short(data):
    whole, cut = (search(SPACE, data, BASE.replace(epochs=1), n_trials=n, progress=False) for n in (None, 3))
    assert [t.settings for t in cut.trials] == [t.settings for t in whole.trials][:3]


def test_best_by_loss_is_the_lowest_loss(data):
    results = search(SPACE, data, BASE.replace(select_by="valid_loss"), progress=False)
    assert results.best.valid_loss == min(t.valid_loss for t in results.trials)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_sampling_stays_in_its_ranges_and_is_fixed_by_its_seed(data, method):
    space = {"learning_rate": nnlib.loguniform(1e-3, 1e-1), "batch_size": nnlib.integers(20, 60), "flip": [True, False]}
    runs = [search(space, data, BASE.replace(epochs=1), method, n_trials=5, seed=3, progress=False) for _ in "ab"]
    settings = [[t.settings for t in results.trials] for results in runs]
    assert settings[0] == settings[1] and len({json.dumps(s) for s in settings[0]}) == 5
    assert all(1e-3 <= s["learning_rate"] <= 1e-1 and 20 <= s["batch_size"] <= 60 for s in settings[0])


def test_halving_trains_few_to_the_end_and_its_winner_as_if_alone(data):
    base = BASE.replace(epochs=9)
    space = {"learning_rate": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3]}
    results = search(space, data, base, "halving", progress=False)
    assert sorted(t.epochs for t in results.trials) == [1] * 6 + [3] * 2 + [9]
    assert [t.status for t in results.trials].count("complete") == 1
    alone = nnlib.train(results.best_hyperparameters, data, progress=False)
    assert [r["valid_loss"] for r in alone.history] == [r["valid_loss"] for r in results.best.history]


def test_a_diverging_and_a_crashing_trial_are_recorded_and_stop_nobody(data):
    space = {
        "learning_rate": [0.01, 900.0],
        "activation": ["leaky_relu", ("relu", "tanh")],
    }  # two names for one hidden layer
    with pytest.raises(nnlib.HyperparameterError, match="activation"):
        search(space, data, BASE, progress=False)
    space = {
        "activation": ["leaky_relu", ("relu", "tanh")],
        "hidden_sizes": [(8, 4), (8,)],
        "learning_rate": [0.01, 900.0],
    }
    results = search(space, data, BASE.replace(hidden_sizes=(8, 4)), progress=False)
    status = {
        (len(t.settings["hidden_sizes"]), t.settings["activation"], t.settings["learning_rate"]): t
        for t in results.trials
    }
    assert status[1, ("relu", "tanh"), 0.01].status == "failed"
    assert "activation" in status[1, ("relu", "tanh"), 0.01].error
    assert (
        status[2, "leaky_relu", 900.0].status == "diverged" and "learning rate" in status[2, "leaky_relu", 900.0].error
    )
    assert status[2, "leaky_relu", 0.01].status == "complete" and math.isnan(
        status[2, "leaky_relu", 900.0].valid_accuracy
    )


def test_an_interrupted_search_goes_on_and_runs_no_trial_twice(data, tmp_path, monkeypatch):
    module = __import__("nnlib.search", fromlist=["run_trial"])
    real, calls = module.run_trial, []

    def counted(data, trial, *rest):
        calls.append(trial.number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(data, trial, *rest)

    monkeypatch.setattr(module, "run_trial", counted)
    broken = search(SPACE, data, BASE, directory=tmp_path, progress=False)
    assert len(broken.trials) == 2
    whole = search(SPACE, data, BASE, directory=tmp_path, progress=False)
    assert calls == [0, 1, 2, 2, 3] and [t.number for t in whole.trials] == [0, 1, 2, 3]
    assert nnlib.load_results(tmp_path) == whole
    with pytest.raises(nnlib.CheckpointError, match="another base"):
        search(SPACE, data, BASE.replace(epochs=4), directory=tmp_path, progress=False)


@pytest.mark.parametrize("kind", ["loky", "threads"])
def test_other_executors_give_the_same_results(data, kind):
    here = search(SPACE, data, BASE, progress=False)
    with ThreadPoolExecutor(2) as pool:
        there = search(SPACE, data, BASE, progress=False, **({"workers": 2} if kind == "loky" else {"executor": pool}))
    for a, b in zip(here.trials, there.trials, strict=True):
        assert a.settings == b.settings and abs(a.valid_loss - b.valid_loss) < 1e-5


def test_the_table_has_a_row_a_trial(data):
    table = search(SPACE, data, BASE, progress=False).to_dataframe()
    assert list(table.columns[:3]) == ["trial", "learning_rate", "hidden_sizes"] and len(table) == 4


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: it is empty"),
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
