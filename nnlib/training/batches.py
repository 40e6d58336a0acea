"""Training batches: which images come in which order, augmented how, as the network's inputs."""

import math

import numpy as np

from nnlib.data.dataset import Split
from nnlib.data.preprocessing import augment
from nnlib.network.blas import Workspace
from nnlib.network.mlp import MLP, Masks
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.types import Array

# Streams of random numbers, apart from each other and from the first weights.
ORDER = 1
AUGMENTATION = 2
DROPOUT = 3


class Batches:
    """The batches of ``split`` for ``model``, as ``hp`` wants them; each step reuses the memory."""

    def __init__(self, split: Split, model: MLP, hp: Hyperparameters) -> None:
        self.split = split
        self.model = model
        self.hp = hp
        self.per_epoch = math.ceil(len(split.labels) / hp.batch_size)
        self._workspace = Workspace()
        self._order = np.arange(len(split.labels))
        self._order_of = -1  # the epoch that _order belongs to; none yet

    def rng(self, stream: int, index: int) -> np.random.Generator:
        """Return the generator of one stream for step or epoch ``index``, whatever came before."""
        return np.random.default_rng([self.hp.seed, stream, index])

    def order(self, epoch: int) -> Array:
        """Return the order (N,) of the images in ``epoch``, counted from 0."""
        if epoch != self._order_of:
            self._order.sort()  # back to 0, 1, 2, ..., in place
            self.rng(ORDER, epoch).shuffle(self._order)
            self._order_of = epoch
        return self._order

    def __getitem__(self, step: int) -> tuple[Array, Array, Masks]:
        """Return inputs (B, D), labels (B,) and masks of ``step``, from 0 over all epochs."""
        hp = self.hp
        epoch, batch = divmod(step, self.per_epoch)
        start = batch * hp.batch_size
        chosen = self.order(epoch)[start : start + hp.batch_size]
        masks: Masks = ()
        if hp.dropout or hp.input_dropout:  # a generator takes 20 µs, much for a small network
            rng = self.rng(DROPOUT, step)
            masks = self.model.dropout_masks(len(chosen), rng, hp.dropout, hp.input_dropout)
        return self.inputs(chosen, step), self.split.labels[chosen], masks

    def inputs(self, chosen: Array, step: int) -> Array:
        """Return the inputs (B, D) for the images ``chosen`` (B,), augmented as in ``step``."""
        hp = self.hp
        source = self.split.images
        shape = (len(chosen), *source.shape[1:])
        images = self._workspace.array("images", shape, source.dtype)
        # with its default mode, np.take would copy once more
        np.take(source, chosen, axis=0, out=images, mode="clip")
        if hp.flip or hp.shift:
            rng = self.rng(AUGMENTATION, step)
            images = augment(images, rng, flip=hp.flip, shift=hp.shift, workspace=self._workspace)
        return self.model.inputs(images, self._workspace)
