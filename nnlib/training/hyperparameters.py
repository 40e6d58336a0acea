"""All settings of a run in one frozen dataclass, shared by trainer, search, widgets and files."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nnlib.data.preprocessing import PREPROCESSING
from nnlib.errors import HyperparameterError, did_you_mean, one_of, our_spelling
from nnlib.network.activations import ACTIVATIONS, Activation, get_activation, own_activations
from nnlib.network.initialization import INITIALIZATIONS
from nnlib.training.schedules import SCHEDULES

T = TypeVar("T")
SELECT_BY = ("valid_accuracy", "valid_loss")

# What other libraries call our fields: an unknown name among these is answered with ours.
OTHER_NAMES = {
    "alpha": "l2",
    "batch": "batch_size",
    "dropout_rate": "dropout",
    "early_stopping": "patience",
    "grad_clip": "clip_norm",
    "hidden": "hidden_sizes",
    "hidden_layer_sizes": "hidden_sizes",
    "hidden_units": "hidden_sizes",
    "layer_sizes": "hidden_sizes",
    "layers": "hidden_sizes",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "max_iter": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "random_state": "seed",
    "scheduler": "schedule",
    "units": "hidden_sizes",
    "warmup": "warmup_steps",
    "weight_decay": "l2",
}
# What nnlib doesn't have, and what to use instead.
SGD_ONLY = "nnlib has stochastic gradient descent only: set momentum, nesterov, clip_norm, schedule"
NO_BATCH_NORM = (
    "nnlib has no batch normalization: set preprocessing='whiten', and initialization='auto' "
    "fits the first weights to the activation"
)
INSTEAD = {
    "adam": SGD_ONLY,
    "batch_norm": NO_BATCH_NORM,
    "batch_normalization": NO_BATCH_NORM,
    "batchnorm": NO_BATCH_NORM,
    "optim": SGD_ONLY,
    "optimiser": SGD_ONLY,
    "optimizer": SGD_ONLY,
    "solver": SGD_ONLY,
}


def _refuse(name: str, value: Any, allowed: str) -> NoReturn:
    raise HyperparameterError(f"{name}: {value!r} is not allowed; {allowed}.")


def _refuse_unknown(name: str, known: list[str]) -> None:
    """Raise HyperparameterError, with what was probably meant, unless ``name`` is a field."""
    if name in known:
        return
    remedy = did_you_mean(OTHER_NAMES.get(name, name), known)
    if name in INSTEAD:
        remedy = f"{INSTEAD[name]}. Known: {', '.join(sorted(known))}."
    raise HyperparameterError(f"{name}: there is no such hyperparameter. {remedy}")


def _explains_unknown_names(cls: type[T]) -> type[T]:
    """Decorate a dataclass: an unknown keyword raises a helpful message, not a TypeError."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    dataclass_init = cls.__init__

    @wraps(dataclass_init)  # so that help() and completion still show the fields
    def init(self: Any, *arguments: Any, **values: Any) -> None:
        spelled = {our_spelling(name): value for name, value in values.items()}
        for name in spelled:
            _refuse_unknown(name, known)
        dataclass_init(self, *arguments, **spelled)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


# Each function below declares one kind of field, with its help, its limits and its check.


def _field(
    default: Any, text: str, allowed: str, check: Callable[[str, Any], Any], **more: Any
) -> Any:
    """Declare a field. ``check(name, value)`` returns the value in its own type, or refuses it."""
    metadata = {"help": text, "allowed": allowed, "check": check, **more}
    return field(default=default, metadata=metadata)


def _is_within(value: Any, kind: Any, low: float, high: float) -> bool:
    """Return whether ``value`` is a number of this kind from low to high, and not True or False."""
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _whole(default: int, low: int, high: int, text: str) -> Any:
    """Declare a field that takes a whole number from ``low`` to ``high``."""
    allowed = f"a whole number from {low} to {high}"

    def check(name: str, value: Any) -> int:
        if not _is_within(value, Integral, low, high):
            _refuse(name, value, allowed)
        return int(value)

    return _field(default, text, allowed, check, range=(low, high))


def _number(default: float, low: float, high: float, text: str) -> Any:
    """Declare a field that takes a number from ``low`` to ``high``."""
    allowed = f"a number from {low} to {high}"

    def check(name: str, value: Any) -> float:
        if not _is_within(value, Real, low, high):
            _refuse(name, value, allowed)
        return float(value)

    return _field(default, text, allowed, check, range=(low, high))


def _share(default: float, text: str) -> Any:
    """Declare a field that takes a number from 0 to 1, but not 1 itself."""
    allowed = "a number from 0 to less than 1"

    def check(name: str, value: Any) -> float:
        if not _is_within(value, Real, 0, 1) or value == 1:
            _refuse(name, value, allowed)
        return float(value)

    return _field(default, text, allowed, check, range=(0, 1))


def _choice(default: str, options: tuple[str, ...], text: str) -> Any:
    """Declare a field that takes one of ``options``."""
    allowed = "one of " + ", ".join(options)

    def check(name: str, value: Any) -> Any:
        return one_of(options, name, our_spelling(value))

    return _field(default, text, allowed, check, options=options)


def _switch(default: bool, text: str) -> Any:
    """Declare a field that is on or off."""
    allowed = "True or False"

    def check(name: str, value: Any) -> bool:
        if value not in (True, False):
            _refuse(name, value, allowed)
        return bool(value)

    return _field(default, text, allowed, check)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


