"""Stochastic gradient descent: momentum, Nesterov's too, L2 and L1 beside the loss, clipping."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nnlib.network.blas import add_scaled, sum_of_squares
from nnlib.types import Array, Arrays

BLOCK = 2**16  # entries updated together: few enough to stay in the cache for the whole update


def global_norm(arrays: Arrays) -> float:
    """Return the Euclidean norm of all entries of all ``arrays`` together."""
    return math.sqrt(sum(float(sum_of_squares(a)) for a in arrays.values()))


@dataclass(eq=False, repr=False)
class SGD:
    """Updates parameters in place. With gradient g, velocity v, momentum μ and learning rate η:

    v ← μ v + g, then W ← W - η v (Polyak 1964),
    or with ``nesterov`` W ← W - η (g + μ v) (Sutskever et al. 2013).

    ``model.backward(dlogits, l2, out=sgd.gradients)`` writes the gradient, then
    ``sgd.step(learning_rate)`` does the rest. The gradient has arrays of its own. BLAS could add it
    to the velocity while it multiplies; that would save about 2 % of a step of 3072-1024-256 on one
    thread, and the formula would be spread over two places.

    ``clip_norm`` > 0 scales a longer gradient down to that global norm (Pascanu et al. 2013).
    ``decoupled_l2`` shrinks the weights by η λ W beside the step (Loshchilov and Hutter 2019).
    ``ema`` > 0 keeps ``average``, the mean of the parameters in which a step's weight fades by this
    factor with each further step (Polyak and Juditsky 1992).

    ``l1``, λ, acts on the first layer's weights, after the step and beside the loss, by soft
    thresholding (Daubechies et al. 2004). ``l1_cut``, β, then sets to zero what is small (β-LASSO,
    Neyshabur 2020):

    W1 ← sign(W1) max(|W1| - λ η / (1 - μ), 0), then W1 ← 0 where |W1| < β λ.

    η / (1 - μ) is how far a constant gradient of length 1 moves a weight in one step, once the
    velocity has grown. So without a cut the steps end where λ‖W1‖₁ + loss is smallest: at
    g = -λ sign(W1), or W1 = 0 and |g| ≤ λ. The cut removes weights that one
    step can't lift above βλ.
    """

    parameters: Arrays
    momentum: float = 0.0
    nesterov: bool = False
    clip_norm: float = 0.0
    decoupled_l2: float = 0.0
    l1: float = 0.0
    l1_cut: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        self.gradients = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        self.velocity = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        self.average: Arrays = {}
        if self.ema:
            self.average = {name: p.copy() for name, p in self.parameters.items()}
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Move the parameters by one step along ``gradients``."""
        self.steps += 1
        self._clip()
        # the average has a short memory at first, because early weights are far off
        keep = min(self.ema, self.steps / (10 + self.steps))
        for name in self.parameters:
            shrinking = self.decoupled_l2 if name.startswith("W") else 0.0
            for p, g, v, average in self._blocks(name):
                if shrinking:
                    p *= 1 - learning_rate * shrinking
                v *= self.momentum  # v ← μ v + g
                add_scaled(v, g, 1.0)
                if self.nesterov:  # W ← W - η (g + μ v)
                    add_scaled(p, g, -learning_rate)
                    add_scaled(p, v, -learning_rate * self.momentum)
                else:  # W ← W - η v
                    add_scaled(p, v, -learning_rate)
                if self.l1 and name == "W1":
                    soft_threshold(p, self.l1 * learning_rate / (1 - self.momentum))
                    p *= np.abs(p) >= self.l1_cut * self.l1
                if self.ema:
                    average *= keep
                    add_scaled(average, p, 1 - keep)

    def _clip(self) -> None:
        """Scale the gradients down to ``clip_norm`` if they are longer."""
        if not self.clip_norm:
            return
        norm = global_norm(self.gradients)
        if norm > self.clip_norm:
            for g in self.gradients.values():
                g *= self.clip_norm / norm

    def _blocks(self, name: str) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Yield views of parameter, gradient, velocity and average, BLOCK entries at a time."""
        p = self.parameters[name].reshape(-1)
        g = self.gradients[name].reshape(-1)
        v = self.velocity[name].reshape(-1)
        average = self.average[name].reshape(-1) if self.ema else p  # p stands in, unused
        for start in range(0, len(p), BLOCK):
            block = slice(start, start + BLOCK)
            yield p[block], g[block], v[block], average[block]


def soft_threshold(w: Array, by: float) -> Array:
    """Move entries of ``w`` toward zero by at most ``by``: sign(w) max(|w| - by, 0), in place."""
    w -= np.clip(w, -by, by)
    return w
