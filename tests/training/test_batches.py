"""Batches: every image once an epoch, the right labels, and the same memory at every step."""

import numpy as np
import pytest

import nnlib
from nnlib.network.mlp import MLP
from nnlib.training.batches import ORDER, Batches

HP = nnlib.Hyperparameters(batch_size=32, seed=5)


def numbered(n: int = 100) -> nnlib.Split:
    """n images (1, 2, 2) that are their own number in every pixel, as are their labels."""
    numbers = np.arange(n)
    return nnlib.Split(np.repeat(numbers.astype(np.uint8), 4).reshape(n, 1, 2, 2), numbers)


def batches(hp: nnlib.Hyperparameters = HP, split: nnlib.Split | None = None) -> Batches:
    return Batches(split or numbered(), MLP((4, 3)), hp)


def test_inputs_and_labels_belong_together():
    made = batches()
    assert made.per_epoch == 4
    seen = []
    for step in range(8):
        x, labels, masks = made[step]
        assert masks == ()
        np.testing.assert_allclose(x, np.repeat(labels[:, None] / 255, 4, axis=1), rtol=1e-6)
        seen.append(labels)
    assert [len(labels) for labels in seen] == [32, 32, 32, 4] * 2
    epochs = np.concatenate(seen).reshape(2, 100)
    np.testing.assert_array_equal(np.sort(epochs), [range(100)] * 2)
    assert (epochs[0] != epochs[1]).any()


def test_a_step_is_the_same_whatever_came_before_it():
    hp = HP.replace(flip=True, shift=1, input_dropout=0.5)
    x, labels, masks = batches(hp)[6]
    x, masks = x.copy(), [mask.copy() for mask in masks]
    other = batches(hp)
    for step in (3, 0, 7, 6):
        again, again_labels, again_masks = other[step]
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(again_labels, labels)
    np.testing.assert_array_equal(again_masks[0], masks[0])


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_order_is_the_permutation_that_its_generator_gives(epoch):
    made = batches()
    made.order(3)
    np.testing.assert_array_equal(
        made.order(epoch), np.random.default_rng([5, ORDER, epoch]).permutation(100)
    )


def test_images_that_are_floats_are_taken_as_they_are():
    images = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    x, labels, _ = batches(split=nnlib.Split(images, np.arange(100)))[2]
    np.testing.assert_array_equal(x, images[labels])
