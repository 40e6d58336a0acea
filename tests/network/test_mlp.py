"""The network: its passes by hand, the facts that every network obeys, and what it refuses."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.network.activations import get_activation
from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP
from nnlib.training.sgd import SGD


def by_hand() -> MLP:
    model = MLP((2, 2, 2), "leaky_relu(0.5)", dtype=np.float64)
    model.parameters["W1"][:] = [[1, -1], [0.5, -1]]
    model.parameters["b1"][:] = [0, 1]
    model.parameters["W2"][:] = [[1, 0], [2, 1]]
    model.parameters["b2"][:] = [0.5, 0]
    return model


def drawn(sizes=(5, 4, 3), activation="tanh", n=6, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, labels = rng.standard_normal((n, sizes[0])).astype(dtype), rng.integers(0, sizes[-1], n)
    return MLP(sizes, activation, seed=seed, dtype=dtype), x, labels


def fit(model: MLP, x, labels, steps: int, rate: float) -> float:
    """Plain gradient descent on all of x; returns the last loss."""
    sgd = SGD(model.parameters)
    for _ in range(steps):
        loss, _ = softmax_cross_entropy(model.forward(x), labels)
        model.backward(softmax_cross_entropy(model.forward(x), labels)[1], out=sgd.gradients)
        sgd.step(rate)
    return float(loss)


def test_forward_and_backward_by_hand():
    # For x = (1, 2):
    # z1 = (1 + 1, -1 - 2 + 1) = (2, -2) and a1 = (2, -1),
    # logits = (2 - 2 + 0.5, 0 - 1 + 0) = (0.5, -1).
    model, x = by_hand(), np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(model.forward(x), [[0.5, -1]])
    np.testing.assert_array_equal(model.pre_activations, [[[2, -2]]])
    hidden, logits = model.activations(x)
    np.testing.assert_array_equal(hidden, [[2, -1]])
    np.testing.assert_array_equal(logits, [[0.5, -1]])
    # With dL/dlogits = (1, -1) and l2 = 0.1:
    # dW2 = a1' (1, -1) + 0.1 W2 = ((2.1, -2), (-0.8, 1.1)) and db2 = (1, -1),
    # dL/da1 = (1, -1) W2' = (1, 2 - 1) = (1, 1) and dL/dz1 = (1, 0.5),
    # dW1 = x' (1, 0.5) + 0.1 W1 and db1 = (1, 0.5).
    gradients = model.backward(np.array([[1.0, -1.0]]), l2=0.1)
    np.testing.assert_allclose(gradients["W2"], [[2.1, -2], [-0.8, 1.1]], rtol=1e-15)
    np.testing.assert_allclose(gradients["b2"], [1, -1], rtol=1e-15)
    np.testing.assert_allclose(gradients["W1"], [[1.1, 0.4], [2.05, 0.9]], rtol=1e-15)
    np.testing.assert_allclose(gradients["b1"], [1, 0.5], rtol=1e-15)
    # And for the inputs: (1, 0.5) W1' = (1 - 0.5, 0.5 - 0.5).
    value, gradients = model.gradient_of(
        lambda logits: (logits @ [1, -1], np.array([[1.0, -1.0]])), x
    )
    assert value == 1.5
    np.testing.assert_allclose(gradients["x"], [[0.5, 0]], rtol=1e-15)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.integers(1, 8),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_shapes_and_dtypes(sizes, n, dtype, seed):
    model, x, labels = drawn(tuple(sizes), "silu", n, seed, dtype)
    loss, gradients = model.loss_and_gradients(x, labels, 0.1)
    assert gradients.keys() == model.parameters.keys() and np.isfinite(loss)
    for name, p in model.parameters.items():
        assert gradients[name].shape == p.shape and gradients[name].dtype == p.dtype == dtype
        layer = int(name[1:])
        assert p.shape == (
            tuple(sizes[layer - 1 : layer + 1]) if name[0] == "W" else (sizes[layer],)
        )
    assert [a.shape for a in model.activations(x)] == [(n, size) for size in sizes[1:]]
    _, gradients = model.gradient_of(lambda logits: (0, np.ones_like(logits)), x)
    assert gradients["x"].shape == x.shape and gradients["x"].dtype == dtype


@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 3), (5, 4, 4, 3)])
def test_gradient_by_the_inputs(sizes):
    model, x, labels = drawn(sizes)

    def loss(x):
        return softmax_cross_entropy(model.forward(x), labels)[0]

    _, gradients = model.gradient_of(lambda logits: softmax_cross_entropy(logits, labels), x)
    h = 1e-6
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        assert gradients["x"][index] == pytest.approx(
            (loss(x + step) - loss(x - step)) / (2 * h), abs=1e-9
        )


def test_one_activation_for_each_layer():
    model, x, _ = drawn((5, 4, 4, 3), ("relu", "tanh"))
    p = model.parameters
    first = np.maximum(x @ p["W1"], 0)
    second = np.tanh(first @ p["W2"])
    for got, expected in zip(model.activations(x), (first, second, second @ p["W3"]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def test_parameters_are_live_and_results_are_not():
    model, x, labels = drawn()
    logits, activations = model.forward(x), model.activations(x)
    _, gradients = model.loss_and_gradients(x, labels)
    kept = [a.copy() for a in (logits, *activations, *gradients.values())]
    model.parameters["b2"] += 1
    np.testing.assert_allclose(model.forward(x), logits + 1, rtol=1e-13)
    model.loss_and_gradients(-x, labels)
    for a, b in zip((logits, *activations, *gradients.values()), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_buffers_carry_nothing_from_one_batch_size_to_the_next():
    model, x, labels = drawn(n=9)
    for rows in (slice(9), slice(2), slice(4, 9), slice(0, 1)):
        fresh = MLP(model.layer_sizes, "tanh", seed=0, dtype=np.float64)
        for got, expected in zip(
            model.loss_and_gradients(x[rows], labels[rows], 0.1)[1].values(),
            fresh.loss_and_gradients(x[rows], labels[rows], 0.1)[1].values(),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)


def test_backward_writes_into_what_it_is_given():
    model, x, labels = drawn()
    _, gradients = model.loss_and_gradients(x, labels, 0.1)
    given = {name: np.full_like(g, np.nan) for name, g in gradients.items()}
    _, dlogits = softmax_cross_entropy(model.forward(x), labels)
    assert model.backward(dlogits, 0.1, out=given) is given
    for name, g in gradients.items():
        np.testing.assert_array_equal(given[name], g)


def test_dropout_masks():
    model, _, _ = drawn((300, 200, 100, 3), n=1)
    assert model.dropout_masks(4, np.random.default_rng(0)) == ()
    masks = [m.copy() for m in model.dropout_masks(50, np.random.default_rng(0), 0.25, 0.5)]
    assert [m.shape for m in masks] == [(50, 300), (50, 200), (50, 100)]
    for mask, rate in zip(masks, (0.5, 0.25, 0.25), strict=True):
        values, counts = np.unique(mask, return_counts=True)
        np.testing.assert_allclose(values, [0, 1 / (1 - rate)])
        assert abs(counts[0] / mask.size - rate) < 4 * math.sqrt(rate * (1 - rate) / mask.size)
    for again, mask in zip(
        model.dropout_masks(50, np.random.default_rng(0), 0.25, 0.5), masks, strict=True
    ):
        np.testing.assert_array_equal(again, mask)
    inputs_only = model.dropout_masks(4, np.random.default_rng(0), 0, 0.5)
    assert (inputs_only[0] == 0).any() and all((m == 1).all() for m in inputs_only[1:])


def test_dropped_units_say_nothing_and_learn_nothing():
    model, x, labels = drawn((5, 4, 3), n=2)
    keep = np.array([[0, 2, 2, 0], [0, 0, 2, 2.0]])
    p = model.parameters
    expected = (np.tanh(x @ p["W1"]) * keep) @ p["W2"]
    np.testing.assert_allclose(model.forward(x, (np.ones((2, 5)), keep)), expected, rtol=1e-13)
    _, gradients = model.loss_and_gradients(x, labels, masks=(np.ones((2, 5)), keep))
    assert (
        not gradients["W1"][:, 0].any() and not gradients["W2"][0].any() and gradients["b1"][0] == 0
    )
    assert gradients["W1"][:, 2].all()
    np.testing.assert_allclose(
        model.forward(x), np.tanh(x @ p["W1"]) @ p["W2"], rtol=1e-13
    )  # nothing stays dropped


PICTURES = np.random.default_rng(5).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize("kind", [None, "scale", "standardize", "whiten"])
def test_predictions_from_raw_images_and_folding(kind):
    fitted = kind and fit_preprocessing(kind, PICTURES, components=20)
    sizes = (fitted.n_inputs if fitted else 48, 16, 5)
    model = MLP(sizes, "gelu", preprocessing=fitted, classes="abcde", seed=1)
    logits = model.predict_logits(PICTURES)
    x = (
        fitted.transform(PICTURES)
        if fitted
        else (PICTURES.reshape(40, -1) / 255).astype(np.float32)
    )
    np.testing.assert_allclose(logits, model.forward(x), atol=1e-6)
    np.testing.assert_array_equal(model.predict(PICTURES), logits.argmax(axis=1))
    np.testing.assert_array_equal(model.predict(x.astype(np.float64)), logits.argmax(axis=1))
    proba = model.predict_proba(PICTURES)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        np.log(proba[:, 1:] / proba[:, :1]), logits[:, 1:] - logits[:, :1], atol=1e-5
    )
    np.testing.assert_allclose(model.predict_logits(PICTURES, batch_size=7), logits, atol=1e-6)
    assert model.predict(PICTURES[:0]).shape == (0,) and model.predict_proba(
        PICTURES[:0]
    ).shape == (0, 5)
    folded = model.folded()
    np.testing.assert_allclose(folded.predict_proba(PICTURES), proba, atol=1e-4)
    np.testing.assert_allclose(folded.folded().predict_proba(PICTURES), proba, atol=1e-4)
    assert folded.classes == model.classes and folded.layer_sizes == (
        (48 if kind else sizes[0]),
        16,
        5,
    )
    np.testing.assert_array_equal(
        model.predict_logits(PICTURES), logits
    )  # the model itself is as it was


def test_folding_multiplies_into_the_first_layer_only():
    fitted = fit_preprocessing("standardize", PICTURES)
    model = MLP((48, 6, 5), preprocessing=fitted)
    folded = model.folded()
    raw = PICTURES.reshape(40, -1).astype(np.float32)
    np.testing.assert_allclose(folded.forward(raw), model.predict_logits(PICTURES), atol=1e-4)
    np.testing.assert_array_equal(folded.parameters["W2"], model.parameters["W2"])
    assert folded.parameters["W2"] is not model.parameters["W2"]


def test_initial_parameters_are_drawn_again():
    model, x, labels = drawn()
    before = {name: p.copy() for name, p in model.parameters.items()}
    fit(model, x, labels, 3, 0.1)
    again = model.initial_parameters()
    for name, p in before.items():
        np.testing.assert_array_equal(again[name], p)
        assert (model.parameters[name] != p).any()
    other = MLP(model.layer_sizes, "tanh", seed=1, dtype=np.float64)
    assert (other.parameters["W1"] != again["W1"]).all()


def test_astype_copies():
    model, x, _ = drawn()
    twin = model.astype(np.float32)
    assert {p.dtype for p in twin.parameters.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(twin.forward(x.astype(np.float32)), model.forward(x), atol=1e-6)
    twin.parameters["W1"][:] = 0
    assert model.parameters["W1"].all()


# What every network obeys.


@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "gelu"])
def test_small_weights_know_nothing_at_first(activation, k):
    rng = np.random.default_rng(0)
    model = MLP((300, 100, 50, k), activation, initialization="small_normal")
    loss, _ = model.loss_and_gradients(
        rng.standard_normal((200, 300), np.float32), rng.integers(0, k, 200)
    )
    assert loss == pytest.approx(math.log(k), rel=0.02)


def test_twenty_images_are_learned_by_heart():
    model, x, labels = drawn((48, 32, 10), "leaky_relu", 20)
    assert fit(model, x, labels, 1500, 0.3) < 0.001
    np.testing.assert_array_equal(model.predict(x), labels)


def test_shuffling_hidden_units_changes_nothing():
    model, x, _ = drawn((5, 8, 6, 3), "gelu")
    logits, p = model.forward(x), model.parameters
    for layer, width in ((1, 8), (2, 6)):
        order = np.random.default_rng(layer).permutation(width)
        p[f"W{layer}"][:], p[f"b{layer}"][:] = p[f"W{layer}"][:, order], p[f"b{layer}"][order]
        p[f"W{layer + 1}"][:] = p[f"W{layer + 1}"][order]
    np.testing.assert_allclose(model.forward(x), logits, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "activation, holds", [("relu", True), ("leaky_relu", True), ("identity", True), ("tanh", False)]
)
def test_relu_networks_do_not_feel_a_scale_moved_to_the_next_layer(activation, holds):
    model, x, labels = drawn((5, 8, 3), activation)
    model.parameters["b1"][:] = np.linspace(-1, 1, 8)
    logits, before = model.forward(x), model.loss_and_gradients(x, labels)[1]
    model.parameters["W1"] *= 4
    model.parameters["b1"] *= 4
    model.parameters["W2"] /= 4
    assert np.allclose(model.forward(x), logits, rtol=1e-12) == holds
    if holds:  # the gradient takes the opposite scale
        np.testing.assert_allclose(
            model.loss_and_gradients(x, labels)[1]["W1"], before["W1"] / 4, rtol=1e-12
        )


def test_equal_units_stay_equal_and_random_ones_do_not():
    model, x, labels = drawn((5, 4, 3), "tanh")
    fit(model, x, labels, 20, 0.5)
    assert np.linalg.matrix_rank(model.parameters["W1"], tol=1e-6) == 4
    for p in model.parameters.values():
        p[:] = 0.1
    loss = fit(model, x, labels, 50, 0.5)
    W1 = model.parameters["W1"]
    np.testing.assert_array_equal(
        W1, np.repeat(W1[:, :1], 4, axis=1)
    )  # four copies of one unit, whatever it learned
    assert (W1 != 0.1).all() and loss < math.log(3)


def test_gradients_vanish_in_deep_sigmoid_networks_and_less_in_relu_ones():
    shares = {}
    for activation in ("sigmoid", "relu"):
        model, x, labels = drawn((20, *[20] * 10, 5), activation, 30)
        _, g = model.loss_and_gradients(x, labels)
        shares[activation] = np.linalg.norm(g["W1"]) / np.linalg.norm(g["W10"])
    assert shares["sigmoid"] < 1e-5 and shares["relu"] > 0.1


def test_without_hidden_layers_it_is_softmax_regression():
    model, x, labels = drawn((5, 3), ())
    np.testing.assert_allclose(model.forward(x), x @ model.parameters["W1"], rtol=1e-13)
    _, dlogits = softmax_cross_entropy(model.forward(x), labels)
    np.testing.assert_allclose(model.backward(dlogits)["W1"], x.T @ dlogits, rtol=1e-12)
    assert model.activations(x)[0].shape == (6, 3) and get_activation("identity")


# What it refuses, and in which words.


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            {"layer_sizes": (4, 0, 3)},
            r"^layer_sizes: \(4, 0, 3\) is not allowed; whole numbers above 0",
        ),
        ({"layer_sizes": (4, -3, 3)}, r"^layer_sizes: \(4, -3, 3\)"),
        ({"layer_sizes": (4, "128", 3)}, r"^layer_sizes: \(4, '128', 3\)"),
        ({"layer_sizes": "128"}, r"^layer_sizes: '128'"),
        ({"layer_sizes": (4, 2.0, 3)}, r"^layer_sizes: \(4, 2\.0, 3\)"),
        ({"layer_sizes": (4,)}, r"^layer_sizes: \(4,\)"),
        ({"activation": "rellu"}, r"^activation: 'rellu' is not known\. Did you mean 'relu'\?"),
        ({"activation": ("relu", "relu")}, r"^activation: .* names 2 layers, but 1 are hidden"),
        (
            {"initialization": "xaver"},
            r"^initialization: 'xaver' is not known\. Did you mean 'xavier'\?",
        ),
        ({"dtype": "float16"}, r"^dtype: float16 is not allowed; float32 or float64"),
        ({"dtype": "int32"}, r"^dtype: int32 is not allowed"),
        ({"classes": ("cat", "dog")}, r"^classes: 2 names for 3 outputs"),
    ],
)
def test_networks_that_cannot_be(arguments, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        MLP(**{"layer_sizes": (4, 5, 3), **arguments})


X = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    "x, labels, words",
    [
        (X * np.nan, [0, 1], r"^x: it holds NaN or infinity"),
        (
            np.where(np.eye(2, 4) == 1, -np.inf, X).astype(np.float32),
            [0, 1],
            r"^x: it holds NaN or infinity",
        ),
        (X[:, :3], [0, 1], r"^x: its shape is \(2, 3\), but \(B, 4\)"),
        (X[:0], [], r"^x: its shape is \(0, 4\), but \(B, 4\) with B of at least 1"),
        (X[0], [0] * 4, r"^x: its shape is \(4,\)"),
        (
            X.astype(np.float64),
            [0, 1],
            r"^x: it is float64, but the network is float32; use np\.asarray\(x, model\.dtype",
        ),
        (X.astype(np.uint8), [0, 1], r"^x: it is uint8, .*model\.inputs\(images\)"),
        (X, [0, 3], r"^labels: 3 is not one of the classes 0 \.\.\. 2"),
        (X, [-1, 0], r"^labels: -1 is not one of the classes"),
        (X, [0.0, 1.0], r"^labels: float64 of shape \(2,\), but whole numbers of shape \(2,\)"),
        (X, [0, 1, 2], r"^labels: int64 of shape \(3,\), but whole numbers of shape \(2,\)"),
        (X, [[0, 1, 0], [1, 0, 0]], r"^labels: int64 of shape \(2, 3\)"),
    ],
)
def test_inputs_and_labels_that_do_not_fit(x, labels, words):
    model = MLP((4, 5, 3))
    with pytest.raises(nnlib.HyperparameterError, match=words):
        model.loss_and_gradients(x, np.array(labels, int) if not labels else np.array(labels))


def test_images_that_do_not_fit():
    model = MLP((48, 5, 3), preprocessing=fit_preprocessing("scale", PICTURES))
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^images: int64 is not allowed; uint8 pixels"
    ):
        model.predict(PICTURES.astype(np.int64))
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^images: 12 numbers an image, .* made for 48"
    ):
        model.predict(PICTURES[:, :, :2, :2])
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^x: its shape is \(2, 12\), but \(B, 48\)"
    ):
        MLP((48, 5, 3)).predict(PICTURES[:2, :, :2, :2])


def test_joined_networks_answer_with_the_mean_of_their_logits():
    p = fit_preprocessing("whiten", PICTURES, components=3)
    parts = [
        MLP((3, *hidden, 4), "tanh", seed=i, preprocessing=p)
        for i, hidden in enumerate([(5, 6), (7, 2), (1, 1)])
    ]
    for part in parts:
        for name in ("b1", "b2", "b3"):
            part.parameters[name][:] = np.random.default_rng(part.seed).normal(
                size=part.parameters[name].shape
            )
    whole = nnlib.join(parts)
    assert whole.layer_sizes == (3, 13, 9, 4)
    assert (whole.parameters["W2"] != 0).sum() == 5 * 6 + 7 * 2 + 1
    np.testing.assert_allclose(
        whole.predict_logits(PICTURES),
        np.mean([part.predict_logits(PICTURES) for part in parts], axis=0),
        atol=1e-6,
    )
    with pytest.raises(
        nnlib.CheckpointError, match="does not give the weights that the run began with"
    ):
        whole.initial_parameters()


@pytest.mark.parametrize(
    "others, differ",
    [
        ([], "these 1 also differ in: nothing"),
        ([MLP((4, 5, 5, 3), "tanh")], "activation"),
        ([MLP((4, 5, 3))], "n_layers, activation"),
        ([MLP((5, 5, 5, 3))], "inputs"),
        ([MLP((4, 5, 5, 3), classes="abc")], "classes"),
        ([MLP((4, 5, 5, 3), dtype=np.float64)], "dtype"),
        (
            [
                MLP(
                    (4, 5, 5, 3),
                    preprocessing=fit_preprocessing("scale", np.zeros((9, 4), np.uint8)),
                )
            ],
            "preprocessing",
        ),
    ],
)
def test_networks_that_cannot_be_joined(others, differ):
    with pytest.raises(
        nnlib.HyperparameterError, match=rf"^models: two or more are needed.* {differ}\.$"
    ):
        nnlib.join([MLP((4, 5, 5, 3)), *others])


def test_networks_without_hidden_layers_cannot_be_joined():
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^models: two or more are needed, with hidden layers"
    ):
        nnlib.join([MLP((4, 3)), MLP((4, 3))])


# Several threads, one network.


class WaitsForTheOther(get_activation("tanh").__class__):
    """tanh, which holds each thread in the middle of its forward pass until the other is there."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)

    def value(self, z, out=None):
        self.barrier.wait()  # now both have written their z
        a = super().value(z, out=out)
        self.barrier.wait()  # now both have written their a
        return a


