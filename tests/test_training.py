"""Training: what it computes, what it keeps, and that a run broken off anywhere ends as if it never had been."""

import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import nnlib
from nnlib.batches import Batches
from nnlib.callbacks import Callback, layer_health
from nnlib.checkpoints import read_arrays, write_arrays
from nnlib.losses import softmax_cross_entropy
from nnlib.model import MLP
from nnlib.optimizers import SGD
from nnlib.preprocessing import augment, fit_preprocessing
from nnlib.rundir import RunDirectory, _commit
from nnlib.schedules import make_schedule
from nnlib.training import Trainer, useful_threads


def pictures(n: int, seed: int) -> nnlib.Dataset:
    """n pictures (3, 4, 4) of three classes that overlap; a sixth for validation, a sixth for the test."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    means = np.random.default_rng(99).normal(128, 25, (3, 3, 4, 4))
    images = np.clip(means[labels] + rng.normal(0, 60, (n, 3, 4, 4)), 0, 255).astype(np.uint8)
    return nnlib.Dataset.from_arrays(images, labels, ["a", "b", "c"], n_valid=n // 6, n_test=n // 6)


DATA = pictures(150, 0)  # 100 to train on: six batches of 16 and one of 4
PLAIN = nnlib.Hyperparameters(hidden_sizes=(8,), batch_size=16, epochs=3, learning_rate=0.05, seed=3)
EVERYTHING = PLAIN.replace(
    activation="gelu",
    preprocessing="whiten",
    components=20,
    flip=True,
    shift=1,
    momentum=0.9,
    nesterov=True,
    clip_norm=2.0,
    l2=1e-3,
    dropout=0.2,
    input_dropout=0.1,
    label_smoothing=0.1,
    ema=0.9,
    schedule="cosine",
    warmup_steps=5,
)


class At(Callback):
    """Does something after one step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.do(trainer)


def stop(trainer):
    trainer.stop("enough")


def train(hp=PLAIN, data=DATA, *callbacks, **options) -> nnlib.TrainingRun:
    return nnlib.train(hp, data, progress=False, callbacks=callbacks, **options)


def timeless(history) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def same(run: nnlib.TrainingRun, other: nnlib.TrainingRun) -> bool:
    """Whether best weights and history, seconds apart, are the same bits."""
    p, q = run.model.parameters, other.model.parameters
    return timeless(run.history) == timeless(other.history) and all(p[n].tobytes() == q[n].tobytes() for n in p)


def on_disk(folder: Path) -> tuple:
    """All that a run folder says, seconds apart, as bits."""
    last, meta = read_arrays(folder / "last.npz")
    groups = {path.name: read_arrays(path)[0] for path in folder.glob("best*.npz")} | {"last": last}
    run = nnlib.load_run(folder)
    arrays = {(kind, name): a.tobytes() for kind, group in groups.items() for name, a in group.items()}
    return arrays, meta["step"], timeless(meta["history"]), timeless(run.history), run.hyperparameters


# What it computes.


