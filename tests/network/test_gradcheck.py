"""The gradient check agrees with what is right, catches what is wrong, and says where."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib.network.activations import LeakyReLU, ReLU
from nnlib.network.gradcheck import GradientError, check_gradients
from nnlib.network.losses import softmax, softmax_cross_entropy
from nnlib.network.mlp import MLP
from nnlib.training.sgd import SGD

ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "leaky_relu(0.3)",
    "elu",
    "gelu",
    "silu",
    "softplus",
    "sigmoid",
    "tanh",
)
METHODS = ("central", "complex")
smoothed = partial(softmax_cross_entropy, label_smoothing=0.2)


def problem(sizes=(5, 4, 4, 3), activation="tanh", seed=0, n=3, cls=MLP):
    """A network with biases that are not zero, a few inputs and their labels."""
    rng = np.random.default_rng(seed)
    model = cls(sizes, activation, initialization="he", seed=seed, dtype=np.float64)
    for name, p in model.parameters.items():
        if name[0] == "b":
            p[:] = 0.5 * rng.standard_normal(p.shape)
    return model, rng.standard_normal((n, sizes[0])), rng.integers(0, sizes[-1], n)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_parameter_of_every_activation_at_every_depth(activation, method):
    for depth in range(1, 5):
        model, x, labels = problem((*(5, 4, 6, 4)[:depth], 3), activation, seed=depth)
        for l2 in (0, 0.1):
            report = check_gradients(model, x, labels, l2, method=method, samples=99)
            assert report.ok and set(report.errors) == set(model.parameters), report
            terms = ["data", "L2", "data + L2"] if l2 else ["data"]
            found = [(row.term, row.name, row.checked + row.skipped) for row in report.rows]
            assert found == [(t, n, p.size) for t in terms for n, p in model.parameters.items()]
            if method == "complex":
                assert report.max_relative_error < 1e-10 and not any(
                    row.skipped for row in report.rows
                ), report


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_after_some_steps_of_training(activation):
    model, x, labels = problem(activation=activation, n=8)
    sgd = SGD(model.parameters, momentum=0.9)
    for _ in range(20):
        _, dlogits = smoothed(model.forward(x), labels)
        model.backward(dlogits, 0.01, out=sgd.gradients)
        sgd.step(0.05)
    for method in METHODS:
        check_gradients(
            model, x[:3], labels[:3], 0.01, loss=smoothed, method=method
        ).raise_if_failed()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(1, 4),
    st.lists(st.sampled_from(ACTIVATIONS), min_size=3, max_size=3),
    st.sampled_from([0, 1e-3, 1.0]),
    st.sampled_from([0, 0.1, 1.0]),
    st.sampled_from([0, 0.5]),
    st.integers(0, 2**32),
)
def test_any_shape(sizes, n, activations, l2, smoothing, dropout, seed):
    sizes = (*sizes[:-1], sizes[-1] + 1)
    model, x, labels = problem(sizes, activations[: len(sizes) - 2], seed, n)
    masks = model.dropout_masks(n, np.random.default_rng(seed), dropout, dropout / 2)
    loss = partial(softmax_cross_entropy, label_smoothing=smoothing)
    report = check_gradients(
        model, x, labels, l2, loss=loss, masks=masks, method="complex", samples=8
    )
    # The probabilities are exact to 1e-16, so a derivative of 1e-8, the smallest that is compared
    # relatively, is exact to 1e-8.
    assert all(row.relative_error < 1e-8 for row in report.rows), report


def nothing(logits, labels):
    return 0.0 * logits.sum(), np.zeros_like(logits)


@pytest.mark.parametrize("method", METHODS)
def test_data_term_and_l2_apart(method):
    model, x, labels = problem()
    alone = check_gradients(model, x, labels, 0.5, loss=nothing, method=method)
    assert alone.ok and check_gradients(model, x, labels, 0, method=method).ok
    _, gradients = model.loss_and_gradients(x, labels, 0.5, loss=nothing)
    for name, p in model.parameters.items():
        np.testing.assert_allclose(
            gradients[name], 0.5 * p if name[0] == "W" else 0 * p, rtol=1e-15
        )


# Planted faults: each is a way in which real code has been wrong.


class ForgetsL2(MLP):
    def backward(self, dlogits, l2=0.0, **out):
        return super().backward(dlogits, 0.0, **out)


class PenalisesBiases(MLP):
    def backward(self, dlogits, l2=0.0, **out):
        gradients = super().backward(dlogits, l2, **out)
        return {
            name: g + l2 * self.parameters[name] * (name[0] == "b") for name, g in gradients.items()
        }


class TransposesProduct(MLP):
    def _to_inputs(self, layer, delta):
        W = self.parameters[f"W{layer}"]
        return delta @ (W if W.shape[0] == W.shape[1] else W.T)


class SumsBiasOverWrongAxis(MLP):
    def backward(self, dlogits, l2=0.0, **out):
        gradients = super().backward(dlogits, l2, **out)
        gradients[f"b{self.n_layers}"][:] = dlogits.sum(axis=1)  # goes unnoticed while B = K
        return gradients


class ForgetsMask(MLP):
    def _to_inputs(self, layer, delta):
        masks, self._masks = self._masks, ()
        try:
            return super()._to_inputs(layer, delta)
        finally:
            self._masks = masks


FRESH = np.random.default_rng(0)


class DrawsNewMask(MLP):
    def forward(self, x, masks=()):
        return super().forward(
            x, self.dropout_masks(len(x), FRESH, 0.5) if self.dtype.kind == "f" else masks
        )


class GivesNaN(MLP):
    def backward(self, dlogits, l2=0.0, **out):
        gradients = super().backward(dlogits, l2, **out)
        gradients["W2"][0, 0] = np.nan
        return gradients


class DerivativeOfOutput(ReLU):
    """NumPy's own MNIST tutorial: `output >= 0`, asked of what ReLU has put out, is always true."""

    def derivative(self, z, a, out=None):
        return np.greater_equal(a, 0, out=out, casting="unsafe")


