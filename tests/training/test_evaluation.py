"""Loss, accuracy and confusion, counted by hand."""

import math

import numpy as np
import pytest

import nnlib

# A network that answers with its input: three inputs, three classes, no hidden layer.
ECHO = nnlib.MLP((3, 3), classes=("cat", "dog", "fox"))
ECHO.parameters["W1"][:] = np.eye(3)

X = np.array(
    [[9, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]], np.float32
)  # taken for 0, 1, 1, 2, 0
SPLIT = nnlib.Split(X, np.array([0, 1, 0, 1, 0]))


def test_counts_by_hand():
    found = nnlib.evaluate(ECHO, SPLIT)
    assert found.accuracy == 3 / 5
    np.testing.assert_array_equal(found.confusion, [[2, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert found.per_class == {
        "cat": 2 / 3,
        "dog": 1 / 2,
        "fox": pytest.approx(math.nan, nan_ok=True),
    }
    # p = e⁹/(e⁹ + 2) for the three right ones, 1/(e⁹ + 2) for the two wrong ones.
    assert found.loss == pytest.approx(math.log(math.exp(9) + 2) - 9 * 3 / 5, rel=1e-6)
    assert found.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert repr(found) == f"loss {found.loss:.4f}, accuracy 0.6000 ± 0.2191 on 5 images"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_does_not_matter(batch_size):
    whole, parts = nnlib.evaluate(ECHO, SPLIT), nnlib.evaluate(ECHO, SPLIT, batch_size=batch_size)
    assert parts.loss == whole.loss and (parts.confusion == whole.confusion).all()


def test_raw_images():
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4), dtype=np.uint8)
    model = nnlib.MLP((48, 6, 4))
    labels = model.predict(images)
    assert nnlib.evaluate(model, nnlib.Split(images, labels)).accuracy == 1
    assert nnlib.evaluate(model, nnlib.Split(images, (labels + 1) % 4)).accuracy == 0


def test_images_and_labels_instead_of_a_split():
    split = nnlib.evaluate(ECHO, SPLIT)
    for images, labels in [
        (X, SPLIT.labels),
        (X.tolist(), SPLIT.labels.tolist()),
        (X, SPLIT.labels.astype(np.uint8)),
    ]:
        found = nnlib.evaluate(ECHO, images, labels)
        assert found.loss == split.loss and (found.confusion == split.confusion).all()


def test_labels_of_many_classes_do_not_overflow():
    # 20 classes: the last pair has the number 399, which does not fit into a byte
    echo = nnlib.MLP((20, 20))
    echo.parameters["W1"][:] = np.eye(20)
    labels = np.arange(20, dtype=np.uint8)
    found = nnlib.evaluate(echo, np.eye(20, dtype=np.float32), labels)
    np.testing.assert_array_equal(found.confusion, np.eye(20))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            (X, SPLIT.labels[:4]),
            r"^labels: int64 of shape \(4,\), but whole numbers of shape \(5,\)",
        ),
        ((X, SPLIT.labels / 2), "^labels: float64 of shape"),
        ((X[:0], SPLIT.labels[:0]), "^images: there are no images"),
        ((X,), "holds no images; .* or give images and labels"),
        ((SPLIT, SPLIT.labels), "^labels: a split has its own"),
        ((SPLIT, 2500), r"^labels: a split has its own; .* batch_size by name"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(nnlib.HyperparameterError, match=words):
        nnlib.evaluate(ECHO, *arguments)


def test_no_images_are_refused():
    with pytest.raises(nnlib.HyperparameterError, match="no images"):
        nnlib.evaluate(ECHO, nnlib.Split(X[:0], np.zeros(0, int)))
    data = nnlib.Dataset.from_arrays(np.zeros((50, 3)), np.arange(50) % 2)
    with pytest.raises(
        nnlib.HyperparameterError, match=r"^split: Dataset\(.* holds no images; data.test, data"
    ):
        nnlib.evaluate(ECHO, data)  # type: ignore[arg-type]


def test_images_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(nnlib.HyperparameterError, match=r"^x: its shape is \(5, 2\)"):
        nnlib.evaluate(ECHO, nnlib.Split(X[:, :2], SPLIT.labels))
    with pytest.raises(nnlib.HyperparameterError, match=r"^labels: 3 is not one of the classes"):
        nnlib.evaluate(ECHO, nnlib.Split(X, SPLIT.labels + 2))
