"""The learning rate as a function of the step: pure functions, so that a resumed run needs to remember nothing."""

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

    ``step`` multiplies the rate by ``decay_rate`` once for each ``decay_every`` steps done, ``exponential`` without the
    stairs, neither below ``min_learning_rate``. ``cosine`` is half a cosine from the full rate at step 0 to
    ``min_learning_rate`` at the last (Loshchilov and Hutter 2017); ``one_cycle`` a line from 1/25 of the rate up to it
    in 30 % of the steps, then a cosine (Smith 2018).

    ``warmup_steps`` puts a straight line from 0 up to the full rate in front of it (Goyal et al. 2017); the schedule
    proper then runs over the remaining steps. Raises HyperparameterError for a name that is not known.
    """
    rate, floor, total = learning_rate, min_learning_rate, max(total_steps - warmup_steps, 1)
    top, low = max(round(0.3 * total), 1), rate / 25  # of one_cycle

    def cosine(step: int, total: int = total) -> float:
        return floor + (rate - floor) * 0.5 * (
            1 + math.cos(math.pi * min(step / max(total, 1), 1.0))
        )

    schedules: dict[str, Schedule] = {
        "constant": lambda step: rate,
        "step": lambda step: max(rate * decay_rate ** (step // decay_every), floor),
        "exponential": lambda step: max(rate * decay_rate ** (step / decay_every), floor),
        "cosine": cosine,
        "one_cycle": lambda step: (
            low + (rate - low) * step / top if step < top else cosine(step - top, total - top)
        ),
    }
    after = schedules[one_of(SCHEDULES, "schedule", name)]

    def schedule(step: int) -> float:
        return (
            rate * (step + 1) / warmup_steps if step < warmup_steps else after(step - warmup_steps)
        )

    return schedule
