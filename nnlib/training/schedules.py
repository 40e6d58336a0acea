"""The learning rate as a pure function of the step: a resumed run has nothing to remember."""

import math
from collections.abc import Callable

from nnlib.errors import one_of

Schedule = Callable[[int], float]
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

    - ``constant`` stays at the full rate.
    - ``step`` multiplies the rate by ``decay_rate`` after every ``decay_every`` steps;
      ``exponential`` does the same without stairs. Neither falls below ``min_learning_rate``.
    - ``cosine`` is half a cosine, from the full rate at step 0 to ``min_learning_rate`` at the end
      (Loshchilov and Hutter 2017).
    - ``one_cycle`` is a line from 1/25 of the rate up to it in 30 % of the steps, then a cosine
      (Smith 2018).

    ``warmup_steps`` puts a straight line from 0 up to the full rate in front (Goyal et al. 2017);
    the schedule itself then runs over the remaining steps. Raises HyperparameterError for an
    unknown name.
    """
    one_of(SCHEDULES, "schedule", name)
    rate = learning_rate
    floor = min_learning_rate
    steps = max(total_steps - warmup_steps, 1)  # of the schedule itself

    def half_cosine(step: int, length: int) -> float:
        done = min(step / max(length, 1), 1.0)
        return floor + (rate - floor) * 0.5 * (1 + math.cos(math.pi * done))

    def constant(step: int) -> float:
        return rate

    def stairs(step: int) -> float:
        return max(rate * decay_rate ** (step // decay_every), floor)

    def exponential(step: int) -> float:
        return max(rate * decay_rate ** (step / decay_every), floor)

    def cosine(step: int) -> float:
        return half_cosine(step, steps)

    def one_cycle(step: int) -> float:
        top = max(round(0.3 * steps), 1)
        if step < top:
            low = rate / 25
            return low + (rate - low) * step / top
        return half_cosine(step - top, steps - top)

    schedules: dict[str, Schedule] = {
        "constant": constant,
        "step": stairs,
        "exponential": exponential,
        "cosine": cosine,
        "one_cycle": one_cycle,
    }
    after_warmup = schedules[name]

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return rate * (step + 1) / warmup_steps
        return after_warmup(step - warmup_steps)

    return schedule
