"""Dataset, Split, the stratified split, somebody's own arrays, and the drawn stand-in."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import small_cifar10
from small_cifar10 import batch, python2_pickle, same, write_layout

from nnlib import Dataset, load_dataset
from nnlib.data import cifar10, standin
from nnlib.data.dataset import stratified
from nnlib.errors import DataError

fresh, small, root = small_cifar10.fresh, small_cifar10.small, small_cifar10.root


def own(
    n: int = 100, k: int = 5, shape: tuple[int, ...] = (3, 4, 4), seed: int = 0, **options
) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset.from_arrays(
        rng.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % k, **options
    )


@hypothesis.given(
    st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0, 1), st.integers(0, 5)
)
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
    np.random.seed(1)  # noqa: NPY002 what others do to the global state changes nothing
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
        np.testing.assert_array_equal(
            split.labels, split.images[:, 0] / 6 % 4
        )  # each label went with its image
    rows = np.concatenate([s.images[:, 0] for s in (data.train, data.valid, data.test)])
    np.testing.assert_array_equal(np.sort(rows), images[:, 0])


def test_own_arrays_by_default():
    data = Dataset.from_arrays([[0.0, 1.0]] * 50, [0, 1] * 25)
    assert (len(data.train), len(data.valid), len(data.test)) == (40, 5, 5)
    assert data.classes == ("0", "1")
    assert own(shape=(28, 28)).train.images.shape == (80, 28, 28)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "words"),
    [
        (np.zeros((3, 2)), [0, 1], None, r"\(3, 2\) and labels \(2,\)"),
        (np.zeros(3), [0, 1, 2], None, r"images \(3,\)"),
        (np.zeros((0, 2)), np.zeros(0, int), None, r"images \(0, 2\)"),
        (np.zeros((2, 2)), [[0], [1]], None, r"labels \(2, 1\)"),
        (np.zeros((2, 2), int), [0, 1], None, "int64: make them uint8"),
        (np.array([["a"], ["b"]]), [0, 1], None, "make them uint8"),
        (np.array([[np.nan], [1]]), [0, 1], None, "not finite"),
        (np.zeros((2, 2)), [0.0, 1.0], None, "labels are float64"),
        (np.zeros((2, 2)), ["cat", "dog"], None, "return_inverse"),
        (np.zeros((2, 2)), [-1, 0], None, "from -1 to 0"),
        (np.zeros((2, 2)), [0, 2], ["a", "b"], "from 0 to 2, and 2 classes"),
    ],
)
def test_own_arrays_that_do_not_fit(images, labels, classes, words):
    with pytest.raises(DataError, match=words):
        Dataset.from_arrays(images, labels, classes)


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
            prints.add(
                Dataset(data.train, data.valid, data.test, data.classes, data.source).fingerprint
            )
    assert len(prints) == 8


def test_what_a_notebook_shows():
    data = load_dataset("standin", n_train=100, n_valid=20, n_test=30)
    assert repr(data) == (
        f"Dataset(stand-in: 100 train, 20 valid, 30 test images of 3×32×32, 10 classes, fingerprint {data.fingerprint})"
    )
    page = data._repr_html_()
    assert "100 train" in page and "not from CIFAR-10" in page and "data:image/png;base64," in page
    assert 'alt="One training image each: disc, ring' in page
    assert page == data._repr_html_()  # the same bytes when nothing changed
    assert (
        "<img" not in own(shape=(7,))._repr_html_()
        and "<img" not in own(shape=(1, 4, 4))._repr_html_()
    )
    named = own(classes=["<b>", "b", "c", "d", "e"])._repr_html_()
    assert "&lt;b&gt;" in named and "<b>" not in named


def test_importing_loads_little_beside_numpy():
    code = "import sys, nnlib.datasets; print(sorted({'pooch', 'requests', 'filelock', 'PIL', 'tqdm'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


# ---- the stand-in ----


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    images, labels = standin.draw(1100, seed=0)
    assert (
        images.shape == (1100, 3, 32, 32) and images.dtype == np.uint8 and labels.dtype == np.int64
    )
    assert (
        hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()[:16]
        == "391fd5d7959a0068"
    )
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
    assert (
        load_dataset("standin", n_train=800, n_valid=100, n_test=100, seed=5).fingerprint
        == data.fingerprint
    )


def test_every_shape_is_drawn_inside_its_size():
    """Each shape covers its own share of a square of 2r: some of it, not all, and nothing beyond r of the middle."""
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
    assert (np.square(standin.TURNS).sum(axis=1) == 65**2).all() and len(
        np.unique(standin.TURNS, axis=0)
    ) > 15


def test_a_linear_model_learns_something_but_not_much():
    """Ridge regression on pictures of half the size: colours give some of the classes away, shapes do not."""
    data = load_dataset("standin", n_train=6000, n_valid=10, n_test=2000)
    halves = [
        s.images.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).reshape(-1, 768) - 128
        for s in (data.train, data.test)
    ]
    X, X_test = (np.c_[np.full(len(half), 128), half] / 255 for half in halves)
    W = np.linalg.solve(X.T @ X + 100 * np.eye(769), X.T @ np.eye(10)[data.train.labels])
    assert 0.35 < ((X_test @ W).argmax(axis=1) == data.test.labels).mean() < 0.55


# ---- the cache ----


def cache_of(root: Path) -> Path:
    [path] = (root / "cifar-10-cache").iterdir()
    return path


def test_a_second_load_reads_the_cache_alone(root, monkeypatch):
    first = load_dataset("cifar10", root, n_valid=10)
    assert (len(first.train), len(first.valid), len(first.test)) == (90, 10, 20)
    with monkeypatch.context() as without:
        without.setattr(cifar10, "read", None)
        second = load_dataset("cifar10", root, n_valid=10)
    assert same(first, second)
    assert not first.train.images.flags.writeable  # it is everybody's
    assert load_dataset("cifar10", root, n_valid=10, seed=1).fingerprint != first.fingerprint
    uncached = Dataset(first.train, first.valid, first.test, first.classes, first.source)
    assert uncached.fingerprint == first.fingerprint


def test_a_stale_cache_is_rebuilt(root):
    first = load_dataset("cifar10", root, n_valid=10)
    path = root / cifar10.FOLDER / "test_batch"
    path.write_bytes(python2_pickle(batch(20, seed=99)))
    second = load_dataset("cifar10", root, n_valid=10)
    assert second.fingerprint != first.fingerprint
    np.testing.assert_array_equal(second.test.images.reshape(20, -1), batch(20, seed=99)["data"])


@pytest.mark.parametrize("place", [0, 20, 2000, 2**16 + 5, -1, "cut", "empty", "zeros", "text"])
def test_a_damaged_cache_is_rebuilt(place, root):
    first = load_dataset("cifar10", root, n_valid=10)
    whole = cache_of(root).read_bytes()
    spoiled = {
        "cut": whole[:-8],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "text": b"x" * len(whole),
    }.get(place)
    if spoiled is None:
        data = bytearray(whole)
        data[place] ^= 1
        spoiled = bytes(data)
    cache_of(root).unlink()  # a new file: the old one is still mapped
    (root / "cifar-10-cache").joinpath("10-valid-seed-0.bin").write_bytes(spoiled)
    assert same(load_dataset("cifar10", root, n_valid=10), first)
    assert cache_of(root).read_bytes() == whole


def test_a_folder_that_takes_no_cache_works_without(root, capsys):
    (root / "cifar-10-cache").write_text("in the way, as a read-only folder would be")
    first, second = (load_dataset("cifar10", root, n_valid=10) for _ in range(2))
    assert same(first, second)
    assert capsys.readouterr().out.count("No cache beside the data") == 1


READER = """
import sys, psutil, pickle
from nnlib import load_dataset
data = load_dataset("cifar10", sys.argv[1], n_valid=10)
total = int(data.train.images.sum()) + int(data.test.images.sum())
print("ready", flush=True)
sys.stdin.readline()
maps = [m for m in psutil.Process().memory_maps() if m.path.endswith(".bin")]
print(psutil.Process().memory_full_info().pss, sum(m.pss for m in maps), sum(m.rss for m in maps), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells how much memory is shared (pss)"
)
def test_eight_processes_hold_one_copy(tmp_path):
    write_layout(tmp_path, n=1000)
    size = 6000 * 3072
    load_dataset("cifar10", tmp_path, n_valid=10)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    try:
        assert all(child.stdout.readline() == "ready\n" for child in children)
        told = []
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
            told.append([int(number) for number in child.stdout.readline().split()])
    finally:
        for child in children:
            child.communicate("\n", timeout=30)
    pss, shared, resident = zip(*told, strict=True)
    assert min(resident) >= size  # each sees all of it
    assert sum(shared) < 1.1 * size  # and together they hold it once
    assert sum(pss) < sum(pss) - sum(shared) + 1.1 * size


