"""The weights before the first step: normal or uniform, their spread chosen from the layer's width."""

import math
from typing import Any

import numpy as np

from nnlib.errors import one_of
from nnlib.types import Array

# Variance of one weight: 2/fan_in keeps the signal's size through ReLU-like layers (He et al. 2015), 2/(fan_in +
# fan_out) through tanh-like ones both ways (Glorot and Bengio 2010), 1/fan_in through linear ones (LeCun et al. 1998).
_VARIANCE = {
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "xavier": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
}
INITIALISATIONS = (
    "auto",
    "small_normal",
    *(n + law for n in _VARIANCE for law in ("", "_normal", "_uniform")),
)


def initial_weights(
    name: str, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: Any = np.float32
) -> Array:
    """Draw a weight matrix (fan_in, fan_out).

    ``name`` is ``he``, ``xavier`` or ``lecun``, followed by ``_normal`` (the default) or ``_uniform``; or
    ``small_normal``, a standard deviation of 0.01 whatever the width. Raises HyperparameterError for any other.
    """
    kind, _, law = one_of(INITIALISATIONS, "initialisation", name).partition("_")
    std = 0.01 if kind == "small" else math.sqrt(_VARIANCE[kind](fan_in, fan_out))
    if law == "uniform":
        limit = std * math.sqrt(3)  # a uniform law on (-limit, limit) has this standard deviation
        return rng.uniform(-limit, limit, (fan_in, fan_out)).astype(dtype)
    return (std * rng.standard_normal((fan_in, fan_out))).astype(dtype)