def test_two_epochs_against_a_naive_loop():
    hp = PLAIN.replace(momentum=0.9, l2=0.01, epochs=2, activation="tanh", preprocessing="scale", schedule="cosine")
    run = train(hp)
    model, x, labels = MLP((48, 8, 3), "tanh", seed=3), DATA.train.images.reshape(100, 48) / 255, DATA.train.labels
    W1, b1, W2, b2 = (model.parameters[n].astype(float) for n in ("W1", "b1", "W2", "b2"))
    velocity, step, records = [0.0] * 4, 0, []
    for epoch in range(2):
        order, losses = np.random.default_rng([3, 1, epoch]).permutation(100), []
        for rows in np.split(order, range(16, 100, 16)):
            a = np.tanh(x[rows] @ W1 + b1)
            z = a @ W2 + b2
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            losses += list(-np.log(p[range(len(rows)), labels[rows]]))
            d = (p - np.eye(3)[labels[rows]]) / len(rows)
            e = d @ W2.T * (1 - a**2)
            gradients = x[rows].T @ e + 0.01 * W1, e.sum(axis=0), a.T @ d + 0.01 * W2, d.sum(axis=0)
            velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
            rate = 0.05 * (1 + math.cos(math.pi * step / 14)) / 2
            W1, b1, W2, b2 = (q - rate * v for q, v in zip((W1, b1, W2, b2), velocity, strict=True))
            step += 1
        records.append((epoch + 1, step, rate, np.mean(losses)))
    found = [(r["epoch"], r["step"], r["learning_rate"], r["train_loss"]) for r in run.history]
    np.testing.assert_allclose(found, records, rtol=1e-6)
    z = np.tanh(DATA.valid.images.reshape(25, 48) / 255 @ W1 + b1) @ W2 + b2
    loss = np.mean(np.log(np.exp(z).sum(axis=1)) - z[range(25), DATA.valid.labels])
    assert run.history[-1]["valid_loss"] == pytest.approx(loss, rel=1e-5)
    assert run.history[-1]["valid_accuracy"] == (z.argmax(axis=1) == DATA.valid.labels).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoupled_l2": True, "nesterov": False, "flip": False},
        {"schedule": "step", "decay_rate": 0.5, "decay_every": 4, "min_learning_rate": 0.02, "momentum": 0},
        {"initialisation": "lecun_uniform", "whitening_floor": 0.5, "shift": 0, "ema": 0, "dropout": 0},
    ],
)
def test_every_hyperparameter_is_obeyed(changes):
    hp = EVERYTHING.replace(nesterov=changes.get("momentum", 1) > 0, epochs=2).replace(**changes)
    trainer = Trainer(hp, DATA, progress=False)
    trainer.run()
    fitted = fit_preprocessing("whiten", DATA.train.images, components=20, floor=hp.whitening_floor)
    model = MLP((20, 8, 3), "gelu", seed=3, initialisation=hp.initialisation, preprocessing=fitted)
    options = {name: getattr(hp, name) for name in ("momentum", "nesterov", "clip_norm", "ema")}
    sgd = SGD(model.parameters, decoupled_l2=1e-3 if hp.decoupled_l2 else 0, **options)
    names = ("decay_rate", "decay_every", "min_learning_rate", "warmup_steps")
    rate = make_schedule(hp.schedule, 0.05, 14, **{name: getattr(hp, name) for name in names})
    for step in range(14):
        if step % 7 == 0:
            order = np.random.default_rng([3, 1, step // 7]).permutation(100)
        rows = order[step % 7 * 16 :][:16]
        images = DATA.train.images[rows]
        x = fitted.transform(augment(images, np.random.default_rng([3, 2, step]), flip=hp.flip, shift=hp.shift))
        masks = model.dropout_masks(len(rows), np.random.default_rng([3, 3, step]), hp.dropout, hp.input_dropout)
        _, dlogits = softmax_cross_entropy(model.forward(x, masks), DATA.train.labels[rows], label_smoothing=0.1)
        model.backward(dlogits, 0 if hp.decoupled_l2 else 1e-3, out=sgd.into, factor=sgd.factor)
        sgd.step(rate(step))
    for name, p in model.parameters.items():
        np.testing.assert_array_equal(trainer.model.parameters[name], p)
        np.testing.assert_array_equal(trainer.evaluated.parameters[name], (sgd.average or model.parameters)[name])


def test_it_learns():
    data = pictures(900, 0)
    run = train(PLAIN.replace(epochs=20), data)
    assert run.history[0]["train_loss"] > 1.5 * run.history[-1]["train_loss"]
    assert nnlib.evaluate(run.model, data.test).accuracy > 0.8


def test_twenty_images_are_learnt_to_a_loss_below_a_thousandth():
    data = DATA.subset(20)
    run = train(nnlib.Hyperparameters(hidden_sizes=(32,), batch_size=20, epochs=400, momentum=0.9, seed=1), data)
    assert run.history[-1]["train_loss"] < 0.001 and run.history[-1]["train_accuracy"] == 1


def test_every_image_once_an_epoch_in_an_order_of_its_own():
    seen = []

    class Watching(Batches):
        def inputs(self, chosen, step):
            seen.append(chosen.copy())
            return super().inputs(chosen, step)

    trainer = Trainer(PLAIN, DATA, progress=False)
    trainer.batches = Watching(DATA.train, trainer.model, PLAIN)
    trainer.run()
    assert [len(chosen) for chosen in seen] == [16, 16, 16, 16, 16, 16, 4] * 3
    orders = np.concatenate(seen).reshape(3, 100)
    np.testing.assert_array_equal(np.sort(orders), [range(100)] * 3)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()


def test_seeds_of_weights_order_augmentation_and_dropout_are_streams_of_their_own():
    trainers = [Trainer(hp, DATA, progress=False) for hp in (PLAIN, PLAIN.replace(flip=True, shift=2, dropout=0.5))]
    for trainer in trainers:
        trainer.batches.inputs(np.arange(16), 0)  # draws augmentation, where there is any
    np.testing.assert_array_equal(*(trainer.batches.order(0) for trainer in trainers))
    np.testing.assert_array_equal(*(trainer.model.parameters["W1"] for trainer in trainers))
    draws = {trainers[0].batches.rng(stream, index).random() for stream in (1, 2, 3) for index in range(50)}
    assert len(draws) == 150


def test_same_seed_same_bits_whatever_the_process_did_before():
    first = train(EVERYTHING)
    np.random.default_rng().random(1000)
    train(EVERYTHING.replace(seed=8, components=5), pictures(120, 1))
    train(EVERYTHING.replace(whitening_floor=1))
    assert same(first, train(EVERYTHING))
    assert not same(first, train(EVERYTHING.replace(seed=4)))


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": "standardise", "activation": "relu"},
        {"preprocessing": "whiten", "components": 64, "activation": "leaky_relu", "dropout": 0.2, "input_dropout": 0.1},
        {"preprocessing": "scale", "activation": "tanh", "nesterov": True, "clip_norm": 1.0, "ema": 0.99},
        {"preprocessing": "standardise", "activation": "sigmoid", "decoupled_l2": True},
    ],
)
def test_steps_allocate_nothing_large(changes):
    data = nnlib.load_dataset("standin", n_train=1024, n_valid=100, n_test=10)
    common = {"hidden_sizes": (512, 256), "flip": True, "shift": 2, "momentum": 0.9, "l2": 1e-3, "label_smoothing": 0.1}
    trainer = Trainer(nnlib.Hyperparameters(**common, **changes), data, progress=False)
    trainer.train_step()
    largest = 0
    tracemalloc.start()
    for _ in range(6):  # into the second epoch
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        trainer.train_step()
        largest = max(largest, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert largest < 100_000  # a batch of float32 inputs would be 3 MB, the first layer's activations 0.5 MB


def blas_threads_now() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


class ThreadsSeen(Callback):
    def on_start(self, trainer):
        self.seen = blas_threads_now()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: there is nothing to limit")
def test_a_run_limits_its_own_threads_and_nobody_elses():
    before, small, told = blas_threads_now(), ThreadsSeen(), ThreadsSeen()
    with threadpool_limits(limits=2, user_api="blas"):
        train(PLAIN, DATA, small)
        assert small.seen == {1} and blas_threads_now() == {2}
        nnlib.train(PLAIN, DATA, progress=False, callbacks=[told], threads=2)
        assert told.seen == {2}
        with pytest.raises(nnlib.TrainingDiverged):
            train(PLAIN.replace(learning_rate=900), DATA)
        assert blas_threads_now() == {2}
    with threadpool_limits(limits=1, user_api="blas"):  # as OPENBLAS_NUM_THREADS=1 does
        nnlib.train(PLAIN, DATA, progress=False, callbacks=[told], threads=2)
        assert told.seen == {1}
    assert blas_threads_now() == before
    with pytest.raises(nnlib.HyperparameterError, match="threads: 0"):
        nnlib.train(PLAIN, DATA, threads=0)


def test_useful_threads_grow_with_the_work():
    sizes = [(3072, 64, 32, 10), (3072, 256, 10), (3072, 1024, 256, 10), (3072, 8192, 1024, 10)]
    threads = [useful_threads(MLP(layers), 256) for layers in sizes]
    assert threads[0] == 1 and threads == sorted(set(threads))
    assert useful_threads(MLP(sizes[2]), 1) == 1


def test_select_by_decides_whose_weights_are_kept():
    kept = {}

    class Keep(Callback):
        def on_epoch(self, trainer):
            kept[trainer.epoch] = {n: p.copy() for n, p in trainer.model.parameters.items()}

    hp = PLAIN.replace(epochs=15, learning_rate=0.3, hidden_sizes=(32,))
    chosen = {}
    for select_by, pick in (("valid_accuracy", max), ("valid_loss", min)):
        run = train(hp.replace(select_by=select_by), DATA, Keep())
        values = list(run.history.column(select_by))
        chosen[select_by] = values.index(pick(values)) + 1  # the first of equals
        assert run.best_epoch == run.best["epoch"] == chosen[select_by]
        for name, p in run.model.parameters.items():
            np.testing.assert_array_equal(p, kept[run.best_epoch][name])
        assert nnlib.evaluate(run.model, DATA.valid).accuracy == run.best["valid_accuracy"]
    assert chosen["valid_accuracy"] != chosen["valid_loss"] and max(chosen.values()) < 15


def test_the_moving_average_is_what_is_validated_and_kept():
    trainer = Trainer(PLAIN.replace(ema=0.9, epochs=1), DATA, progress=False)
    run = trainer.run()
    for name, average in trainer.optimizer.average.items():
        np.testing.assert_array_equal(run.model.parameters[name], average)
        assert name[0] == "b" or (trainer.model.parameters[name] != average).any()
    assert nnlib.evaluate(run.model, DATA.valid).loss == run.history[0]["valid_loss"]
    raw, averaged = train(PLAIN.replace(epochs=1)).history[0], run.history[0]
    assert raw["train_loss"] == averaged["train_loss"] and raw["valid_loss"] != averaged["valid_loss"]


def test_fine_tuning_starts_from_the_given_weights_and_their_preprocessing():
    hp = PLAIN.replace(preprocessing="whiten", components=20)
    first = train(hp)
    again = train(hp.replace(learning_rate=0, seed=9), pictures(120, 1), init=first.model)
    for name, p in first.model.parameters.items():
        np.testing.assert_array_equal(again.model.parameters[name], p)
        assert again.model.parameters[name] is not p
    np.testing.assert_array_equal(
        again.model.predict_logits(DATA.test.images), first.model.predict_logits(DATA.test.images)
    )


def test_fine_tuning_refuses_another_network():
    four = nnlib.Dataset.from_arrays(DATA.train.images, np.arange(100) % 4)
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^init: .*\(48, 8, 3\).*, but hp and data need .*\(48, 8, 4\)"
    ):
        train(PLAIN, four, init=train().model)
    with pytest.raises(nnlib.HyperparameterError, match=r"^init: .*leaky_relu.*tanh"):
        train(PLAIN.replace(activation="tanh"), DATA, init=train().model)


