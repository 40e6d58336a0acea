"""Activation functions: value and derivative side by side, found by name.

Every class here has ``value(z, out)``, a = f(z), and ``derivative(z, a, out)``, f'(z), which may use whichever of the
pre-activation z and the activation a makes it cheaper. Both work on arrays of any shape, elementwise, write into
``out`` when it is given and return the result. All but the values of GELU are plain NumPy and accept complex numbers,
which the complex-step gradient check feeds them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import numpy as np

from nnlib.errors import HyperparameterError, did_you_mean
from nnlib.types import Array


class Activation:
    """Base class. To add one's own, write a subclass, ``out`` and all, and make it known by a name::

        @nnlib.register_activation("cube")
        class Cube(nnlib.Activation):
            def value(self, z, out=None):
                return np.power(z, 3, out=out)

            def derivative(self, z, a, out=None):
                return np.multiply(np.square(z, out=out), 3, out=out)

    ``initialisation`` is what ``"auto"`` means in front of this activation; ``kinks`` lists the z at which the
    derivative jumps, so that the gradient check can leave out differences that straddle one.
    """

    initialisation: str = "xavier"
    kinks: tuple[float, ...] = ()

    def value(self, z: Array, out: Array | None = None) -> Array:
        """Return f(z)."""
        raise NotImplementedError

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        """Return f'(z), given z and a = f(z)."""
        raise NotImplementedError


ACTIVATIONS: dict[str, type[Activation]] = {}


def register_activation(name: str) -> Callable[[type[Activation]], type[Activation]]:
    """Class decorator: make an ``Activation`` known by ``name`` to models, hyperparameters and checkpoints.

    One's own may be registered again. Raises HyperparameterError for a name that is none, or that of nnlib's own.
    """
    if not isinstance(name, str) or name in ACTIVATIONS.keys() - own_activations():
        remedy = (
            'write @nnlib.register_activation("cube"), with a name that nnlib does not use itself'
        )
        raise HyperparameterError(f"activation: {name!r} cannot be registered; {remedy}.")

    def register(cls: type[Activation]) -> type[Activation]:
        both = [getattr(cls, method, Activation.value) for method in ("value", "derivative")]
        own = all(
            m not in (Activation.value, Activation.derivative) and "out" in signature(m).parameters
            for m in both
        )
        if not own or not issubclass(cls, Activation):
            needed = "a subclass of nnlib.Activation with value(self, z, out=None) and derivative(self, z, a, out=None)"
            raise HyperparameterError(f"activation: {cls!r} cannot be registered; {needed} can.")
        ACTIVATIONS[name] = cls
        return cls

    return register


def own_activations() -> dict[str, type[Activation]]:
    """Return the activations that were registered by others than nnlib."""
    return {name: cls for name, cls in ACTIVATIONS.items() if cls.__module__ != __name__}


def get_activation(name: str) -> Activation:
    """Return the activation called ``name``; a parameter stands in brackets, as in ``"leaky_relu(0.2)"``.

    Raises HyperparameterError for a name or a parameter that is not known.
    """
    match = re.fullmatch(r"(\w+)(?:\(([-+.\deE]+)\))?", name) if isinstance(name, str) else None
    if match is None or match[1] not in ACTIVATIONS:
        remedy = f"{did_you_mean(name, ACTIVATIONS)} Your own must be registered first (nnlib.register_activation)."
        raise HyperparameterError(f"activation: {name!r} is not known. {remedy}")
    try:
        return ACTIVATIONS[match[1]](*([float(match[2])] if match[2] else []))
    except (TypeError, ValueError) as error:
        raise HyperparameterError(
            f"activation: {name!r} has a parameter that does not fit ({error})."
        ) from None


