"""One frozen dataclass of everything that defines a training run, shared by trainer, search, widgets and files."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

from nnlib.data.preprocessing import PREPROCESSING
from nnlib.errors import HyperparameterError, did_you_mean, one_of
from nnlib.network.activations import ACTIVATIONS, Activation, get_activation, own_activations
from nnlib.network.initialization import INITIALISATIONS
from nnlib.training.schedules import SCHEDULES

SELECT_BY = ("valid_accuracy", "valid_loss")


def _refuse(name: str, value: Any, allowed: str) -> NoReturn:
    raise HyperparameterError(f"{name}: {value!r} is not allowed; {allowed}.")


def _field(
    default: Any, text: str, allowed: str, check: Callable[[str, Any], Any], **more: Any
) -> Any:
    """Declare a field: ``check(name, value)`` returns the value in the field's own type, or refuses it."""
    return field(
        default=default, metadata={"help": text, "allowed": allowed, "check": check, **more}
    )


def _within(value: Any, kind: Any, low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _number(default: float, low: float, high: float, text: str, *, below_high: bool = False) -> Any:
    """Declare a field that takes a number from ``low`` to ``high`` (excluded with ``below_high``), whole if it is."""
    kind = type(default)
    allowed = f"a {'whole ' * (kind is int)}number from {low} to {'less than ' * below_high}{high}"

    def check(name: str, value: Any) -> float:
        fits = _within(value, Integral if kind is int else Real, low, high) and not (
            below_high and value == high
        )
        return kind(value) if fits else _refuse(name, value, allowed)

    return _field(default, text, allowed, check, range=(low, high))


def _choice(default: str, options: tuple[str, ...], text: str) -> Any:
    """Declare a field that takes one of ``options``."""
    return _field(
        default, text, "one of " + ", ".join(options), partial(one_of, options), options=options
    )


def _switch(default: bool, text: str) -> Any:
    """Declare a field that is on or off."""

    def check(name: str, value: Any) -> bool:
        return bool(value) if value in (True, False) else _refuse(name, value, "True or False")

    return _field(default, text, "True or False", check)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


SIZES = "whole numbers from 1 to 65536, one for each hidden layer, such as (1024, 256)"
ALL_OR_EACH = "activation of all hidden layers, or one for each"


def _check_sizes(name: str, value: Any) -> tuple[int, ...]:
    if not all(_within(size, Integral, 1, 65536) for size in _as_tuple(value)):
        _refuse(name, value, SIZES)
    return tuple(int(size) for size in _as_tuple(value))


def _check_activation(name: str, value: Any) -> str | tuple[str, ...]:
    for each in _as_tuple(value):
        get_activation(each)
    return value if isinstance(value, str) else _as_tuple(value)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Everything that, with the data, defines a training run. Immutable; checks itself when it is made.

    Raises HyperparameterError, naming field, value and what is allowed.
    """

    hidden_sizes: tuple[int, ...] = _field(
        (1024, 256), "units of each layer, from the input on", SIZES, _check_sizes
    )
    activation: str | tuple[str, ...] = _field(
        "leaky_relu", ALL_OR_EACH, ", ".join(ACTIVATIONS), _check_activation
    )
    initialisation: str = _choice(
        "auto", INITIALISATIONS, "distribution of the first weights; auto follows activation"
    )
    preprocessing: str = _choice(
        "standardise", PREPROCESSING, "what is done to pixels before the first layer"
    )
    components: int = _number(
        0, 0, 1_000_000, "axes that whitening keeps (zca: gives factors of their own); 0: all"
    )
    whitening_floor: float = _number(
        0.1, 0, 100, "added to each variance in whitening, in units of the mean variance"
    )
    flip: bool = _switch(False, "mirror half of the training images, anew each epoch")
    shift: int = _number(0, 0, 16, "shift training images by up to this many pixels each way")
    batch_size: int = _number(256, 1, 1_000_000, "images in one step")
    epochs: int = _number(20, 1, 1_000_000, "passes over the training images")
    learning_rate: float = _number(0.05, 0, 1000, "highest step length of gradient descent")
    schedule: str = _choice("constant", SCHEDULES, "how the learning rate changes over the steps")
    decay_rate: float = _number(0.95, 0, 1, "factor of the step and exponential schedules")
    decay_every: int = _number(375, 1, 1_000_000_000, "steps from one factor to the next")
    min_learning_rate: float = _number(0.0, 0, 1000, "the learning rate never falls below this")
    warmup_steps: int = _number(
        0, 0, 1_000_000_000, "steps in which the learning rate first rises from zero"
    )
    momentum: float = _number(
        0.0, 0, 1, "share of the velocity kept from step to step", below_high=True
    )
    nesterov: bool = _switch(False, "look ahead along the velocity (Nesterov's momentum)")
    clip_norm: float = _number(
        0.0, 0, 10**9, "longest gradient (global norm) that is used as it is; 0 never clips"
    )
    l2: float = _number(0.0, 0, 100, "coefficient λ of the penalty ½λ‖W‖²; biases are left out")
    l1: float = _number(
        0.0, 0, 100, "coefficient λ of the penalty λ‖W1‖₁ on the first layer's weights"
    )
    l1_cut: float = _number(
        0.0, 0, 10**9, "first-layer weights below l1_cut·l1 are set to zero after each step"
    )
    decoupled_l2: bool = _switch(
        False, "shrink the weights by learning_rate·λ beside the gradient, not through it"
    )
    dropout: float = _number(
        0.0, 0, 1, "share of hidden units switched off in each step", below_high=True
    )
    input_dropout: float = _number(
        0.0, 0, 1, "share of inputs switched off in each step", below_high=True
    )
    label_smoothing: float = _number(
        0.0, 0, 1, "share of each target spread evenly over all classes"
    )
    ema: float = _number(
        0.0,
        0,
        1,
        "decay of the weights' moving average, which is evaluated; 0: off",
        below_high=True,
    )
    select_by: str = _choice("valid_accuracy", SELECT_BY, "what makes an epoch's weights the best")
    patience: int = _number(
        0, 0, 1_000_000, "stop after this many epochs without a new best; 0 never stops early"
    )
    seed: int = _number(
        0, 0, 2**63 - 1, "fixes first weights, order of images, augmentation and dropout"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))
        names, n = self.activation, len(self.hidden_sizes)
        if isinstance(names, tuple) and len(names) != n:
            _refuse(
                "activation", names, f"one name for each of the {n} hidden layers, or one for all"
            )
        if self.nesterov and not self.momentum:
            _refuse("nesterov", True, "it needs a momentum above 0")
        if self.l1_cut and not self.l1:
            _refuse("l1_cut", self.l1_cut, "it counts in units of l1, which must be above 0")

    def replace(self, **changes: Any) -> "Hyperparameters":
        """Return a copy with some fields changed."""
        return self.from_dict(vars(self) | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that JSON can hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Hyperparameters":
        """Return the hyperparameters in ``values``; fields that are missing have their defaults."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise HyperparameterError(
                    f"{name}: there is no such hyperparameter. {did_you_mean(name, known)}"
                )
        return cls(**values)

    def __reduce__(self) -> Any:
        """Another process gets to know one's own activations together with the hyperparameters."""
        return _unpickled, (own_activations(), vars(self))

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> "Hyperparameters":
        """Return the recipe called ``name``, with some fields changed if wanted; ``RECIPES`` lists them all."""
        return RECIPES[one_of(RECIPES, "recipe", name)].replace(**changes)


def _unpickled(
    activations: Mapping[str, type[Activation]], values: Mapping[str, Any]
) -> Hyperparameters:
    ACTIVATIONS.update(activations)
    return Hyperparameters(**values)


RECIPES: dict[str, Hyperparameters] = {}
for _name, _values in tomllib.loads(
    Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")
).items():
    _base = RECIPES[_values.pop("like")] if "like" in _values else Hyperparameters()
    RECIPES[_name] = _base.replace(**_values)
