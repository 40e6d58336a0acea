"""The gradient check: backpropagation against numerical derivatives, entry by entry.

The idea: move one entry w of one parameter by a small h, and see how much the loss L changes. That
is slow, but hard to get wrong. ``check_gradients`` compares it with what ``model.backward`` says,
and reports where they differ most.

One thing needs care: kinks. At z = 0 the derivative of ReLU jumps. If a unit's z is on one side of
0 at w-h and on the other side at w+h, then (L(w+h) - L(w-h)) / 2h mixes two slopes. Such entries
are left out, and the report counts them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nnlib.errors import NNLibError, one_of
from nnlib.network.inputs import as_inputs, as_labels, as_numbers
from nnlib.network.losses import l2_penalty, softmax_cross_entropy
from nnlib.network.mlp import MLP, Loss, Masks, checked_model
from nnlib.types import Array, Arrays

EPSILON = float(np.finfo(np.float64).eps)
COMPLEX_STEP = 1e-30  # nothing is subtracted, so no step is too small
HEAD = (
    "term",
    "parameter",
    "worst entry",
    "backprop",
    "numerical",
    "relative error",
    "checked",
    "kinks left out",
    "",
)
Entry = tuple[int, ...]  # the place of one number in a parameter


class GradientError(NNLibError):
    """Backpropagation and the numerical derivative disagree."""


@dataclass(frozen=True)
class ParameterCheck:
    """The worst entry of one parameter: its place, both derivatives, and how many were compared."""

    term: str
    name: str
    index: Entry
    analytic: float
    numerical: float
    relative_error: float
    checked: int
    skipped: int


@dataclass(frozen=True)
class GradientReport:
    """What ``check_gradients`` found: one row for each term of the loss and each parameter."""

    rows: tuple[ParameterCheck, ...]
    tolerance: float
    method: str

    @property
    def ok(self) -> bool:
        """Whether every parameter had entries to compare and all of them agree."""
        return all(self._agrees(row) for row in self.rows)

    def _agrees(self, row: ParameterCheck) -> bool:
        return row.checked > 0 and row.relative_error <= self.tolerance

    @property
    def max_relative_error(self) -> float:
        """The largest relative error of all."""
        return max(row.relative_error for row in self.rows)

    @property
    def errors(self) -> dict[str, float]:
        """The largest relative error of each parameter, over all terms."""
        errors: dict[str, float] = {}
        for row in self.rows:
            errors[row.name] = max(row.relative_error, errors.get(row.name, 0.0))
        return errors

    def raise_if_failed(self) -> "GradientReport":
        """Return this report, or raise GradientError with its table."""
        if not self.ok:
            raise GradientError(f"backpropagation is not the derivative of the loss\n{self!r}")
        return self

    def _verdict(self) -> str:
        verdict = "agree" if self.ok else "DISAGREE"
        return f"gradients {verdict} ({self.method}, tolerance {self.tolerance:.0e})"

    def _cells(self, row: ParameterCheck) -> tuple[str, ...]:
        """Return one row of the table as text, in the order of HEAD."""
        return (
            row.term,
            row.name,
            str(list(row.index)),
            f"{row.analytic:+.6e}",
            f"{row.numerical:+.6e}",
            f"{row.relative_error:.1e}",
            str(row.checked),
            str(row.skipped),
            "ok" if self._agrees(row) else "WRONG",
        )

    def __repr__(self) -> str:
        table = [HEAD, *(self._cells(row) for row in self.rows)]
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        lines = [self._verdict()]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lines = ["".join(f"<th>{cell}</th>" for cell in HEAD)]
        for row in self.rows:
            lines.append("".join(f"<td>{cell}</td>" for cell in self._cells(row)))
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p>{self._verdict()}</p><table>{table}</table>"


class Term(NamedTuple):
    """One part of the loss: a data term, if any, and the coefficient of the L2 penalty."""

    name: str
    data: Loss | None
    l2: float


class Point(NamedTuple):
    """What we see of the network with one entry moved: the loss, and where the kinks are.

    ``distances`` holds z - kink for every hidden layer's z and every kink of its activation. If a
    sign differs between two points, a kink lies between them.
    """

    loss: Any
    distances: list[Array]


@dataclass(frozen=True)
class Probe:
    """One term of the loss, as a function of a single entry of a parameter."""

    model: MLP
    x: Array
    labels: Array
    masks: Masks
    term: Term

    def at(self, name: str, entry: Entry, step: complex) -> Point:
        """Return what we see with one entry of the parameter ``name`` moved by ``step``."""
        parameter = self.model.parameters[name]
        kept = parameter[entry]
        parameter[entry] = kept + step
        point = self._here()
        parameter[entry] = kept
        return point

    def _here(self) -> Point:
        """Return what we see with the parameters as they are."""
        penalty = l2_penalty(self.model.parameters, self.term.l2)
        if self.term.data is None:
            return Point(penalty, [])
        logits = self.model.forward(self.x, self.masks)
        value, _ = self.term.data(logits, self.labels)
        distances = []
        for f, z in zip(self.model.functions, self.model.pre_activations, strict=True):
            for kink in f.kinks:
                distances.append(z - kink)
        return Point(value + penalty, distances)


def central(probe: Probe, name: str, entry: Entry, h: float) -> float | None:
    """Return (L(w+h) - L(w-h)) / 2h, or None if a kink lies between the two sides."""
    above = probe.at(name, entry, h)
    below = probe.at(name, entry, -h)
    for d, e in zip(above.distances, below.distances, strict=True):
        if ((d > 0) != (e > 0)).any():
            return None
    return float((above.loss - below.loss) / (2 * h))


def complex_step(probe: Probe, name: str, entry: Entry, h: float) -> float | None:
    """Return Im L(w+ih) / h, or None if the point lies on a kink. ``h`` is not used.

    In L(w+ih) = L(w) + ih L'(w) - h²/2 L''(w) - ..., the imaginary part is h L'(w), but for terms
    with h³, which are far too small to matter.
    """
    point = probe.at(name, entry, 1j * COMPLEX_STEP)
    for d in point.distances:
        if ((d.real == 0) & (d.imag != 0)).any():
            return None
    return float(point.loss.imag / COMPLEX_STEP)


METHODS: dict[str, Callable[[Probe, str, Entry, float], float | None]] = {
    "central": central,
    "complex": complex_step,
}


def check_gradients(
    model: MLP,
    x: Array,
    labels: Array,
    l2: float = 0.0,
    *,
    loss: Loss = softmax_cross_entropy,
    masks: Masks = (),
    method: str = "central",
    h: float = 1e-5,
    samples: int | None = None,
    tolerance: float = 1e-7,
    seed: int = 0,
) -> GradientReport:
    """Compare ``model.backward`` with numerical derivatives.

    Both are those of loss + l2/2 * (sum of squared weights).

    With ``l2`` above 0 we check the data term, the L2 term and their sum separately, so that none
    can hide another. The L1 penalty of training (``Hyperparameters.l1``) is not part of this loss:
    SGD shrinks the weights beside the gradient, so L1 has no gradient to check. There are two
    methods:

    - ``central`` takes (L(w+h) - L(w-h)) / 2h in float64. If a kink lies between the two sides (a
      pre-activation changes its sign), the entry is left out and counted.
    - ``complex`` takes Im L(w+ih) / h with h = 1e-30. It is exact to rounding, leaves out an entry
      only on a kink, and needs a loss that accepts complex logits (Squire and Trapp 1998).

    We check at most ``samples`` entries of each parameter, drawn by ``seed``. None means all
    entries if the network has up to 2,000 parameters, and 30 of each array if it has more.
    ``masks`` are the dropout masks to use.

    The relative error is |a - n| / max(|a|, |n|, r), with backpropagation's a and the numerical n.
    r is a derivative so small that rounding alone can make it wrong by ``tolerance``: central
    differences have an absolute error of about eps |L| / h, whatever the derivative is.

    The model and x may be float32: we check a float64 copy. Raises HyperparameterError if x or
    labels don't fit.
    """
    one_of(METHODS, "method", method)
    exact = checked_model(model).astype(np.float64)
    x = as_inputs(as_numbers(x, "x", np.float64), exact.layer_sizes[0], exact.dtype)
    labels = as_labels(labels, len(x))
    masks = tuple(np.asarray(mask, np.float64) for mask in masks)
    moved = exact.astype(np.complex128) if method == "complex" else exact
    if not samples:
        size = sum(p.size for p in exact.parameters.values())
        samples = size if size <= 2000 else 30

    terms = [Term("data", loss, 0.0)]
    if l2:
        terms.append(Term("L2", None, l2))
        terms.append(Term("data + L2", loss, l2))

    rows: list[ParameterCheck] = []
    for term in terms:
        value, gradients = exact.loss_and_gradients(
            x, labels, term.l2, loss=term.data or _no_loss, masks=masks
        )
        smallest = 4 * _rounding(value, gradients, method, h) / tolerance
        probe = Probe(moved, x.astype(moved.dtype), labels, masks, term)
        rng = np.random.default_rng(seed)  # each term is checked at the same entries
        for name, gradient in gradients.items():
            entries = _choose_entries(gradient.shape, samples, rng)
            numerical = [METHODS[method](probe, name, entry, h) for entry in entries]
            rows.append(_compare(term.name, name, gradient, entries, numerical, smallest))
    return GradientReport(tuple(rows), tolerance, method)


def _no_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """A data term that is always 0, so that only the L2 term counts."""
    return 0.0, np.zeros_like(logits)


def _rounding(value: Any, gradients: Arrays, method: str, h: float) -> float:
    """Estimate how wrong rounding can make a numerical derivative, if the loss is ``value``.

    A complex step rounds like backpropagation itself, by eps times the derivative. A central
    difference subtracts two losses, each wrong by eps times the loss, and divides by h.
    """
    if method == "complex":
        largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
        return EPSILON * max(largest, 1.0)
    return EPSILON * (max(abs(value), 1.0) / h)


def _choose_entries(shape: tuple[int, ...], samples: int, rng: np.random.Generator) -> list[Entry]:
    """Return the places of all entries of an array, or of ``samples`` of them at random."""
    size = math.prod(shape)
    if size <= samples:
        chosen = np.arange(size)
    else:
        chosen = np.sort(rng.choice(size, samples, replace=False))
    return [tuple(int(i) for i in np.unravel_index(place, shape)) for place in chosen]


def _compare(
    term: str,
    name: str,
    gradient: Array,
    entries: list[Entry],
    numerical: list[float | None],
    smallest: float,
) -> ParameterCheck:
    """Return the entry of one parameter where backpropagation is furthest from ``numerical``.

    ``smallest`` is the r of ``check_gradients``: the smallest derivative to compare relatively.
    """
    worst_entry: Entry = ()
    worst_a = worst_n = worst_error = 0.0
    checked = 0
    for entry, n in zip(entries, numerical, strict=True):
        if n is None:  # a kink
            continue
        checked += 1
        a = float(gradient[entry])
        error = abs(a - n) / max(abs(a), abs(n), smallest)
        if math.isnan(error):
            error = math.inf  # nothing is worse than NaN
        if error >= worst_error:
            worst_entry = entry
            worst_a = a
            worst_n = n
            worst_error = error
    return ParameterCheck(
        term,
        name,
        index=worst_entry,
        analytic=worst_a,
        numerical=worst_n,
        relative_error=worst_error,
        checked=checked,
        skipped=len(entries) - checked,
    )