@register_activation("identity")
class Identity(Activation):
    """f(z) = z, f'(z) = 1: turns the whole network into a linear classifier."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.positive(z, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        out = np.empty_like(z) if out is None else out
        out.fill(1)
        return out


@register_activation("relu")
class ReLU(Activation):
    """f(z) = max(z, 0), f'(z) = [z > 0] (Nair and Hinton 2010)."""

    initialisation = "he"
    kinks = (0.0,)

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.maximum(z, 0, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return np.greater(a, 0, out=np.empty_like(a) if out is None else out, casting="unsafe")


@register_activation("leaky_relu")
@dataclass(frozen=True)
class LeakyReLU(ReLU):
    """f(z) = max(z, slope z), f'(z) = 1 where z > 0 and slope elsewhere (Maas et al. 2013). 0 <= slope < 1."""

    slope: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.slope < 1:
            raise ValueError(f"the slope must be at least 0 and less than 1, not {self.slope}")

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.maximum(z, np.multiply(z, self.slope, out=out), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        # of a, which is nearer than z: the next layer read it
        return np.maximum(super().derivative(z, a, out), self.slope, out=out)


@register_activation("elu")
class ELU(
    ReLU
):  # its kink is one of the second derivative, which is enough to spoil a central difference
    """f(z) = z for z > 0, else e^z - 1; f'(z) = 1 for z > 0, else e^z (Clevert et al. 2016)."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.add(np.maximum(z, 0), np.expm1(np.minimum(z, 0)), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return np.exp(np.minimum(z, 0), out=out)


def _phi_integral(z: Array) -> Array:
    from scipy.special import erf  # imported here: `import nnlib` stays as fast as `import numpy`

    return 0.5 * (1 + erf(z / math.sqrt(2)))


@register_activation("gelu")
class GELU(Activation):
    """f(z) = z Phi(z), f'(z) = Phi(z) + z phi(z), with Phi, phi the normal law's (Hendrycks and Gimpel 2016)."""

    initialisation = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.multiply(z, _phi_integral(z), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        clipped = np.clip(z, -40, 40)  # phi is zero beyond, and z*z would overflow in float32
        density = np.exp(-0.5 * clipped * clipped) / math.sqrt(2 * math.pi)
        return np.add(_phi_integral(z), clipped * density, out=out)


def _sigmoid(z: Array, out: Array | None = None) -> Array:
    """Return 1/(1 + e^-z) as (1 + tanh(z/2))/2, which cannot overflow."""
    out = np.tanh(np.multiply(z, 0.5, out=out), out=out)
    return np.multiply(np.add(out, 1, out=out), 0.5, out=out)


@register_activation("sigmoid")
class Sigmoid(Activation):
    """f(z) = 1/(1 + e^-z), f'(z) = a(1 - a)."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return _sigmoid(z, out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return np.multiply(np.subtract(1, a, out=out), a, out=out)


@register_activation("silu")
class SiLU(Activation):
    """f(z) = z s(z), f'(z) = s(z)(1 + z(1 - s(z))), with s the sigmoid (Elfwing et al. 2018); also called swish."""

    initialisation = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.multiply(z, _sigmoid(z), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        s = _sigmoid(z)
        return np.multiply(s, 1 + z * (1 - s), out=out)


@register_activation("softplus")
class Softplus(Activation):
    """f(z) = log(1 + e^z) = max(z, 0) + log(1 + e^-|z|), f'(z) = 1/(1 + e^-z) (Dugas et al. 2001)."""

    initialisation = "he"

    def value(self, z: Array, out: Array | None = None) -> Array:
        # the exponent is -|z|, in a form that is right for complex z too
        return np.add(np.maximum(z, 0), np.log1p(np.exp(np.where(z.real > 0, -z, z))), out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return _sigmoid(z, out)


@register_activation("tanh")
class Tanh(Activation):
    """f(z) = tanh z, f'(z) = 1 - a^2."""

    def value(self, z: Array, out: Array | None = None) -> Array:
        return np.tanh(z, out=out)

    def derivative(self, z: Array, a: Array, out: Array | None = None) -> Array:
        return np.subtract(1, np.multiply(a, a, out=out), out=out)