PREDICTIONS = {
    "predict": lambda model, images: model.predict(images),
    "predict_proba": lambda model, images: model.predict_proba(images),
    "predict_logits": lambda model, images: model.predict_logits(images),
    "evaluate": lambda model, images: (
        nnlib.evaluate(model, nnlib.Split(images, np.arange(len(images)) % 5)).confusion
    ),
}


@pytest.mark.parametrize("kind", ["standardize", "whiten", "zca"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_threads_may_predict_at_the_same_time(name, kind):
    fitted = fit_preprocessing(kind, PICTURES, components=20)
    model = MLP((fitted.n_inputs, 16, 8, 5), "tanh", preprocessing=fitted)
    for p in model.parameters.values():
        p[:] = np.random.default_rng(0).normal(size=p.shape)
    predict = PREDICTIONS[name]
    halves = PICTURES[:20], PICTURES[20:]
    alone = [predict(model, images) for images in halves]
    assert (alone[0] != alone[1]).any()
    model.functions = [WaitsForTheOther(), WaitsForTheOther()]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(predict, [model, model], halves))
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_prediction_between_forward_and_backward_changes_nothing():
    model, x, labels = drawn((5, 4, 4, 3))
    _, expected = model.loss_and_gradients(x, labels)
    _, dlogits = softmax_cross_entropy(model.forward(x), labels)
    z = [z.copy() for z in model.pre_activations]
    model.predict(-x[:2])
    for now, before in zip(model.pre_activations, z, strict=True):
        np.testing.assert_array_equal(now, before)
    for name, gradient in model.backward(dlogits).items():
        np.testing.assert_array_equal(gradient, expected[name])


def test_backward_wants_the_gradient_of_the_last_logits():
    model, x, _ = drawn()
    with pytest.raises(nnlib.HyperparameterError, match=r"^dlogits: .* call forward\(x\) first"):
        model.backward(np.zeros((6, 3)))
    model.forward(x)
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^dlogits: their shape is \(5, 3\), but .* \(6, 3\)"
    ):
        model.backward(np.zeros((5, 3)))


