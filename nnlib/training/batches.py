"""Training batches: which images come in which order, augmented how, as the network's inputs."""

import math

import numpy as np

from nnlib.data.dataset import Split
from nnlib.data.preprocessing import augment
from nnlib.network.blas import Workspace
from nnlib.network.mlp import MLP, Masks
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.types import Array

ORDER, AUGMENTATION, DROPOUT = (
    1,
    2,
    3,
)  # streams of random numbers, apart from each other and from the first weights


class Batches:
    """The batches of ``split`` for ``model``, as ``hp`` wants them; each step writes into the same memory."""

    def __init__(self, split: Split, model: MLP, hp: Hyperparameters) -> None:
        self.split, self.model, self.hp = split, model, hp
        self.per_epoch = math.ceil(len(split.labels) / hp.batch_size)
        self._workspace = Workspace()
        self._order, self._order_of = np.arange(len(split.labels)), -1

    def rng(self, stream: int, index: int) -> np.random.Generator:
        """Return the generator for step or epoch ``index`` of one stream: nothing depends on what was drawn before."""
        return np.random.default_rng([self.hp.seed, stream, index])

    def order(self, epoch: int) -> Array:
        """Return the order (N,) of the images in ``epoch``, from 0."""
        if epoch != self._order_of:
            self._order.sort()  # back to 0, 1, 2, ..., in place
            self.rng(ORDER, epoch).shuffle(self._order)
            self._order_of = epoch
        return self._order

    def __getitem__(self, step: int) -> tuple[Array, Array, Masks]:
        """Return inputs (B, D), labels (B,) and dropout masks of ``step``, counted from 0 over all epochs."""
        hp = self.hp
        epoch, batch = divmod(step, self.per_epoch)
        chosen = self.order(epoch)[batch * hp.batch_size :][: hp.batch_size]
        rates = hp.dropout, hp.input_dropout
        # without dropout no generator is made: that takes 20 µs, much for a small network
        masks = (
            self.model.dropout_masks(len(chosen), self.rng(DROPOUT, step), *rates)
            if any(rates)
            else ()
        )
        return self.inputs(chosen, step), self.split.labels[chosen], masks

    def inputs(self, chosen: Array, step: int) -> Array:
        """Return the network's inputs (B, D) for the images ``chosen`` (B,), augmented for ``step``."""
        source = self.split.images
        images = self._workspace.array("images", (len(chosen), *source.shape[1:]), source.dtype)
        np.take(
            source, chosen, axis=0, out=images, mode="clip"
        )  # the default mode copies once more
        if self.hp.flip or self.hp.shift:
            rng = self.rng(AUGMENTATION, step)
            images = augment(
                images, rng, flip=self.hp.flip, shift=self.hp.shift, workspace=self._workspace
            )
        return self.model.inputs(images, self._workspace)
