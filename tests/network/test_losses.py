"""Softmax cross-entropy and L2: values by hand, gradients, smoothing, weights, and refusals."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib.network.losses import l2_penalty, log_softmax, softmax, softmax_cross_entropy


def drawn(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((n, k)), rng.integers(0, k, n)


def test_two_images_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4) and softmax(0, 0) = (1/2, 1/2). The labels are 1 and 0, so
    # L = (-ln 3/4 - ln 1/2)/2 = ln(8/3)/2, and dL/dlogits = ((1/4, 3/4 - 1), (1/2 - 1, 1/2))/2.
    loss, gradient = softmax_cross_entropy(np.array([[0, math.log(3)], [0, 0]]), np.array([1, 0]))
    assert loss == pytest.approx(math.log(8 / 3) / 2, rel=1e-15)
    np.testing.assert_allclose(gradient, [[1 / 8, -1 / 8], [-1 / 4, 1 / 4]], rtol=1e-15)


def test_label_smoothing_by_hand():
    # With s = 0.2 and K = 2 the targets are (0.1, 0.9); p = (1/4, 3/4).
    loss, gradient = softmax_cross_entropy(
        np.array([[0, math.log(3)]]), np.array([1]), label_smoothing=0.2
    )
    assert loss == pytest.approx(-0.1 * math.log(1 / 4) - 0.9 * math.log(3 / 4), rel=1e-15)
    np.testing.assert_allclose(gradient, [[0.25 - 0.1, 0.75 - 0.9]], rtol=1e-15)


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_no_knowledge_costs_ln_k(k):
    for smoothing in (0, 0.1, 1):
        loss, _ = softmax_cross_entropy(
            np.full((3, k), 7.0), np.array([0, 1, k - 1]), label_smoothing=smoothing
        )
        assert loss == pytest.approx(math.log(k), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stable_at_1e4(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [0, 1e4, 1e4]], dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        loss, gradient = softmax_cross_entropy(logits, np.array([1, 0, 2]), label_smoothing=0.1)
        p = softmax(logits)
    assert gradient.dtype == p.dtype == dtype
    third = 1 / 3
    np.testing.assert_allclose(p, [[1, 0, 0], [third, third, third], [0, 0.5, 0.5]], rtol=1e-6)
    # -log p of row 1 is (0, 2e4, 1e4), with the weight 0.9 on class 1 and 0.1/3 on each class.
    # -log p of row 3 is (1e4 + ln 2, ln 2, ln 2).
    rows = (
        0.9 * 2e4 + 0.1 * third * 3e4,
        math.log(3),
        0.9 * math.log(2) + 0.1 * third * (1e4 + 3 * math.log(2)),
    )
    assert loss == pytest.approx(sum(rows) / 3, rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 8), st.floats(0, 1))
def test_gradient_is_the_derivative_and_value_is_the_definition(seed, n, k, smoothing):
    logits, labels = drawn(seed, n, k)
    class_weights = np.random.default_rng(seed).uniform(0.2, 3, k)
    loss = partial(
        softmax_cross_entropy, labels=labels, label_smoothing=smoothing, class_weights=class_weights
    )
    value, gradient = loss(logits)
    targets = (1 - smoothing) * np.eye(k)[labels] + smoothing / k
    w = class_weights[labels] / class_weights[labels].sum()
    assert value == pytest.approx(
        -(w[:, None] * targets * scipy.special.log_softmax(logits, axis=1)).sum(), rel=1e-13
    )
    for index in np.ndindex(n, k):
        step = np.zeros((n, k), complex)
        step[index] = 1e-30j
        assert loss(logits + step)[0].imag / 1e-30 == pytest.approx(
            gradient[index], rel=1e-11, abs=1e-15
        )


def test_softmax_agrees_with_scipy_and_ignores_a_shift():
    logits, labels = drawn(0, 50, 10)
    np.testing.assert_allclose(
        log_softmax(logits), scipy.special.log_softmax(logits, axis=1), rtol=1e-13
    )
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1, rtol=1e-14)
    loss, gradient = softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-16)
    assert softmax_cross_entropy(logits + 500, labels)[0] == pytest.approx(loss, rel=1e-12)


def test_a_class_of_weight_two_counts_as_if_its_images_came_twice():
    logits, labels = drawn(1, 12, 3)
    twice = np.repeat(np.arange(12), np.where(labels == 1, 2, 1))
    weighted, by_weight = softmax_cross_entropy(logits, labels, class_weights=np.array([1, 2, 1]))
    repeated, by_copy = softmax_cross_entropy(logits[twice], labels[twice])
    assert 0 < (labels == 1).sum() < 12 and weighted == pytest.approx(repeated, rel=1e-14)
    summed = np.zeros_like(logits)
    np.add.at(summed, twice, by_copy)
    np.testing.assert_allclose(by_weight, summed, rtol=1e-13)


def test_l2_by_hand():
    # ½ 0.1 (1² + 2² + 3²) = 0.7, whatever the bias is.
    parameters = {"W1": np.array([[1.0, -2.0]]), "b1": np.array([100.0]), "W2": np.array([[3.0]])}
    assert l2_penalty(parameters, 0.1) == pytest.approx(0.7, rel=1e-15)
    assert l2_penalty(parameters, 0.0) == 0


def test_stronger_l2_raises_the_loss():
    model, (x, labels) = nnlib.MLP((4, 5, 3), dtype=np.float64), drawn(2, 6, 4)
    losses = [model.loss_and_gradients(x, labels % 3, l2)[0] for l2 in (0, 1e-3, 1e-2, 0.1)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_out_of_range_are_named(label):
    with pytest.raises(
        nnlib.HyperparameterError, match=rf"^labels: {label} is not one of the classes 0 \.\.\. 2"
    ):
        softmax_cross_entropy(np.zeros((2, 3)), np.array([0, label]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(
        nnlib.HyperparameterError, match=f"^label_smoothing: {smoothing} is not between 0 and 1"
    ):
        softmax_cross_entropy(np.zeros((1, 3)), np.array([0]), label_smoothing=smoothing)
