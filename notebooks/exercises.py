"""The exercises' checks: they explain what is wrong with an answer.

An exercise is a few calls: the arguments and, for each part of the answer, its right value and the values that known
mistakes lead to. If the answer has one of those, the check names the mistake; otherwise it names the wrong entry.
"""

import copy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError, did_you_mean
from nnlib.network.losses import log_softmax, softmax, softmax_cross_entropy
from nnlib.network.mlp import MLP
from nnlib.training.schedules import make_schedule
from nnlib.types import Array

B = 4  # images in each call
FACTORS = {  # of the right value, in any part of any answer
    -1.0: "the sign is wrong.",
    float(
        B
    ): "it is B times too large: the mean over the batch is asked for, not the sum; or a 1/B is missing.",
    1
    / B: "it is B times too small: it is divided by the batch size once too often (dlogits holds the 1/B already).",
}
TRANSPOSED = "it is transposed."
Mistakes = dict[
    str, Any
]  # what somebody gets who makes the mistake; NaN stands for anything that is not finite
Parts = dict[str, tuple[Any, Mistakes]]  # the right value and the mistakes, by part of the answer
Call = tuple[dict[str, Any], Parts]  # the arguments, and what is right


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found, to be shown as text; ``ok`` is None where the answer is not yet written."""

    name: str
    ok: bool | None
    text: str

    def __repr__(self) -> str:
        return f"{'[TODO]' if self.ok is None else '[OK]' if self.ok else '[WRONG]'} {self.name}: {self.text}"


def check(answer: Callable[..., Any]) -> Verdict:
    """Call a reader's function with small arrays; say whether the answer is right and, if not, what is wrong with it.

    The function's name chooses the exercise; HyperparameterError is raised for a name that is none. What the function
    itself raises is told in the verdict: NotImplementedError means that it is not yet written.
    """
    name = answer.__name__
    if name not in EXERCISES:
        raise HyperparameterError(
            f"{name}: this is not an exercise. {did_you_mean(name, EXERCISES)}"
        )
    try:
        fault = next(filter(None, (_fault(answer, *call) for call in EXERCISES[name]())), "")
    except NotImplementedError as error:
        missing = traceback.extract_tb(error.__traceback__)[-1].name
        return Verdict(name, None, f"not yet written: {missing}.")
    return Verdict(name, not fault, fault or "right in every entry.")


def _fault(answer: Callable[..., Any], arguments: dict[str, Any], parts: Parts) -> str:
    """Return what is wrong with the answer to one call, or an empty string."""
    given = copy.deepcopy(arguments)
    try:
        with np.errstate(all="ignore"):
            found = answer(*given.values())
    except NotImplementedError:
        raise
    except Exception as error:
        return _raised(error, answer.__name__, arguments)
    for name in set(arguments) - set(parts) - {"parameters"}:
        if not np.array_equal(given[name], arguments[name]):
            return f"it changes its argument {name}, which others still need; make a new array."
    if not isinstance(found, dict):
        found = dict(zip_longest(parts, found if isinstance(found, tuple) else [found]))
    if set(found) != set(parts) or any(part is None for part in found.values()):
        return (
            f"it should return {', '.join(parts)}, and nothing else. Is its last line that return?"
        )
    return next(filter(None, (_explain(name, found[name], *parts[name]) for name in parts)), "")


def _raised(error: Exception, name: str, arguments: dict[str, Any]) -> str:
    """Tell an error, the line of the reader's function that it came from and, of errors about shapes, the shapes."""
    lines = [
        frame.line
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name == name and frame.line
    ]
    text = "\n    in the line: ".join([f"{type(error).__name__}: {error}", *lines[-1:]])
    arrays = {
        n: a
        for n, a in (arguments | arguments.get("parameters", {})).items()
        if isinstance(a, np.ndarray)
    }
    hint = "\n    Is a .T forgotten? There are " + ", ".join(
        f"{n} {a.shape}" for n, a in arrays.items()
    )
    return text + (f"{hint}." if isinstance(error, ValueError) else "")


def _same(found: Any, value: Any) -> bool:
    return np.shape(found) == np.shape(value) and np.allclose(found, value, rtol=1e-6, atol=1e-9)


