"""How good a model is on images with known labels."""

from dataclasses import dataclass

import numpy as np

from nnlib.data.dataset import Split
from nnlib.errors import HyperparameterError
from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP, checked_model
from nnlib.types import Array


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
        with np.errstate(invalid="ignore"):
            recall = self.confusion.diagonal() / self.confusion.sum(axis=1)
        return dict(zip(self.classes, recall.tolist(), strict=True))

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy, sqrt(p (1 - p) / N): what a different draw of images would change."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.confusion.sum()))

    def __repr__(self) -> str:
        n = self.confusion.sum()
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.4f} ± {self.standard_error:.4f} on {n:,} images"


def evaluate(model: MLP, split: Split, batch_size: int = 2500) -> Evaluation:
    """Return loss, accuracy and confusion of ``model`` on ``split``, which has images (N, ...) and labels (N,).

    Raises HyperparameterError if there are no images or they do not fit the model.
    """
    if not len(getattr(split, "labels", ())):
        raise HyperparameterError(
            f"split: {split!r:.40} holds no images; data.test, data.valid or data.train does."
        )
    logits = checked_model(model).predict_logits(split.images, batch_size)
    loss, _ = softmax_cross_entropy(logits, split.labels)
    predicted, k = logits.argmax(axis=1), logits.shape[1]
    confusion = np.bincount(split.labels * k + predicted, minlength=k * k).reshape(k, k)
    return Evaluation(
        float(loss), float((predicted == split.labels).mean()), confusion, model.classes
    )
