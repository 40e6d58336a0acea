"""What watches a training and what stops it: divergence, warnings, patience, Ctrl-C, callbacks,
what is printed."""

import math
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ipywidgets import VBox
from small_runs import (
    DATA,
    EVERYTHING,
    PLAIN,
    At,
    pictures,
    run_script,
    same,
    stop,
    timeless,
    train,
)

import nnlib
from nnlib.network.mlp import MLP
from nnlib.network.saving import read_arrays
from nnlib.training.callbacks import Callback
from nnlib.training.health import layer_health
from nnlib.training.trainer import Trainer

# What stops a run.


@pytest.mark.parametrize("name", ["W1", "b2"])
def test_divergence_names_step_layer_and_rate_and_keeps_what_was_finite(tmp_path, name):
    def spoil(trainer):
        trainer.model.parameters[name].flat[0] = np.nan

    words = rf"loss is nan at step 17 \(epoch 3\): {name} is not finite"
    words += r".*learning rate, 0\.05 here, .*: try a third"
    with pytest.raises(nnlib.TrainingDiverged, match=words):
        train(PLAIN, DATA, At(17, spoil), run_dir=tmp_path)
    run = nnlib.load_run(tmp_path)
    assert len(run.history) == 2 and np.isfinite(nnlib.evaluate(run.model, DATA.valid).loss)
    state, _ = read_arrays(tmp_path / "last.npz")
    assert all(np.isfinite(a).all() for a in state.values())
    assert same(train(run_dir=tmp_path), train())  # without the accident


def test_divergence_names_the_layer_whose_activations_overflow_and_brings_the_run():
    def grow(trainer):
        trainer.model.parameters["W2"][:] = 1e38

    hp = PLAIN.replace(hidden_sizes=(8, 8, 8), activation="leaky_relu")
    with pytest.raises(
        nnlib.TrainingDiverged, match="the activations of layer 2 overflow"
    ) as raised:
        train(hp, DATA, At(10, grow))
    run = raised.value.run
    assert (
        len(run.history) == 1
        and nnlib.evaluate(run.model, DATA.valid).loss == run.best["valid_loss"]
    )

    def grow_last(trainer):
        trainer.model.parameters["W4"][:] = 3e38

    with pytest.raises(nnlib.TrainingDiverged, match=r"the logits \(layer 4\) overflow"):
        train(hp, DATA, At(10, grow_last))


def test_divergence_that_validation_finds_names_the_layer_too():
    def grow(trainer):
        trainer.model.parameters["W2"][:] = 1e38

    hp = PLAIN.replace(hidden_sizes=(8, 8, 8), activation="leaky_relu")
    with pytest.raises(nnlib.TrainingDiverged, match="the activations of layer 2 overflow"):
        train(hp, DATA, At(14, grow))  # the last step of epoch 2


def kill_units(trainer):
    trainer.model.parameters["b1"][:] = -1000


def saturate(trainer):
    trainer.model.parameters["W2"] *= 1000


def grow_all(trainer):
    for p in trainer.model.parameters.values():
        p *= 50


def explode(trainer):
    trainer.model.parameters["W1"] *= 1000


