"""Numerical gradients against backpropagation, entry by entry, with a report that says where they differ."""

from collections.abc import Callable, Sequence
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

    name: str
    index: tuple[int, ...]
    analytic: float
    numerical: float
    relative_error: float
    checked: int
    skipped: int


@dataclass(frozen=True)
class GradientReport:
    """What ``check_gradients`` found: one row a parameter."""

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
        return {row.name: row.relative_error for row in self.rows}

    def raise_if_failed(self) -> "GradientReport":
        """Return this report, or raise GradientError with its table."""
        if not self.ok:
            raise GradientError(f"backpropagation is not the derivative of the loss\n{self!r}")
        return self

    def _table(self) -> list[tuple[str, ...]]:
        head = ("parameter", "worst entry", "backprop", "numerical", "relative error", "checked", "kinks left out", "")
        body = [
            (
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
    samples: int = 30,
    tolerance: float = 1e-7,
    seed: int = 0,
) -> GradientReport:
    """Compare ``model.backward`` with numerical derivatives of loss + l2/2 * sum of squared weights.

    ``central`` takes (L(w+h) - L(w-h)) / 2h in float64; a difference whose two sides lie on different sides of a kink
    (a pre-activation changes sign) is left out and counted. ``complex`` takes Im L(w+ih) / h with h = 1e-30, exact to
    rounding and left out only where a kink is touched, for losses that accept complex logits (Squire and Trapp 1998).
    A parameter with more than ``samples`` entries is checked at that many, drawn by ``seed``. ``masks`` are the dropout
    masks to use.

    The relative error is |a - n| / max(|a|, |n|, r), where r is the derivative that rounding alone could fake to
    within ``tolerance``: central differences carry an absolute error of about eps |L| / h whatever the derivative is.
    The model and x may be float32: a float64 copy is checked. Raises HyperparameterError for unfit x or labels.
    """
    if method not in ("central", "complex"):
        raise HyperparameterError(f"method: {method!r} is not known. {did_you_mean(method, ('central', 'complex'))}")
    twin, x = model.astype(np.float64), np.asarray(x, np.float64)
    masks = tuple(np.asarray(m, np.float64) for m in masks)
    value, gradients = twin.loss_and_gradients(x, labels, l2, loss=loss, masks=masks)
    if method == "complex":
        twin, h = model.astype(np.float64).astype(np.complex128), 1e-30
    difference = _Difference(twin, x.astype(twin.dtype), labels, l2, loss, masks)
    derivative = {"central": difference.central, "complex": difference.complex_step}[method]
    largest = max(float(np.abs(g).max()) for g in gradients.values())
    noise = EPSILON * max(abs(value), 1.0) / h if method == "central" else EPSILON * largest
    resolution = 4 * noise / tolerance
    rng = np.random.default_rng(seed)
    rows = [_check(n, g, twin.parameters[n], derivative, h, samples, resolution, rng) for n, g in gradients.items()]
    return GradientReport(tuple(rows), tolerance, method)


def _check(
    name: str,
    gradient: Array,
    parameter: Array,
    derivative: Callable[[Array, tuple[int, ...], float], float | None],
    h: float,
    samples: int,
    resolution: float,
    rng: np.random.Generator,
) -> ParameterCheck:
    """Return the worst of the entries of one parameter."""
    chosen = np.arange(gradient.size)
    if gradient.size > samples:
        chosen = np.sort(rng.choice(gradient.size, samples, replace=False))
    worst: tuple[float, tuple[int, ...], float, float] = (-1.0, (), 0.0, 0.0)
    skipped = 0
    for flat in chosen:
        index = tuple(int(i) for i in np.unravel_index(flat, gradient.shape))
        numerical, analytic = derivative(parameter, index, h), float(gradient[index])
        if numerical is None:
            skipped += 1
            continue
        error = abs(analytic - numerical) / max(abs(analytic), abs(numerical), resolution)
        worst = max(worst, (error if error == error else np.inf, index, analytic, numerical))  # NaN is the worst
    error, index, analytic, numerical = worst
    return ParameterCheck(name, index, analytic, numerical, max(error, 0.0), len(chosen) - skipped, skipped)


class _Difference:
    """Derivatives of the loss by one entry of a parameter, from values of the loss alone."""

    def __init__(self, model: MLP, x: Array, labels: Array, l2: float, loss: Loss, masks: Masks) -> None:
        self.model, self.x, self.labels, self.l2, self.loss, self.masks = model, x, labels, l2, loss, masks

    def value(self) -> tuple[Any, Sequence[Array]]:
        """Return the loss and how far every pre-activation is from each kink of its activation."""
        logits = self.model.forward(self.x, self.masks)
        value = self.loss(logits, self.labels)[0] + l2_penalty(self.model.parameters, self.l2)
        pairs = zip(self.model.functions, self.model.pre_activations, strict=True)
        return value, [z - kink for f, z in pairs for kink in f.kinks]

    def central(self, parameter: Array, index: tuple[int, ...], h: float) -> float | None:
        kept = parameter[index]
        parameter[index] = kept + h
        above, far_above = self.value()
        parameter[index] = kept - h
        below, far_below = self.value()
        parameter[index] = kept
        if any(((s > 0) != (t > 0)).any() for s, t in zip(far_above, far_below, strict=True)):
            return None
        return float((above - below) / (2 * h))

    def complex_step(self, parameter: Array, index: tuple[int, ...], h: float) -> float | None:
        kept = parameter[index]
        parameter[index] = kept + 1j * h
        value, far = self.value()
        parameter[index] = kept
        if any(((d.real == 0) & (d.imag != 0)).any() for d in far):
            return None  # it starts on a kink, where there is no derivative
        return float(value.imag / h)