def test_another_process_is_sent_the_caches_name(root):
    data = load_dataset("cifar10", root, n_valid=10)
    assert len(pickle.dumps(data)) < 2000 and same(pickle.loads(pickle.dumps(data)), data)
    part = data.subset(30)
    assert len(pickle.dumps(part)) < 2000 and same(pickle.loads(pickle.dumps(part)), part)
    drawn = load_dataset("standin", n_train=20, n_valid=10, n_test=10)
    assert same(pickle.loads(pickle.dumps(drawn)), drawn)


def test_bad_data_are_never_passed_over(root, monkeypatch):
    (root / cifar10.FOLDER / "data_batch_1").write_bytes(b"<html>")
    monkeypatch.setenv("NNLIB_DATA_DIR", str(root))
    with pytest.raises(DataError, match="data_batch_1"):
        load_dataset("auto", n_valid=10)


def test_names_and_sizes_that_do_not_fit(root):
    with pytest.raises(DataError, match="'cifar100'"):
        load_dataset("cifar100")
    with pytest.raises(DataError, match="101 images cannot be set aside from 100"):
        load_dataset("cifar10", root, n_valid=101)


def test_small_images_with_channels_first_are_taken():
    for shape in ((2, 4, 4), (8, 4, 4), (3, 8, 3), (1, 2, 2)):
        assert (
            Dataset.from_arrays(
                np.zeros((40, *shape), np.uint8), np.arange(40) % 2
            ).train.images.shape[1:]
            == shape
        )


def test_channels_last_and_labels_from_one_are_refused():
    images, labels = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 2
    with pytest.raises(DataError, match=r"channels last: give images\.transpose\(0, 3, 1, 2\)"):
        Dataset.from_arrays(images, labels)
    with pytest.raises(
        DataError, match=r"labels run from 1 to 2, and 3 classes from 0: np\.unique"
    ):
        Dataset.from_arrays(images.transpose(0, 3, 1, 2), labels + 1)
    assert Dataset.from_arrays(images.transpose(0, 3, 1, 2), labels + 1, "abc").classes == (
        "a",
        "b",
        "c",
    )
