"""The weights before the first step: normal or uniform, with a spread that depends on the layer."""

import math
from typing import Any

import numpy as np

from nnlib.errors import one_of
from nnlib.types import Array

INITIALIZATIONS = (
    "auto",
    "small_normal",
    "he",
    "he_normal",
    "he_uniform",
    "xavier",
    "xavier_normal",
    "xavier_uniform",
    "lecun",
    "lecun_normal",
    "lecun_uniform",
)


def standard_deviation(kind: str, fan_in: int, fan_out: int) -> float:
    """Return the standard deviation of the weights of a layer, for a ``kind`` of initialization.

    - ``he``: variance 2/fan_in keeps the signal's size through ReLU-like layers (He et al. 2015).
    - ``xavier``: 2/(fan_in + fan_out) keeps it through tanh-like layers, forward and backward
      (Glorot and Bengio 2010).
    - ``lecun``: 1/fan_in keeps it through linear layers (LeCun et al. 1998).
    - ``small``: 0.01, whatever the layer's width.
    """
    if kind == "he":
        return math.sqrt(2 / fan_in)
    if kind == "xavier":
        return math.sqrt(2 / (fan_in + fan_out))
    if kind == "lecun":
        return math.sqrt(1 / fan_in)
    return 0.01


def initial_weights(
    name: str, fan_in: int, fan_out: int, rng: np.random.Generator, dtype: Any = np.float32
) -> Array:
    """Draw a weight matrix (fan_in, fan_out).

    ``name`` is ``he``, ``xavier`` or ``lecun``, optionally followed by ``_normal`` (the default)
    or ``_uniform``; or it is ``small_normal``. Raises HyperparameterError for any other name.
    """
    one_of(INITIALIZATIONS, "initialization", name)
    kind, _, distribution = name.partition("_")
    std = standard_deviation(kind, fan_in, fan_out)
    if distribution == "uniform":
        limit = std * math.sqrt(3)  # uniform on (-limit, limit) has the standard deviation std
        weights = rng.uniform(-limit, limit, (fan_in, fan_out))
    else:
        weights = std * rng.standard_normal((fan_in, fan_out))
    return weights.astype(dtype)