# What counts as an array.


class Tensor:
    """What NumPy sees of a tensor of another library: a dtype of its own, and __array__."""

    def __init__(self, array):
        self.array = array
        self.dtype = f"other.{array.dtype}"

    def __len__(self):
        return len(self.array)

    def __array__(self, dtype=None, copy=None):
        return self.array


OTHER_KINDS = {
    "list": lambda array: array.tolist(),
    "tensor": Tensor,
    "DataFrame": pd.DataFrame,
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_lists_tensors_and_tables_are_as_good_as_arrays(kind):
    other = OTHER_KINDS[kind]
    model, x, labels = drawn()
    assert np.unique(model.predict(x)).size > 1
    np.testing.assert_array_equal(model.predict(other(x)), model.predict(x))
    np.testing.assert_array_equal(model.predict_proba(other(x)), model.predict_proba(x))
    np.testing.assert_array_equal(model.forward(other(x)), model.forward(x))
    value, expected = model.loss_and_gradients(x, labels)
    column = labels[:, np.newaxis]
    for y in (labels, column):
        found, gradients = model.loss_and_gradients(other(x), other(y))
        assert found == value
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, expected[name])
        assert nnlib.check_gradients(model, other(x), other(y)).ok
        assert softmax_cross_entropy(model.forward(x), other(y))[0] == value


