"""Every activation: its values, its derivative, its manners at ±1e4, and how one's own is added."""

import math

import numpy as np
import pytest

import nnlib
from nnlib.network.activations import ACTIVATIONS, Activation, get_activation, register_activation

NAMES = (
    "identity",
    "relu",
    "leaky_relu",
    "leaky_relu(0.2)",
    "elu",
    "gelu",
    "silu",
    "softplus",
    "sigmoid",
    "tanh",
)
GRID = np.concatenate(
    [-np.geomspace(1e-3, 30, 60)[::-1], np.geomspace(1e-3, 30, 60)]
)  # zero, the kink, left out
FAR = np.array([-1e4, -1e3, -100, -88.8, -30, -1, -1e-4, 0, 1e-4, 1, 30, 88.8, 100, 1e3, 1e4])


def logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


# One number at a time, with Python's own mathematics: name -> (value, derivative).
TEXTBOOK = {
    "identity": (lambda z: z, lambda z: 1.0),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1.0 if z > 0 else 0.01),
    "leaky_relu(0.2)": (lambda z: z if z > 0 else 0.2 * z, lambda z: 1.0 if z > 0 else 0.2),
    "elu": (lambda z: z if z > 0 else math.expm1(z), lambda z: 1.0 if z > 0 else math.exp(z)),
    "gelu": (
        lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
        lambda z: (
            0.5 * math.erfc(-z / math.sqrt(2)) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        ),
    ),
    "silu": (lambda z: z * logistic(z), lambda z: logistic(z) * (1 + z * logistic(-z))),
    "softplus": (lambda z: max(z, 0.0) + math.log1p(math.exp(-abs(z))), logistic),
    "sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
    "tanh": (math.tanh, lambda z: 1 - math.tanh(z) ** 2),
}


def test_the_nine_are_registered():
    assert {
        "identity",
        "relu",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "softplus",
        "sigmoid",
        "tanh",
    } <= set(ACTIVATIONS)


@pytest.mark.parametrize(
    "dtype, rtol, atol", [(np.float32, 1e-6, 4e-7), (np.float64, 1e-14, 2e-15)]
)
@pytest.mark.parametrize("name", NAMES)
def test_textbook_values_up_to_1e4_without_warnings(name, dtype, rtol, atol):
    value, derivative = (np.array([f(z) for z in FAR]) for f in TEXTBOOK[name])
    function = get_activation(name)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        z = FAR.astype(dtype)
        a = function.value(z)
        d = function.derivative(z, a)
    assert a.dtype == d.dtype == dtype
    np.testing.assert_allclose(a, value, rtol=rtol, atol=atol)
    np.testing.assert_allclose(d, derivative, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_the_value(name):
    function, h = get_activation(name), 1e-30
    d = function.derivative(GRID, function.value(GRID))
    np.testing.assert_allclose(d, function.value(GRID + 1j * h).imag / h, rtol=1e-13, atol=1e-15)
    h = 1e-6
    central = (function.value(GRID + h) - function.value(GRID - h)) / (2 * h)
    np.testing.assert_allclose(
        d, central, rtol=0, atol=4e-16 * 30 / h
    )  # the rounding of values up to 30


@pytest.mark.parametrize("name", NAMES)
def test_out_is_written_and_returned_and_the_arguments_are_left_alone(name):
    function = get_activation(name)
    z = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    kept, out = z.copy(), np.full_like(z, np.nan)
    a = function.value(z)
    assert function.value(z, out=out) is out
    np.testing.assert_array_equal(out, a)
    d = function.derivative(z, a)
    out.fill(np.nan)
    assert function.derivative(z, a, out=out) is out
    np.testing.assert_array_equal(out, d)
    np.testing.assert_array_equal(z, kept)
    np.testing.assert_array_equal(a, function.value(kept))


def test_kinks_are_where_the_derivative_jumps():
    for name in NAMES:
        function, eps = get_activation(name), np.array([-1e-9, 1e-9])
        first = function.derivative(eps, function.value(eps))
        if abs(first[1] - first[0]) > 1e-6:
            assert function.kinks == (0.0,), name
    zero = np.zeros(1)
    assert get_activation("relu").derivative(zero, zero) == 0  # at the kink itself: a choice, kept
    assert get_activation("leaky_relu(0.2)").derivative(zero, zero) == 0.2


@pytest.mark.parametrize(
    "name, words",
    [
        ("rellu", "Did you mean 'relu'"),
        ("leakyrelu", "Did you mean 'leaky_relu'"),
        ("swsh", "sigmoid, silu"),  # nothing near: all that are known
        ("leaky_relu(1.5)", "less than 1, not 1.5"),
        ("leaky_relu(-0.1)", "at least 0"),
        ("leaky_relu()", "is not known"),
        ("leaky_relu(nan)", "is not known"),
        ("relu(3)", "does not fit"),
        (None, "is not known"),
        (3, "is not known"),
    ],
)
def test_bad_names_are_refused(name, words):
    with pytest.raises(nnlib.HyperparameterError, match=r"^activation: ") as raised:
        get_activation(name)
    assert repr(name) in str(raised.value) and words in str(raised.value)


class Cube(Activation):
    """f(z) = z³/3, f'(z) = z²."""

    def value(self, z, out=None):
        return np.divide(z * z * z, 3, out=out)

    def derivative(self, z, a, out=None):
        return np.multiply(z, z, out=out)


class WrongCube(Cube):
    def derivative(self, z, a, out=None):
        return np.multiply(z, 2, out=out)


class OutForgotten(Cube):
    def value(self, z):
        return z * z * z / 3


def test_ones_own_takes_one_decorator_and_is_checked_like_the_others(monkeypatch):
    monkeypatch.setattr(
        "nnlib.network.activations.ACTIVATIONS", dict(ACTIVATIONS)
    )  # nothing stays registered
    assert register_activation("cube")(Cube) is Cube
    register_activation("wrong_cube")(WrongCube)
    x, labels = np.random.default_rng(0).standard_normal((3, 4)), np.array([0, 1, 2])
    for method in ("central", "complex"):
        right, wrong = (
            nnlib.MLP((4, 5, 5, 3), ("tanh", name), seed=1) for name in ("cube", "wrong_cube")
        )
        assert nnlib.check_gradients(right, x, labels, method=method).ok
        assert not nnlib.check_gradients(wrong, x, labels, method=method).ok
    assert nnlib.Hyperparameters(activation="cube").activation == "cube"
    assert (
        register_activation("cube")(WrongCube) is WrongCube
    )  # again, as a cell that runs twice does
    for given, words in (
        (Cube, "write @nnlib.register_activation"),
        ("relu", "that nnlib does not use itself"),
    ):
        with pytest.raises(nnlib.HyperparameterError, match=words):
            register_activation(given)
    for unfit in (
        float,
        abs,
        Activation,
        type("NoDerivative", (Activation,), {"value": Cube.value}),
        OutForgotten,
    ):
        with pytest.raises(
            nnlib.HyperparameterError, match="cannot be registered; a subclass of nnlib"
        ):
            register_activation("unfit")(unfit)
