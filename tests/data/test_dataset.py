"""Dataset, Split, the stratified split, your own arrays, and the stand-in."""

import hashlib
import pickle
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas
import pytest
import small_cifar10
from small_cifar10 import same

from nnlib import Dataset, load_dataset
from nnlib.data import cifar10, standin
from nnlib.data.cifar10 import NotFetched
from nnlib.data.dataset import stratified
from nnlib.errors import DataError

fresh, small, root = small_cifar10.fresh, small_cifar10.small, small_cifar10.root


def own(n=100, k=5, shape=(3, 4, 4), seed=0, **options) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), np.uint8)
    return Dataset.from_arrays(images, np.arange(n) % k, **options)


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200)


@hypothesis.given(LABELS, st.floats(0, 1), st.integers(0, 5))
def test_each_class_is_within_one_image_of_its_share(labels, fraction, seed):
    labels = np.array(labels)
    n = int(fraction * len(labels))
    rest, chosen = stratified(labels, n, seed)
    assert len(chosen) == n
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, chosen])), np.arange(len(labels)))
    for c in np.unique(labels):
        assert abs((labels[chosen] == c).sum() - (labels == c).sum() * n / len(labels)) < 1


def test_the_split_is_fixed_by_its_seed_alone():
    labels = np.arange(1000) % 10
    # What others do to NumPy's global random state changes nothing.
    np.random.seed(1)  # noqa: NPY002
    first = stratified(labels, 100, 3)[1]
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, stratified(labels, 100, 3)[1])
    assert first[:5].tolist() == [19, 23, 28, 32, 35]  # and on every machine
    assert not np.array_equal(first, stratified(labels, 100, 4)[1])


@pytest.mark.parametrize(("n", "size"), [(-1, 10), (11, 10), (1, 0)])
def test_more_images_than_there_are(n, size):
    with pytest.raises(DataError, match="cannot be set aside"):
        stratified(np.zeros(size, np.int64), n, 0)


def test_own_arrays_are_split_without_loss():
    images = np.arange(100 * 6, dtype=np.float64).reshape(100, 6)
    data = Dataset.from_arrays(
        images, np.arange(100) % 4, ["a", "b", "c", "d"], n_valid=20, n_test=12
    )
    assert (len(data.train), len(data.valid), len(data.test)) == (68, 20, 12)
    assert data.classes == ("a", "b", "c", "d") and data.source == "arrays" and not data.note
    for split in (data.train, data.valid, data.test):
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int64
        # Each label went with its image.
        np.testing.assert_array_equal(split.labels, split.images[:, 0] / 6 % 4)
    rows = np.concatenate([s.images[:, 0] for s in (data.train, data.valid, data.test)])
    np.testing.assert_array_equal(np.sort(rows), images[:, 0])


def test_own_arrays_by_default():
    data = Dataset.from_arrays([[0.0, 1.0]] * 50, [0, 1] * 25)
    assert (len(data.train), len(data.valid), len(data.test)) == (40, 5, 5)
    assert data.classes == ("0", "1")
    assert own(shape=(28, 28)).train.images.shape == (80, 28, 28)


TWO = np.zeros((2, 2))