def test_fine_tuning_is_resumed_only_from_the_same_weights(tmp_path):
    model = train(PLAIN.replace(seed=9)).model
    whole = train(PLAIN, DATA, init=model)
    train(PLAIN, DATA, At(10, stop), init=model, run_dir=tmp_path)
    for init in (None, train().model):
        with pytest.raises(nnlib.CheckpointError, match=r"it began with other weights \(init=...\)"):
            train(PLAIN, DATA, init=init, run_dir=tmp_path)
    assert same(train(PLAIN, DATA, init=model, run_dir=tmp_path), whole)


def test_a_loss_of_ones_own_is_trained_by_and_validation_stays_cross_entropy():
    asked = []

    def only_the_first_class_counts(logits, labels):
        asked.append(len(labels))
        return softmax_cross_entropy(logits, labels, class_weights=np.array([1, 1e-9, 1e-9]))

    data = DATA.subset(99)
    run = train(PLAIN.replace(epochs=10), data, loss=only_the_first_class_counts)
    assert len(asked) == 70 and nnlib.evaluate(run.model, DATA.train).per_class["a"] == 1
    assert run.best["valid_loss"] == pytest.approx(nnlib.evaluate(run.model, data.valid).loss, rel=1e-6)
    smooth = PLAIN.replace(label_smoothing=0.1)
    assert same(train(PLAIN, DATA, loss=partial(softmax_cross_entropy, label_smoothing=0.1)), train(smooth))