@pytest.mark.parametrize(
    "activation, harm, words",
    [
        ("relu", kill_units, "layer 1 is dead: no image moves 100% of its units"),
        ("tanh", saturate, "layer 2 is saturated: "),
        ("sigmoid", explode, "the weights W1 explode: they are 1000 times as long as at first"),
        ("leaky_relu", grow_all, "the outputs are saturated: certain of "),
    ],
)
def test_what_is_wrong_is_said_once_in_words(tmp_path, capsys, activation, harm, words):
    hp = PLAIN.replace(hidden_sizes=(16, 16), activation=activation, learning_rate=1e-9, epochs=4)
    run = nnlib.train(hp, DATA, tmp_path, callbacks=[At(10, harm), At(16, stop)])
    assert [text for text in run.warnings if text.startswith(f"epoch 2: {words}")], run.warnings
    run = nnlib.train(hp, DATA, tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().out.count(words) == 1 == log.count(words)
    assert "Try a smaller learning rate." in run.warnings[0]


@pytest.mark.parametrize("activation", sorted(nnlib.ACTIVATIONS))
def test_healthy_networks_are_not_warned_of(activation):
    assert train(PLAIN.replace(activation=activation, epochs=6)).warnings == ()
    assert train(EVERYTHING.replace(activation=activation)).warnings == ()


def test_a_rate_far_too_high_diverges():
    hp = PLAIN.replace(learning_rate=1000, activation="identity", l2=1)
    with pytest.raises(nnlib.TrainingDiverged, match="learning rate, 1000 here"):
        train(hp.replace(epochs=50))


def test_weights_spoilt_by_the_last_step_of_an_epoch_are_found_by_validation(tmp_path):
    def spoil(trainer):
        trainer.model.parameters["W2"][:] = np.inf

    with pytest.raises(nnlib.TrainingDiverged, match="W2 is not finite"):
        train(PLAIN, DATA, At(21, spoil), run_dir=tmp_path)
    state, meta = read_arrays(tmp_path / "last.npz")
    assert meta["step"] == 14 and all(np.isfinite(a).all() for a in state.values())


def test_patience(tmp_path):
    hp = PLAIN.replace(
        learning_rate=0, epochs=30, patience=4
    )  # nothing gets better after the first epoch
    run = train(hp, run_dir=tmp_path)
    assert len(run.history) == 5 and run.best_epoch == 1
    assert run.stopped == "stopped early: no better valid_accuracy in 4 epochs"
    assert run.stopped in (tmp_path / "log.txt").read_text() and run.stopped in repr(run)
    again = train(hp, run_dir=tmp_path)  # it stays stopped, or a resumed run would end elsewhere
    assert same(again, run) and again.stopped == run.stopped
    assert run.stopped in (tmp_path / "log.txt").read_text()


def test_patience_counts_on_across_a_stop(tmp_path):
    hp = PLAIN.replace(learning_rate=0, epochs=30, patience=4)
    train(hp, DATA, At(3 * 7 + 2, stop), run_dir=tmp_path)
    assert same(train(hp, run_dir=tmp_path), train(hp))


def interrupt(trainer):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_ctrl_c_ends_after_the_step_and_returns_the_run(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run = train(PLAIN, DATA, At(10, interrupt), run_dir=tmp_path)
    assert run.stopped == "interrupted" and len(run.history) == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert same(train(run_dir=tmp_path), train())


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_a_second_ctrl_c_ends_at_once():
    def twice(trainer):
        interrupt(trainer)
        interrupt(trainer)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which the background jobs of shells lack
    with pytest.raises(KeyboardInterrupt):
        train(PLAIN, DATA, At(10, twice))
    signal.signal(signal.SIGINT, before)


INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
from small_runs import At, DATA, PLAIN
import nnlib
hp = PLAIN.replace(epochs=1_000_000)
say = At(50, lambda trainer: print("on", flush=True))
run = nnlib.train(hp, DATA, run_dir=sys.argv[2], progress=False, callbacks=[say])
print(run.stopped, len(run.history) == len(nnlib.load_run(sys.argv[2]).history))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process there")
def test_a_signal_from_outside_leaves_no_traceback(tmp_path):
    with run_script(INTERRUPTED, Path(__file__).parents[1], tmp_path) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted True\n", "")


def test_it_runs_in_a_thread():
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train()))
    thread.start()
    thread.join()
    assert same(runs[0], train())


# Callbacks, files, words.


class Log(Callback):
    def __init__(self):
        self.moments = []

    def on_start(self, trainer):
        self.moments.append("start")

    def on_step(self, trainer):
        self.moments.append(trainer.step)

    def on_epoch(self, trainer):
        self.moments.append(f"epoch {trainer.epoch} {trainer.history[-1]['epoch']}")

    def on_end(self, trainer):
        self.moments.append("end")


def test_callbacks_are_called_in_order():
    log = Log()
    train(PLAIN.replace(batch_size=50, epochs=2), DATA, log)
    assert log.moments == ["start", 1, 2, "epoch 1 1", 3, 4, "epoch 2 2", "end"]


