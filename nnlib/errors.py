"""The errors that nnlib raises on purpose. Messages say what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class NNLibError(Exception):
    """Base class: ``except nnlib.NNLibError`` catches everything that nnlib raises on purpose."""


class DataError(NNLibError):
    """A data set can't be downloaded, read or understood, or its arrays don't fit together."""


class HyperparameterError(NNLibError, ValueError):
    """A hyperparameter or an argument has a value that is not allowed."""


class CheckpointError(NNLibError):
    """A saved model or training state is damaged, or belongs to another version or network."""


class TrainingDiverged(NNLibError):
    """The loss or the weights stopped being finite numbers."""


# British spellings that files and calls of earlier versions have; they are read as ours.
OLD_SPELLING = {"initialisation": "initialization", "standardise": "standardize"}


def our_spelling(word: T) -> T:
    """Return the present spelling of a name or an option; anything else is returned as it is."""
    if isinstance(word, str):
        return OLD_SPELLING.get(word, word)  # type: ignore[return-value]
    return word


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, if any, and the list of all."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    everything = f"Known: {', '.join(names)}."
    if near:
        return f"Did you mean {near[0]!r}? {everything}"
    return everything


def one_of(known: Iterable[T], name: str, value: T) -> T:
    """Return ``value`` if it is one of ``known``.

    Otherwise raise HyperparameterError; ``name`` is what the message calls the value.
    """
    if value not in known:
        choices = [str(choice) for choice in known]
        raise HyperparameterError(f"{name}: {value!r} is not known. {did_you_mean(value, choices)}")
    return value
