"""Every update rule against numbers worked out by hand, and one whole step of a network."""

import math

import numpy as np
import pytest

from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP
from nnlib.training.sgd import BLOCK, SGD, global_norm, soft_threshold


def updates(gradients, rate=0.1, start=1.0, dtype=np.float64, **options):
    """The values of one weight and one bias, both starting at ``start``, after each of
    ``gradients``."""
    parameters = {"W1": np.full((1, 1), start, dtype), "b1": np.full(1, start, dtype)}
    sgd, values = SGD(parameters, **options), []
    for gradient in gradients:
        for g in sgd.gradients.values():
            g[:] = gradient
        sgd.step(rate)
        values.append((parameters["W1"].item(), parameters["b1"].item()))
    return sgd, np.array(values)


def test_one_step_with_momentum_and_l2_by_hand():
    # One linear layer, one image x = (1, 2) of class 0. Both columns of W are (1, 2), so both
    # logits are 5 and both probabilities ½; dL/dlogits = (½ - 1, ½) = (-½, ½).
    # dW = x' (-½, ½) + 0.1 W = ((-0.5, 0.5), (-1, 1)) + ((0.1, 0.1), (0.2, 0.2))
    #    = ((-0.4, 0.6), (-0.8, 1.2)), and db = (-0.5, 0.5), without L2.
    # The velocity was 2 everywhere; with momentum ½ it is now 1 + gradient:
    # ((0.6, 1.6), (0.2, 2.2)) and (0.5, 1.5). With learning rate 0.1
    # W = ((1 - 0.06, 1 - 0.16), (2 - 0.02, 2 - 0.22)), b = (-0.05, -0.15).
    model, x, labels = MLP((2, 2), dtype=np.float64), np.array([[1.0, 2.0]]), np.array([0])
    W, b = model.parameters["W1"], model.parameters["b1"]
    W[:] = [[1, 1], [2, 2]]
    sgd = SGD(model.parameters, momentum=0.5)
    for v in sgd.velocity.values():
        v[:] = 2
    loss, dlogits = softmax_cross_entropy(model.forward(x), labels)
    assert loss == pytest.approx(math.log(2), rel=1e-15)
    model.backward(dlogits, 0.1, out=sgd.gradients)
    sgd.step(0.1)
    np.testing.assert_allclose(sgd.velocity["W1"], [[0.6, 1.6], [0.2, 2.2]], rtol=1e-14)
    np.testing.assert_allclose(W, [[0.94, 0.84], [1.98, 1.78]], rtol=1e-14)
    np.testing.assert_allclose(b, [-0.05, -0.15], rtol=1e-14)
    assert sgd.parameters["W1"] is W  # in place: the model sees it


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize(
    "options, values",
    [
        # gradients 1, 1, 2 and learning rate 0.1 from 1
        ({}, [0.9, 0.8, 0.6]),
        # v = 1, 1.5, 2.75
        ({"momentum": 0.5}, [0.9, 0.75, 0.475]),
        # g + v/2 = 1.5, 1.75, 3.375
        ({"momentum": 0.5, "nesterov": True}, [0.85, 0.675, 0.3375]),
        # two equal gradients g have the global norm g √2: cut to 1/√2 each, whatever they were
        ({"clip_norm": 1.0}, list(1 - np.array([0.1, 0.2, 0.3]) / math.sqrt(2))),
        # only the last is longer than 2: cut to √2
        ({"clip_norm": 2.0}, [0.9, 0.8, 0.8 - 0.1 * math.sqrt(2)]),
        # the gradient is cut, not the velocity: v = 1, 1.5, 0.75 + √2
        ({"clip_norm": 2.0, "momentum": 0.5}, [0.9, 0.75, 0.75 - 0.075 - 0.1 * math.sqrt(2)]),
    ],
)
def test_update_rules(options, values, dtype, rtol):
    _, found = updates([1, 1, 2], dtype=dtype, **options)
    np.testing.assert_allclose(found, np.repeat(np.array(values)[:, None], 2, axis=1), rtol=rtol)


def test_decoupled_l2_shrinks_weights_beside_the_step_and_leaves_biases():
    # (1 - 0.1 · 0.5) = 0.95: W = 0.95 - 0.1, then 0.95 · 0.85 - 0.15 = 0.6575;
    # b as with momentum alone.
    _, found = updates([1, 1], momentum=0.5, decoupled_l2=0.5)
    np.testing.assert_allclose(found, [[0.85, 0.9], [0.6575, 0.75]], rtol=1e-14)


