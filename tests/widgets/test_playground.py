"""The training playground and the live plot, without a browser: train, draw, pause, stop."""

import threading
import time

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import nnlib
from nnlib import plots, widgets
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.widgets.controls import FIELDS
from nnlib.widgets.playground import PLAYED


@pytest.fixture(scope="module")
def data() -> nnlib.Dataset:
    return nnlib.load_dataset("standin", n_train=600, n_valid=60, n_test=60)


@pytest.fixture
def playground(data):
    playground = widgets.training_playground(
        data, Hyperparameters(hidden_sizes=(8,), epochs=2, batch_size=20, momentum=0.0)
    )
    yield playground
    playground.close()
    if playground.thread:
        playground.thread.join(120)
        assert not playground.thread.is_alive()


def until(condition, seconds: float = 20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("name", PLAYED)
def test_controls_offer_what_the_field_allows(playground, name):
    control, about = playground.controls[name], FIELDS[name].metadata
    assert control.tooltip == about["help"]
    for end in ("min", "max"):
        if name not in ("learning_rate", "hidden_sizes") and hasattr(control, end):
            limit = getattr(control, end)
            about["check"](name, limit)
            assert limit == pytest.approx(about["range"][end == "max"], abs=0.011)
    for option in getattr(control, "options", ()):
        about["check"](name, option)


def test_playground_shows_its_setting_as_a_line_of_code(playground, data):
    playground.controls["hidden_sizes"].value = "4, 3"
    playground.controls["momentum"].value = 0.5000000000000001
    text = playground.code.value
    assert "nnlib.train(nnlib.Hyperparameters(hidden_sizes=(4, 3), " in text
    assert "momentum=0.5" in text
    assert playground.hyperparameters() == Hyperparameters(
        hidden_sizes=(4, 3), epochs=2, batch_size=20, momentum=0.5
    )


@pytest.mark.parametrize("text", ["12, x", "0", "-3", "64; 32", "1e3"])
def test_playground_refuses_sizes_that_are_none(playground, text):
    playground.controls["hidden_sizes"].value = text
    assert "hidden_sizes" in playground.message.value
    assert playground.buttons["Start"].disabled


def test_playground_says_what_makes_no_sense(playground):
    playground.controls["momentum"].value = 0.0
    playground.controls["nesterov"].value = True
    assert "it needs a momentum above 0" in playground.message.value
    assert playground.buttons["Start"].disabled
    playground.controls["momentum"].value = 0.9
    assert not playground.message.value
    assert not playground.buttons["Start"].disabled


def test_playground_trains_as_nnlib_train_does(playground, data):
    empty = playground.picture.value
    playground.buttons["Start"].click()
    playground.thread.join(120)
    assert playground.picture.value != empty
    assert playground.status.value.startswith("2 of 2 epochs, 60 steps")
    history = nnlib.train(playground.hyperparameters(), data, progress=False).history
    shown = [record["valid_loss"] for record in playground.runs[0] if "valid_loss" in record]
    assert shown == history.column("valid_loss").tolist()
    points = [record for record in playground.runs[0] if "train_loss" in record]
    assert [round(point["epoch"], 3) for point in points] == [
        round(i / 10, 3) for i in range(1, 21)
    ]
    first = np.mean([point["train_loss"] for point in points[:10]])
    assert first == pytest.approx(history[0]["train_loss"], rel=1e-6)


def test_playground_draws_twice_a_second_and_stops(playground):
    playground.controls["epochs"].value = 10_000
    times = []
    playground.picture.observe(lambda _: times.append(time.monotonic()), "value")
    playground.buttons["Start"].click()
    until(lambda: len(times) > 6)
    playground.buttons["Stop"].click()
    playground.thread.join(120)
    assert not playground.thread.is_alive()
    assert "stopped" in playground.status.value
    # Twice as long as it should be, for machines that are busy.
    assert np.median(np.diff(times)) < 0.5 * 2


class Gate(threading.Event):
    """An event that tells whether somebody waits for it."""

    waiting = False

    def wait(self, timeout=None):
        self.waiting = not self.is_set()
        return super().wait(timeout)


def test_playground_pauses_and_goes_on(playground):
    playground.going = gate = Gate()
    playground.controls["epochs"].value = 10_000
    playground.buttons["Start"].click()
    until(lambda: "steps" in playground.status.value)
    playground.pause.value = True
    assert playground.pause.description == "Resume"
    until(lambda: gate.waiting)
    status = playground.status.value
    time.sleep(0.6)
    assert playground.status.value == status
    playground.pause.value = False
    until(lambda: playground.status.value != status)
    playground.pause.value = True
    playground.buttons["Stop"].click()  # a paused run can be stopped
    playground.thread.join(120)
    assert not playground.thread.is_alive()
    assert playground.pause.description == "Pause"


def test_second_start_does_nothing(playground):
    playground.controls["epochs"].value = 10_000
    playground.buttons["Start"].click()
    thread, n_threads = playground.thread, threading.active_count()
    playground.buttons["Start"].click()
    assert playground.thread is thread
    assert threading.active_count() == n_threads


def test_only_one_playground_trains(playground, data):
    other = widgets.training_playground(data, playground.base)
    playground.controls["epochs"].value = 10_000
    playground.start()
    until(lambda: "steps" in playground.status.value)
    other.start()
    other.thread.join(120)
    assert "Another widget is training" in other.message.value and not other.runs
    assert "Another widget is training" in widgets.decision_boundary().message.value
    playground.stop()
    playground.thread.join(120)
    other.start()
    assert not other.message.value
    other.close()
    other.thread.join(120)


def test_divergence_is_told_and_the_next_run_is_not_hindered(playground):
    playground.controls["learning_rate"].value = 10
    playground.controls["epochs"].value = 50
    playground.start()
    playground.thread.join(120)
    assert "The likely cause is the learning rate" in playground.message.value
    assert not playground.runs
    playground.controls["learning_rate"].value = 0.01
    playground.controls["epochs"].value = 1
    playground.start()
    playground.thread.join(120)
    assert not playground.message.value
    assert len(playground.runs) == 1


def test_reset_forgets_runs_and_settings(playground):
    empty, code = playground.picture.value, playground.code.value
    playground.controls["learning_rate"].value = 0.02
    playground.controls["hidden_sizes"].value = "3"
    playground.controls["epochs"].value = 10_000
    playground.start()
    playground.buttons["Reset"].click()
    assert not playground.thread.is_alive()
    assert (playground.picture.value, playground.code.value, playground.runs) == (empty, code, [])


def test_closing_the_last_view_stops(playground):
    playground.controls["epochs"].value = 10_000
    playground.start()
    playground._view_count = 2  # as the browser says it
    playground._view_count = 1
    assert not playground.stopping.is_set()
    playground._view_count = 0
    playground.thread.join(120)
    assert not playground.thread.is_alive()


def test_playground_shows_gradients_as_it_trains(playground):
    empty = playground.gradients.value
    playground.start()
    playground.thread.join(120)
    assert playground.gradients.value != empty
    (records,) = playground.runs
    rows = [record for record in records if "gradient_norm_1" in record]
    # From before the first step to the end.
    assert len(rows) >= 2 and rows[0]["epoch"] == 0 and rows[-1]["epoch"] == 2
    assert all(record["gradient_norm_2"] > 0 for record in rows)
    assert playground.gradients.value == plots.png(plots.gradient_norms(records))


def test_closing_the_widget_stops(playground):
    playground.controls["epochs"].value = 10_000
    playground.start()
    playground.close()
    playground.thread.join(120)
    assert not playground.thread.is_alive()


def test_playground_takes_arrays_that_are_no_images():
    rng = np.random.default_rng(0)
    own = nnlib.Dataset.from_arrays(rng.normal(size=(200, 4)), rng.integers(0, 3, 200))
    playground = widgets.training_playground(own, Hyperparameters(hidden_sizes=(5,), epochs=2))
    playground.start()
    playground.thread.join(120)
    assert not playground.message.value
    assert len(playground.runs) == 1


LIVE = """
import numpy as np, nnlib
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8)
data = nnlib.Dataset.from_arrays(images, np.arange(60) % 3)
live = nnlib.LivePlot()
pictures = set()
class Watch(nnlib.Callback):
    def on_epoch(self, trainer):
        live.drawn = 0  # as if time had gone by
        pictures.add(live.picture.value)
hp = nnlib.Hyperparameters(hidden_sizes=(4,), batch_size=8, epochs=3)
run = nnlib.train(hp, data, progress=False, callbacks=[live, Watch()])
"""


def test_the_live_plot_is_drawn_anew_in_its_place_and_leaves_a_plain_picture():
    cells = [LIVE, "print(len(pictures), len(live.records) > 20)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3", store_widget_state=False).execute()
    (output,) = notebook.cells[0].outputs  # one display, whatever was drawn on the way
    assert (
        set(output["data"]) == {"image/png", "text/plain"}
        and output["metadata"]["image/png"]["alt"]
    )
    assert output["data"]["image/png"].startswith("iVBORw0KGgo")
    assert notebook.cells[1].outputs[0]["text"] == "3 True\n"


def test_the_live_plot_draws_nothing_outside_of_notebooks(data, capsys):
    live = nnlib.LivePlot()
    hp = Hyperparameters(hidden_sizes=(8,), epochs=1, batch_size=20)
    run = nnlib.train(hp, data, progress=False, callbacks=[live])
    assert len(run.history) == 1 and not live.picture.value and capsys.readouterr().out == ""
    with pytest.raises(AttributeError, match="No nnlib attribute LivPlot"):
        _ = nnlib.LivPlot