def test_images_edited_in_place_are_preprocessed_anew():
    images = DATA.train.images.copy()
    data = nnlib.Dataset(nnlib.Split(images, DATA.train.labels), DATA.valid, DATA.test, DATA.classes, "x")
    before = Trainer(PLAIN, data).model.preprocessing
    assert Trainer(PLAIN.replace(seed=8), data).model.preprocessing is before  # kept, for it takes seconds
    images //= 2
    after = Trainer(PLAIN, data).model.preprocessing
    np.testing.assert_array_equal(after.scale, fit_preprocessing("standardise", images).scale)
    assert (after.scale != before.scale).all()


def test_the_exported_model_takes_raw_images_and_predicts_the_same():
    model = train(EVERYTHING).model
    assert model.classes == ("a", "b", "c")
    images = DATA.test.images
    np.testing.assert_allclose(model.folded().predict_proba(images), model.predict_proba(images), atol=1e-4)


def test_flat_floats_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    data = nnlib.Dataset.from_arrays(rng.standard_normal((60, 5)), np.arange(60) % 2)
    assert train(PLAIN, data).model.preprocessing is None
    with pytest.raises(nnlib.HyperparameterError, match=r"^flip, shift: they need images .* \(16, 5\)"):
        train(PLAIN.replace(flip=True), data)


@pytest.mark.parametrize(
    "sizes, words", [({"n_valid": 0}, "validation"), ({"n_valid": 20, "n_test": 10}, "0 training")]
)
def test_empty_splits_are_refused_before_the_first_epoch(sizes, words):
    data = nnlib.Dataset.from_arrays(DATA.train.images[:30], DATA.train.labels[:30], **sizes)
    with pytest.raises(nnlib.DataError, match=words):
        train(PLAIN, data)


# Exact resume.


@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("step", [1, 5, 7, 13, 14, 20])  # an epoch has 7 steps
def test_a_run_stopped_and_called_again_ends_as_one_never_stopped(tmp_path, hp, step):
    whole = train(hp, run_dir=tmp_path / "whole")
    part = train(hp, DATA, At(step, stop), run_dir=tmp_path / "parts")
    assert part.stopped == "enough" and len(part.history) == step // 7
    resumed = train(hp, run_dir=tmp_path / "parts")
    assert resumed.stopped == "" and same(resumed, whole)
    assert on_disk(tmp_path / "parts") == on_disk(tmp_path / "whole")
    assert same(nnlib.load_run(tmp_path / "parts"), whole)


def test_stopped_after_every_single_step(tmp_path):
    for step in range(1, 22):
        train(EVERYTHING, DATA, At(step, stop), run_dir=tmp_path)
    assert same(train(EVERYTHING, run_dir=tmp_path), train(EVERYTHING))


def test_a_finished_run_is_returned_at_once(tmp_path):
    first, steps = train(run_dir=tmp_path), []
    again = train(PLAIN, DATA, At(0, steps.append), run_dir=tmp_path)
    assert same(again, first) and not steps and again.history == first.history  # seconds too


