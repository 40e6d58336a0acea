"""What a search found: winners, ties, borders and importance."""

import itertools

import pytest

import nnlib
from nnlib.searching.results import SearchResults, Trial


def make_results(*accuracies, space=None, losses=None, **options):
    rates = [0.01 * 2**i for i in range(len(accuracies))]
    losses = losses or [1 - accuracy for accuracy in accuracies]
    trials = [
        Trial(i, {"learning_rate": rate}, "complete", accuracy, loss)
        for i, (rate, accuracy, loss) in enumerate(zip(rates, accuracies, losses, strict=True))
    ]
    base = nnlib.Hyperparameters(**options)
    space = space or {"learning_rate": rates}
    return SearchResults(base, {"valid_images": 5000}, "grid", trials, space)


def test_differences_smaller_than_the_noise_are_ties():
    results = make_results(0.3, 0.487, 0.5, 0.4861)
    assert results.noise == pytest.approx(1.96 * (0.25 / 5000) ** 0.5)
    assert results.noise == pytest.approx(0.01386, abs=1e-5)
    assert [t.number for t in results.ties] == [2, 1]  # 0.4861 is 0.0139 below
    line = "tie with the best accuracy, within the noise of 5,000 validation images, ±0.0139: 1"
    assert line in repr(results)


def test_winners_by_loss_and_by_accuracy_are_both_named():
    results = make_results(0.3, 0.5, 0.4, losses=[1.0, 1.5, 1.2])
    assert (results.best.number, results.best_by("valid_loss").number) == (1, 0)
    assert make_results(0.3, 0.5, losses=[1.0, 1.5], select_by="valid_loss").best.number == 0
    lines = repr(results).splitlines()
    assert "best by accuracy: accuracy 0.5000, loss 1.5000 (trial 1: learning_rate=0.02)" in lines
    assert "best by loss: accuracy 0.3000, loss 1.0000 (trial 0: learning_rate=0.01)" in lines


def test_a_setting_with_a_seed_that_diverged_does_not_win():
    trials = [
        Trial(0, {"l2": 0.0, "seed": 0}, "complete", 0.9, 0.1),
        Trial(1, {"l2": 0.0, "seed": 1}, "diverged"),
    ]
    results = SearchResults(nnlib.Hyperparameters(), {}, "grid", trials, {"l2": [0.0, 0.1]})
    assert "(1 complete, 1 diverged)" in repr(results) and "best" not in repr(results)
    with pytest.raises(nnlib.NNLibError, match="no trial is complete"):
        results.best  # noqa: B018
    trials.append(Trial(2, {"l2": 0.1, "seed": 0}, "complete", 0.3, 1.0))
    assert results.best is trials[2]


def test_a_best_value_on_the_border_is_named():
    assert make_results(0.3, 0.4, 0.5).hints == ["widen learning_rate above 0.04"]
    assert make_results(0.5, 0.4, 0.3).hints == ["widen learning_rate below 0.01"]
    assert make_results(0.3, 0.5, 0.4).hints == make_results(0.5).hints == []
    near = {"learning_rate": nnlib.loguniform(1e-4, 0.0401)}
    assert make_results(0.3, 0.4, 0.5, space=near).hints == ["widen learning_rate above 0.0401"]
    far = {"learning_rate": nnlib.loguniform(1e-4, 10)}
    assert make_results(0.3, 0.4, 0.5, space=far).hints == []
    least = {"learning_rate": nnlib.uniform(0.001, 0.3)}
    assert make_results(0.5, 0.4, space=least).hints == ["widen learning_rate below 0.001"]
    zero = {"learning_rate": nnlib.uniform(0, 0.3)}
    assert make_results(0.5, 0.4, space=zero).hints == []  # nothing lies below 0


def test_importance_finds_what_matters():
    space = {"learning_rate": [0.01, 0.02, 0.03, 0.04], "l2": [0.0, 0.1, 0.2, 0.3], "flip": [True]}
    trials = []
    for i, values in enumerate(itertools.product(*space.values())):
        settings = dict(zip(space, values, strict=True))
        merit = values[0] * 10 + values[1] / 100
        trials.append(Trial(i, settings, valid_accuracy=merit))
    shares = SearchResults(nnlib.Hyperparameters(), {}, "grid", trials, space).importance()
    assert [*shares] == ["learning_rate", "l2"] and shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
