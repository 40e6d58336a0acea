"""Activation functions: value and derivative side by side, found by name.

Every class has ``value(z, out)``, which is a = f(z), and ``derivative(z, a, out)``, which is f'(z).
The derivative may use z or a, whichever is cheaper. Both work elementwise on arrays of any shape,
write into ``out`` if it is given, and return the result.

Most lines below look like ``np.add(x, y, out=out)``. Read it as ``x + y``; with ``out`` NumPy
writes into memory that is already there, which is faster. Every value accepts complex numbers too,
because the complex-step gradient check needs that.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError, did_you_mean
from nnlib.types import Array


class Activation:
    """Base class. To add your own, write a subclass and register it under a name::

        @nnlib.register_activation("cube")
        class Cube(nnlib.Activation):
            def value(self, z, out=None):
                return np.power(z, 3, out=out)

            def derivative(self, z, a, out=None):
                return np.multiply(np.square(z, out=out), 3, out=out)

    ``initialization`` is what ``"auto"`` means for the layer in front of this activation.
    ``kinks`` lists the z at which the derivative jumps: there, a numerical derivative is wrong, and
    the gradient check leaves it out.
    """

    initialization: str = "xavier"
    kinks: tuple[float, ...] = ()

    def value(self, z: Array, out: Array | None = None) -> Array:
        """Return f(z)."""
        raise NotImplementedError

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        """Return f'(z), given z and a = f(z)."""
        raise NotImplementedError


ACTIVATIONS: dict[str, type[Activation]] = {}


def register_activation(name: str) -> Callable[[type[Activation]], type[Activation]]:
    """Class decorator: models, hyperparameters and checkpoints then know the class by ``name``.

    You may register your own again under the same name, as a cell that runs twice does. Raises
    HyperparameterError if ``name`` is no string or belongs to nnlib, or if the class is unfit.
    """
    taken = ACTIVATIONS.keys() - own_activations()
    if not isinstance(name, str) or name in taken:
        remedy = (
            'write @nnlib.register_activation("cube"), with a name that nnlib does not use itself'
        )
        raise HyperparameterError(f"activation: {name!r} cannot be registered; {remedy}.")

    def register(cls: type[Activation]) -> type[Activation]:
        if not _is_complete(cls):
            raise HyperparameterError(
                f"activation: {cls!r} cannot be registered; a subclass of nnlib.Activation with "
                "value(self, z, out=None) and derivative(self, z, a, out=None) can."
            )
        ACTIVATIONS[name] = cls
        return cls

    return register


def _is_complete(cls: Any) -> bool:
    """Return whether ``cls`` is an Activation with methods of its own, and both take ``out``."""
    if not isinstance(cls, type) or not issubclass(cls, Activation):
        return False
    if cls.value is Activation.value or cls.derivative is Activation.derivative:
        return False
    return all(
        "out" in inspect.signature(method).parameters for method in (cls.value, cls.derivative)
    )


def own_activations() -> dict[str, type[Activation]]:
    """Return the activations that users registered, by name."""
    return {name: cls for name, cls in ACTIVATIONS.items() if cls.__module__ != __name__}


# a name, and perhaps a number in brackets: leaky_relu, leaky_relu(0.2)
NAME_AND_NUMBER = re.compile(r"(?P<name>\w+)(\((?P<number>[-+.\deE]+)\))?")


def get_activation(name: str) -> Activation:
    """Return the activation called ``name``, perhaps with a parameter, as in ``"leaky_relu(0.2)"``.

    Raises HyperparameterError for an unknown name or a parameter that doesn't fit.
    """
    match = NAME_AND_NUMBER.fullmatch(name) if isinstance(name, str) else None
    if match is None or match["name"] not in ACTIVATIONS:
        raise HyperparameterError(
            f"activation: {name!r} is not known. {did_you_mean(name, ACTIVATIONS)} "
            "Your own must be registered first (nnlib.register_activation)."
        )
    cls: Any = ACTIVATIONS[match["name"]]
    try:
        if match["number"]:
            return cls(float(match["number"]))
        return cls()
    except (TypeError, ValueError) as error:
        raise HyperparameterError(
            f"activation: {name!r} has a parameter that does not fit ({error})."
        ) from None