def test_a_list_takes_the_dtype_of_the_network():
    model, x, _ = drawn(dtype=np.float32)
    np.testing.assert_array_equal(model.forward(x.tolist()), model.forward(x))


def test_lists_of_pixels_say_that_they_are_pixels():
    model = MLP((48, 5, 3), preprocessing=fit_preprocessing("scale", PICTURES))
    pixels = PICTURES.tolist()
    with pytest.raises(
        nnlib.HyperparameterError,
        match=r"^images: int64 is not allowed; .*np\.asarray\(images, np\.uint8\) if they are pix",
    ):
        model.predict(pixels)
    again = np.asarray(pixels, np.uint8)
    np.testing.assert_array_equal(model.predict_logits(again), model.predict_logits(PICTURES))


@pytest.mark.parametrize(
    "images, words",
    [
        ([[1.0, 2.0], [3.0]], r"^images: this cannot be read as an array .*equal lengths"),
        ([["cat", "dog"]], r"^images: <U3 values are not numbers; convert them"),
        (None, r"^images: object values are not numbers"),
        ([0.5] * 48, r"^images: their shape is \(48,\), .* single image .*\[np\.newaxis\]"),
    ],
)
def test_what_is_no_array_of_images(images, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        MLP((48, 5, 3)).predict(images)


@pytest.mark.parametrize(
    "labels, words",
    [
        (["cat", "dog"], r"^labels: <U3 values are not numbers"),
        ([[0, 1], [1]], r"^labels: this cannot be read"),
        ([0.0, 1.0], r"^labels: float64 .*; np\.asarray\(labels\)\.astype\(int\) makes whole"),
        ([[0, 1, 0], [1, 0, 0]], r"^labels: .*np\.argmax\(labels, axis=1\) turns one-hot"),
        ([0, 1, 2], r"^labels: .*; give one label for each image"),
        ([True, False], r"^labels: bool of shape"),
    ],
)
def test_labels_are_refused_with_a_remedy(labels, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        MLP((4, 5, 3)).loss_and_gradients(X, labels)


def test_hidden_layers_are_leaky_by_default_as_in_hyperparameters():
    assert MLP((4, 5, 6, 3)).activation == ("leaky_relu",) * 2
    assert nnlib.Hyperparameters().activation == "leaky_relu"


def test_no_images_make_no_inputs():
    for kind in ("scale", "zca"):
        fitted = fit_preprocessing(kind, PICTURES)
        assert MLP((48, 5, 3), preprocessing=fitted).inputs(PICTURES[:0]).shape == (0, 48)