SIZES = "whole numbers from 1 to 65536, one for each hidden layer, such as (1024, 256)"
ALL_OR_EACH = "activation of all hidden layers, or one for each"


def _check_sizes(name: str, value: Any) -> tuple[int, ...]:
    sizes = _as_tuple(value)
    for size in sizes:
        if not _is_within(size, Integral, 1, 65536):
            _refuse(name, value, SIZES)
    return tuple(int(size) for size in sizes)


def _check_activation(name: str, value: Any) -> str | tuple[str, ...]:
    for each in _as_tuple(value):
        get_activation(each)  # which refuses unknown names
    return value if isinstance(value, str) else _as_tuple(value)


@_explains_unknown_names
@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """All settings of a run in one object. You can't change it, only copy it with ``replace``.

    It checks itself when it is made: HyperparameterError names field, value and what is allowed.
    """

    hidden_sizes: tuple[int, ...] = _field(
        (1024, 256), "units of each layer, from the input on", SIZES, _check_sizes
    )
    activation: str | tuple[str, ...] = _field(
        "leaky_relu", ALL_OR_EACH, ", ".join(ACTIVATIONS), _check_activation
    )
    initialization: str = _choice(
        "auto", INITIALIZATIONS, "distribution of the first weights; auto follows activation"
    )
    preprocessing: str = _choice(
        "standardize", PREPROCESSING, "what is done to pixels before the first layer"
    )
    components: int = _whole(
        0, 0, 1_000_000, "axes that whitening keeps (zca: gives factors of their own); 0: all"
    )
    whitening_floor: float = _number(
        0.1, 0, 100, "added to each variance in whitening, in units of the mean variance"
    )
    flip: bool = _switch(False, "mirror half of the training images, anew each epoch")
    shift: int = _whole(0, 0, 16, "shift training images by up to this many pixels each way")
    batch_size: int = _whole(256, 1, 1_000_000, "images in one step")
    epochs: int = _whole(20, 1, 1_000_000, "passes over the training images")
    learning_rate: float = _number(0.05, 0, 1000, "highest step length of gradient descent")
    schedule: str = _choice("constant", SCHEDULES, "how the learning rate changes over the steps")
    decay_rate: float = _number(0.95, 0, 1, "factor of the step and exponential schedules")
    decay_every: int = _whole(375, 1, 1_000_000_000, "steps from one factor to the next")
    min_learning_rate: float = _number(0.0, 0, 1000, "the learning rate never falls below this")
    warmup_steps: int = _whole(
        0, 0, 1_000_000_000, "steps in which the learning rate first rises from zero"
    )
    momentum: float = _share(0.9, "share of the velocity kept from step to step")
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
    dropout: float = _share(0.0, "share of hidden units switched off in each step")
    input_dropout: float = _share(0.0, "share of inputs switched off in each step")
    label_smoothing: float = _number(
        0.0, 0, 1, "share of each target spread evenly over all classes"
    )
    ema: float = _share(0.0, "decay of the weights' moving average, which is evaluated; 0: off")
    select_by: str = _choice("valid_accuracy", SELECT_BY, "what makes an epoch's weights the best")
    patience: int = _whole(
        0, 0, 1_000_000, "stop after this many epochs without a new best; 0 never stops early"
    )
    seed: int = _whole(
        0, 0, 2**63 - 1, "fixes first weights, order of images, augmentation and dropout"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = f.metadata["check"](f.name, getattr(self, f.name))
            object.__setattr__(self, f.name, value)  # the dataclass is frozen
        n = len(self.hidden_sizes)
        if isinstance(self.activation, tuple) and len(self.activation) != n:
            allowed = f"one name for each of the {n} hidden layers, or one for all"
            _refuse("activation", self.activation, allowed)
        if self.nesterov and not self.momentum:
            _refuse("nesterov", True, "it needs a momentum above 0")
        if self.l1_cut and not self.l1:
            _refuse("l1_cut", self.l1_cut, "it counts in units of l1, which must be above 0")

    def replace(self, **changes: Any) -> "Hyperparameters":
        """Return a copy with some fields changed."""
        spelled = {our_spelling(name): value for name, value in changes.items()}
        return self.from_dict(vars(self) | spelled)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that JSON can hold."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Hyperparameters":
        """Return the hyperparameters in ``values``; fields that are missing have their defaults."""
        return cls(**values)

    @classmethod
    def recipes(cls) -> tuple[str, ...]:
        """Return the names of all recipes."""
        return tuple(_recipes())

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> "Hyperparameters":
        """Return the recipe called ``name``, one of ``recipes()``, with some fields changed."""
        return _recipes()[one_of(cls.recipes(), "recipe", name)].replace(**changes)

    def __reduce__(self) -> Any:
        """Another process gets your own activations together with the hyperparameters."""
        return _unpickled, (own_activations(), vars(self))


def _unpickled(
    activations: Mapping[str, type[Activation]], values: Mapping[str, Any]
) -> Hyperparameters:
    ACTIVATIONS.update(activations)
    return Hyperparameters(**values)


@cache
def _recipes() -> dict[str, Hyperparameters]:
    """Return the recipes in recipes.toml by name. ``like`` names an earlier one to start from."""
    text = Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")
    recipes: dict[str, Hyperparameters] = {}
    for name, values in tomllib.loads(text).items():
        base = Hyperparameters()
        if "like" in values:
            base = recipes[values.pop("like")]
        recipes[name] = base.replace(**values)
    return recipes
