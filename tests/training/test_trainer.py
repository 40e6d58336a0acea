"""Training: what it computes, from which weights and images it starts, and that the same seed gives
the same bits."""

import inspect
import math
import os
import tracemalloc
from functools import partial

import numpy as np
import pytest
from small_runs import DATA, EVERYTHING, PLAIN, At, pictures, same, stop, train
from threadpoolctl import threadpool_info, threadpool_limits

import nnlib
from nnlib.data.preprocessing import augment, fit_preprocessing
from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP, useful_threads
from nnlib.training.batches import Batches
from nnlib.training.callbacks import Callback
from nnlib.training.schedules import make_schedule
from nnlib.training.sgd import SGD
from nnlib.training.trainer import Trainer


def test_two_epochs_against_a_naive_loop():
    hp = PLAIN.replace(
        momentum=0.9, l2=0.01, epochs=2, activation="tanh", preprocessing="scale", schedule="cosine"
    )
    run = train(hp)
    model, x, labels = (
        MLP((48, 8, 3), "tanh", seed=3),
        DATA.train.images.reshape(100, 48) / 255,
        DATA.train.labels,
    )
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
        {
            "schedule": "step",
            "decay_rate": 0.5,
            "decay_every": 4,
            "min_learning_rate": 0.02,
            "momentum": 0,
        },
        {
            "initialization": "lecun_uniform",
            "whitening_floor": 0.5,
            "shift": 0,
            "ema": 0,
            "dropout": 0,
        },
    ],
)
def test_every_hyperparameter_is_obeyed(changes):
    hp = EVERYTHING.replace(nesterov=changes.get("momentum", 1) > 0, epochs=2).replace(**changes)
    trainer = Trainer(hp, DATA, progress=False)
    trainer.run()
    fitted = fit_preprocessing("whiten", DATA.train.images, components=20, floor=hp.whitening_floor)
    model = MLP((20, 8, 3), "gelu", seed=3, initialization=hp.initialization, preprocessing=fitted)
    options = {
        name: getattr(hp, name)
        for name in ("momentum", "nesterov", "clip_norm", "l1", "l1_cut", "ema")
    }
    sgd = SGD(model.parameters, decoupled_l2=1e-3 if hp.decoupled_l2 else 0, **options)
    names = ("decay_rate", "decay_every", "min_learning_rate", "warmup_steps")
    rate = make_schedule(hp.schedule, 0.05, 14, **{name: getattr(hp, name) for name in names})
    for step in range(14):
        if step % 7 == 0:
            order = np.random.default_rng([3, 1, step // 7]).permutation(100)
        rows = order[step % 7 * 16 :][:16]
        images = DATA.train.images[rows]
        x = fitted.transform(
            augment(images, np.random.default_rng([3, 2, step]), flip=hp.flip, shift=hp.shift)
        )
        masks = model.dropout_masks(
            len(rows), np.random.default_rng([3, 3, step]), hp.dropout, hp.input_dropout
        )
        _, dlogits = softmax_cross_entropy(
            model.forward(x, masks), DATA.train.labels[rows], label_smoothing=0.1
        )
        model.backward(dlogits, 0 if hp.decoupled_l2 else 1e-3, out=sgd.gradients)
        sgd.step(rate(step))
    for name, p in model.parameters.items():
        np.testing.assert_array_equal(trainer.model.parameters[name], p)
        np.testing.assert_array_equal(
            trainer.evaluated.parameters[name], (sgd.average or model.parameters)[name]
        )


def test_it_learns():
    data = pictures(900, 0)
    run = train(PLAIN.replace(epochs=20), data)
    assert run.history[0]["train_loss"] > 1.5 * run.history[-1]["train_loss"]
    assert nnlib.evaluate(run.model, data.test).accuracy > 0.8


def test_twenty_images_are_learned_to_a_loss_below_a_thousandth():
    data = DATA.subset(20)
    run = train(
        nnlib.Hyperparameters(hidden_sizes=(32,), batch_size=20, epochs=400, momentum=0.9, seed=1),
        data,
    )
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
    trainers = [
        Trainer(hp, DATA, progress=False)
        for hp in (PLAIN, PLAIN.replace(flip=True, shift=2, dropout=0.5))
    ]
    for trainer in trainers:
        trainer.batches.inputs(np.arange(16), 0)  # draws augmentation, where there is any
    np.testing.assert_array_equal(*(trainer.batches.order(0) for trainer in trainers))
    np.testing.assert_array_equal(*(trainer.model.parameters["W1"] for trainer in trainers))
    draws = {
        trainers[0].batches.rng(stream, index).random()
        for stream in (1, 2, 3)
        for index in range(50)
    }
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
        {"preprocessing": "standardize", "activation": "relu"},
        {
            "preprocessing": "whiten",
            "components": 64,
            "activation": "leaky_relu",
            "dropout": 0.2,
            "input_dropout": 0.1,
        },
        {
            "preprocessing": "scale",
            "activation": "tanh",
            "nesterov": True,
            "clip_norm": 1.0,
            "ema": 0.99,
        },
        {"preprocessing": "standardize", "activation": "sigmoid", "decoupled_l2": True},
    ],
)
def test_steps_allocate_nothing_large(changes):
    data = nnlib.load_dataset("standin", n_train=1024, n_valid=100, n_test=10)
    common = {
        "hidden_sizes": (512, 256),
        "flip": True,
        "shift": 2,
        "momentum": 0.9,
        "l2": 1e-3,
        "label_smoothing": 0.1,
    }
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
    assert (
        largest < 100_000
    )  # a batch of float32 inputs would be 3 MB, the first layer's activations 0.5 MB