@register_activation("identity")
class Identity(Activation):
    """f(z) = z, f'(z) = 1. It turns the whole network into a linear classifier."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.positive(z, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty_like(z)
        out.fill(1)
        return out


@register_activation("relu")
class ReLU(Activation):
    """f(z) = max(z, 0), f'(z) = 1 for z > 0, else 0 (Nair and Hinton 2010)."""

    initialization = "he"
    kinks = (0.0,)

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.maximum(z, 0, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        # a > 0 exactly where z > 0, and a was used last: it is still in the processor's cache
        if out is None:
            out = np.empty_like(a)
        return np.greater(a, 0, out=out, casting="unsafe")  # True and False are stored as 1 and 0


@register_activation("leaky_relu")
@dataclass(frozen=True)
class LeakyReLU(Activation):
    """f(z) = z for z > 0, else slope z; f'(z) = 1 for z > 0, else slope (Maas et al. 2013).

    The slope is 0.01, or any other number with 0 <= slope < 1.
    """

    slope: float = 0.01

    initialization = "he"
    kinks = (0.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.slope < 1:
            raise ValueError(f"the slope must be at least 0 and less than 1, not {self.slope}")

    def value(self, z: Array, out: Array | None = None) -> Array:
        leak = np.multiply(z, self.slope, out=out)
        return np.maximum(z, leak, out=out)  # for z > 0 this is z, for z < 0 it is the leak

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        if out is None:
            out = np.empty_like(a)
        np.greater(a, 0, out=out, casting="unsafe")  # 1 for z > 0, else 0
        return np.maximum(out, self.slope, out=out)


@register_activation("elu")
class ELU(Activation):
    """f(z) = z for z > 0, else e^z - 1; f'(z) = 1 for z > 0, else e^z (Clevert et al. 2016)."""

    initialization = "he"
    kinks = (0.0,)  # only the second derivative jumps, but that is enough to spoil a difference

    def value(self, z: Array, out: Array | None = None) -> Array:
        positive_part = np.maximum(z, 0)
        negative_part = np.expm1(np.minimum(z, 0))  # one of the two parts is always 0
        return np.add(positive_part, negative_part, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return np.exp(np.minimum(z, 0), out=out)


def _normal_cdf(z: Array) -> Array:
    """Return Φ(z), the probability that a standard normal variable is below z."""
    from scipy.special import erf  # imported here, so that `import nnlib` stays fast

    return 0.5 * (1 + erf(z / math.sqrt(2)))


def _normal_density(z: Array) -> Array:
    """Return φ(z), the derivative of Φ."""
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@register_activation("gelu")
class GELU(Activation):
    """f(z) = z Φ(z), f'(z) = Φ(z) + z φ(z), with the normal distribution's Φ and its density φ.

    (Hendrycks and Gimpel 2016.)
    """

    initialization = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.multiply(z, _normal_cdf(z), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        clipped = np.clip(z, -40, 40)  # beyond, φ is 0, and z * z could overflow in float32
        return np.add(_normal_cdf(z), clipped * _normal_density(clipped), out=out)


def _sigmoid(z: Array, out: Array | None = None) -> Array:
    """Return 1/(1 + e^-z), computed as (1 + tanh(z/2))/2, which can't overflow."""
    out = np.multiply(z, 0.5, out=out)
    np.tanh(out, out=out)
    np.add(out, 1, out=out)
    return np.multiply(out, 0.5, out=out)


@register_activation("sigmoid")
class Sigmoid(Activation):
    """f(z) = 1/(1 + e^-z), f'(z) = (1 - a) a."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return _sigmoid(z, out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        out = np.subtract(1, a, out=out)
        return np.multiply(out, a, out=out)


@register_activation("silu")
class SiLU(Activation):
    """f(z) = z s(z), f'(z) = s(z) (1 + z (1 - s(z))), with s the sigmoid (Elfwing et al. 2018).

    Also called swish.
    """

    initialization = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.multiply(z, _sigmoid(z), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        s = _sigmoid(z)
        return np.multiply(s, 1 + z * (1 - s), out=out)


@register_activation("softplus")
class Softplus(Activation):
    """f(z) = log(1 + e^z), f'(z) = 1/(1 + e^-z) (Dugas et al. 2001)."""

    initialization = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        # e^z overflows for large z. So we compute max(z, 0) + log(1 + e^-|z|), which is the same.
        minus_abs = np.where(z.real > 0, -z, z)  # -|z|, in a form that is right for complex z too
        return np.add(np.maximum(z, 0), np.log1p(np.exp(minus_abs)), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return _sigmoid(z, out)


@register_activation("tanh")
class Tanh(Activation):
    """f(z) = tanh z, f'(z) = 1 - a²."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.tanh(z, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        out = np.multiply(a, a, out=out)
        return np.subtract(1, out, out=out)