def _explain(name: str, answer: Any, right: Any, mistakes: Mistakes) -> str:
    """Return what is wrong with one part of an answer, or an empty string."""
    found, right = np.asarray(answer), np.asarray(right, float)
    if found.dtype.kind not in "biuf":
        return f"{name} should be real numbers, not {found.dtype}."
    if _same(found, right):
        return ""
    known = (
        mistakes
        | {message: factor * right for factor, message in FACTORS.items()}
        | {TRANSPOSED: right.T}
    )
    for message, wrong in known.items():
        if _same(found, wrong) or (np.isnan(wrong).all() and not np.isfinite(found).all()):
            return f"{name}: {message}"
    if found.shape != right.shape:
        return f"{name} has the shape {found.shape} and should have {right.shape}."
    at = np.unravel_index(np.argmin(np.isclose(found, right, rtol=1e-6, atol=1e-9)), right.shape)
    return f"{name}{[int(i) for i in at] or ''} is {found[at]:.6g} and should be {right[at]:.6g}."


def _problem() -> tuple[dict[str, Array], Array, Array, list[Array]]:
    """Return parameters, images, labels, and activations. All sizes differ: a forgotten transpose cannot pass."""
    rng = np.random.default_rng(0)
    model, x = (
        MLP((7, 6, 5, 3), "relu", initialization="he", dtype=np.float64),
        rng.standard_normal((B, 7)),
    )
    for p in model.parameters.values():
        p += 0.5 * rng.standard_normal(p.shape)
    return model.parameters, x, np.array([2, 0, 1, 2]), model.activations(x)


def _forward() -> Iterator[Call]:
    p, x, _, (a1, a2, logits) = _problem()
    relu, bias = "the ReLU is missing: np.maximum(z, 0).", "the bias is missing."
    z1, z2, z3 = x @ p["W1"], a1 @ p["W2"], a2 @ p["W3"]
    of_a1 = {relu: z1 + p["b1"], bias: np.maximum(z1, 0)}
    of_a2 = {relu: z2 + p["b2"], bias: np.maximum(z2, 0)}
    of_logits = {
        bias: z3,
        "there is no ReLU after the last layer.": np.maximum(logits, 0),
        "there is no softmax here: it comes with the loss, in the next exercise.": softmax(logits),
    }
    yield (
        {"parameters": p, "x": x},
        {"a1": (a1, of_a1), "a2": (a2, of_a2), "logits": (logits, of_logits)},
    )


def _softmax_cross_entropy() -> Iterator[Call]:
    _, _, labels, (*_, logits) = _problem()
    (loss, dlogits), p, log_p = (
        softmax_cross_entropy(logits, labels),
        softmax(logits),
        log_softmax(logits),
    )
    of_loss = {
        "divide by the B images, not by the number of all logits.": loss / 3,
        "the logarithm is missing.": -p[range(B), labels].mean(),
        "take the right class of each image only, log_p[np.arange(B), labels]; this is all classes.": -log_p.mean(),
        "softmax goes along each row: axis=1, keepdims=True.": -log_softmax(logits.T)[
            labels, range(B)
        ].mean(),
    }
    of_dlogits = {
        "the one-hot labels Y are not subtracted; it is (P - Y) / B.": p / B,
        "[:, labels] means whole columns; write [np.arange(B), labels].": (p - 1) / B,
    }
    yield (
        {"logits": logits, "labels": labels},
        {"loss": (loss, of_loss), "dlogits": (dlogits, of_dlogits)},
    )
    logits, labels = np.array([[1000.0, 0, -1000], [-3000, -5000, -4000]]), np.array([2, 0])
    stable = "log_p = z - m - log(sum(exp(z - m))) with m the largest logit of each row."
    mistakes = {f"logits near 1000 overflow exp, or give log(0). Take {stable}": np.nan}
    right = zip(("loss", "dlogits"), softmax_cross_entropy(logits, labels), strict=True)
    yield {"logits": logits, "labels": labels}, {name: (value, mistakes) for name, value in right}