def blas_threads_now() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


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


def test_the_fit_of_the_preprocessing_is_limited_too(monkeypatch):
    seen = []
    real = nnlib.training.trainer.build_model
    monkeypatch.setattr(
        nnlib.training.trainer,
        "build_model",
        lambda *a: seen.append(blas_threads_now()) or real(*a),
    )
    Trainer(PLAIN, DATA, threads=1)
    assert seen == [{1}]


@pytest.mark.parametrize("hp, data", [(DATA, PLAIN), (PLAIN, DATA.train), ("quick", DATA)])
def test_arguments_in_the_wrong_order_are_refused(hp, data):
    with pytest.raises(nnlib.HyperparameterError, match="give Hyperparameters and a Dataset, not"):
        nnlib.train(hp, data)


class KerasLike(Callback):
    def on_epoch_end(self, epoch, logs=None):
        pass


UNCALLABLE = ([Callback], Callback(), "line", [print], [KerasLike()], [Callback(), object()])


@pytest.mark.parametrize("callbacks", UNCALLABLE)
def test_callbacks_that_are_no_list_of_objects_are_refused(callbacks):
    with pytest.raises(nnlib.HyperparameterError, match=r"^callbacks: .* a list of objects"):
        nnlib.train(PLAIN, DATA, callbacks=callbacks)


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
    assert (
        raw["train_loss"] == averaged["train_loss"] and raw["valid_loss"] != averaged["valid_loss"]
    )


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
        nnlib.HyperparameterError,
        match=r"^init: .*\(48, 8, 3\).*, but hp and data need .*\(48, 8, 4\)",
    ):
        train(PLAIN, four, init=train().model)
    with pytest.raises(nnlib.HyperparameterError, match=r"^init: .*leaky_relu.*tanh"):
        train(PLAIN.replace(activation="tanh"), DATA, init=train().model)


def test_fine_tuning_is_resumed_only_from_the_same_weights(tmp_path):
    model = train(PLAIN.replace(seed=9)).model
    whole = train(PLAIN, DATA, init=model)
    train(PLAIN, DATA, At(10, stop), init=model, run_dir=tmp_path)
    for init in (None, train().model):
        with pytest.raises(
            nnlib.CheckpointError, match=r"it began with other weights \(init=...\)"
        ):
            train(PLAIN, DATA, init=init, run_dir=tmp_path)
    assert same(train(PLAIN, DATA, init=model, run_dir=tmp_path), whole)


