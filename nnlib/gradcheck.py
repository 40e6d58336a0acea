"""Numerical gradients against backpropagation, entry by entry, with a report that says where they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError, NNLibError, did_you_mean
from nnlib.losses import l2_penalty, softmax_cross_entropy
from nnlib.model import MLP, Array, Loss, Masks

EPSILON = float(np.finfo(np.float64).eps)


class GradientError(NNLibError):
    """Backpropagation and the numerical derivative disagree."""


@dataclass(frozen=True)
class ParameterCheck:
    """The worst entry of one parameter: where it is, both derivatives there, and how many entries were compared."""

    term: str
    name: str
    index: tuple[int, ...]
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
        return all(row.checked and row.relative_error <= self.tolerance for row in self.rows)

    @property
    def max_relative_error(self) -> float:
        """The worst relative error of all."""
        return max(row.relative_error for row in self.rows)

    @property
    def errors(self) -> dict[str, float]:
        """The worst relative error of each parameter."""
        names = dict.fromkeys(row.name for row in self.rows)
        return {name: max(row.relative_error for row in self.rows if row.name == name) for name in names}

    def raise_if_failed(self) -> "GradientReport":
        """Return this report, or raise GradientError with its table."""
        if not self.ok:
            raise GradientError(f"backpropagation is not the derivative of the loss\n{self!r}")
        return self

    def _table(self) -> list[tuple[str, ...]]:
        head = (
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
        body = [
            (
                row.term,
                row.name,
                str(list(row.index)),
                f"{row.analytic:+.6e}",
                f"{row.numerical:+.6e}",
                f"{row.relative_error:.1e}",
                str(row.checked),
                str(row.skipped),
                "ok" if row.checked and row.relative_error <= self.tolerance else "WRONG",
            )
            for row in self.rows
        ]
        return [head, *body]

    def _verdict(self) -> str:
        return f"gradients {'agree' if self.ok else 'DISAGREE'} ({self.method}, tolerance {self.tolerance:.0e})"

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([self._verdict(), *lines])

    def _repr_html_(self) -> str:
        head, *body = self._table()
        rows = ["".join(f"<th>{cell}</th>" for cell in head), *("".join(f"<td>{c}</td>" for c in r) for r in body)]
        return f"<p>{self._verdict()}</p><table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


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
    if method not in ("central", "complex"):
        raise HyperparameterError(f"method: {method!r} is not known. {did_you_mean(method, ('central', 'complex'))}")
    twin, x = model.astype(np.float64), np.asarray(x, np.float64)
    masks = tuple(np.asarray(m, np.float64) for m in masks)
    size = sum(p.size for p in twin.parameters.values())
    samples = samples or (size if size <= 2000 else 30)
    terms = {"data": (loss, 0.0)} | ({"L2": (_no_loss, l2), "data + L2": (loss, l2)} if l2 else {})
    rows: list[ParameterCheck] = []
    for term, (part, coefficient) in terms.items():
        difference = _Difference(twin, x, labels, coefficient, part, masks, method, h, tolerance)
        rng = np.random.default_rng(seed)
        rows += [_check(term, name, difference, samples, rng) for name in twin.parameters]
    return GradientReport(tuple(rows), tolerance, method)


def _no_loss(logits: Array, labels: Array) -> tuple[float, Array]:
    """The data term left out."""
    return 0.0, np.zeros_like(logits)


def _check(term: str, name: str, difference: "_Difference", samples: int, rng: np.random.Generator) -> ParameterCheck:
    """Return the worst of the entries of one parameter."""
    gradient = difference.gradients[name]
    chosen = np.arange(gradient.size)
    if gradient.size > samples:
        chosen = np.sort(rng.choice(gradient.size, samples, replace=False))
    worst: tuple[float, tuple[int, ...], float, float] = (-1.0, (), 0.0, 0.0)
    skipped = 0
    for flat in chosen:
        index = tuple(int(i) for i in np.unravel_index(flat, gradient.shape))
        numerical, analytic = difference.derivative(name, index), float(gradient[index])
        if numerical is None:
            skipped += 1
            continue
        error = abs(analytic - numerical) / max(abs(analytic), abs(numerical), difference.resolution)
        worst = max(worst, (error if error == error else np.inf, index, analytic, numerical))  # NaN is the worst
    error, index, analytic, numerical = worst
    return ParameterCheck(term, name, index, analytic, numerical, max(error, 0.0), len(chosen) - skipped, skipped)


class _Difference:
    """Derivatives of the loss by one entry of a parameter: from values alone, and all ``gradients`` by backprop."""

    def __init__(
        self,
        model: MLP,
        x: Array,
        labels: Array,
        l2: float,
        loss: Loss,
        masks: Masks,
        method: str,
        h: float,
        tolerance: float,
    ) -> None:
        value, self.gradients = model.loss_and_gradients(x, labels, l2, loss=loss, masks=masks)
        self.central = method == "central"
        self.model = model if self.central else model.astype(np.complex128)
        self.steps = (h, -h) if self.central else (1e-30j,)
        self.x, self.labels, self.l2, self.loss, self.masks = x.astype(self.model.dtype), labels, l2, loss, masks
        largest = max(float(np.abs(g).max()) for g in self.gradients.values())
        noise = EPSILON * (max(abs(value), 1.0) / h if self.central else max(largest, 1.0))
        self.resolution = 4 * noise / tolerance

    def value(self) -> tuple[Any, Sequence[Array]]:
        """Return the loss and how far every pre-activation is from each kink of its activation."""
        penalty = l2_penalty(self.model.parameters, self.l2)
        if self.loss is _no_loss:
            return penalty, []
        value = self.loss(self.model.forward(self.x, self.masks), self.labels)[0] + penalty
        pairs = zip(self.model.functions, self.model.pre_activations, strict=True)
        return value, [z - kink for f, z in pairs for kink in f.kinks]

    def derivative(self, name: str, index: tuple[int, ...]) -> float | None:
        """Return the numerical derivative, or None where a kink lies between or under the points."""
        parameter, found = self.model.parameters[name], []
        kept = parameter[index]
        for step in self.steps:
            parameter[index] = kept + step
            found.append(self.value())
        parameter[index] = kept
        if not self.central:
            ((value, far),) = found
            touched = any(((d.real == 0) & (d.imag != 0)).any() for d in far)
            return None if touched else float(value.imag / 1e-30)
        (above, far_above), (below, far_below) = found
        if any(((s > 0) != (t > 0)).any() for s, t in zip(far_above, far_below, strict=True)):
            return None
        return float((above - below) / (2 * self.steps[0].real))
