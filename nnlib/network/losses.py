"""What training makes small: softmax cross-entropy and the L2 penalty, each with its gradient."""

from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.network.blas import sum_of_squares
from nnlib.types import Array


def log_softmax(logits: Array) -> Array:
    """Return log(softmax(logits)) row by row, (B, K) -> (B, K), stable by subtracting each row's maximum first."""
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: Array) -> Array:
    """Return the probabilities exp(logits)/sum(exp(logits)) row by row, (B, K) -> (B, K)."""
    return np.exp(log_softmax(logits))


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
) -> tuple[Any, Array]:
    """Return the mean cross-entropy of ``logits`` (B, K) against integer ``labels`` (B,), and its gradient (B, K).

    With p = softmax(logits) and targets t = (1 - s) onehot(labels) + s/K, where s is ``label_smoothing`` (Szegedy et
    al. 2016), the loss is L = -sum_i w_i t_i . log p_i / sum_i w_i and dL/dlogits_i = w_i (p_i - t_i) / sum_i w_i,
    where w_i is the weight of image i's class: 1, or ``class_weights[labels[i]]`` with ``class_weights`` (K,).
    The unit is the nat: a guess without knowledge costs ln K.

    Raises HyperparameterError for a label outside 0 ... K-1, or a smoothing outside 0 ... 1.
    """
    n_classes = logits.shape[1]
    if not 0 <= label_smoothing <= 1:
        raise HyperparameterError(f"label_smoothing: {label_smoothing} is not between 0 and 1.")
    if (bad := labels[(labels < 0) | (labels >= n_classes)]).size:
        raise HyperparameterError(
            f"labels: {bad[0]} is not one of the classes 0 ... {n_classes - 1}."
        )
    log_p = log_softmax(logits)
    rows = np.arange(len(labels))
    weights = np.asarray(1 / len(labels), logits.real.dtype)
    if class_weights is not None:
        weights = np.asarray(class_weights)[labels]
        weights = (weights / weights.sum()).astype(logits.real.dtype)
    loss = -(weights * log_p[rows, labels]).sum() * (1 - label_smoothing)
    if label_smoothing:
        loss -= (weights * log_p.mean(axis=1)).sum() * label_smoothing
    dlogits = np.exp(log_p)
    if label_smoothing:
        dlogits -= label_smoothing / n_classes
    dlogits[rows, labels] -= 1 - label_smoothing
    dlogits *= weights.reshape(-1, 1)
    return loss, dlogits


def checked_loss(loss: Any, n_classes: int) -> Any:
    """Return ``loss`` if it gives a value and a gradient (B, K) for logits (B, K) and labels (B,).

    Raises HyperparameterError for one that does not, after a try with two images.
    """
    try:
        value, dlogits = loss(np.zeros((2, n_classes), np.float32), np.zeros(2, np.int64))
        found = f"{np.shape(value)} and {np.shape(dlogits)}"
    except Exception as error:
        found = repr(error)
    if found != f"() and {2, n_classes}":
        raise HyperparameterError(
            f"loss: it gives {found}, but a number and its derivative {2, n_classes} are needed."
        )
    return loss


def l2_penalty(parameters: dict[str, Array], l2: float) -> Any:
    """Return l2/2 times the sum of the squares of all weights W1, W2, ...; biases are left out."""
    return (
        0.5 * l2 * sum((sum_of_squares(W) for name, W in parameters.items() if name[0] == "W"), 0.0)
    )
