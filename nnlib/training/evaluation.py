"""How good a model is on images with known labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnlib.data.dataset import Split
from nnlib.errors import HyperparameterError
from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP, checked_model
from nnlib.types import Array


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, share of correct predictions, and what was taken for what.

    ``confusion`` is (K, K) int64: row = the true class, column = the predicted one.
    """

    loss: float
    accuracy: float
    confusion: Array
    classes: tuple[str, ...]

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy on each class (its recall), by name; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            recall = self.confusion.diagonal() / self.confusion.sum(axis=1)
        return dict(zip(self.classes, recall.tolist(), strict=True))

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy, sqrt(p (1 - p) / N).

        This is how much another draw of images would change it.
        """
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.confusion.sum()))

    def __repr__(self) -> str:
        n = self.confusion.sum()
        accuracy = f"{self.accuracy:.4f} ± {self.standard_error:.4f}"
        return f"loss {self.loss:.4f}, accuracy {accuracy} on {n:,} images"


def evaluate(
    model: MLP, images: Split | Any, labels: Any = None, *, batch_size: int = 2500
) -> Evaluation:
    """Return loss, accuracy and confusion of ``model`` on a split, or on images and labels.


    ``evaluate(model, data.test)``, or ``evaluate(model, images, labels)`` with ``images`` uint8
    (N, ...) or float inputs (N, D) and ``labels`` whole numbers (N,). Raises HyperparameterError if
    there are no images, or if they don't fit the labels or the model.
    """
    split = _as_split(images, labels)
    logits = checked_model(model).predict_logits(split.images, batch_size)
    loss, _ = softmax_cross_entropy(logits, split.labels)
    predicted = logits.argmax(axis=1)
    n_classes = logits.shape[1]
    # each pair (true class, predicted class) has its own number: one count fills the table
    pairs = split.labels * n_classes + predicted
    confusion = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    accuracy = (predicted == split.labels).mean()
    return Evaluation(float(loss), float(accuracy), confusion, model.classes)


def _as_split(images: Any, labels: Any) -> Split:
    """Return what ``evaluate`` was given as a Split. Raises HyperparameterError."""
    if labels is None:
        if not len(getattr(images, "labels", ())):
            remedy = "data.test, data.valid or data.train does; or give images and labels"
            raise HyperparameterError(f"split: {images!r:.40} holds no images; {remedy}.")
        split: Split = images
        return split
    if isinstance(images, Split):
        raise HyperparameterError(
            "labels: a split has its own; leave them out (and give batch_size by name)."
        )
    images, labels = np.asarray(images), np.asarray(labels)
    if not len(images):
        raise HyperparameterError("images: there are no images; give at least one.")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} of shape {labels.shape}"
        needed = f"whole numbers of shape ({len(images)},)"
        raise HyperparameterError(f"labels: {found}, but {needed} are needed.")
    return Split(images, labels.astype(np.int64))