class WrongSlope(LeakyReLU):
    def derivative(self, z, a, out=None):
        return LeakyReLU(0.1).derivative(z, a, out)


def with_function(function, sizes, activation, **options):
    model = MLP(sizes, activation, **options)
    model.functions = [function] * len(model.functions)
    return model


def changed(change, loss=softmax_cross_entropy):
    """The loss with another gradient than its own."""

    def wrong(logits, labels):
        value, dlogits = loss(logits, labels)
        return value, change(dlogits)

    return wrong


def squared_error(logits, labels):
    """½ |p - t|² and its gradient through softmax: dlogits = p ⊙ (e - Σ e p) with e = p - t."""
    p, t = softmax(logits), np.eye(logits.shape[1])[labels]
    e = p - t
    return 0.5 * (e * e).sum() / len(p), p * (e - (e * p).sum(axis=1, keepdims=True)) / len(p)


def squared_error_by_accident(logits, labels):
    """The same with dlogits = p - t, which is softmax's backward pass only behind cross-entropy."""
    return squared_error(logits, labels)[0], softmax_cross_entropy(logits, labels)[1]


def unsmoothed_gradient(logits, labels):
    return smoothed(logits, labels)[0], softmax_cross_entropy(logits, labels)[1]


plain = softmax_cross_entropy
FAULTS = {  # name: (network, right loss, wrong loss, activation)
    "missing 1/B": (MLP, plain, changed(lambda d: d * len(d)), "tanh"),
    "divided by B twice": (MLP, plain, changed(lambda d: d / len(d)), "tanh"),
    "label smoothing left out": (MLP, smoothed, unsmoothed_gradient, "tanh"),
    "softmax backward right by accident": (MLP, squared_error, squared_error_by_accident, "tanh"),
    "forgotten L2": (ForgetsL2, plain, plain, "tanh"),
    "L2 on biases": (PenalisesBiases, plain, plain, "tanh"),
    "transposed product": (TransposesProduct, plain, plain, "tanh"),
    "bias summed over the wrong axis": (SumsBiasOverWrongAxis, plain, plain, "tanh"),
    "wrong leaky slope": (partial(with_function, WrongSlope()), plain, plain, "leaky_relu"),
    "relu's derivative of its output with >=": (
        partial(with_function, DerivativeOfOutput()),
        plain,
        plain,
        "relu",
    ),
    "dropout mask forgotten backward": (ForgetsMask, plain, plain, "tanh"),
    "dropout mask drawn anew": (DrawsNewMask, plain, plain, "tanh"),
    "NaN": (GivesNaN, plain, plain, "tanh"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, method):
    cls, right, wrong, activation = FAULTS[fault]
    model, x, labels = problem((5, 4, 4, 3), activation, seed=6)
    masks = model.dropout_masks(3, np.random.default_rng(1), 0.5)
    healthy = check_gradients(model, x, labels, 0.1, loss=right, masks=masks, method=method)
    assert healthy.ok, healthy
    model, x, labels = problem((5, 4, 4, 3), activation, seed=6, cls=cls)
    report = check_gradients(model, x, labels, 0.1, loss=wrong, masks=masks, method=method)
    assert not report.ok and report.max_relative_error > 1e-3, report
    with pytest.raises(GradientError):
        report.raise_if_failed()


class OneEntryWrong(MLP):
    factor = 1 + 1e-5

    def backward(self, dlogits, l2=0.0, **out):
        gradients = super().backward(dlogits, l2, **out)
        gradients["W2"][2, 1] *= self.factor
        return gradients


def test_one_entry_wrong_in_the_fifth_digit_is_found_and_shown():
    model, x, labels = problem(cls=OneEntryWrong)
    report = check_gradients(model, x, labels)
    row = {row.name: row for row in report.rows}["W2"]
    assert row.index == (2, 1) and row.relative_error == pytest.approx(1e-5, rel=1e-2)
    assert row.analytic / row.numerical == pytest.approx(1 + 1e-5, rel=1e-7)
    assert {name for name, error in report.errors.items() if error > report.tolerance} == {"W2"}
    with pytest.raises(GradientError, match=r"DISAGREE(.|\n)*W2 +\[2, 1\](.|\n)*WRONG"):
        report.raise_if_failed()
    assert repr(report).count("WRONG") == report._repr_html_().count("WRONG") == 1
    assert report._repr_html_().count("<tr>") == 1 + len(model.parameters)
    wrong_in_the_ninth = type("Slightly", (OneEntryWrong,), {"factor": 1 + 1e-9})
    assert check_gradients(*problem(cls=wrong_in_the_ninth)).ok  # below the tolerance


def test_a_good_report_reads_well_and_returns_itself():
    report = check_gradients(*problem())
    assert report.raise_if_failed() is report and report.max_relative_error < 1e-7
    first, head, *rows = repr(report).splitlines()
    assert first == "gradients agree (central, tolerance 1e-07)" and len(rows) == 6
    assert "relative error" in head and all(row.endswith("ok") for row in rows)


def near_a_kink(offset: float) -> tuple:
    """Two relu units on one input x = 1: the first has z = offset, the second z = 1."""
    model = MLP((1, 2, 2), "relu", dtype=np.float64)
    model.parameters["W1"][:] = [[offset, 1.0]]
    return model, np.ones((1, 1)), np.array([0])


@pytest.mark.parametrize(
    "offset, skipped", [(5e-6, 1), (-5e-6, 1), (0.0, 1), (2e-5, 0), (-2e-5, 0)]
)
def test_differences_across_a_kink_are_counted_and_left_out(offset, skipped):
    report = check_gradients(*near_a_kink(offset))  # h = 1e-5
    assert report.ok
    assert [(row.checked, row.skipped) for row in report.rows[:2]] == [(2 - skipped, skipped)] * 2
    assert [row.skipped for row in report.rows[2:]] == [0, 0]
    exact = check_gradients(
        *near_a_kink(offset), method="complex"
    )  # never crosses one, may stand on it
    assert exact.ok and exact.rows[0].skipped == (offset == 0)


def test_a_kink_that_is_crossed_would_spoil_the_difference(monkeypatch):
    monkeypatch.setattr(ReLU, "kinks", ())
    assert not check_gradients(*near_a_kink(5e-6)).ok


def test_nothing_compared_is_not_ok():
    report = check_gradients(
        MLP((2, 2, 2), "relu", dtype=np.float64), np.zeros((1, 2)), np.array([0])
    )
    row = {row.name: row for row in report.rows}["b1"]
    assert (row.checked, row.skipped) == (0, 2) and not report.ok


def test_large_parameters_are_sampled_by_seed():
    model, x, labels = problem((40, 30, 3))
    reports = [check_gradients(model, x, labels, samples=9, seed=seed) for seed in (0, 0, 1)]
    assert all([row.checked for row in report.rows] == [9, 9, 9, 3] for report in reports)
    assert reports[0] == reports[1] != reports[2]


def test_the_model_is_left_as_it_was_and_may_be_float32():
    model, x, labels = problem()
    model = model.astype(np.float32)
    before = {name: p.copy() for name, p in model.parameters.items()}
    for method in METHODS:
        assert check_gradients(model, x.astype(np.float32), labels, 0.1, method=method).ok
    for name, p in model.parameters.items():
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p, before[name])


def test_bad_input_is_refused():
    model, x, labels = problem()
    with pytest.raises(
        nnlib.HyperparameterError,
        match=r"^method: 'centre' is not known\. Did you mean 'central'\?",
    ):
        check_gradients(model, x, labels, method="centre")
    with pytest.raises(nnlib.HyperparameterError, match=r"^labels: 3 is not one of the classes"):
        check_gradients(model, x, np.array([0, 1, 3]))
    with pytest.raises(nnlib.HyperparameterError, match=r"^x: its shape is \(3, 4\)"):
        check_gradients(model, x[:, 1:], labels)
