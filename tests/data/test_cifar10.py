"""Reading the files of CIFAR-10, damaged ones and hostile ones among them."""

import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import small_cifar10
from small_cifar10 import CLASSES, batch, python2_pickle

from nnlib import load_dataset
from nnlib.data import cifar10
from nnlib.data.cifar10 import NotFetched
from nnlib.errors import DataError

fresh, small, root = small_cifar10.fresh, small_cifar10.small, small_cifar10.root


def test_verify(root, monkeypatch):
    digest = hashlib.md5((root / cifar10.FOLDER / "test_batch").read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.MD5, "test_batch", digest)
    (root / cifar10.FOLDER / "data_batch_3").unlink()
    standing = cifar10.verify(root)
    assert standing.pop("test_batch") == "official" and standing.pop("data_batch_3") == "missing"
    assert set(standing.values()) == {"other bytes"} and len(standing) == 5


def test_data_root(monkeypatch):
    checkout = Path(cifar10.__file__).parents[2]
    if not (checkout / "pyproject.toml").exists():
        checkout = Path()
    assert cifar10.data_root() == checkout.absolute() / "data"
    monkeypatch.setenv("NNLIB_DATA_DIR", "/named")
    assert cifar10.data_root() == Path("/named")
    monkeypatch.setenv("NNLIB_DATA_DIR", "~/named")
    assert cifar10.data_root() == Path.home() / "named"
    assert cifar10.data_root("x") == Path("x").absolute()
    # The folder with the files is as good a name.
    assert cifar10.data_root("x/cifar-10-batches-py") == Path("x").absolute()


