"""The errors that nnlib raises on purpose. Each message says what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class NNLibError(Exception):
    """Base class: ``except nnlib.NNLibError`` catches everything that nnlib raises on purpose."""


class DataError(NNLibError):
    """A data set could not be fetched, read or understood, or arrays do not fit together."""


class HyperparameterError(NNLibError, ValueError):
    """A hyperparameter or an argument has a value that is not allowed."""


class CheckpointError(NNLibError):
    """A saved model or training state is damaged, of another version, or of another network."""


class TrainingDiverged(NNLibError):
    """The loss or the weights stopped being finite numbers."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, if one is near, and all that are allowed."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + "Known: " + ", ".join(names) + "."


def one_of(known: Iterable[T], name: str, value: T) -> T:
    """Return ``value`` if it is one of ``known``; otherwise raise HyperparameterError, which calls it ``name``."""
    if value not in known:
        raise HyperparameterError(
            f"{name}: {value!r} is not known. {did_you_mean(value, map(str, known))}"
        )
    return value