def test_more_epochs_go_on(tmp_path, capsys):
    train(run_dir=tmp_path)
    assert same(train(PLAIN.replace(epochs=5), run_dir=tmp_path), train(PLAIN.replace(epochs=5)))
    assert capsys.readouterr().out == ""
    hp = PLAIN.replace(schedule="cosine")
    train(hp, run_dir=tmp_path / "cosine")
    longer = train(hp.replace(epochs=4), run_dir=tmp_path / "cosine")
    assert "epochs was 3, now 4: the schedule follows the new length" in capsys.readouterr().out
    assert longer.history[3]["learning_rate"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 27 / 28)) / 2)


@pytest.mark.parametrize("folder", [True, False])
def test_until_goes_to_an_epoch_and_again_to_the_end(tmp_path, folder):
    trainer = Trainer(EVERYTHING, DATA, run_dir=tmp_path if folder else None, progress=False)
    assert [len(trainer.run(until=n).history) for n in (1, 2, None)] == [1, 2, 3]
    assert same(trainer.result(), train(EVERYTHING))


def test_another_run_is_refused_and_named(tmp_path):
    train(run_dir=tmp_path)
    before = on_disk(tmp_path)
    with pytest.raises(
        nnlib.CheckpointError, match=r"hidden_sizes was \[8\], now \[9\]; learning_rate was 0\.05, now 0\.1\."
    ) as raised:
        train(PLAIN.replace(hidden_sizes=(9,), learning_rate=0.1), run_dir=tmp_path)
    assert "resume=False" in str(raised.value) and "momentum" not in str(raised.value)
    other = pictures(150, 1)
    with pytest.raises(nnlib.CheckpointError, match=f"fingerprint {DATA.fingerprint}, now {other.fingerprint}"):
        train(PLAIN, other, run_dir=tmp_path)
    assert on_disk(tmp_path) == before
    anew = train(PLAIN.replace(seed=4), run_dir=tmp_path, resume=False)
    assert same(anew, train(PLAIN.replace(seed=4))) and same(nnlib.load_run(tmp_path), anew)


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    middle = slice(len(raw) // 2, len(raw) // 2 + 100)  # one byte might be a date, which nobody misses
    raw[middle] = bytes(100)
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys, harm):
    whole = train(EVERYTHING)
    train(EVERYTHING, DATA, At(18, stop), run_dir=tmp_path)
    harm(tmp_path / "last.npz")
    assert same(train(EVERYTHING, run_dir=tmp_path), whole)
    said = capsys.readouterr().out
    assert "last.npz" in said and "Going on from the state before it, previous.npz" in said


def test_falling_back_does_not_put_the_damaged_state_in_the_place_of_the_good_one(tmp_path):
    train(PLAIN, DATA, At(18, stop), run_dir=tmp_path)
    damage(tmp_path / "last.npz")
    RunDirectory(tmp_path).open(Trainer(PLAIN, DATA, progress=False), resume=True)
    good, _ = read_arrays(tmp_path / "previous.npz")
    assert "parameters.W1" in good and not (tmp_path / "last.npz").exists()


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("hp", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_a_damaged_best_model_is_written_again_from_the_state(tmp_path, harm, hp):
    hp = hp.replace(learning_rate=0.3, epochs=12)
    whole = train(hp, run_dir=tmp_path / "whole")
    train(hp, DATA, At(7 * whole.best_epoch + 10, stop), run_dir=tmp_path / "parts")  # the best is not the last
    harm(tmp_path / "parts" / "best.npz")
    assert same(train(hp, run_dir=tmp_path / "parts"), whole)
    assert on_disk(tmp_path / "parts") == on_disk(tmp_path / "whole")


def test_a_best_model_from_the_future_of_another_schedule_is_not_kept(tmp_path):
    hp = PLAIN.replace(schedule="cosine", epochs=4)
    train(hp, DATA, At(10, stop), run_dir=tmp_path / "cut")
    train(hp, run_dir=tmp_path / "whole")
    (tmp_path / "cut" / "best.npz").write_bytes(
        (tmp_path / "whole" / "best.npz").read_bytes()
    )  # killed before last.npz
    run = train(hp.replace(epochs=9, learning_rate=0.05), DATA, At(12, stop), run_dir=tmp_path / "cut")
    assert run.best_epoch == 1 and nnlib.load_run(tmp_path / "cut").model.info["best"]["epoch"] == 1
    assert same(nnlib.load_run(tmp_path / "cut"), run)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda a: a.update({"parameters.W1": np.zeros((48, 9), np.float32)}),
            r"parameters\.W1 .* \(48, 8\), found .*9",
        ),
        (lambda a: a.update({"velocity.b2": np.zeros(1, np.float32)}), r"velocity\.b2 .* \(3,\), found float32 \(1,\)"),
        (lambda a: a.pop("velocity.W2"), r"velocity\.W2 .* found nothing"),
        (lambda a: a.pop("best.W2"), r"best\.W2 .* found nothing"),
    ],
)
def test_a_state_of_another_shape_is_refused(tmp_path, change, words):
    train(EVERYTHING.replace(preprocessing="scale"), DATA, At(17, stop), run_dir=tmp_path)
    arrays, meta = read_arrays(tmp_path / "last.npz")
    change(arrays)
    write_arrays(tmp_path / "last.npz", arrays, meta)
    with pytest.raises(nnlib.CheckpointError, match=words):
        train(EVERYTHING.replace(preprocessing="scale"), run_dir=tmp_path)