WRITERS = {"python 2": python2_pickle} | {
    f"protocol {p}": lambda content, p=p: pickle.dumps(content, p) for p in range(6)
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_of_pickling_arrays_is_read(writer, tmp_path):
    content = batch()
    if writer == "protocol 4":
        content = {key.encode(): value for key, value in content.items()}
    path = tmp_path / "data_batch_1"
    path.write_bytes(WRITERS[writer](content))
    images, labels = cifar10._read_batch(path)
    np.testing.assert_array_equal(images, batch()["data"])
    assert labels.tolist() == batch()["labels"] and labels.dtype == np.int64


def test_read(small):
    images, labels, n_test, classes, source = cifar10.read(small / cifar10.FOLDER)
    assert images.shape == (120, 3, 32, 32) and images.dtype == np.uint8 and n_test == 20
    np.testing.assert_array_equal(images[20:40].reshape(20, -1), batch(seed=1)["data"])
    np.testing.assert_array_equal(images[100:].reshape(20, -1), batch(seed=5)["data"])
    assert labels.tolist() == 6 * batch()["labels"]
    assert classes == tuple(CLASSES) and source == "cifar10 (unofficial copy)"


def test_only_the_official_bytes_are_called_cifar10(root, monkeypatch):
    folder = root / cifar10.FOLDER
    for name in cifar10.MD5:
        digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(cifar10.MD5, name, digest)
    with monkeypatch.context() as without:
        without.setattr(cifar10, "MAX_BYTES", 1000)  # official files need no bound
        assert cifar10.read(folder)[-1] == "cifar10"
    (folder / "batches.meta").write_bytes((folder / "batches.meta").read_bytes() + b" ")
    assert cifar10.read(folder)[-1] == "cifar10 (unofficial copy)"


class Code:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


GOOD = python2_pickle(batch())

# A million characters, turned into bytes three hundred times.
TEXT = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"q\x00"
CALL = b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
ENCODED = b"\x80\x02}U\x04data(" + TEXT + 300 * CALL + b"ls."

DAMAGES = {
    "empty": (b"", "begins with b''"),
    "cut": (GOOD[: len(GOOD) // 2], "no batch of CIFAR-10"),
    "html": (b"<!DOCTYPE html><p>log in", r"begins with b'<!DOCTYPE ht'"),
    "a list": (pickle.dumps([1, 2]), "no batch of CIFAR-10"),
    "no images": (python2_pickle({"labels": [1]}), "'data'"),
    "no labels": (python2_pickle({"data": batch()["data"]}), "no list of labels for 20 images"),
    "shape": (python2_pickle(batch(data=np.zeros((20, 3071), np.uint8))), r"\(20, 3071\)"),
    "dimensions": (
        python2_pickle(batch(data=np.zeros((20, 3, 32, 32), np.uint8))),
        r"\(20, 3, 32, 32\)",
    ),
    "no rows": (
        python2_pickle(batch(data=np.zeros((0, 3072), np.uint8), labels=[])),
        r"\(0, 3072\)",
    ),
    "dtype": (
        python2_pickle(batch(data=np.zeros((20, 3072), np.float32))),
        "dtype f4 instead of u1",
    ),
    "objects": (pickle.dumps(batch(data=np.array([None, "x"], object))), "dtype O8 instead of u1"),
    "list of images": (python2_pickle(batch(data=[0] * 20)), "list under 'data'"),
    "too few labels": (python2_pickle(batch(labels=[1, 2])), "2 labels for 20 images"),
    "label 10": (
        python2_pickle(batch(labels=[0] * 19 + [10])),
        "no number from 0 to 9, at place 19",
    ),
    "label -1": (
        python2_pickle(batch(labels=[-1] + [0] * 19)),
        "no number from 0 to 9, at place 0",
    ),
    "label text": (python2_pickle(batch(labels=["1"] * 20)), "no number from 0 to 9"),
    "label true": (python2_pickle(batch(labels=[True] * 20)), "no number from 0 to 9"),
    "code": (pickle.dumps(batch(data=Code(os.system, "exit 1"))), "names (posix|nt).system"),
    "eval": (pickle.dumps(Code(eval, "1/0"), 0), "names (builtins|__builtin__).eval"),
    "another of NumPy's": (pickle.dumps(Code(np.load, "x", None, True)), "names numpy.load"),
    "old class": (b"(S'x'\nios\nsystem\n.", "names os.system"),
    "extension": (b"\x80\x02\x82\x01.", "no batch of CIFAR-10"),
    "persistent": (b"\x80\x02U\x01xQ.", "no batch of CIFAR-10"),
    "huge memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "more than a batch has"),
    "huge text": (b"\x80\x02T\xff\xff\xff\x7fabc.", "no batch of CIFAR-10"),
    "huge bytes": (
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.",
        "no batch of CIFAR-10",
    ),
    "huge bytearray": (
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
        "no batch of CIFAR-10",
    ),
    "huge frame": (b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"}.", "no batch of CIFAR-10"),
    "huge array": (
        GOOD.replace(b"K\x14M\x00\x0c\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        "no batch of CIFAR-10",
    ),
    "many things": (b"\x80\x02(" + b"}" * 300_000 + b"l.", "more than a batch has"),
    "the same text many times": (ENCODED, "more than a batch has"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_batch_is_refused_by_name_with_little_memory(damage, root):
    data, words = DAMAGES[damage]
    assert data != GOOD
    (root / cifar10.FOLDER / "data_batch_2").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match=words) as caught:
        cifar10.read(root / cifar10.FOLDER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "data_batch_2" in str(caught.value) and "fetch it again" in str(caught.value)
    assert not isinstance(caught.value, NotFetched)  # so that "auto" doesn't hide it
    assert peak < 2**25


def test_the_state_of_a_dtype_is_not_believed(tmp_path):
    """NumPy's own dtype would take these pixels for pointers, and Python would crash."""
    state = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK"
    hostile = GOOD.replace(state + b"\x00t", state + b"\x3ft")
    assert hostile != GOOD
    (tmp_path / "data_batch_1").write_bytes(hostile)
    images, _ = cifar10._read_batch(tmp_path / "data_batch_1")
    np.testing.assert_array_equal(images, batch()["data"])


def test_files_missing_twice_or_too_large(root, monkeypatch):
    folder = root / cifar10.FOLDER
    whole = (folder / "data_batch_4").read_bytes()
    (folder / "data_batch_4").write_bytes((folder / "data_batch_1").read_bytes())
    with pytest.raises(DataError, match="data_batch_4 has the same bytes as data_batch_1"):
        cifar10.read(folder)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="lacks data_batch_4"):
        load_dataset("auto", root, n_valid=10)
    (folder / "data_batch_4").write_bytes(whole)
    monkeypatch.setattr(cifar10, "MAX_BYTES", len(whole) - 1)
    with pytest.raises(DataError, match=r"data_batch_1 has .* bytes"):
        cifar10.read(folder)


@pytest.mark.parametrize(
    "names", [None, "airplane", CLASSES[:9], [1] * 10, [""] * 10, ["x" * 101] * 10]
)
def test_class_names_that_are_none(names, root):
    (root / cifar10.FOLDER / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match=r"batches.meta has no list of ten names"):
        cifar10.read(root / cifar10.FOLDER)


SMALL = python2_pickle(batch(2))
# Up to four bytes, each with its place (often before the pixels) and its change.
PLACE = st.integers(0, 6400) | st.integers(0, 250)
FLIPS = st.lists(st.tuples(PLACE, st.integers(1, 255)), max_size=4)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(
    FLIPS,
    st.none() | st.integers(0, len(SMALL)),
    st.sampled_from([SMALL, pickle.dumps(batch(2), 2), pickle.dumps(batch(2), 5)]),
)
def test_any_cut_and_flipped_bytes_give_an_error_or_a_batch(tmp_path_factory, flips, length, good):
    data = bytearray(good)
    for place, change in flips:
        data[place % len(data)] ^= change
    path = tmp_path_factory.getbasetemp() / "fuzzed_batch"
    path.write_bytes(data[:length])
    try:
        images, labels = cifar10._read_batch(path)
    except DataError as problem:
        assert "fuzzed_batch" in str(problem)
    else:
        assert images.dtype == np.uint8 and images.shape == (len(labels), 3072) and len(labels) > 0
        assert labels.dtype == np.int64 and 0 <= labels.min() <= labels.max() <= 9
