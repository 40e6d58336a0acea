"""Spaces of hyperparameters: lists and ranges, checked before the first trial, and who draws settings from them."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnlib.errors import HyperparameterError
from nnlib.training.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import optuna

Settings = dict[str, Any]
Known = Sequence[tuple[Settings, float | None]]


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``: drawn evenly, or evenly in their logarithm; whole numbers if asked."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise HyperparameterError(
                f"range: {self} is empty, or begins at or below 0 on a logarithmic scale."
            )
        if self.whole and not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise HyperparameterError(
                f"range: {self} is not allowed; whole numbers need whole ends."
            )

    def place(self, value: float) -> float:
        """Return where ``value`` lies on this range's scale, from 0 (``low``) to 1 (``high``)."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (at - low) / (high - low)


def uniform(low: float, high: float) -> Range:
    """All numbers from ``low`` to ``high``."""
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """All numbers from ``low`` to ``high``, as many from 0.001 to 0.01 as from 0.01 to 0.1."""
    return Range(low, high, log=True)


def integers(low: int, high: int, log: bool = False) -> Range:
    """All whole numbers from ``low`` to ``high``, both included."""
    return Range(low, high, log, whole=True)


def choice(*options: Any) -> list[Any]:
    """One of ``options``, given one by one or as one list; the same as writing the list. A tuple is one option."""
    return list(options[0]) if len(options) == 1 and isinstance(options[0], list) else list(options)


def checked(space: Mapping[str, Any], base: Hyperparameters) -> dict[str, Any]:
    """Return the space with every value made what Hyperparameters makes of it.

    Raises HyperparameterError for an empty space, or for the first value that is not allowed, with what is.
    """
    if not isinstance(space, Mapping) or not space:
        remedy = "give lists or ranges, such as {'learning_rate': [0.01, 0.1]}"
        raise HyperparameterError(f"space: {space!r:.40} is not allowed; {remedy}.")
    ready: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, Range):
            between = () if values.whole else (values.low + (values.high - values.low) / math.pi,)
            for value in (
                values.low,
                values.high,
                *between,
            ):  # what lies between is no whole number
                base.replace(**{name: value})
            ready[name] = values
        elif (
            isinstance(values, str)
            or not isinstance(values, Iterable)
            or not len(values := list(values))
        ):
            raise HyperparameterError(
                f"{name}: {values!r} is not a list with at least one value, nor a range."
            )
        else:
            ready[name] = list(
                dict.fromkeys(getattr(base.replace(**{name: value}), name) for value in values)
            )
    return ready


def grid(space: Mapping[str, Any]) -> Iterator[Settings]:
    """Yield all combinations of the lists in ``space``. Raises HyperparameterError if there is a range among them."""
    for name, values in space.items():
        if isinstance(values, Range):
            raise HyperparameterError(
                f"{name}: a grid needs a list; a range goes with random, tpe or halving."
            )
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))


def draw(
    space: Mapping[str, Any], method: str, seed: Sequence[int], known: Known
) -> Settings | None:
    """Return settings that are not yet ``known``, drawn by Optuna; None if a hundred draws bring nothing new.

    ``random`` draws evenly; ``tpe`` learns from what is ``known`` (Bergstra et al. 2011; see ``make_study``).
    Each draw has a generator of its own from ``seed``, so that a search that was broken off goes on as if it were not.
    """
    import numpy as np

    for attempt in range(100):
        study = make_study(
            space, known, method, int(np.random.default_rng([*seed, attempt]).integers(2**32))
        )
        asked = study.ask({name: _distribution(values) for name, values in space.items()}).params
        settings = {n: v if isinstance(space[n], Range) else space[n][v] for n, v in asked.items()}
        if all(settings != other for other, _ in known):
            return settings
    return None


def make_study(
    space: Mapping[str, Any], known: Known, method: str = "random", seed: int = 0
) -> "optuna.Study":
    """Return an Optuna study that has seen all ``known`` settings.

    Beside each stands its merit, larger for better: -inf where nothing came of it, None where it is still at work.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = (
        optuna.samplers.RandomSampler(seed)
        if method == "random"
        else optuna.samplers.TPESampler(seed=seed)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: _distribution(values) for name, values in space.items()}
    for settings, merit in known:
        params = {
            n: settings[n] if isinstance(v, Range) else v.index(settings[n])
            for n, v in space.items()
        }
        state = (
            optuna.trial.TrialState.RUNNING if merit is None else optuna.trial.TrialState.COMPLETE
        )
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=merit, params=params, distributions=distributions
            )
        )
    return study


def _distribution(values: Any) -> Any:
    """Return Optuna's word for a range, or for the places in a list (it takes no tuples as choices)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(tuple(range(len(values))))
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
