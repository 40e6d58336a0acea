"""Can the network still learn? Dead units, saturated activations and outputs, exploding weights.

Everything here takes a model and images, or weights, and returns numbers or words.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nnlib.network.losses import softmax
from nnlib.network.mlp import MLP
from nnlib.types import Array, Arrays

LOOKED_AT = 500  # this many validation images tell how a layer is doing


class LayerHealth(NamedTuple):
    """``dead``: share of units that learn nothing; ``saturated``: share of flat activations."""

    dead: float
    saturated: float


def layer_health(model: MLP, images: Array) -> list[LayerHealth]:
    """Return each hidden layer's shares of dead units and saturated activations on ``images``.

    A unit is dead if its derivative is below 0.0001 for every image: no gradient passes through it.
    An activation is saturated if the derivative is below 0.01 at z and at -z: sigmoid and tanh are
    flat at both ends, ReLU and its relatives are not. ``images`` are at most 2500.
    """
    model.activations(model.inputs(images))  # keeps the pre-activations; predictions don't
    health = []
    for function, z in zip(model.functions, model.pre_activations, strict=True):
        slope = abs(function.derivative(z, function.value(z)))
        far = abs(z)
        # at |z|: a ReLU that is off at z has its full slope there, a saturated tanh has none
        steep = abs(function.derivative(far, function.value(far)))
        dead = (slope < 1e-4).all(axis=0).mean()
        saturated = (steep < 0.01).mean()
        health.append(LayerHealth(float(dead), float(saturated)))
    return health


def weight_norms(parameters: Arrays) -> dict[str, float]:
    """Return the Euclidean norm of each weight matrix, by name; biases are left out."""
    return {
        name: float(np.linalg.norm(p)) for name, p in parameters.items() if name.startswith("W")
    }


def network_warnings(model: MLP, images: Array, labels: Array) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, details) where a network no longer learns though its loss is finite."""
    for layer, health in enumerate(layer_health(model, images), 1):
        if health.dead > 0.9:
            details = f"no image moves {health.dead:.0%} of its units, they learn nothing more"
            yield f"layer {layer} is dead", details
        if health.saturated > 0.9:
            details = f"{health.saturated:.0%} of its activations pass on almost no gradient"
            yield f"layer {layer} is saturated", details
    logits = model.predict_logits(images)
    certain = (softmax(logits).max(axis=1) > 0.9999).mean()
    wrong = (logits.argmax(axis=1) != labels).mean()
    if certain > 0.9 and wrong > 0.1:
        details = f"certain of {certain:.0%} of the validation images, wrong about {wrong:.0%}"
        yield "the outputs are saturated", details


def growth_warnings(
    parameters: Arrays, first_norms: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, details) for weights with far more than their ``first_norms``."""
    for name, norm in weight_norms(parameters).items():
        growth = norm / max(first_norms[name], 1e-12)
        if growth > 100:
            yield f"the weights {name} explode", f"they are {growth:.0f} times as long as at first"
