"""The weights before the first step: spread, law, seed, and what "auto" means."""

import math

import numpy as np
import pytest

import nnlib
from nnlib.network.initialization import INITIALIZATIONS, initial_weights

FAN_IN, FAN_OUT = 400, 300
STD = {
    "he": math.sqrt(2 / 400),
    "xavier": math.sqrt(2 / 700),
    "lecun": math.sqrt(1 / 400),
    "small": 0.01,
}
NAMES = [name for name in INITIALIZATIONS if name != "auto"]


def draw(name: str, seed: int = 0, dtype=np.float64) -> np.ndarray:
    return initial_weights(name, FAN_IN, FAN_OUT, np.random.default_rng(seed), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_mean_spread_and_law(name):
    w, std = draw(name), STD[name.partition("_")[0]]
    n = w.size
    assert w.shape == (FAN_IN, FAN_OUT)
    assert abs(w.mean()) < 4 * std / math.sqrt(n)  # four standard errors
    assert abs(w.std() / std - 1) < 4 / math.sqrt(2 * n)
    # A normal law has 4.55 % of its values beyond two standard deviations, a uniform one has none
    # beyond √3.
    if name.endswith("uniform"):
        assert 0.999 < np.abs(w).max() / (std * math.sqrt(3)) <= 1
    else:
        assert abs((np.abs(w) > 2 * std).mean() - 0.0455) < 4 * math.sqrt(0.0455 / n)


def test_normal_is_the_default_law_and_float32_is_float64_rounded():
    for name in ("he", "xavier", "lecun"):
        np.testing.assert_array_equal(draw(name), draw(name + "_normal"))
        np.testing.assert_array_equal(draw(name, dtype=np.float32), draw(name).astype(np.float32))


def test_seed_decides():
    np.testing.assert_array_equal(draw("he", 3), draw("he", 3))
    assert (draw("he", 3) != draw("he", 4)).all()


def test_auto_follows_each_layers_activation():
    sizes, names = (6, 5, 4, 3), ("relu", "tanh")
    model = nnlib.MLP(sizes, names, seed=7, dtype=np.float64)
    rng = np.random.default_rng(7)
    for layer, kind in enumerate(("he", "xavier", "small_normal"), 1):  # the last guesses nothing
        expected = initial_weights(kind, sizes[layer - 1], sizes[layer], rng, np.float64)
        np.testing.assert_array_equal(model.parameters[f"W{layer}"], expected)
        assert not model.parameters[f"b{layer}"].any()


@pytest.mark.parametrize("name", ["hee", "he_gaussian", "he_", "small_uniform", "", "orthogonal"])
def test_unknown_names_are_refused(name):
    with pytest.raises(
        nnlib.HyperparameterError, match=f"^initialization: {name!r} is not known.*Known: auto, he,"
    ):
        nnlib.MLP((3, 3, 2), initialization=name)


def test_nearest_name_is_suggested():
    with pytest.raises(nnlib.HyperparameterError, match="Did you mean 'he_normal'"):
        draw("he_normall")
