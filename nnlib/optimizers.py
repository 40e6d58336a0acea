"""Stochastic gradient descent: momentum, Nesterov's momentum, coupled or decoupled L2, clipping, weight averaging."""

import math
from dataclasses import dataclass

import numpy as np

from nnlib.products import Arrays, add_scaled, sum_of_squares


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
    """

    parameters: Arrays
    momentum: float = 0.0
    nesterov: bool = False
    clip_norm: float = 0.0
    decoupled_l2: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        self.velocity = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        separate = self.nesterov or (self.clip_norm > 0 and self.momentum > 0)
        self.into = {name: v.copy() for name, v in self.velocity.items()} if separate else self.velocity
        self.factor = 0.0 if separate else self.momentum
        self.average = {name: p.copy() for name, p in self.parameters.items()} if self.ema else {}
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Move the parameters by one step along the gradient that lies in ``into``."""
        if self.clip_norm and (norm := global_norm(self.into)) > self.clip_norm:
            for g in self.into.values():
                g *= self.clip_norm / norm
        self.steps += 1
        keep = min(self.ema, self.steps / (10 + self.steps))  # a short memory at first: early weights are far off
        for name, p in self.parameters.items():
            if self.decoupled_l2 and name[0] == "W":
                p *= 1 - learning_rate * self.decoupled_l2
            if self.into is not self.velocity:
                self.velocity[name] *= self.momentum
                add_scaled(self.velocity[name], self.into[name], 1.0)
            if self.nesterov:
                add_scaled(p, self.into[name], -learning_rate)
            add_scaled(p, self.velocity[name], -learning_rate * (self.momentum if self.nesterov else 1.0))
            if self.ema:
                self.average[name] *= keep
                add_scaled(self.average[name], p, 1 - keep)
