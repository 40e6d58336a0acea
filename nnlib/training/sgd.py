"""Stochastic gradient descent: momentum, Nesterov's momentum, L2 and L1 beside the loss, clipping, averaging."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nnlib.network.blas import add_scaled, sum_of_squares
from nnlib.types import Array, Arrays

BLOCK = (
    2**16
)  # entries that are updated together: few enough to stay in the cache for the whole update


def global_norm(arrays: Arrays) -> float:
    """Return the Euclidean norm of all entries of all ``arrays`` together."""
    return math.sqrt(sum(float(sum_of_squares(a)) for a in arrays.values()))


@dataclass(eq=False, repr=False)
class SGD:
    """Updates parameters in place. With gradient g, velocity v, momentum μ and learning rate η, one step is

    v ← μ v + g, then W ← W - η v (Polyak 1964), or with ``nesterov`` W ← W - η (g + μ v) (Sutskever et al. 2013).

    The gradient is written into ``into`` by ``model.backward(..., out=sgd.into, factor=sgd.factor)``: the velocity
    itself with factor μ where that says it all, a buffer beside it where clipping or Nesterov need g alone.
    ``clip_norm`` > 0 scales a longer gradient down to that global norm (Pascanu et al. 2013). ``decoupled_l2`` shrinks
    the weights by η λ W beside the step (Loshchilov and Hutter 2019). ``ema`` > 0 keeps ``average``, the mean of the
    parameters in which a step's weight fades by this factor with each further step (Polyak and Juditsky 1992).

    ``l1``, λ, acts on the first layer's weights, after the step and beside the loss, by soft thresholding (Daubechies
    et al. 2004), and ``l1_cut``, β, then sets to zero what is small (β-LASSO, Neyshabur 2020):

    W1 ← sign(W1) max(|W1| - λ η / (1 - μ), 0), then W1 ← 0 where |W1| < β λ.

    η / (1 - μ) is how far a constant gradient of length 1 moves a weight in one step, once the velocity has grown.
    Without a cut the steps therefore end where λ‖W1‖₁ + loss is smallest: at g = -λ sign(W1), or W1 = 0 and |g| ≤ λ.
    The cut keeps weights away that one step cannot lift above βλ.
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
        self.velocity = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        separate = self.nesterov or (self.clip_norm > 0 and self.momentum > 0)
        self.into = (
            {name: v.copy() for name, v in self.velocity.items()} if separate else self.velocity
        )
        self.factor = 0.0 if separate else self.momentum
        self.average = {name: p.copy() for name, p in self.parameters.items()} if self.ema else {}
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Move the parameters by one step along the gradient that lies in ``into``."""
        if self.clip_norm and (norm := global_norm(self.into)) > self.clip_norm:
            for g in self.into.values():
                g *= self.clip_norm / norm
        self.steps += 1
        keep = min(
            self.ema, self.steps / (10 + self.steps)
        )  # a short memory at first: early weights are far off
        for name in self.parameters:
            for p, g, v, average in self._blocks(name):
                if self.decoupled_l2 and name[0] == "W":
                    p *= 1 - learning_rate * self.decoupled_l2
                if self.into is not self.velocity:
                    v *= self.momentum
                    add_scaled(v, g, 1.0)
                if self.nesterov:
                    add_scaled(p, g, -learning_rate)
                add_scaled(p, v, -learning_rate * (self.momentum if self.nesterov else 1.0))
                if self.l1 and name == "W1":
                    soft_threshold(p, self.l1 * learning_rate / (1 - self.momentum))
                    p *= np.abs(p) >= self.l1_cut * self.l1
                if self.ema:
                    average *= keep
                    add_scaled(average, p, 1 - keep)

    def _blocks(self, name: str) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Yield views of parameter, gradient, velocity and average, BLOCK entries at a time."""
        p = self.parameters[name].reshape(-1)
        g, v = self.into[name].reshape(-1), self.velocity[name].reshape(-1)
        average = self.average[name].reshape(-1) if self.ema else p
        for start in range(0, len(p), BLOCK):
            block = slice(start, start + BLOCK)
            yield p[block], g[block], v[block], average[block]


def soft_threshold(w: Array, by: float) -> Array:
    """Move every entry of ``w`` toward zero by at most ``by``, in place: sign(w) max(|w| - by, 0)."""
    w -= np.clip(w, -by, by)
    return w
