"""What training minimizes: softmax cross-entropy and the L2 penalty, each with its gradient."""

from typing import Any

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.network.blas import sum_of_squares
from nnlib.network.inputs import as_labels
from nnlib.types import Array, Arrays


def log_softmax(logits: Array) -> Array:
    """Return log(softmax(logits)) row by row, (B, K) -> (B, K).

    Each row's maximum is subtracted first: the result is the same, and e^logits can't overflow.
    """
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: Array) -> Array:
    """Return the probabilities exp(logits) / sum(exp(logits)) row by row, (B, K) -> (B, K)."""
    return np.exp(log_softmax(logits))


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
) -> tuple[Any, Array]:
    """Return the mean cross-entropy of ``logits`` (B, K) and ``labels`` (B,), and its gradient.

    With p = softmax(logits) and one-hot targets t, the loss and its gradient (B, K) are

        L = - sum_i w_i sum_k t_ik log p_ik
        dL/dlogits_ik = w_i (p_ik - t_ik)

    where each image i has the weight w_i = 1/B. ``class_weights`` (K,) gives the images of each
    class another weight; the w_i are then scaled to sum to 1.

    ``label_smoothing`` s (Szegedy et al. 2016) replaces t by (1 - s) t + s/K. The unit is the nat:
    guessing without knowledge costs ln K. Raises HyperparameterError for labels that are not in
    0 ... K-1, and for a smoothing that is not in 0 ... 1.
    """
    n_images, n_classes = logits.shape
    dtype = logits.real.dtype
    labels = as_labels(labels, n_images)
    _refuse_unknown_classes(labels, n_classes)
    if not 0 <= label_smoothing <= 1:
        raise HyperparameterError(f"label_smoothing: {label_smoothing} is not between 0 and 1.")
    if class_weights is None:
        weights = np.asarray(1 / n_images, dtype)
    else:
        weights = np.asarray(class_weights)[labels]
        weights = (weights / weights.sum()).astype(dtype)

    log_p = log_softmax(logits)
    rows = np.arange(n_images)
    loss = -(weights * log_p[rows, labels]).sum() * (1 - label_smoothing)
    dlogits = np.exp(log_p)  # p; below, t is subtracted in two parts
    if label_smoothing:
        loss -= (weights * log_p.mean(axis=1)).sum() * label_smoothing
        dlogits -= label_smoothing / n_classes
    dlogits[rows, labels] -= 1 - label_smoothing
    dlogits *= weights.reshape(-1, 1)  # one weight for each row, or one for all
    return loss, dlogits


def _refuse_unknown_classes(labels: Array, n_classes: int) -> None:
    """Raise HyperparameterError for labels outside 0 ... K-1: NumPy would take -1 for the last."""
    unknown = labels[(labels < 0) | (labels >= n_classes)]
    if unknown.size:
        raise HyperparameterError(
            f"labels: {unknown[0]} is not one of the classes 0 ... {n_classes - 1}."
        )


def checked_loss(loss: Any, n_classes: int) -> Any:
    """Return ``loss`` if it gives a number and a gradient (B, K) for logits (B, K) and labels (B,).

    We try it with two images. Raises HyperparameterError if it fails or gives anything else.
    """
    logits = np.zeros((2, n_classes), np.float32)
    labels = np.zeros(2, np.int64)
    needed = f"a number and its derivative {logits.shape} are needed"
    try:
        value, dlogits = loss(logits, labels)
    except Exception as error:
        raise HyperparameterError(f"loss: it gives {error!r}, but {needed}.") from error
    if np.shape(value) != () or np.shape(dlogits) != logits.shape:
        raise HyperparameterError(
            f"loss: it gives {np.shape(value)} and {np.shape(dlogits)}, but {needed}."
        )
    return loss


def l2_penalty(parameters: Arrays, l2: float) -> Any:
    """Return l2/2 times the sum of the squares of all weights W1, W2, ...; biases don't count."""
    squares = [sum_of_squares(p) for name, p in parameters.items() if name.startswith("W")]
    return 0.5 * l2 * sum(squares)