def test_both_states_damaged_are_refused(tmp_path):
    train(run_dir=tmp_path)
    damage(tmp_path / "last.npz")
    damage(tmp_path / "previous.npz")
    with pytest.raises(nnlib.CheckpointError, match=r"previous\.npz"):
        train(run_dir=tmp_path)


def test_what_a_killed_process_left_is_cleared_and_what_it_missed_is_written(tmp_path):
    train(run_dir=tmp_path)
    csv, log = ((tmp_path / name).read_text() for name in ("history.csv", "log.txt"))
    (tmp_path / "history.csv").write_text(csv[: len(csv) // 2])  # killed after last.npz and before the history
    (tmp_path / "log.txt").unlink()
    (tmp_path / ".last.npz.123.part").write_bytes(b"half a file")
    train(run_dir=tmp_path)
    assert (tmp_path / "history.csv").read_text() == csv and (tmp_path / "log.txt").read_text() == log
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    words = r"last\.npz: it cannot be written \(No space left on device\)\. Make room, or name another place"
    with monkeypatch.context() as patch, pytest.raises(nnlib.CheckpointError, match=words) as raised:
        train(PLAIN, DATA, At(10, lambda trainer: patch.setattr(np, "savez", full)), run_dir=tmp_path)
    assert len(raised.value.run.history) == 2  # in memory nothing is lost at all
    assert same(train(run_dir=tmp_path), train())


KILLED = """
import os, random, signal, sys
from pathlib import Path
import nnlib
from nnlib.training import Trainer, useful_threads
sys.path.insert(0, sys.argv[1])
from test_training import DATA, EVERYTHING, on_disk, same

def train(folder):
    return nnlib.train(EVERYTHING, DATA, folder, progress=False, keep_best=2, callbacks=[nnlib.Diagnostics()])

def events(folder):
    "How many calls and returns a run makes, and which of them while it saves."
    count, saving, inside = 0, [], 0
    def profile(frame, event, _):
        nonlocal count, inside
        count += 1
        if frame.f_code is Trainer._save.__code__:
            inside += {"call": 1, "return": -1}.get(event, 0)
        if inside:
            saving.append(count)
    sys.setprofile(profile)
    train(folder)
    sys.setprofile(None)
    return count, saving

def train_and_die(folder, moment):
    "In a process of its own: train, and be killed at the given call or return."
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0
    def profile(frame, event, _):
        nonlocal count
        count += 1
        if count >= moment:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
    train(folder)
    sys.setprofile(None)
    os._exit(0)

root, rng = Path(sys.argv[2]), random.Random(int(sys.argv[3]))
whole = train(root / "whole")
expected = on_disk(root / "whole")
count, saving = events(root / "counted")
killed = 0
for n in range(30):
    folder = root / str(n)
    moment = saving[len(saving) * n // 30 + rng.randrange(len(saving) // 30)] if n % 3 else rng.randrange(count)
    killed += train_and_die(folder, moment) == -signal.SIGKILL
    if (folder / "log.txt").exists():  # something was saved whole: one state or the one before it is there
        assert (folder / "last.npz").exists() or (folder / "previous.npz").exists(), n
    if n % 2:
        killed += train_and_die(folder, rng.randrange(count // 4)) == -signal.SIGKILL
    run = train(folder)
    assert same(run, whole) and on_disk(folder) == expected, (n, moment)
    assert not list(folder.glob(".*.part")), n
print(killed)
"""


def run_script(text: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes of its own, by fork")
def test_killed_at_any_of_thirty_moments_writes_included_it_ends_the_same(tmp_path):
    with run_script(KILLED, Path(__file__).parent, tmp_path, 1) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert int(out.splitlines()[-1]) >= 30


def test_a_folder_in_use_is_refused(tmp_path):
    with RunDirectory(tmp_path).locked(), pytest.raises(nnlib.CheckpointError, match="another process is training"):
        train(run_dir=tmp_path)
    train(run_dir=tmp_path)


# The best models.


@pytest.mark.parametrize("select_by", ["valid_accuracy", "valid_loss"])
def test_the_n_best_models_are_kept_and_no_others(tmp_path, select_by):
    hp = PLAIN.replace(epochs=12, learning_rate=0.3, hidden_sizes=(32,), select_by=select_by)
    run = train(hp, run_dir=tmp_path / "whole", keep_best=3)
    sign = 1 if select_by == "valid_loss" else -1
    ranked = sorted(run.history, key=lambda record: sign * record[select_by])[:3]
    names = ["best.npz", *(f"best-epoch-{record['epoch']:04d}.npz" for record in ranked[1:])]
    assert {path.name for path in (tmp_path / "whole").glob("*.npz")} == {*names, "last.npz", "previous.npz"}
    for name, record in zip(names, ranked, strict=True):
        model = nnlib.load_model(tmp_path / "whole" / name)
        assert nnlib.evaluate(model, DATA.valid).loss == record["valid_loss"] and model.info["best"] == record
    for step in (10, 25, 49, 50, 70):
        train(hp, DATA, At(step, stop), run_dir=tmp_path / "parts", keep_best=3)
    train(hp, run_dir=tmp_path / "parts", keep_best=3)
    for name in names:
        whole, parts = (read_arrays(tmp_path / folder / name)[0] for folder in ("whole", "parts"))
        assert all(whole[n].tobytes() == parts[n].tobytes() for n in whole)
    train(hp, run_dir=tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").glob("best*")] == ["best.npz"]


def test_more_than_one_best_model_needs_a_folder():
    for n in (0, 2):
        with pytest.raises(nnlib.HyperparameterError, match=f"^keep_best: {n} is not allowed"):
            train(PLAIN, DATA, keep_best=n)


def test_the_models_know_the_weights_that_the_run_began_with(tmp_path):
    run = train(run_dir=tmp_path)
    first = Trainer(PLAIN, DATA).model.parameters
    for model in (run.model, nnlib.load_run(tmp_path).model, run.model.astype(np.float64)):
        for name, p in model.initial_parameters().items():
            np.testing.assert_array_equal(p.astype(np.float32), first[name])
    run.model.seed = 4
    with pytest.raises(nnlib.CheckpointError, match="seed 4 does not give the weights that the run began with"):
        run.model.initial_parameters()
    tuned = train(PLAIN.replace(seed=5), DATA, init=train().model)
    with pytest.raises(nnlib.CheckpointError, match=r"init=\.\.\."):
        tuned.model.initial_parameters()


def test_folded_models_do_not_pretend_to_know_their_first_weights(tmp_path):
    path = nnlib.save_model(train().model, tmp_path / "m.npz", fold=True)
    with pytest.raises(nnlib.CheckpointError, match="folding changed the first layer"):
        nnlib.load_model(path).initial_parameters()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(nnlib.CheckpointError, match=r"file: no folder can be made here .*; name another"):
        train(run_dir=tmp_path / "file")


# What stops a run.


@pytest.mark.parametrize("name", ["W1", "b2"])
def test_divergence_names_step_layer_and_rate_and_keeps_what_was_finite(tmp_path, name):
    def spoil(trainer):
        trainer.model.parameters[name].flat[0] = np.nan

    words = rf"loss is nan at step 17 \(epoch 3\): {name} is not finite.*learning rate, 0\.05 here: try a third"
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
    with pytest.raises(nnlib.TrainingDiverged, match="the activations of layer 2 overflow") as raised:
        train(hp, DATA, At(10, grow))
    run = raised.value.run
    assert len(run.history) == 1 and nnlib.evaluate(run.model, DATA.valid).loss == run.best["valid_loss"]

    def grow_last(trainer):
        trainer.model.parameters["W4"][:] = 3e38

    with pytest.raises(nnlib.TrainingDiverged, match=r"the logits \(layer 4\) overflow"):
        train(hp, DATA, At(10, grow_last))


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
    hp = PLAIN.replace(learning_rate=0, epochs=30, patience=4)  # nothing gets better after the first epoch
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

    with pytest.raises(KeyboardInterrupt):
        train(PLAIN, DATA, At(10, twice))


INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_training import At, DATA, PLAIN
import nnlib
hp = PLAIN.replace(epochs=1_000_000)
run = nnlib.train(hp, DATA, run_dir=sys.argv[2], progress=False, callbacks=[At(50, lambda t: print("on", flush=True))])
print(run.stopped, len(run.history) == len(nnlib.load_run(sys.argv[2]).history))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process there")
def test_a_signal_from_outside_leaves_no_traceback(tmp_path):
    with run_script(INTERRUPTED, Path(__file__).parent, tmp_path) as process:
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
    assert len(run.history) == {"on_start": 0, "on_step": 1, "measure": 1, "on_epoch": 2, "on_end": 3}[moment]
    assert not run.history or nnlib.evaluate(run.model, DATA.valid).loss == run.best["valid_loss"]
    assert other.moments[-1] == "end" and (moment == "on_end" or log.moments[-1] == "end")
    if folder:
        assert read_arrays(tmp_path / "last.npz")[1]["step"] == {"on_start": 0, "on_end": 21}.get(moment, 14)
        assert same(train(run_dir=tmp_path), train())


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
            assert record[f"gradient_norm_{layer}"] == pytest.approx(np.linalg.norm(gradients[f"W{layer}"]), rel=1e-4)
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
    assert (found.losses[:-1] <= 4 * np.minimum.accumulate(found.losses)[:-1]).all() and found.losses[-1] > 2 * lowest
    assert found.suggestion == found.rates[found.losses.argmin()] / 10
    good, bad = (train(hp.replace(learning_rate=r), data) for r in (found.suggestion, found.suggestion / 100))
    assert good.best["valid_loss"] < bad.best["valid_loss"]
    again = nnlib.find_learning_rate(hp, data, 1e-4, 1000.0, steps=120)
    np.testing.assert_array_equal(again.losses, found.losses)


def test_the_range_test_smooths_by_hand():
    losses = []

    found = nnlib.find_learning_rate(PLAIN, DATA, 1e-9, 2e-9, steps=3)  # the weights hardly move
    trainer = Trainer(
        PLAIN, DATA, progress=False, callbacks=[SimpleNamespace(on_step=lambda t: losses.append(t.last_loss))]
    )
    trainer.learning_rate = lambda step: 1e-9
    trainer.run(until=1)
    a, b, c = losses[:3]
    np.testing.assert_allclose(found.losses, [a, (0.9 * a + b) / 1.9, (0.81 * a + 0.9 * b + c) / 2.71], rtol=1e-5)


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


def test_the_folder_of_a_run(tmp_path):
    run = train(PLAIN, run_dir=tmp_path)
    assert nnlib.Hyperparameters.from_dict(json.loads((tmp_path / "hyperparameters.json").read_text())) == PLAIN
    head, *rows = (tmp_path / "history.csv").read_text().splitlines()
    columns = "epoch,step,learning_rate,train_loss,train_accuracy,valid_loss,valid_accuracy,seconds"
    assert head == columns and len(rows) == 3
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, record in zip(lines, run.history, strict=True):
        assert f"epoch {record['epoch']:3d}/3" in line
        assert f"valid loss {record['valid_loss']:.4f} accuracy {record['valid_accuracy']:.4f}" in line
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["fingerprint"] == DATA.fingerprint and environment["numpy"] == np.__version__
    assert environment["images"] == {"train": 100, "valid": 25, "test": 25}
    assert {"nnlib", "python", "scipy", "platform", "cores"} <= set(environment) and environment["cpu"]
    with threadpool_limits(1):
        Trainer(PLAIN, DATA, tmp_path, progress=False).run()
    (blas, *_) = json.loads((tmp_path / "environment.json").read_text())["blas"]
    assert blas["num_threads"] == 1 and blas["internal_api"] and blas["version"]
    assert not re.search(r"(?<![\w.$/])/\w+/", (tmp_path / "environment.json").read_text())  # no path of this machine
    loaded = nnlib.load_run(tmp_path)
    assert same(loaded, run) and loaded.history == run.history and loaded.best_epoch == run.best_epoch
    assert loaded.hyperparameters == PLAIN and loaded.run_dir == run.run_dir == tmp_path
    assert loaded.model.info["fingerprint"] == DATA.fingerprint
    assert loaded.model.info["best"] == run.best and loaded.model.info["hyperparameters"] == PLAIN.to_dict()
    for name, p in Trainer(PLAIN, DATA).model.parameters.items():  # "before" is of the same network as "after"
        np.testing.assert_array_equal(loaded.model.initial_parameters()[name], p)


def test_the_commit_is_told_where_there_is_one(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    assert _commit(tmp_path) is None
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("no git here")
    assert _commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert _commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == f"{head}-dirty"


def test_help_names_every_option_of_train():
    names = list(inspect.signature(nnlib.train).parameters)
    assert names[:7] == ["hp", "data", "run_dir", "resume", "progress", "callbacks", "init"]
    assert all(f"``{name}" in nnlib.train.__doc__ for name in names[2:])
    assert same(nnlib.train(PLAIN, DATA, None, True, False), train())  # by place, in that order


def test_load_run_refuses_what_is_no_run(tmp_path):
    with pytest.raises(nnlib.CheckpointError, match=r"hyperparameters\.json: it cannot be read"):
        nnlib.load_run(tmp_path)
    train(run_dir=tmp_path)
    (tmp_path / "hyperparameters.json").write_text("[]")
    with pytest.raises(nnlib.CheckpointError, match="an object is needed"):
        nnlib.load_run(tmp_path)


def test_what_is_printed(capsys):
    train()
    assert capsys.readouterr() == ("", "")
    run = nnlib.train(PLAIN, DATA)  # no terminal: one line an epoch
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and f"valid loss {run.history[1]['valid_loss']:.4f}" in lines[1]
    assert repr(run).startswith("TrainingRun: 3 epochs in ") and run.seconds == sum(run.history.column("seconds"))


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    nnlib.train(PLAIN, DATA)
    shown = capsys.readouterr().err
    assert "21/21" in shown and "step" in shown


def test_the_loss_of_an_epoch_weighs_images_not_batches():
    run = train(PLAIN.replace(epochs=1, learning_rate=0))  # the weights stand still
    trainer = Trainer(PLAIN, DATA, progress=False)
    logits = trainer.model.predict_logits(DATA.train.images)
    assert run.history[0]["train_loss"] == pytest.approx(softmax_cross_entropy(logits, DATA.train.labels)[0], rel=1e-6)
    assert run.history[0]["train_accuracy"] == (logits.argmax(axis=1) == DATA.train.labels).mean()
