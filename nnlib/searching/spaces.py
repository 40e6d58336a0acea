"""Search spaces: lists and ranges, checked before the first trial, and drawing from them."""

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
Known = Sequence[tuple[Settings, float | None]]  # settings and their merit, see make_study


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``; ``log`` draws them evenly on a logarithmic scale.

    ``whole`` allows whole numbers only. Raises HyperparameterError for a range that is empty, for
    ``log`` with ``low`` at or below 0, and for ``whole`` with ends that are not whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise HyperparameterError(f"range: {self} is empty; low must be less than high.")
        if self.log and self.low <= 0:
            raise HyperparameterError(
                f"range: {self} is not allowed; a logarithmic scale starts above 0."
            )
        if self.whole and not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise HyperparameterError(
                f"range: {self} is not allowed; whole numbers need whole ends."
            )

    def place(self, value: float) -> float:
        """Return where ``value`` lies on this range's scale, from 0 (``low``) to 1 (``high``)."""
        if self.log:
            low = math.log(self.low)
            return (math.log(value) - low) / (math.log(self.high) - low)
        return (value - self.low) / (self.high - self.low)


def uniform(low: float, high: float) -> Range:
    """Return the range of all numbers from ``low`` to ``high``."""
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """Return a logarithmic range: from 0.001 to 0.01 it draws as many as from 0.01 to 0.1."""
    return Range(low, high, log=True)


def integers(low: int, high: int, log: bool = False) -> Range:
    """Return the range of all whole numbers from ``low`` to ``high``, both included."""
    return Range(low, high, log, whole=True)


def checked(space: Mapping[str, Any], base: Hyperparameters) -> dict[str, Any]:
    """Return the space with every value in its field's own type, and no value twice.

    Raises HyperparameterError for an empty space, and for the first value that is not allowed.
    """
    if not isinstance(space, Mapping) or not space:
        remedy = "give lists or ranges, such as {'learning_rate': [0.01, 0.1]}"
        raise HyperparameterError(f"space: {space!r:.40} is not allowed; {remedy}.")
    ready: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, Range):
            _check_range(name, values, base)
            ready[name] = values
        else:
            ready[name] = _checked_list(name, values, base)
    return ready


def _check_range(name: str, values: Range, base: Hyperparameters) -> None:
    """Raise HyperparameterError unless the field takes the numbers of this range."""
    samples = [values.low, values.high]
    if not values.whole:
        # A fraction from between the ends: a field of whole numbers refuses it.
        samples.append(values.low + (values.high - values.low) / math.pi)
    for value in samples:
        base.replace(**{name: value})


def _checked_list(name: str, values: Any, base: Hyperparameters) -> list[Any]:
    is_list = isinstance(values, Iterable) and not isinstance(values, str)
    options = list(values) if is_list else []
    if not options:
        remedy = "give a list with at least one value, or a range"
        raise HyperparameterError(f"{name}: {values!r} is not allowed; {remedy}.")
    ready: list[Any] = []
    for option in options:
        value = getattr(base.replace(**{name: option}), name)
        if value not in ready:  # 0 and 0.0 are the same setting
            ready.append(value)
    return ready


def grid(space: Mapping[str, Any]) -> Iterator[Settings]:
    """Return all combinations of the lists in ``space``. Raises HyperparameterError for a range."""
    for name, values in space.items():
        if isinstance(values, Range):
            raise HyperparameterError(
                f"{name}: a grid needs a list; a range goes with random, tpe or halving."
            )
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))


def draw(
    space: Mapping[str, Any], method: str, seed: Sequence[int], known: Known
) -> Settings | None:
    """Return settings drawn by Optuna that are not yet ``known``; None if 100 draws are all known.

    ``random`` draws evenly; ``tpe`` learns from what is ``known`` (Bergstra et al. 2011; see
    ``make_study``). Each draw has its own generator, made from ``seed``: a search that was
    interrupted draws the same settings as one that was not.
    """
    import numpy as np

    distributions = _distributions(space)
    for attempt in range(100):
        generator = np.random.default_rng([*seed, attempt])
        study = make_study(space, known, method, int(generator.integers(2**32)))
        drawn = study.ask(distributions).params
        settings = {}
        for name, value in drawn.items():
            # For a list, Optuna draws the place in it.
            settings[name] = value if isinstance(space[name], Range) else space[name][value]
        if all(settings != other for other, _ in known):
            return settings
    return None


def make_study(
    space: Mapping[str, Any], known: Known, method: str = "random", seed: int = 0
) -> "optuna.Study":
    """Return an Optuna study that has seen all ``known`` settings.

    The merit beside each is larger for better settings, -inf if they failed, and None while their
    trials still run.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: optuna.samplers.BaseSampler
    if method == "random":
        sampler = optuna.samplers.RandomSampler(seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(space)
    for settings, merit in known:
        params = {}
        for name, values in space.items():
            value = settings[name]
            params[name] = value if isinstance(values, Range) else values.index(value)
        running = merit is None
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING if running else optuna.trial.TrialState.COMPLETE,
            value=merit,
            params=params,
            distributions=distributions,
        )
        study.add_trial(trial)
    return study


def _distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Any) -> Any:
    """Return Optuna's distribution for a range, or for the places in a list.

    Places, because Optuna accepts no tuples as choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(tuple(range(len(values))))
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
