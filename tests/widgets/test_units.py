"""The browser of units, without a web browser: slider and buttons choose, the picture follows."""

import numpy as np
import pytest

import nnlib
from nnlib import plots, widgets
from nnlib.training import locality


@pytest.fixture(scope="module")
def data() -> nnlib.Dataset:
    return nnlib.load_dataset("standin", n_train=600, n_valid=60, n_test=60)


@pytest.fixture(scope="module")
def model(data) -> nnlib.MLP:
    model = nnlib.MLP((3072, 6, 5, 10), "relu", classes=data.classes, seed=1)
    model.parameters["W2"][3] *= 50  # unit 3 has the most influence
    model.parameters["W2"][0] = 0  # and unit 0 none
    model.parameters["b1"][:] = 100  # all are active for all images
    return model


def title_of(panel, rank: int) -> str:
    return panel.draw(rank).get_suptitle()


def test_units_come_by_their_influence(model, data):
    panel = widgets.unit_browser(model, data.valid)
    assert not panel.message.value
    assert title_of(panel, 0).startswith("Unit 3: uses 1024 pixels, active for 100%")
    assert title_of(panel, 5).startswith("Unit 0: ")
    assert panel.controls["rank"].max == 5
    assert widgets.unit_browser(model, data.valid, n=2).controls["rank"].max == 1


def test_slider_and_buttons_move_and_go_round(model, data):
    panel = widgets.unit_browser(model, data.valid)
    rank, back, forward = panel.children[0].children
    first = panel.picture.value
    assert first == plots.png(panel.draw(0))
    forward.click()
    assert rank.value == 1 and panel.picture.value == plots.png(panel.draw(1)) != first
    back.click()
    back.click()
    assert rank.value == 5
    forward.click()
    assert rank.value == 0 and panel.picture.value == first


def test_a_unit_is_shown_with_its_own_filter_pattern_and_images(model, data):
    panel = widgets.unit_browser(model, data.valid)
    _, large, pattern, exciting = panel.draw(0).axes
    W, images = model.parameters["W1"][:, [3]], data.valid.images
    shown = large.images[0].get_array()[1:, 1:].transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(shown, 0.5 + 0.5 * W[:, 0] / np.abs(W).max(), atol=1e-6)
    expected = locality.patterns(images.reshape(len(images), -1) / 255, W)[0]
    shown = pattern.images[0].get_array()[1:, 1:].transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(shown, 0.5 + 0.5 * expected / np.abs(expected).max(), atol=1e-4)
    most = model.inputs(images) @ W[:, 0]
    best = images[most.argmax()].transpose(1, 2, 0) / 255
    np.testing.assert_allclose(exciting.images[0].get_array()[1:33, 1:33], best, atol=1e-6)


def test_patterns_are_in_pixels_whatever_the_preprocessing(data):
    hp = nnlib.Hyperparameters(hidden_sizes=(4,), preprocessing="zca", components=8, epochs=1)
    run = nnlib.train(hp, data, progress=False)
    panel = widgets.unit_browser(run.model, data.valid)
    assert not panel.message.value
    pattern = panel.draw(0).axes[2].images[0].get_array()[1:, 1:]
    x = data.valid.images.reshape(len(data.valid), -1) / 255
    units = np.argsort(-locality.influence(run.model, data.valid.images), kind="stable")
    z = run.model.inputs(data.valid.images) @ run.model.parameters["W1"][:, units[0]]
    expected = (x - x.mean(axis=0)).T @ (z - z.mean())
    expected = 0.5 + 0.5 * expected / np.abs(expected).max()
    np.testing.assert_allclose(pattern.transpose(2, 0, 1).ravel(), expected, atol=1e-3)
