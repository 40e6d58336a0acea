"""The cache beside CIFAR-10's files: stale, damaged, unfinished, read-only, and used by many."""

import errno
import mmap
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import small_cifar10
from small_cifar10 import batch, python2_pickle, same, write_layout

from nnlib import Dataset, load_dataset
from nnlib.data import cache, cifar10
from nnlib.data.dataset import Split, stratified
from nnlib.errors import CheckpointError, DataError

fresh, small, root = small_cifar10.fresh, small_cifar10.small, small_cifar10.root

NAMES = {"cache.json", "images.npy", "labels.npy", "places.npy", "lock"}


def load(root: Path, n_valid: int = 10, seed: int = 0) -> Dataset:
    return load_dataset("cifar10", root, n_valid=n_valid, seed=seed)


def without_cache(root: Path, n_valid: int, seed: int) -> Dataset:
    """The same split, straight from the files."""
    images, labels, n_test, classes, source = cifar10.read(root / cifar10.FOLDER)
    whole = Split(images, labels)
    train, valid = stratified(labels[:-n_test], n_valid, seed)
    test = slice(len(labels) - n_test, None)
    return Dataset(whole.take(train), whole.take(valid), whole.take(test), classes, source)


def is_mapped(array: np.ndarray) -> bool:
    """Whether the array's numbers lie in a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_a_second_load_reads_the_cache_alone(root, monkeypatch):
    first = load(root)
    assert (len(first.train), len(first.valid), len(first.test)) == (90, 10, 20)
    assert {path.name for path in (root / "cifar-10-cache").iterdir()} == NAMES
    monkeypatch.setattr(cifar10, "read", None)
    monkeypatch.setattr(filelock, "FileLock", None)  # in a read-only folder, there can be no lock
    assert same(load(root), first)


@pytest.mark.parametrize(("n_valid", "seed"), [(10, 0), (10, 1), (7, 0), (0, 0), (100, 5)])
def test_one_cache_serves_every_split(n_valid, seed, root, monkeypatch):
    expected = without_cache(root, n_valid, seed)
    assert same(load(root, n_valid, seed), expected)  # this one makes the cache
    monkeypatch.setattr(cifar10, "read", None)
    assert same(load(root, n_valid, seed), expected)  # this one reads it


def test_the_usual_split_is_mapped_and_no_split_can_be_changed(root):
    usual, other = load(root), load(root, seed=1)
    for split in (usual.train, usual.valid, usual.test, other.test):
        assert is_mapped(split.images)
    assert not is_mapped(other.train.images)
    for split in (usual.train, other.train, other.valid):
        for array in (split.images, split.labels):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_the_cache_knows_the_fingerprint_of_the_usual_split(root):
    load(root)
    data = load(root)
    assert vars(data)["fingerprint"] == without_cache(root, 10, 0).fingerprint
    assert "fingerprint" not in vars(load(root, seed=1))  # computed when somebody asks
    changed = replace(data, train=data.train.take(slice(50)))
    assert changed.fingerprint != data.fingerprint


def test_a_stale_cache_is_rebuilt(root):
    first = load(root)
    path = root / cifar10.FOLDER / "test_batch"
    path.write_bytes(python2_pickle(batch(20, seed=99)))
    second = load(root)
    assert second.fingerprint != first.fingerprint
    np.testing.assert_array_equal(second.test.images.reshape(20, -1), batch(20, seed=99)["data"])


def test_a_cache_of_another_version_is_rebuilt(root, monkeypatch):
    first = load(root)
    with monkeypatch.context() as older:
        older.setattr(cache, "FORMAT", 0)
        about = (root / "cifar-10-cache" / "cache.json").read_text()
        (root / "cifar-10-cache" / "cache.json").write_text(about.replace("n_test", "n"))
        assert same(load(root), first)  # made anew, as version 0
    assert same(load(root), first)
    assert '"format": 1' in (root / "cifar-10-cache" / "cache.json").read_text()


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.unlink()  # a new file: the old one is still mapped
    if how == "one bit":
        changed = bytearray(whole)
        changed[-1] ^= 1
        path.write_bytes(changed)
    elif how == "cut":
        path.write_bytes(whole[:-8])
    elif how != "gone":
        path.write_text(how)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((f"{name}.npy", how) for name in ("images", "labels") for how in ("one bit", "cut", "")),
        *(("cache.json", how) for how in ("cut", "", "{}", "[]", "null", '{"arrays": 3}')),
        *((name, "gone") for name in ("images.npy", "places.npy", "cache.json")),
    ],
)
def test_a_damaged_cache_is_rebuilt(name, how, root, monkeypatch):
    first = load(root)
    path = root / "cifar-10-cache" / name
    whole = path.read_bytes()
    spoil(path, how)
    assert same(load(root), first)
    if name != "cache.json":  # there, times differ
        assert path.read_bytes() == whole
    monkeypatch.setattr(cifar10, "read", None)
    assert same(load(root), first)


KILLED = """
import os, sys
from nnlib import load_dataset
from nnlib.data import cache
setattr(cache, sys.argv[2], lambda *_: os._exit(9))
load_dataset("cifar10", sys.argv[1], n_valid=10)
"""


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("before", ["write_atomically", "write_text"])
def test_killed_while_the_cache_was_written(before, stale, root):
    if stale:
        load(root)
        (root / cifar10.FOLDER / "test_batch").write_bytes(python2_pickle(batch(20, seed=99)))
    command = [sys.executable, "-c", KILLED, str(root), before]
    assert subprocess.run(command).returncode == 9
    part = root / "cifar-10-cache" / ".images.npy.123.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half of")
    assert same(load(root), without_cache(root, 10, 0))
    assert {path.name for path in part.parent.iterdir()} == NAMES  # what was left is gone


COUNTED = """
import sys, time
import nnlib.data.dataset
from nnlib.data import cifar10
read, calls = cifar10.read, []
def counted(folder):
    calls.append(folder)
    time.sleep(1)  # the others come while this one reads
    return read(folder)