def test_a_loss_of_ones_own_is_trained_by_and_validation_stays_cross_entropy():
    asked = []

    def only_the_first_class_counts(logits, labels):
        asked.append(len(labels))  # in seventy steps, and in a try before them
        return softmax_cross_entropy(logits, labels, class_weights=np.array([1, 1e-9, 1e-9]))

    data = DATA.subset(99)
    run = train(PLAIN.replace(epochs=10), data, loss=only_the_first_class_counts)
    assert len(asked) == 71 and nnlib.evaluate(run.model, DATA.train).per_class["a"] == 1
    assert run.best["valid_loss"] == pytest.approx(
        nnlib.evaluate(run.model, data.valid).loss, rel=1e-6
    )
    smooth = PLAIN.replace(label_smoothing=0.1)
    assert same(
        train(PLAIN, DATA, loss=partial(softmax_cross_entropy, label_smoothing=0.1)), train(smooth)
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, labels: 1.0,
        lambda logits, labels: (logits.sum(axis=1), logits),
        lambda logits, labels: (1.0, logits.T),
        "mse",
    ],
)
def test_a_loss_that_is_none_is_refused_before_the_first_step(loss):
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^loss: it gives .* a number and its derivative \(2, 3\)"
    ):
        train(PLAIN, DATA, loss=loss)


def test_a_warm_up_longer_than_the_run_is_told():
    run = train(PLAIN.replace(warmup_steps=100))
    assert run.warnings == (
        "epoch 1: the warm-up does not end: the run has 21 steps. Try fewer warmup_steps.",
    )
    assert not train(PLAIN.replace(warmup_steps=21)).warnings


def test_a_run_is_no_model():
    run = train()
    wrong = (
        lambda: nnlib.evaluate(run, DATA.valid),
        lambda: nnlib.save_model(run, "x"),
        lambda: nnlib.join([run, run]),
        lambda: nnlib.check_gradients(run, DATA.train.images, DATA.train.labels),
        lambda: train(init=run),
    )
    for call in wrong:
        with pytest.raises(
            nnlib.HyperparameterError, match=r"^model: TrainingRun is no MLP; run.model is one"
        ):
            call()


def test_images_edited_in_place_are_preprocessed_anew():
    images = DATA.train.images.copy()
    data = nnlib.Dataset(
        nnlib.Split(images, DATA.train.labels), DATA.valid, DATA.test, DATA.classes, "x"
    )
    before = Trainer(PLAIN, data).model.preprocessing
    assert (
        Trainer(PLAIN.replace(seed=8), data).model.preprocessing is before
    )  # kept, for it takes seconds
    images //= 2
    after = Trainer(PLAIN, data).model.preprocessing
    np.testing.assert_array_equal(after.scale, fit_preprocessing("standardize", images).scale)
    assert (after.scale != before.scale).all()


def test_the_exported_model_takes_raw_images_and_predicts_the_same():
    model = train(EVERYTHING).model
    assert model.classes == ("a", "b", "c")
    images = DATA.test.images
    np.testing.assert_allclose(
        model.folded().predict_proba(images), model.predict_proba(images), atol=1e-4
    )


def test_flat_floats_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    data = nnlib.Dataset.from_arrays(rng.standard_normal((60, 5)), np.arange(60) % 2)
    assert train(PLAIN, data).model.preprocessing is None
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^flip, shift: they need images .* \(16, 5\)"
    ):
        train(PLAIN.replace(flip=True), data)


@pytest.mark.parametrize(
    "sizes, words", [({"n_valid": 0}, "validation"), ({"n_valid": 20, "n_test": 10}, "0 training")]
)
def test_empty_splits_are_refused_before_the_first_epoch(sizes, words):
    data = nnlib.Dataset.from_arrays(DATA.train.images[:30], DATA.train.labels[:30], **sizes)
    with pytest.raises(nnlib.DataError, match=words):
        train(PLAIN, data)


def test_help_names_every_option_of_train():
    names = list(inspect.signature(nnlib.train).parameters)
    assert names[:7] == ["hp", "data", "run_dir", "resume", "progress", "callbacks", "init"]
    assert all(f"``{name}" in nnlib.train.__doc__ for name in names[2:])
    assert same(nnlib.train(PLAIN, DATA, None, True, False), train())  # by place, in that order


def test_the_loss_of_an_epoch_weighs_images_not_batches():
    run = train(PLAIN.replace(epochs=1, learning_rate=0))  # the weights stand still
    trainer = Trainer(PLAIN, DATA, progress=False)
    logits = trainer.model.predict_logits(DATA.train.images)
    assert run.history[0]["train_loss"] == pytest.approx(
        softmax_cross_entropy(logits, DATA.train.labels)[0], rel=1e-6
    )
    assert run.history[0]["train_accuracy"] == (logits.argmax(axis=1) == DATA.train.labels).mean()
