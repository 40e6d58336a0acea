"""Widgets without a browser: set values and click buttons as it would; the picture must follow."""

import datetime
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from ipywidgets import IntSlider
from PIL import Image

import nnlib
from nnlib import plots, widgets
from nnlib.searching.results import SearchResults, Trial
from nnlib.training.hyperparameters import Hyperparameters


@pytest.fixture(scope="module")
def data() -> nnlib.Dataset:
    return nnlib.load_dataset("standin", n_train=600, n_valid=60, n_test=60)


@pytest.fixture(scope="module")
def model(data) -> nnlib.MLP:
    model = nnlib.MLP((3072, 6, 5, 10), "relu", classes=data.classes)
    for parameter in model.parameters.values():
        parameter += 0.01
    return model


def change(panel, **values):
    """Set controls, and say whether the picture changed; errors are for the test to look for."""
    before = panel.picture.value
    for name, value in values.items():
        panel.controls[name].value = value
    return panel.picture.value != before


def test_browse_images(data):
    panel = widgets.browse_images(data)
    assert panel.controls["page"].max == 19
    assert change(panel, page=19)
    assert change(panel, split="valid")
    assert panel.controls["page"].value == panel.controls["page"].max == 2
    assert change(panel, label=3)
    assert panel.controls["page"].max == 1
    assert not panel.message.value
    part = data.valid.take(np.flatnonzero(data.valid.labels == 3))
    assert panel.picture.value == plots.png(
        plots.image_grid(part.images, [data.classes[3]] * len(part))
    )


def test_activation_explorer():
    panel = widgets.activation_explorer()
    assert change(panel, slope=0.5)
    assert change(panel, names=("relu", "gelu"))
    assert not change(panel, slope=0.2)  # neither of them has a slope
    assert panel.picture.value == plots.png(plots.activation_functions(["relu", "gelu"]))
    assert not panel.message.value


@pytest.fixture
def results():
    rows = [(0.1, 0.0, (8,), 0.3, 1.5), (0.1, 0.1, (8,), 0.4, 1.4), (0.2, 0.0, (8, 4), 0.5, 1.3)]
    trials = [
        Trial(
            i, {"learning_rate": rate, "l2": l2, "hidden_sizes": sizes}, "complete", accuracy, loss
        )
        for i, (rate, l2, sizes, accuracy, loss) in enumerate(rows)
    ]
    names = ("train_loss", "valid_loss", "train_accuracy", "valid_accuracy")
    for trial in trials:
        trial.history = [{"epoch": 1, **dict.fromkeys(names, 0.1 * trial.number)}]
    failed = Trial(3, {"learning_rate": 0.2, "l2": 0.1, "hidden_sizes": (8,)}, "failed")
    return SearchResults(Hyperparameters(), {}, "grid", [*trials, failed])


def test_search_explorer(results):
    panel, below = widgets.search_explorer(results).children
    assert panel.controls["x"].options == ("learning_rate", "l2", "hidden_sizes")
    assert change(panel, y="l2")
    assert change(panel, value="valid_loss")
    assert change(panel, x="l2")  # one hyperparameter against itself: all trials
    assert not panel.message.value and not below.message.value


def test_search_explorer_narrows_and_shows_the_trial_that_is_clicked(results):
    panel, below = widgets.search_explorer(results).children
    trial = below.controls["trial"]
    assert [number for _, number in trial.options] == [2, 1, 0, 3]  # the best first, and shown
    assert below.picture.value == plots.png(plots.history(results.trials[2].history))
    assert change(below, trial=0)
    assert below.picture.value == plots.png(plots.history(results.trials[0].history))
    assert change(panel, learning_rate=(0, 0))
    assert [number for _, number in trial.options] == [1, 0]
    expected = plots.search_heatmap(results.to_dataframe()[:2], "learning_rate", "hidden_sizes")
    assert panel.picture.value == plots.png(expected)
    change(panel, l2=(1, 1))
    assert [number for _, number in trial.options] == [1]
    change(panel, hidden_sizes=(1, 1))
    assert "No trial is within all of these limits" in panel.message.value and not trial.options


def test_prediction_explorer(model, data):
    panel = widgets.prediction_explorer(model, data.test)
    wrong = np.flatnonzero(model.predict(data.test.images) != data.test.labels)
    assert change(panel, index=59)
    change(panel, mistakes=True)
    assert panel.controls["index"].max == len(wrong) - 1
    assert change(panel, index=3)
    i = wrong[3]
    proba = model.predict_proba(data.test.images)[i]
    expected = plots.prediction(data.test.images[i], proba, data.classes, int(data.test.labels[i]))
    assert panel.picture.value == plots.png(expected)


def test_prediction_explorer_without_mistakes(model, data):
    split = nnlib.Split(data.test.images, model.predict(data.test.images))
    panel = widgets.prediction_explorer(model, split)
    assert not change(panel, mistakes=True)
    assert "no mistakes" in panel.message.value
    assert change(panel, mistakes=False, index=1)
    assert not panel.message.value


def test_weight_browser(model):
    panel = widgets.weight_browser(model)
    for kind in ("heat map", "images, initial", "images, trained"):
        assert change(panel, kind=kind)
        assert not panel.message.value
    assert not change(panel, layer="W3")
    assert "Choose W1" in panel.message.value
    assert change(panel, kind="histogram")
    assert not panel.message.value