cifar10.read = counted
print("ready", flush=True)
sys.stdin.readline()
data = nnlib.load_dataset("cifar10", sys.argv[1], n_valid=10)
print(len(calls), data.fingerprint)
"""


def test_processes_that_load_first_at_the_same_time(root):
    command = [sys.executable, "-c", COUNTED, str(root)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    told = [child.communicate(timeout=60)[0].split() for child in children]
    assert sum(int(calls) for calls, _ in told) == 1
    assert {fingerprint for _, fingerprint in told} == {load(root).fingerprint}


def test_threads_that_load_first_at_the_same_time(root, monkeypatch):
    read, calls, found = cifar10.read, [], []
    start = threading.Barrier(4)

    def counted(folder):
        calls.append(folder)
        return read(folder)

    def work():
        start.wait()
        found.append(load(root))

    monkeypatch.setattr(cifar10, "read", counted)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 4
    assert all(same(data, found[0]) for data in found)


def test_a_folder_that_takes_no_cache_works_without(root, caplog):
    (root / "cifar-10-cache").write_text("in the way, as a read-only folder would be")
    first, second = load(root), load(root, seed=1)
    assert same(first, without_cache(root, 10, 0)) and same(second, without_cache(root, 10, 1))
    assert caplog.text.count("No cache beside the data") == 2
    assert same(pickle.loads(pickle.dumps(first)), first)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root"
)
def test_a_read_only_folder(root, caplog):
    expected = without_cache(root, 10, 0)
    root.chmod(0o555)
    try:
        assert same(load(root), expected)
    finally:
        root.chmod(0o755)
    assert "No cache beside the data" in caplog.text
    load(root)
    caplog.clear()
    root.joinpath("cifar-10-cache").chmod(0o555)
    try:
        assert same(load(root), expected)
    finally:
        root.joinpath("cifar-10-cache").chmod(0o755)
    assert not caplog.text  # reading a cache takes no permission to write


def test_a_full_disk_reads_the_files_once(root, monkeypatch, caplog):
    read, calls = cifar10.read, []

    def full(*_):
        raise CheckpointError("no") from OSError(errno.ENOSPC, "No space left on device")

    def counted(folder):
        calls.append(folder)
        return read(folder)

    expected = without_cache(root, 10, 0)
    monkeypatch.setattr(cache, "write_atomically", full)
    monkeypatch.setattr(cifar10, "read", counted)
    assert same(load(root), expected)
    assert "No space left" in caplog.text and len(calls) == 1


READER = """
import sys, psutil, pickle
from nnlib import load_dataset
data = load_dataset("cifar10", sys.argv[1], n_valid=500)
total = int(data.train.images.sum()) + int(data.test.images.sum())
print("ready", flush=True)
sys.stdin.readline()
maps = [m for m in psutil.Process().memory_maps() if m.path.endswith("images.npy")]
print(sum(m.pss for m in maps), sum(m.rss for m in maps), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells how much memory is shared (pss)"
)
def test_eight_processes_hold_one_copy(tmp_path):
    write_layout(tmp_path, n=1000)
    train_and_test = (5000 - 500 + 1000) * 3072
    load_dataset("cifar10", tmp_path, n_valid=500)
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
    shared, resident = zip(*told, strict=True)
    assert min(resident) >= train_and_test  # each sees all of it
    assert sum(shared) < 1.1 * 6000 * 3072  # and together they hold it once


@pytest.mark.parametrize("seed", [0, 1])
def test_another_process_is_sent_the_name_of_the_cache(seed, root):
    data = load(root, seed=seed)
    assert len(pickle.dumps(data)) < 2000 and same(pickle.loads(pickle.dumps(data)), data)
    part = data.subset(30)
    assert len(pickle.dumps(part)) < 2000 and same(pickle.loads(pickle.dumps(part)), part)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(part))))
    assert same(again, part)


def test_other_arrays_are_sent_themselves(root):
    data = load(root)
    mixed = replace(data, train=Split(data.train.images, np.roll(data.train.labels, 1)))
    assert same(pickle.loads(pickle.dumps(mixed)), mixed)
    assert mixed.fingerprint != data.fingerprint


def test_a_cache_that_has_changed_since_is_refused(root):
    sent = pickle.dumps(load(root))
    (root / cifar10.FOLDER / "test_batch").write_bytes(python2_pickle(batch(20, seed=99)))
    load(root)
    with pytest.raises(DataError, match="Load the data set again"):
        pickle.loads(sent)