MISFITS = {
    "other lengths": (np.zeros((3, 2)), [0, 1], r"\(3, 2\) and labels \(2,\)"),
    "no images": (np.zeros(3), [0, 1, 2], r"images \(3,\)"),
    "none at all": (np.zeros((0, 2)), np.zeros(0, int), r"images \(0, 2\)"),
    "one-hot": (TWO, [[0, 1], [1, 0]], r"labels \(2, 2\) .* labels.argmax\(axis=1\)"),
    "too bright": (np.array([[0], [256]]), [0, 1], "int64 from 0 to 256: make them uint8"),
    "negative": (np.array([[0], [-1]]), [0, 1], "int64 from -1 to 0: make them uint8"),
    "true and false": (TWO == 0, [0, 1], "bool: make them uint8"),
    "text": (np.array([["a"], ["b"]]), [0, 1], "make them uint8"),
    "not a number": (np.array([[np.nan], [1]]), [0, 1], "not finite"),
    "too large": (np.array([[1e39], [1]]), [0, 1], "not finite"),
    "ragged": ([[1.0, 2.0], [3.0]], [0, 1], "images can't be made into an array"),
    "ragged labels": (TWO, [[0], [1, 1]], "labels can't be made into an array"),
    "whole floats": (TWO, [0.0, 1.0], r"labels are float64: labels.astype\(int\)"),
    "fractions": (TWO, [0.0, 0.5], "labels are float64: nnlib needs the number"),
    "missing": (TWO, [0.0, np.nan], "labels are float64: nnlib needs the number"),
    "names": (TWO, ["cat", "dog"], "return_inverse"),
    "from -1": (TWO, [-1, 0], "from -1 to 0"),
    "from 1": (TWO, [1, 2], r"from 1 to 2, and 3 classes from 0: np\.unique"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_own_arrays_that_do_not_fit(misfit):
    images, labels, words = MISFITS[misfit]
    with pytest.raises(DataError, match=words):
        Dataset.from_arrays(images, labels)


def test_labels_without_a_class():
    with pytest.raises(DataError, match="from 0 to 2, and 2 classes"):
        Dataset.from_arrays(TWO, [0, 2], ["a", "b"])
    with pytest.raises(DataError, match="from 0 to 2, and 2 classes"):
        Dataset.from_arrays(TWO, [0, 1], ["a", "b"], test=(TWO, [0, 2]))


# Ways to give the numbers 0 to 239 as 40 rows of 6, and the type of image that they become.
PIXELS = np.arange(240).reshape(40, 6)
FORMS = {
    "list of ints": (PIXELS.tolist(), np.uint8),
    "list of floats": ((PIXELS / 1.0).tolist(), np.float32),
    "int32": (PIXELS.astype(np.int32), np.uint8),
    "float16": (PIXELS.astype(np.float16), np.float32),
    "frame of ints": (pandas.DataFrame(PIXELS), np.uint8),
    "frame of ints and floats": (pandas.DataFrame(PIXELS).astype({0: float}), np.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_numbers_is_taken(form):
    images, dtype = FORMS[form]
    labels = np.arange(40) % 2
    data = Dataset.from_arrays(images, labels, n_valid=0, n_test=0)
    assert data.train.images.dtype == dtype
    np.testing.assert_array_equal(data.train.images, PIXELS)
    for same_labels in (labels.tolist(), labels[:, None], pandas.Series(labels)):
        again = Dataset.from_arrays(images, same_labels, n_valid=0, n_test=0)
        assert again.fingerprint == data.fingerprint


def test_tensors_are_taken():
    torch = pytest.importorskip("torch")
    images, labels = torch.arange(240, dtype=torch.uint8).reshape(40, 6), torch.arange(40) % 2
    data = Dataset.from_arrays(images, labels, n_valid=0, n_test=0)
    np.testing.assert_array_equal(data.train.images, PIXELS)
    assert data.train.labels.tolist() == [0, 1] * 20
    with pytest.raises(DataError, match=r"images can't be made into an array: .*requires grad"):
        Dataset.from_arrays(torch.ones(40, 6, requires_grad=True), labels)


def test_valid_and_test_images_of_your_own():
    def part(n: int, first: int):
        return np.arange(first, first + n, dtype=np.uint8)[:, None], np.arange(n) % 3

    data = Dataset.from_arrays(*part(50, 0), valid=part(7, 100), test=part(5, 200))
    assert data.train.images[:, 0].tolist() == list(range(50))
    assert data.valid.images[:, 0].tolist() == list(range(100, 107))
    assert data.test.images[:, 0].tolist() == list(range(200, 205))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1] and data.classes == ("0", "1", "2")

    only_test = Dataset.from_arrays(*part(50, 0), test=part(5, 200))
    assert (len(only_test.train), len(only_test.valid), len(only_test.test)) == (45, 5, 5)
    only_valid = Dataset.from_arrays(*part(50, 0), valid=part(7, 100), n_test=20, n_valid=0)
    assert (len(only_valid.train), len(only_valid.valid), len(only_valid.test)) == (30, 7, 20)
    more_classes = Dataset.from_arrays([[1], [2]], [0, 1], valid=([[1]], [3]), n_test=0)
    assert more_classes.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid": np.zeros((3, 6)), "n_test": 0}, "valid must be a pair .*, not ndarray"),
        ({"test": 3}, "test must be a pair .*, not int"),
        ({"test": (np.zeros((3, 6)), [0, 1])}, r"^test: images \(3, 6\) and labels \(2,\)"),
        ({"test": (np.zeros((1, 5)), [0])}, r"^test: its images are \(5,\) float32 each"),
        ({"valid": (PIXELS[:1], [0])}, r"^valid: .* \(6,\) uint8 each, .* \(6,\) float32"),
        ({"valid": (np.zeros((1, 6)), [0]), "n_valid": 4}, "n_valid=4, and valid is given"),
        ({"test": (np.zeros((1, 6)), [0]), "n_test": 4}, "n_test=4, and test is given"),
    ],
)
def test_valid_and_test_images_that_do_not_fit(options, words):
    with pytest.raises(DataError, match=words):
        Dataset.from_arrays(PIXELS / 255, np.arange(40) % 2, **options)


def test_a_subset_has_fewer_training_images_and_the_same_others():
    data = own(200)
    part = data.subset(50)
    assert part.valid is data.valid and part.test is data.test and part.classes == data.classes
    assert np.bincount(part.train.labels).tolist() == [10] * 5
    both = np.concatenate([part.train.images, data.train.images]).reshape(-1, 48)
    assert len(np.unique(both, axis=0)) == len(data.train)  # nothing new
    assert data.subset(50).fingerprint == part.fingerprint != data.subset(50, seed=1).fingerprint
    assert data.subset(len(data.train)).fingerprint == data.fingerprint
    with pytest.raises(DataError, match="161 images cannot be set aside from 160"):
        data.subset(161)


def test_the_fingerprint_sees_every_image_label_and_shape():
    data = own()
    assert own().fingerprint == data.fingerprint and own(seed=1).fingerprint != data.fingerprint
    prints = {data.fingerprint, own(shape=(4, 3, 4)).fingerprint}
    for split in (data.train, data.valid, data.test):
        for array in (split.images, split.labels):
            array[-1] ^= 1
            again = Dataset(data.train, data.valid, data.test, data.classes, data.source)
            prints.add(again.fingerprint)
    assert len(prints) == 8


def test_what_a_notebook_shows():
    data = load_dataset("standin", n_train=100, n_valid=20, n_test=30)
    assert repr(data) == (
        "Dataset(stand-in: 100 train, 20 valid, 30 test images of 3×32×32, 10 classes, "
        f"fingerprint {data.fingerprint})"
    )
    page = data._repr_html_()
    assert "100 train" in page and "not from CIFAR-10" in page and "data:image/png;base64," in page
    assert 'alt="One training image each: disc, ring' in page
    assert page == data._repr_html_()  # the same bytes when nothing changed
    assert "<img" not in own(shape=(7,))._repr_html_()
    assert "<img" not in own(shape=(1, 4, 4))._repr_html_()
    named = own(classes=["<b>", "b", "c", "d", "e"])._repr_html_()
    assert "&lt;b&gt;" in named and "<b>" not in named


def test_importing_loads_little_beside_numpy():
    code = """
import sys, nnlib.data.dataset
print(sorted({"pooch", "requests", "filelock", "PIL", "tqdm", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_drawn_data_set_can_be_sent_to_another_process():
    drawn = load_dataset("standin", n_train=20, n_valid=10, n_test=10)
    assert same(pickle.loads(pickle.dumps(drawn)), drawn)


# ---- the stand-in ----


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    images, labels = standin.draw(1100, seed=0)
    assert images.shape == (1100, 3, 32, 32)
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "391fd5d7959a0068"
    fewer = standin.draw(30, seed=0)
    np.testing.assert_array_equal(fewer[0], images[:30])
    np.testing.assert_array_equal(fewer[1], labels[:30])
    assert not np.array_equal(standin.draw(30, seed=1)[0], fewer[0])


def test_the_stand_in_is_balanced_and_varied():
    data = load_dataset("standin", n_train=800, n_valid=100, n_test=100, seed=5)
    assert data.source == "stand-in" and len(data.classes) == 10
    assert np.bincount(data.train.labels).tolist() == [80] * 10
    assert np.bincount(data.valid.labels).tolist() == [10] * 10
    assert len(np.unique(data.train.images.reshape(800, -1), axis=0)) == 800
    assert data.train.images.min() == 0 and data.train.images.max() == 255
    again = load_dataset("standin", n_train=800, n_valid=100, n_test=100, seed=5)
    assert again.fingerprint == data.fingerprint


def test_every_shape_is_drawn_inside_its_size():
    """Each shape covers its own share of a square of 2r, and nothing far from the middle."""
    grid = np.arange(-2000, 2000, 20, dtype=np.int32)
    u, v = np.meshgrid(grid, grid)
    areas = {}
    for name, (_, shape) in standin.SHAPES.items():
        inside = shape(u, v, np.full_like(u, 1000)) > 0
        assert not inside[u * u + v * v > 1.6 * 1000**2].any()
        areas[name] = inside.mean() * 4
    assert areas["disc"] == pytest.approx(np.pi / 4, abs=0.02)
    assert areas["square"] == pytest.approx(0.875**2, abs=0.02)
    assert areas["checks"] == pytest.approx(areas["square"] / 2, abs=0.06)
    assert len({round(area, 3) for area in areas.values()}) == len(areas)


def test_turns_are_exact():
    assert (np.square(standin.TURNS).sum(axis=1) == 65**2).all()
    assert len(np.unique(standin.TURNS, axis=0)) > 15


def test_a_linear_model_learns_something_but_not_much():
    """Ridge regression at half the size: colors give some classes away, shapes don't."""
    data = load_dataset("standin", n_train=6000, n_valid=10, n_test=2000)

    def inputs(split):
        half = split.images.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).reshape(-1, 768)
        return np.c_[np.full(len(half), 128), half - 128] / 255

    X = inputs(data.train)
    W = np.linalg.solve(X.T @ X + 100 * np.eye(769), X.T @ np.eye(10)[data.train.labels])
    predicted = (inputs(data.test) @ W).argmax(axis=1)
    assert 0.35 < (predicted == data.test.labels).mean() < 0.55


