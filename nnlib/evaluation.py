"""How good a model is on images with known labels."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.losses import softmax_cross_entropy
from nnlib.model import MLP, Array


class Labelled(Protocol):
    """Anything with images and labels: a ``Split``, or one's own."""

    @property
    def images(self) -> Array: ...
    @property
    def labels(self) -> Array: ...


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, share of correct predictions, and who was taken for whom.

    ``confusion`` is (K, K) int64: row = the true class, column = the predicted one.
    """

    loss: float
    accuracy: float
    confusion: Array
    classes: tuple[str, ...]

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy on the images of each class (its recall), by class name; NaN for a class without images."""
        counts = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            recall = self.confusion.diagonal() / counts
        return dict(zip(self.classes, recall.tolist(), strict=True))

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy, sqrt(p (1 - p) / N): what a different draw of images would change."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.confusion.sum()))

    def __repr__(self) -> str:
        n = self.confusion.sum()
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.4f} ± {self.standard_error:.4f} on {n:,} images"


def evaluate(model: MLP, split: Labelled, batch_size: int = 1000) -> Evaluation:
    """Return loss, accuracy and confusion of ``model`` on ``split``, which has images (N, ...) and labels (N,).

    Raises HyperparameterError if there are no images or they do not fit the model.
    """
    if not len(split.labels):
        raise HyperparameterError("split: there are no images in it.")
    logits = model.predict_logits(split.images, batch_size)
    loss, _ = softmax_cross_entropy(logits, split.labels)
    return Evaluation(float(loss), *_accuracy(logits, split.labels), model.classes)


def _accuracy(logits: Array, labels: Array) -> tuple[float, Any]:
    k = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    return float((predicted == labels).mean()), confusion