@pytest.mark.parametrize("moment", ["on_start", "on_step", "measure", "on_epoch", "on_end"])
@pytest.mark.parametrize("folder", [True, False])
def test_an_exception_in_a_callback_does_not_lose_the_run(tmp_path, moment, folder):
    log, other = Log(), Log()

    def fail(trainer):
        if moment in ("on_start", "on_end") or trainer.step == 14:
            raise ZeroDivisionError

    setattr(log, moment, fail)
    with pytest.raises(ZeroDivisionError) as raised:
        train(PLAIN, DATA, other, log, run_dir=tmp_path if folder else None)
    run = raised.value.run
    assert (
        len(run.history)
        == {"on_start": 0, "on_step": 1, "measure": 1, "on_epoch": 2, "on_end": 3}[moment]
    )
    assert not run.history or nnlib.evaluate(run.model, DATA.valid).loss == run.best["valid_loss"]
    assert other.moments[-1] == "end" and (moment == "on_end" or log.moments[-1] == "end")
    if folder:
        assert read_arrays(tmp_path / "last.npz")[1]["step"] == {"on_start": 0, "on_end": 21}.get(
            moment, 14
        )
        assert same(train(run_dir=tmp_path), train())


def test_a_callback_may_have_other_methods_as_a_widget_has():
    seen = []

    class Shown(VBox):
        def on_epoch(self, trainer):
            seen.append(trainer.epoch)

    train(PLAIN, DATA, Shown())
    assert seen == [1, 2, 3]


def test_a_callback_needs_only_the_methods_that_it_uses():
    steps = []
    train(PLAIN, DATA, SimpleNamespace(on_step=lambda trainer: steps.append(trainer.step)))
    assert steps == list(range(1, 22))


# Numbers about every layer.


def test_diagnostics_are_those_of_a_naive_computation(tmp_path):
    hp, kept = PLAIN.replace(hidden_sizes=(8, 6), activation="relu", l2=0.1, batch_size=30), {}

    class Keep(Callback):
        def on_step(self, trainer):
            kept[trainer.step] = {n: p.astype(float) for n, p in trainer.model.parameters.items()}

    run = train(hp, DATA, Keep(), nnlib.Diagnostics(), run_dir=tmp_path)
    model = Trainer(hp, DATA).model.astype(np.float64)
    for record in run.history:
        p, before = kept[record["step"]], kept[record["step"] - 1]
        model.parameters = p
        x = model.inputs(DATA.train.images[:30])
        _, gradients = model.loss_and_gradients(x, DATA.train.labels[:30], 0.1)
        for layer in (1, 2, 3):
            W = p[f"W{layer}"]
            assert record[f"weight_norm_{layer}"] == pytest.approx(np.sqrt((W**2).sum()), rel=1e-5)
            assert record[f"gradient_norm_{layer}"] == pytest.approx(
                np.linalg.norm(gradients[f"W{layer}"]), rel=1e-4
            )
            ratio = np.linalg.norm(W - before[f"W{layer}"]) / np.linalg.norm(W)
            assert record[f"update_ratio_{layer}"] == pytest.approx(ratio, rel=1e-2) and ratio > 0
        z = model.inputs(DATA.valid.images) @ p["W1"] + p["b1"]
        assert record["dead_1"] == (z <= 0).all(axis=0).mean()
        assert "dead_2" in record and "dead_3" not in record
    assert nnlib.load_run(tmp_path).history == run.history


@pytest.mark.parametrize("size", [16, 100])  # seven steps an epoch, and one
def test_diagnostics_change_nothing_and_survive_a_resume(tmp_path, size):
    hp = EVERYTHING.replace(batch_size=size, epochs=4, warmup_steps=2)
    whole = train(hp, DATA, nnlib.Diagnostics())
    names = set(train(hp).history[0])
    for record, plain in zip(timeless(whole.history), timeless(train(hp).history), strict=True):
        assert {n: v for n, v in record.items() if n in names} == plain
        assert all(np.isfinite(v) for v in record.values()) and record["update_ratio_1"] > 0
    for step in range(1, 28, 3):
        train(hp, DATA, nnlib.Diagnostics(), At(step, stop), run_dir=tmp_path)
    assert same(train(hp, DATA, nnlib.Diagnostics(), run_dir=tmp_path), whole)