# ---- what does not fit ----


def test_bad_data_are_never_passed_over(root, monkeypatch):
    (root / cifar10.FOLDER / "data_batch_1").write_bytes(b"<html>")
    monkeypatch.setenv("NNLIB_DATA_DIR", str(root))
    with pytest.raises(DataError, match="data_batch_1"):
        load_dataset("auto", n_valid=10)


def test_names_and_sizes_that_do_not_fit(root):
    with pytest.raises(DataError, match="'cifar100'"):
        load_dataset("cifar100", root)
    with pytest.raises(DataError, match="101 images cannot be set aside from 100"):
        load_dataset("cifar10", root, n_valid=101)


def test_without_a_name_it_is_cifar10_or_an_error(root, tmp_path, monkeypatch):
    monkeypatch.setenv("NNLIB_DATA_DIR", str(root))
    assert load_dataset(n_valid=10).source == "cifar10 (unofficial copy)"
    monkeypatch.setenv("NNLIB_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(NotFetched, match="not on disk"):
        load_dataset(download=False)


@pytest.mark.parametrize("shape", [(2, 4, 4), (8, 4, 4), (3, 8, 3), (1, 2, 2)])
def test_small_images_with_channels_first_are_taken(shape):
    images = np.zeros((40, *shape), np.uint8)
    assert Dataset.from_arrays(images, np.arange(40) % 2).train.images.shape[1:] == shape


def test_channels_last_and_labels_from_one_are_refused():
    images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
    turn = r"channels last: give images\.transpose\(0, 3, 1, 2\)"
    with pytest.raises(DataError, match=turn):
        Dataset.from_arrays(images, labels)
    images = images.transpose(0, 3, 1, 2)
    with pytest.raises(DataError, match=r"from 1 to 2, and 3 classes from 0: np\.unique"):
        Dataset.from_arrays(images, labels + 1)
    named = Dataset.from_arrays(images, labels + 1, ["a", "b", "c"])
    assert named.classes == ("a", "b", "c")
