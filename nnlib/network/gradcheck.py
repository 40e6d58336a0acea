"""Numerical gradients against backpropagation, entry by entry, with a report that says where they differ."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nnlib.errors import NNLibError, one_of
from nnlib.network.losses import l2_penalty, softmax_cross_entropy
from nnlib.network.mlp import MLP, Loss, Masks, checked_model
from nnlib.types import Array

EPSILON = float(np.finfo(np.float64).eps)
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
Entry = tuple[int, ...]
Point = tuple[
    Any, list[Array]
]  # the loss, and how far every pre-activation is from each kink of its activation


class GradientError(NNLibError):
    """Backpropagation and the numerical derivative disagree."""


@dataclass(frozen=True)
class ParameterCheck:
    """The worst entry of one parameter: where it is, both derivatives there, and how many entries were compared."""

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
        return all(map(self._agrees, self.rows))

    def _agrees(self, row: ParameterCheck) -> bool:
        return row.checked > 0 and row.relative_error <= self.tolerance

    @property
    def max_relative_error(self) -> float:
        """The worst relative error of all."""
        return max(row.relative_error for row in self.rows)

    @property
    def errors(self) -> dict[str, float]:
        """The worst relative error of each parameter."""
        return {
            row.name: max(r.relative_error for r in self.rows if r.name == row.name)
            for row in self.rows
        }

    def raise_if_failed(self) -> "GradientReport":
        """Return this report, or raise GradientError with its table."""
        if not self.ok:
            raise GradientError(f"backpropagation is not the derivative of the loss\n{self!r}")
        return self

    def _cells(self, row: ParameterCheck) -> tuple[str, ...]:
        worst = (
            str(list(row.index)),
            f"{row.analytic:+.6e}",
            f"{row.numerical:+.6e}",
            f"{row.relative_error:.1e}",
        )
        return (
            row.term,
            row.name,
            *worst,
            str(row.checked),
            str(row.skipped),
            "ok" if self._agrees(row) else "WRONG",
        )

    def _verdict(self) -> str:
        return f"gradients {'agree' if self.ok else 'DISAGREE'} ({self.method}, tolerance {self.tolerance:.0e})"

    def __repr__(self) -> str:
        table = [HEAD, *map(self._cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([self._verdict(), *lines])

    def _repr_html_(self) -> str:
        rows = ["".join(f"<td>{cell}</td>" for cell in self._cells(row)) for row in self.rows]
        head = "".join(f"<th>{cell}</th>" for cell in HEAD)
        return (
            f"<p>{self._verdict()}</p><table>"
            + "".join(f"<tr>{row}</tr>" for row in (head, *rows))
            + "</table>"
        )


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
    """Compare ``model.backward`` with numerical derivatives of loss + l2/2 * sum of squared weights.

    With ``l2`` above 0 the data term, the L2 term and their sum are checked apart, so that none can hide another.
    ``central`` takes (L(w+h) - L(w-h)) / 2h in float64; a difference whose two sides lie on different sides of a kink
    (a pre-activation changes sign) is left out and counted. ``complex`` takes Im L(w+ih) / h with h = 1e-30, exact to
    rounding and left out only where a kink is touched, for losses that accept complex logits (Squire and Trapp 1998).
    At most ``samples`` entries of a parameter are checked, drawn by ``seed``; None checks all of a network with up to
    2,000 parameters and 30 of each array of a larger one. ``masks`` are the dropout masks to use.

    The relative error is |a - n| / max(|a|, |n|, r), where r is the derivative that rounding alone could fake to
    within ``tolerance``: central differences carry an absolute error of about eps |L| / h whatever the derivative is.
    The model and x may be float32: a float64 copy is checked. Raises HyperparameterError for unfit x or labels.
    """
    derivative = METHODS[one_of(METHODS, "method", method)]
    twin, x = checked_model(model).astype(np.float64), np.asarray(x, np.float64)
    moved = twin.astype(np.complex128) if method == "complex" else twin
    masks = tuple(np.asarray(m, np.float64) for m in masks)
    size = sum(p.size for p in twin.parameters.values())
    samples = samples or (size if size <= 2000 else 30)
    terms = {"data": (loss, 0.0)} | ({"L2": (_no_loss, l2), "data + L2": (loss, l2)} if l2 else {})
    rows: list[ParameterCheck] = []
    for term, (part, coefficient) in terms.items():
        value, gradients = twin.loss_and_gradients(x, labels, coefficient, loss=part, masks=masks)
        largest = max(float(np.abs(g).max()) for g in gradients.values())
        noise = EPSILON * (max(largest, 1.0) if method == "complex" else max(abs(value), 1.0) / h)
        look = partial(_look, moved, x.astype(moved.dtype), labels, coefficient, part, masks)
        rng = np.random.default_rng(seed)
        for name, p in moved.parameters.items():
            chosen = (
                np.arange(p.size)
                if p.size <= samples
                else np.sort(rng.choice(p.size, samples, replace=False))
            )
            entries = [tuple(int(i) for i in np.unravel_index(flat, p.shape)) for flat in chosen]
            numerical = {entry: derivative(partial(_at, look, p, entry), h) for entry in entries}
            rows.append(_worst(term, name, gradients[name], numerical, 4 * noise / tolerance))
    return GradientReport(tuple(rows), tolerance, method)


def _no_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """The data term left out."""
    return 0.0, np.zeros_like(logits)


def _look(model: MLP, x: Array, labels: Array, l2: float, loss: Loss, masks: Masks) -> Point:
    """Return the loss and how far every pre-activation is from each kink of its activation."""
    penalty = l2_penalty(model.parameters, l2)
    if loss is _no_loss:
        return penalty, []
    value = loss(model.forward(x, masks), labels)[0] + penalty
    return value, [
        z - kink
        for f, z in zip(model.functions, model.pre_activations, strict=True)
        for kink in f.kinks
    ]


def _at(look: Callable[[], Point], parameter: Array, entry: Entry, step: complex) -> Point:
    """Return what is seen with one entry of a parameter moved by ``step``."""
    kept = parameter[entry]
    parameter[entry] = kept + step
    seen = look()
    parameter[entry] = kept
    return seen


def _central(at: Callable[[complex], Point], h: float) -> float | None:
    """Return the central difference, or None where a kink lies between its two sides."""
    (above, far_above), (below, far_below) = at(h), at(-h)
    crossed = any(((s > 0) != (t > 0)).any() for s, t in zip(far_above, far_below, strict=True))
    return None if crossed else float((above - below) / (2 * h))


def _complex_step(at: Callable[[complex], Point], h: float) -> float | None:
    """Return the derivative by a complex step, or None where a kink lies under the point."""
    value, far = at(1e-30j)
    return (
        None
        if any(((d.real == 0) & (d.imag != 0)).any() for d in far)
        else float(value.imag / 1e-30)
    )


METHODS = {"central": _central, "complex": _complex_step}


def _worst(
    term: str, name: str, gradient: Array, numerical: dict[Entry, float | None], floor: float
) -> ParameterCheck:
    """Return the entry of one parameter at which backprop and the numerical derivative differ most."""
    pairs = [(entry, float(gradient[entry]), n) for entry, n in numerical.items() if n is not None]
    errors = [abs(a - n) / max(abs(a), abs(n), floor) for _, a, n in pairs]
    found = [
        (error if error == error else np.inf, *pair)
        for error, pair in zip(errors, pairs, strict=True)
    ]
    error, entry, a, n = max(found, default=(0.0, (), 0.0, 0.0))  # NaN is the worst
    return ParameterCheck(term, name, entry, a, n, error, len(found), len(numerical) - len(found))