def test_diagnostics_may_be_switched_on_later(tmp_path):
    train(PLAIN, DATA, At(8, stop), run_dir=tmp_path)
    run = train(PLAIN, DATA, nnlib.Diagnostics(), run_dir=tmp_path)
    loaded = nnlib.load_run(tmp_path)
    assert math.isnan(loaded.history[0]["dead_1"]) and loaded.history[1:] == run.history[1:]


def test_dead_and_saturated_are_told_apart():
    model = MLP((2, 4, 4, 2), ("relu", "tanh"))
    x = np.random.default_rng(0).uniform(0.1, 1, (50, 2)).astype(np.float32)
    p = model.parameters
    p["W1"][:] = [[1, -1, 1, -1]] * 2  # two units that no positive input moves
    p["W2"][:] = [[100, 0, 0, 0]] + [[0] * 4] * 3  # one unit in four is saturated
    assert layer_health(model, x) == [(0.5, 0.0), (0.25, 0.25)]


def test_the_range_test_finds_where_the_loss_falls_and_where_it_explodes():
    data = pictures(900, 0)
    hp = PLAIN.replace(hidden_sizes=(16,), schedule="cosine", warmup_steps=9)
    found = nnlib.find_learning_rate(hp, data, 1e-4, 1000.0, steps=120)
    assert len(found.rates) == len(found.losses) < 120  # the end is cut off
    np.testing.assert_allclose(found.rates[1:] / found.rates[:-1], 1e7 ** (1 / 119))
    lowest = found.losses.min()
    assert found.losses[0] == pytest.approx(math.log(3), abs=0.5) and lowest < found.losses[0] - 0.2
    assert (
        found.losses[:-1] <= 4 * np.minimum.accumulate(found.losses)[:-1]
    ).all() and found.losses[-1] > 2 * lowest
    assert found.suggestion == found.rates[found.losses.argmin()] / 10
    assert repr(found).startswith(
        f"RangeTest: suggestion {found.suggestion:.2g}, of {len(found.rates)} rates"
    )
    good, bad = (
        train(hp.replace(learning_rate=r), data) for r in (found.suggestion, found.suggestion / 100)
    )
    assert good.best["valid_loss"] < bad.best["valid_loss"]
    again = nnlib.find_learning_rate(hp, data, 1e-4, 1000.0, steps=120)
    np.testing.assert_array_equal(again.losses, found.losses)


def test_the_range_test_smooths_by_hand():
    losses = []

    found = nnlib.find_learning_rate(PLAIN, DATA, 1e-9, 2e-9, steps=3)  # the weights hardly move
    trainer = Trainer(
        PLAIN,
        DATA,
        progress=False,
        callbacks=[SimpleNamespace(on_step=lambda t: losses.append(t.last_loss))],
    )
    trainer.learning_rate = lambda step: 1e-9
    trainer.run(until=1)
    a, b, c = losses[:3]
    np.testing.assert_allclose(
        found.losses, [a, (0.9 * a + b) / 1.9, (0.81 * a + 0.9 * b + c) / 2.71], rtol=1e-5
    )


@pytest.mark.parametrize("low, high, steps", [(0, 1, 9), (1, 1, 9), (2, 1, 9), (0.1, 1, 1)])
def test_the_range_test_refuses_an_empty_range(low, high, steps):
    with pytest.raises(nnlib.HyperparameterError, match=r"^low, high, steps: "):
        nnlib.find_learning_rate(PLAIN, DATA, low, high, steps)


def test_a_callback_may_stop_at_an_epoch():
    class Stop(Callback):
        def on_epoch(self, trainer):
            trainer.stop("after the first")

    run = train(PLAIN, DATA, Stop())
    assert len(run.history) == 1 and run.stopped == "after the first"


def test_what_is_printed(capsys):
    train()
    assert capsys.readouterr() == ("", "")
    run = nnlib.train(PLAIN, DATA)  # no terminal: one line an epoch
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and f"valid loss {run.history[1]['valid_loss']:.4f}" in lines[1]
    assert repr(run).startswith("TrainingRun: 3 epochs in ") and run.seconds == sum(
        run.history.column("seconds")
    )


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    nnlib.train(PLAIN, DATA)
    shown = capsys.readouterr().err
    assert "21/21" in shown and "step" in shown
