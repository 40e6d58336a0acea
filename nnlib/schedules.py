"""The learning rate as a function of the step: pure functions, so that a resumed run needs to remember nothing."""

import math
from collections.abc import Callable

from nnlib.errors import HyperparameterError, did_you_mean

Schedule = Callable[[int], float]


def constant(step: int, rate: float) -> float:
    """Return ``rate`` at every step."""
    return rate


def step_decay(step: int, rate: float, *, factor: float, every: int, floor: float) -> float:
    """Return ``rate`` times ``factor`` once for each ``every`` steps done, but never less than ``floor``."""
    return max(rate * factor ** (step // every), floor)


def exponential(step: int, rate: float, *, factor: float, every: int, floor: float) -> float:
    """Return ``rate`` times ``factor`` to the power step/every: step decay without the stairs."""
    return max(rate * factor ** (step / every), floor)


def cosine(step: int, rate: float, *, total: int, floor: float) -> float:
    """Return half a cosine from ``rate`` at step 0 to ``floor`` at step ``total`` (Loshchilov and Hutter 2017)."""
    progress = min(step / max(total, 1), 1.0)
    return floor + (rate - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(step: int, rate: float, *, total: int, floor: float) -> float:
    """Return a line from rate/25 up to ``rate`` in 30 % of ``total``, then a cosine to ``floor`` (Smith 2018)."""
    top = max(round(0.3 * total), 1)
    if step < top:
        return rate / 25 + (rate - rate / 25) * step / top
    return cosine(step - top, rate, total=total - top, floor=floor)


SCHEDULES = ("constant", "step", "exponential", "cosine", "one_cycle")


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    *,
    decay_rate: float = 0.95,
    decay_every: int = 375,
    min_learning_rate: float = 0.0,
    warmup_steps: int = 0,
) -> Schedule:
    """Return the schedule called ``name`` as a function of the step (0 is the first update).

    ``warmup_steps`` puts a straight line from 0 up to the full rate in front of it (Goyal et al. 2017); the schedule
    proper then runs over the remaining steps. Raises HyperparameterError for a name that is not known.
    """
    rest = max(total_steps - warmup_steps, 1)
    decay = {"factor": decay_rate, "every": decay_every, "floor": min_learning_rate}
    after: dict[str, Schedule] = {
        "constant": lambda step: constant(step, learning_rate),
        "step": lambda step: step_decay(step, learning_rate, **decay),  # type: ignore[arg-type]
        "exponential": lambda step: exponential(step, learning_rate, **decay),  # type: ignore[arg-type]
        "cosine": lambda step: cosine(step, learning_rate, total=rest, floor=min_learning_rate),
        "one_cycle": lambda step: one_cycle(step, learning_rate, total=rest, floor=min_learning_rate),
    }
    if name not in after:
        raise HyperparameterError(f"schedule: {name!r} is not known. {did_you_mean(name, SCHEDULES)}")

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return learning_rate * (step + 1) / warmup_steps
        return after[name](step - warmup_steps)

    return schedule