def _relu_derivative() -> Iterator[Call]:
    a = _problem()[-1][0]
    always = "it is 1 everywhere: after a ReLU no value is negative, so a >= 0 is always true. Ask a > 0."
    yield (
        {"a": a},
        {"f'": (a > 0, {always: np.ones_like(a), "this is the ReLU's value, not its slope.": a})},
    )


def _layer_backward() -> Iterator[Call]:
    p, a, *_ = _problem()
    delta = np.random.default_rng(1).standard_normal((B, 6))
    mistakes = {
        "it is summed over the wrong axis: add up the images, axis=0, one number a unit.": delta.sum(
            axis=1
        ),
        "it is one number for all units: add up the images only, axis=0.": delta.sum(),
        "it is not summed over the images, axis=0.": delta,
    }
    right: Parts = {
        "dW": (a.T @ delta, {}),
        "db": (delta.sum(axis=0), mistakes),
        "da": (delta @ p["W1"].T, {}),
    }
    yield {"a": a, "W": p["W1"], "delta": delta}, right


def _backward() -> Iterator[Call]:
    p, x, labels, (a1, a2, logits) = _problem()
    l2, parts = 0.3, Parts()
    da = delta = dlogits = softmax_cross_entropy(logits, labels)[1]
    for layer, a in ((3, a2), (2, a1), (1, x)):
        W, dW, db = p[f"W{layer}"], a.T @ delta, delta.sum(axis=0)
        slope = f"the activation's derivative is missing: da * relu_derivative(a{layer})."
        of_W = {
            slope: a.T @ da + l2 * W,
            "the L2 term, l2 * W, is missing.": dW,
            "the L2 term is divided by the batch size; the penalty is no mean over images.": dW
            + l2 * W / B,
            "the L2 term is twice too large: the derivative of l2/2 * W**2 is l2 * W.": dW
            + 2 * l2 * W,
        }
        of_b = {
            slope: da.sum(axis=0),
            "biases are not penalized: no L2 term here.": db + l2 * p[f"b{layer}"],
        }
        parts |= {f"W{layer}": (dW + l2 * W, of_W), f"b{layer}": (db, of_b)}
        da = delta @ W.T
        delta = da * (a > 0)
    yield {"parameters": p, "x": x, "a1": a1, "a2": a2, "dlogits": dlogits, "l2": l2}, parts


def _sgd_step() -> Iterator[Call]:
    W, g, v = np.random.default_rng(0).standard_normal((3, 2, 5))
    rate, momentum = 0.1, 0.9
    new = momentum * v + g
    of_W = {
        "it goes up the slope: W - learning_rate * v.": W + rate * new,
        "the momentum is missing: step along the new velocity, not the gradient.": W - rate * g,
        "this steps along the old velocity; bring it up to date first.": W - rate * v,
        "the learning rate is inside the velocity; here it scales the step only.": W
        + momentum * v
        - rate * g,
    }
    parts: Parts = {"W": (W - rate * new, of_W), "v": (new, {"this is the old velocity.": v})}
    yield {"W": W, "g": g, "v": v, "learning_rate": rate, "momentum": momentum}, parts


def _learning_rate_at() -> Iterator[Call]:
    total, peak, warmup = 100, 0.2, 10
    for step in (0, 4, 10, 37, 99):
        right = make_schedule("cosine", peak, total, warmup_steps=warmup)(step)
        late = make_schedule("cosine", peak, total)
        mistakes = {
            "the cosine counts from step 0; it begins where the warm-up, a line up to the peak, ends.": late(
                step
            ),
            "the first step would have the rate 0 and do nothing: (step + 1) / warmup.": peak
            * step
            / warmup,
            "it does not come down to zero: the cosine has total - warmup steps.": late(
                max(step - warmup, 0)
            ),
            "it rises where it should fall: 1 + cos, not 1 - cos.": peak - right,
            "it is twice too large: 1 + cos begins at 2.": 2 * right,
        }
        yield (
            {"step": step, "total": total, "peak": peak, "warmup": warmup},
            {"the rate": (right, mistakes)},
        )


CALLS = (
    _forward,
    _softmax_cross_entropy,
    _relu_derivative,
    _layer_backward,
    _backward,
    _sgd_step,
    _learning_rate_at,
)
EXERCISES = {calls.__name__[1:]: calls for calls in CALLS}