def test_weight_browser_shows_each_epoch_of_its_films(model):
    films = {e: {n: p + e for n, p in model.initial_parameters().items()} for e in (0, 2, 5)}
    panel = widgets.weight_browser(model, films)
    epoch = panel.controls["epoch"]
    assert epoch.options == (0, 2, 5) and epoch.value == 5 and epoch.layout.display is None
    assert change(panel, epoch=2)
    names = ("W1", "b1")
    expected = [{n: films[e][n] for n in names} for e in (0, 2)]
    assert panel.picture.value == plots.png(plots.weight_histograms(*expected))
    assert change(panel, kind="images, trained")
    assert change(panel, kind="images, initial")
    # The initial weights are the same in each epoch.
    assert not change(panel, epoch=5) and not panel.message.value
    nothing_to_choose = widgets.weight_browser(model).controls["epoch"]
    assert nothing_to_choose.layout.display == "none"


def test_learning_rate_explorer_shows_divergence(data):
    panel = widgets.learning_rate_explorer(data)
    assert "the loss goes from" in title(panel)
    before, after = map(float, re.findall(r"from (\S+) to (\S+)", title(panel))[0])
    assert abs(before - np.log(10)) < 0.2 and after < before - 0.1
    assert change(panel, learning_rate=10)
    assert "stops being a number" in title(panel) and not panel.message.value
    change(panel, learning_rate=0.0001, momentum=0.5)
    before, after = map(
        float, re.findall(r"At 0.0001 and 0.5 the loss goes from (\S+) to (\S+)", title(panel))[0]
    )
    assert abs(before - after) < 0.1


def title(panel):
    """The first title that the current values give: a PNG can't be read, so it is drawn again."""
    return (
        panel.draw(**{name: control.value for name, control in panel.controls.items()})
        .axes[0]
        .get_title()
    )


@pytest.mark.parametrize(
    ("pattern", "first", "second", "least"),
    [("rings", 6, 0, 95), ("XOR", 4, 4, 95), ("moons", 6, 0, 95)],
)
def test_decision_boundary_learns(pattern, first, second, least):
    panel = widgets.decision_boundary()
    change(panel, points=pattern, first=first, second=second)
    assert not panel.message.value
    assert int(re.findall(r"Step 1000: (\d+)%", title(panel))[0]) >= least
    figure = panel.draw(
        pattern, 1000, first=first, second=second, activation="tanh", learning_rate=0.1
    )
    assert len(figure.axes[1].texts) == first + second  # every hidden unit has its map
    assert change(panel, step=0)
    assert int(re.findall(r"Step 0: (\d+)%", title(panel))[0]) < 90


def test_decision_boundary_tells_of_divergence():
    panel = widgets.decision_boundary()
    change(panel, first=12, second=8, activation="identity")
    assert not change(panel, learning_rate=10)
    assert "The likely cause is the learning rate" in panel.message.value
    assert change(panel, activation="tanh", learning_rate=0.1) and not panel.message.value


def picture_file(kind: str, size=(50, 40), color=(10, 200, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA" if kind == "PNG" else "RGB", size, color).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_read_image_takes_the_square_in_the_middle_and_means_of_blocks(kind):
    assert (widgets.read_image(picture_file(kind)) == np.reshape([10, 200, 30], (3, 1, 1))).all()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :16] = 255  # beside the square in the middle
    pixels[:2, 16:18] = [[[100], [0]], [[100], [0]]]  # a block with the mean 50
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    image = widgets.read_image(out.getvalue())
    assert image.shape == (3, 32, 32) and image.dtype == np.uint8
    assert image[0, 0, 0] == 50 and image[:, 1:].max() == 0


def test_read_image_puts_what_is_transparent_on_white():
    out = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(out, "PNG")
    assert (widgets.read_image(out.getvalue()) == 255).all()


@pytest.mark.parametrize("content", [b"", b"hello", picture_file("PNG")[:60]])
def test_a_file_that_is_no_image_is_told_in_words(model, content):
    with pytest.raises(
        nnlib.DataError, match=r"cat.txt: this can't be read as an image. Use a PNG"
    ):
        widgets.read_image(content, "cat.txt")
    panel = widgets.draw(model)
    assert not change(panel, upload=({"name": "cat.txt", "content": memoryview(content), **ABOUT},))
    assert "cat.txt: this can&#x27;t be read" in panel.message.value


ABOUT = {"type": "", "size": 0, "last_modified": datetime.datetime.now(datetime.UTC)}


def test_draw_shows_what_the_network_makes_of_squares_and_files(model):
    panel = widgets.draw(model)
    first, (row, grid, *_) = panel.picture.value, panel.children
    assert not panel.message.value
    color, fill = row.children[1:]
    assert color.description == "color"
    color.value = "#ff0000"
    grid.children[9].click()
    assert grid.children[9].style.button_color == "#ff0000" and panel.picture.value != first
    fill.click()
    image = np.zeros((1, 3, 32, 32), np.uint8)
    image[:, 0] = 255
    expected = plots.prediction(
        image[0], model.predict_proba(image)[0], model.classes, int(model.predict(image)[0])
    )
    expected.axes[0].set_title("What the network sees")
    assert panel.picture.value == plots.png(expected)
    content = picture_file("PNG", color=(255, 0, 0))
    change(panel, upload=({"name": "red.png", "content": memoryview(content), **ABOUT},))
    assert (
        panel.picture.value == plots.png(expected) and grid.children[9].style.button_color is None
    )


def test_an_error_stands_in_the_panel_and_the_picture_stays():
    def draw(n):
        if n:
            raise ValueError("<n> is odd")
        return plots.activation_functions(["relu"])

    panel = widgets.Panel(draw, 100, n=IntSlider())
    assert not change(panel, n=1)
    assert "ValueError: &lt;n&gt; is odd" in panel.message.value


def test_no_widget_uses_pyplot_or_output():
    code = (
        "import sys; from nnlib import widgets; widgets.activation_explorer(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.pyplot" not in done.stdout.split()
