"""A small data set in the official layout, and fixtures that give it to tests."""

import io
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from nnlib.data import cifar10
from nnlib.data import dataset as datasets

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes the byte stream of the official files: Python 2's strings, old names of NumPy's."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        if len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_function(self, function):
        assert function.__name__ == "_reconstruct"
        self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        self.memoize(function)

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[type(np.zeros)] = save_function


def python2_pickle(content) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(content)
    return stream.getvalue()


def batch(n: int = 20, seed: int = 0, **changes) -> dict:
    """The content of one batch file, every class equally often."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    labels = [i % 10 for i in range(n)]
    return {
        "batch_label": "a batch",
        "labels": labels,
        "data": images,
        "filenames": ["x.png"] * n,
    } | changes


def write_layout(root: Path, n: int = 20, dump=python2_pickle) -> Path:
    """Write ``cifar-10-batches-py`` with ``n`` images a file into ``root``."""
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate(cifar10.BATCHES):
        (folder / name).write_bytes(dump(batch(n, seed)))
    meta = {"num_cases_per_batch": n, "label_names": CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dump(meta))
    return folder


def make_archive(folder: Path, extra: str = "") -> bytes:
    """A .tar.gz of ``folder``, with one more member called ``extra`` if wanted."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, cifar10.FOLDER)
        if extra:
            tar.addfile(tarfile.TarInfo(extra))
    return stream.getvalue()


def same(a, b) -> bool:
    pairs = [(a.train, b.train), (a.valid, b.valid), (a.test, b.test)]
    arrays = all((x.images == y.images).all() and (x.labels == y.labels).all() for x, y in pairs)
    return arrays and (a.classes, a.source, a.fingerprint) == (b.classes, b.source, b.fingerprint)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Short waits, nothing tried before, and no settings of whoever runs the tests."""
    for name in ("NNLIB_DATA_DIR", "NNLIB_CIFAR10_URLS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cifar10, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(cifar10, "SILENT_SECONDS", 0.5)
    datasets._unreachable.clear()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A root with a small data set in the official layout."""
    root = tmp_path_factory.mktemp("small")
    write_layout(root)
    return root


@pytest.fixture
def root(small, tmp_path):
    """A copy of that root, to be spoiled."""
    shutil.copytree(small, tmp_path / "data")
    return tmp_path / "data"
