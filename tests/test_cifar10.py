"""Fetching, reading and caching CIFAR-10, with a small data set in its layout and a server that has every fault."""

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nnlib import Dataset, cifar10, datasets, load_dataset
from nnlib.cifar10 import NotFetched
from nnlib.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes the byte stream of the official files: Python 2's strings and the old name of NumPy's constructor."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.write(b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data)
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
    return {"batch_label": "a batch", "labels": labels, "data": images, "filenames": ["x.png"] * n} | changes


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


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path is the fault: /good/, /missing/, /html/, /wrong/, /breaks/, /slow/ ..."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        fault = self.path.split("/")[-2]
        self.server.seen.append((fault, self.headers.get("Range")))
        getattr(self, fault)(self.server.archive)

    def send(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body) if length is None else length)} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self, data: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start == 0:
            return self.send(data)
        self.send(data[start:], 206, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

    def breaks(self, data: bytes) -> None:
        """Gives no more than a third at a time."""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        rest = data[start:]
        status, headers = (206, {"Content_Range": f"bytes {start}-"}) if start else (200, {})
        self.send(rest[: len(data) // 3 + 1], status, len(rest), **headers)
        self.close_connection = True

    def norange(self, data: bytes) -> None:
        self.send(data)

    def truncated(self, data: bytes) -> None:
        self.send(data[: len(data) // 2])

    def cut(self, data: bytes) -> None:
        """Breaks off at half, always, and knows no ranges."""
        self.send(data[: len(data) // 2], length=len(data))
        self.close_connection = True

    def missing(self, data: bytes) -> None:
        self.send(b"<html>no such file</html>", 404)

    def html(self, data: bytes) -> None:
        self.send(b"<html>please log in</html>")

    def wrong(self, data: bytes) -> None:
        self.send(bytes(len(data)))

    def endless(self, data: bytes) -> None:
        """More than was announced nowhere."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(bytes(2**16))
        self.close_connection = True

    def redirect(self, data: bytes) -> None:
        self.send(b"", 302, Location="/good/x.tar.gz")

    def slow(self, data: bytes) -> None:
        self.send(data[:100], length=len(data))
        with contextlib.suppress(OSError):
            for i in range(100, len(data), 100):
                time.sleep(0.02)
                self.wfile.write(data[i : i + 100])

    def crawling(self, data: bytes) -> None:
        self.send(b"", length=len(data))
        self.server.released.wait(10)
        self.close_connection = True

    def silent(self, data: bytes) -> None:
        self.server.released.wait(10)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(archive: bytes):
    """Yields the server: ``.url(fault)``, and ``.seen``, the (fault, Range) of each request."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.archive, server.seen, server.released = archive, [], threading.Event()
    server.url = lambda fault: f"http://127.0.0.1:{server.server_port}/{fault}/{cifar10.ARCHIVE}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


# ---- fixtures ----


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Short waits, no words said before, and no settings of whoever runs the tests."""
    for name in ("NNLIB_DATA_DIR", "NNLIB_CIFAR10_URLS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cifar10, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(cifar10, "SILENT_SECONDS", 0.5)
    cifar10.say.cache_clear()
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


@pytest.fixture
def server(small, monkeypatch):
    """A server with the small archive, which is taken for the official one."""
    with serve(make_archive(small / cifar10.FOLDER)) as server:
        expect(monkeypatch, server.archive)
        yield server


def expect(monkeypatch, archive: bytes) -> None:
    monkeypatch.setattr(cifar10, "SIZE", len(archive))
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive).hexdigest())


def use(monkeypatch, *urls: str) -> None:
    monkeypatch.setenv("NNLIB_CIFAR10_URLS", " ".join(urls))


def assert_whole(root: Path, small: Path) -> None:
    """All files are there with the right bytes, and nothing else but the lock."""
    assert {path.name for path in root.iterdir()} - {cifar10.ARCHIVE} == {cifar10.FOLDER, "cifar-10-lock"}
    for name in cifar10.MD5:
        assert (root / cifar10.FOLDER / name).read_bytes() == (small / cifar10.FOLDER / name).read_bytes()


def assert_nothing_looks_finished(root: Path) -> None:
    assert not (root / cifar10.FOLDER).exists()
    assert not (root / cifar10.ARCHIVE).exists()


# ---- fetching ----


@pytest.mark.parametrize("fault", ["good", "redirect", "norange"])
def test_fetch(fault, server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url(fault))
    assert cifar10.fetch(tmp_path / "new" / "place", progress=False) == tmp_path / "new" / "place" / cifar10.FOLDER
    assert_whole(tmp_path / "new" / "place", small)
    asked = len(server.seen)
    cifar10.fetch(tmp_path / "new" / "place", progress=False)
    assert len(server.seen) == asked  # what is there is not fetched again


FAULTS = {
    "missing": "404 .* Not Found",
    "html": "offers 26 bytes instead of",
    "wrong": "sent other bytes",
    "truncated": "bytes instead of",
    "cut": "127.0.0.1: ",
    "endless": "sent other bytes",
    "silent": "timed? ?out",
    "crawling": "sends only 0 kB/s|timed? ?out",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_leaves_nothing_and_the_next_try_works(fault, server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url(fault))
    with pytest.raises(NotFetched, match=FAULTS[fault]) as caught:
        cifar10.fetch(tmp_path, progress=False)
    assert cifar10.OFFICIAL_URL in str(caught.value) and str(tmp_path) in str(caught.value)  # what to do by hand
    assert_nothing_looks_finished(tmp_path)
    use(monkeypatch, server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_source_is_asked(fault, server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url(fault), server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    assert [seen for seen, _ in server.seen][-1] == "good"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://nowhere.invalid/x", "nonsense"])
def test_no_server(url, tmp_path, monkeypatch):
    use(monkeypatch, url)
    with pytest.raises(NotFetched, match="could not be downloaded") as caught:
        cifar10.fetch(tmp_path, progress=False)
    assert "Max retries" not in str(caught.value)  # the cause, not the library's way to it
    assert_nothing_looks_finished(tmp_path)


def test_a_broken_off_download_goes_on_where_it_stopped(server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url("breaks"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    starts = [int(asked[6:-1]) for _, asked in server.seen]
    assert starts[0] == 0 and len(starts) > 2 and starts == sorted(set(starts))


def test_a_crawling_source_is_left_and_its_speed_said(server, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar10, "WATCH_SECONDS", 0.2)
    use(monkeypatch, server.url("slow"), server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    assert "127.0.0.1 sends only" in capsys.readouterr().out
    (slow, start), (good, went_on) = server.seen
    assert (slow, good, start) == ("slow", "good", "bytes=0-") and int(went_on[6:-1]) > 0


def test_the_last_source_may_crawl(server, small, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "WATCH_SECONDS", 0)
    monkeypatch.setattr(cifar10, "CRAWL", 10**12)
    use(monkeypatch, server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)


def test_a_proxy_is_used_and_a_dead_one_named(server, small, tmp_path, monkeypatch):
    use(monkeypatch, "http://elsewhere.invalid/good/x.tar.gz")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(NotFetched, match="proxy"):
        cifar10.fetch(tmp_path, progress=False)
    monkeypatch.setenv("http_proxy", server.url("good").rsplit("/", 2)[0])
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to write to")
def test_a_full_disk(server, small, tmp_path, monkeypatch):
    part = tmp_path / "cifar-10-download" / (cifar10.ARCHIVE + ".part")
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    use(monkeypatch, server.url("good"))
    with pytest.raises(NotFetched, match="No space left"):
        cifar10.fetch(tmp_path, progress=False)
    assert_nothing_looks_finished(tmp_path)
    part.unlink()
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFetched, match="could not be stored"):
        cifar10.fetch(tmp_path / "file" / "data", progress=False)


@pytest.mark.parametrize("member", ["../evil", f"{cifar10.FOLDER}/../../evil"])
def test_a_member_that_would_land_outside_is_refused(member, small, tmp_path, monkeypatch):
    place = tmp_path / "data"
    place.mkdir()
    (place / cifar10.ARCHIVE).write_bytes(archive := make_archive(small / cifar10.FOLDER, extra=member))
    expect(monkeypatch, archive)
    with pytest.raises(DataError, match="evil"):
        cifar10.fetch(place, progress=False)
    assert not (place / cifar10.FOLDER).exists() and not list(tmp_path.rglob("evil"))


def test_an_archive_that_is_damaged(small, tmp_path, monkeypatch):
    whole = make_archive(small / cifar10.FOLDER)
    for archive in (whole[: len(whole) // 2], b"<html>"):
        (tmp_path / cifar10.ARCHIVE).write_bytes(archive)
        expect(monkeypatch, archive)
        with pytest.raises(DataError, match="Delete it"):
            cifar10.fetch(tmp_path, progress=False)
        assert not (tmp_path / cifar10.FOLDER).exists()


def test_an_archive_put_there_by_hand(server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url("missing"))
    (tmp_path / cifar10.ARCHIVE).write_bytes(b"not yet")
    with pytest.raises(DataError, match="not the official archive"):
        load_dataset("auto", tmp_path, n_valid=10)
    (tmp_path / cifar10.ARCHIVE).write_bytes(server.archive)
    assert len(load_dataset("auto", tmp_path, download=False, n_valid=10).train) == 90
    assert (tmp_path / cifar10.ARCHIVE).exists() and not server.seen  # theirs is kept, and nobody was asked


CHILD = """
import sys
from nnlib import cifar10
root, cifar10.SIZE, cifar10.SHA256 = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cifar10.fetch(root, progress=False)
"""


def fetch_in_child(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(root), str(cifar10.SIZE), cifar10.SHA256])


def test_two_processes_at_once(server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url("good"))
    children = [fetch_in_child(tmp_path) for _ in range(2)]
    assert [child.wait(30) for child in children] == [0, 0]
    assert_whole(tmp_path, small)
    assert len(server.seen) == 1


def test_killed_while_downloading(server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url("slow"))
    part = tmp_path / "cifar-10-download" / (cifar10.ARCHIVE + ".part")
    child = fetch_in_child(tmp_path)
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait(10)
    assert_nothing_looks_finished(tmp_path)
    use(monkeypatch, server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    assert int(server.seen[-1][1][6:-1]) > 0  # went on


def test_killed_while_unpacking(server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url("missing"))
    work = tmp_path / "cifar-10-download"
    (work / cifar10.FOLDER).mkdir(parents=True)
    (work / cifar10.FOLDER / "data_batch_1").write_bytes(b"half of")
    (work / cifar10.ARCHIVE).write_bytes(server.archive)
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    assert not server.seen


def test_verify_and_data_root(root, monkeypatch):
    digest = hashlib.md5((root / cifar10.FOLDER / "test_batch").read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.MD5, "test_batch", digest)
    (root / cifar10.FOLDER / "data_batch_3").unlink()
    standing = cifar10.verify(root)
    assert standing.pop("test_batch") == "official" and standing.pop("data_batch_3") == "missing"
    assert set(standing.values()) == {"other bytes"} and len(standing) == 5
    assert cifar10.data_root() == Path(cifar10.__file__).parents[1] / "data"  # of this checkout
    monkeypatch.setenv("NNLIB_DATA_DIR", "/named")
    assert cifar10.data_root() == Path("/named") and cifar10.data_root("x") == Path("x")


# ---- reading ----

WRITERS = {"python 2": python2_pickle} | {
    f"protocol {p}": lambda content, p=p: pickle.dumps(content, p) for p in range(6)
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_way_of_pickling_arrays_is_read(writer, tmp_path):
    content = {key.encode(): value for key, value in batch().items()} if writer == "protocol 4" else batch()
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
        monkeypatch.setitem(cifar10.MD5, name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    assert cifar10.read(folder)[-1] == "cifar10"
    (folder / "batches.meta").write_bytes((folder / "batches.meta").read_bytes() + b" ")
    assert cifar10.read(folder)[-1] == "cifar10 (unofficial copy)"


class Code:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


GOOD = python2_pickle(batch())
DAMAGES = {
    "empty": (b"", "begins with b''"),
    "cut": (GOOD[: len(GOOD) // 2], "no batch of CIFAR-10"),
    "html": (b"<!DOCTYPE html><p>log in", r"begins with b'<!DOCTYPE ht'"),
    "a list": (pickle.dumps([1, 2]), "no batch of CIFAR-10"),
    "no images": (python2_pickle({"labels": [1]}), "'data'"),
    "no labels": (python2_pickle({"data": batch()["data"]}), "no list of labels for 20 images"),
    "shape": (python2_pickle(batch(data=np.zeros((20, 3071), np.uint8))), r"\(20, 3071\)"),
    "dimensions": (python2_pickle(batch(data=np.zeros((20, 3, 32, 32), np.uint8))), r"\(20, 3, 32, 32\)"),
    "no rows": (python2_pickle(batch(data=np.zeros((0, 3072), np.uint8), labels=[])), r"\(0, 3072\)"),
    "dtype": (python2_pickle(batch(data=np.zeros((20, 3072), np.float32))), "dtype f4 instead of u1"),
    "objects": (pickle.dumps(batch(data=np.array([None, "x"], object))), "dtype O8 instead of u1"),
    "list of images": (python2_pickle(batch(data=[0] * 20)), "list under 'data'"),
    "too few labels": (python2_pickle(batch(labels=[1, 2])), "2 labels for 20 images"),
    "label 10": (python2_pickle(batch(labels=[0] * 19 + [10])), "no number from 0 to 9, at place 19"),
    "label -1": (python2_pickle(batch(labels=[-1] + [0] * 19)), "no number from 0 to 9, at place 0"),
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
    "huge bytes": (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.", "no batch of CIFAR-10"),
    "huge bytearray": (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.", "no batch of CIFAR-10"),
    "huge frame": (b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"}.", "no batch of CIFAR-10"),
    "huge array": (
        GOOD.replace(b"K\x14M\x00\x0c\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        "no batch of CIFAR-10",
    ),
    "many things": (b"\x80\x02(" + b"}" * 300_000 + b"l.", "more than a batch has"),
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
    assert not isinstance(caught.value, NotFetched)  # so that "auto" does not hide it
    assert peak < 2**25


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


@pytest.mark.parametrize("names", [None, "airplane", CLASSES[:9], [1] * 10, [""] * 10, ["x" * 101] * 10])
def test_class_names_that_are_none(names, root):
    (root / cifar10.FOLDER / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match=r"batches.meta has no list of ten names"):
        cifar10.read(root / cifar10.FOLDER)


SMALL = python2_pickle(batch(2))


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 6400) | st.integers(0, 250), st.integers(1, 255)), max_size=4),
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


# ---- the cache, and load_dataset ----


def same(a, b) -> bool:
    pairs = [(a.train, b.train), (a.valid, b.valid), (a.test, b.test)]
    arrays = all((x.images == y.images).all() and (x.labels == y.labels).all() for x, y in pairs)
    return arrays and (a.classes, a.source, a.fingerprint) == (b.classes, b.source, b.fingerprint)


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
    spoiled = {"cut": whole[:-8], "empty": b"", "zeros": bytes(len(whole)), "text": b"x" * len(whole)}.get(place)
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory is shared (pss)")
def test_eight_processes_hold_one_copy(tmp_path):
    write_layout(tmp_path, n=1000)
    size = 6000 * 3072
    load_dataset("cifar10", tmp_path, n_valid=10)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
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


def test_auto_takes_what_can_be_had_and_says_so(server, tmp_path, monkeypatch, capsys):
    sizes = {"n_train": 20, "n_valid": 10, "n_test": 10, "progress": False}
    use(monkeypatch, server.url("missing"))
    data = load_dataset("auto", tmp_path, **sizes)
    assert data.source == "stand-in" and "not from CIFAR-10" in data.note
    said = capsys.readouterr().out
    assert "stand-in" in said and "404" in said and str(tmp_path) not in said
    load_dataset("auto", tmp_path, **sizes)
    assert len(server.seen) == 1 and not capsys.readouterr().out  # asked once in a process, said once
    with pytest.raises(NotFetched):
        load_dataset("cifar10", tmp_path, **sizes)
    assert len(server.seen) == 2  # who names it is asked for it again
    use(monkeypatch, server.url("good"))
    data = load_dataset("cifar10", tmp_path, **sizes)
    assert data.source == "cifar10 (unofficial copy)" and "unofficial" in data.note
    assert same(load_dataset("auto", tmp_path, **sizes), data)


def test_without_download_nothing_is_asked(server, tmp_path, monkeypatch):
    use(monkeypatch, server.url("good"))
    with pytest.raises(NotFetched, match="not on disk"):
        load_dataset("cifar10", tmp_path, download=False)
    assert load_dataset("auto", tmp_path, download=False, n_train=10, n_valid=10, n_test=10).source == "stand-in"
    assert not server.seen
    assert load_dataset("auto", tmp_path, n_valid=10, progress=False).source != "stand-in"  # now it may


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