def test_moving_average():
    # keep = min(0.15, n/(10 + n)) = 1/11, 0.15, 0.15; the weights go 0.9, 0.8, 0.6 and the average
    # starts at 1.
    sgd, found = updates([1, 1, 2], ema=0.15)
    np.testing.assert_allclose(
        found[:, 0], [0.9, 0.8, 0.6], rtol=1e-14
    )  # the weights themselves do not feel it
    average = 1 / 11 + 0.9 * 10 / 11
    average = 0.15 * (0.15 * average + 0.85 * 0.8) + 0.85 * 0.6
    np.testing.assert_allclose(
        [sgd.average["W1"].item(), sgd.average["b1"].item()], average, rtol=1e-14
    )
    assert not np.shares_memory(sgd.average["W1"], sgd.parameters["W1"])
    assert updates([1])[0].average == {}


def test_average_of_weights_that_stand_still_is_the_weights():
    sgd, _ = updates([0] * 50, ema=0.9)
    assert sgd.average["W1"].item() == pytest.approx(1, rel=1e-14)


def test_global_norm():
    assert global_norm({"W1": np.array([[3.0, 0], [0, 4]]), "b1": np.array([12.0])}) == 13


def test_soft_threshold_by_hand():
    w = np.array([-2.0, -0.5, -0.1, 0.0, 0.3, 1.0])
    np.testing.assert_allclose(soft_threshold(w, 0.4), [-1.6, -0.1, 0, 0, 0, 0.6], atol=1e-15)


def plain_sparse_step(W, g, v, rate, *, momentum=0.0, nesterov=False, l1=0.0, cut=0.0):
    """One step of the docstring's formulas, entry by entry: the new W and v."""
    W, v = W.copy(), momentum * v + g
    for index in np.ndindex(W.shape):
        w = W[index] - rate * (g[index] + momentum * v[index] if nesterov else v[index])
        w = math.copysign(max(abs(w) - l1 * rate / (1 - momentum), 0), w)
        W[index] = 0 if abs(w) < cut * l1 else w
    return W, v


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}])
@pytest.mark.parametrize("cut", [0, 5.0])
def test_l1_shrinks_the_first_layer_as_written_out_in_plain_numpy(options, cut):
    rng = np.random.default_rng(1)
    shape = 3, BLOCK // 2 + 7  # more than one block, the last not full
    parameters = {"W1": rng.normal(0, 0.02, shape), "b1": np.ones(shape[1]), "W2": np.ones((2, 2))}
    sgd = SGD(parameters, l1=4e-3, l1_cut=cut, ema=0.5, **options)
    W, v, average = parameters["W1"].copy(), np.zeros(shape), parameters["W1"].copy()
    for step, rate in enumerate((0.1, 0.3, 0.2), 1):  # a schedule
        g = rng.normal(0, 0.02, shape)
        sgd.gradients["W1"][:] = g
        sgd.step(rate)
        W, v = plain_sparse_step(W, g, v, rate, l1=4e-3, cut=cut, **options)
        keep = min(0.5, step / (10 + step))
        average = keep * average + (1 - keep) * W
        np.testing.assert_allclose(parameters["W1"], W, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(sgd.average["W1"], average, rtol=1e-12, atol=1e-16)
        assert (parameters["b1"] == 1).all() and (
            parameters["W2"] == 1
        ).all()  # the first layer's weights alone
    share = (parameters["W1"] == 0).mean()
    assert 0.01 < share < 0.99 and ((W == 0) == (parameters["W1"] == 0)).all()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_l1_ends_at_the_solution_of_a_lasso_problem(options):
    # With orthonormal columns, |y - X w|^2 / 2 + λ |w|_1 is smallest at the soft-thresholded least
    # squares solution.
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(30, 8)))[0]
    y = rng.normal(size=(30, 1))
    l1 = 0.3
    projections = X.T @ y
    solution = np.sign(projections) * np.maximum(np.abs(projections) - l1, 0)
    assert 2 <= (solution == 0).sum() <= 6
    w = np.zeros((8, 1))
    sgd = SGD({"W1": w}, l1=l1, **options)
    for _ in range(800):
        sgd.gradients["W1"][:] = X.T @ (X @ w - y)
        sgd.step(0.05)
    np.testing.assert_allclose(w, solution, atol=1e-12)


def test_l1_agrees_with_scikit_learns_lasso():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 12))
    X[:, 1] = X[:, 0] + 0.3 * X[:, 1]  # correlated columns: no closed form
    y = X @ rng.normal(size=(12, 1)) + rng.normal(size=(40, 1))
    reference = (
        linear_model.Lasso(alpha=0.5, fit_intercept=False, tol=1e-14, max_iter=100_000)
        .fit(X, y[:, 0])
        .coef_
    )
    w = np.zeros((12, 1))
    sgd = SGD({"W1": w}, l1=0.5, momentum=0.9, nesterov=True)
    for _ in range(3000):
        sgd.gradients["W1"][:] = X.T @ (X @ w - y) / 40
        sgd.step(0.02)
    assert 0 < (reference == 0).sum() < 12
    np.testing.assert_allclose(w[:, 0], reference, atol=1e-8)
