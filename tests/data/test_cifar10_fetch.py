"""Fetching CIFAR-10, from a server that has every fault."""

import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import small_cifar10
from small_cifar10 import make_archive, same

from nnlib import load_dataset
from nnlib.data import cifar10
from nnlib.data.cifar10 import NotFetched
from nnlib.errors import DataError

fresh, small, root = small_cifar10.fresh, small_cifar10.small, small_cifar10.root


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path is the fault: /good/, /missing/, /html/, /breaks/, /slow/ ..."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        fault = self.path.split("/")[-2]
        self.server.seen.append((fault, self.headers.get("Range")))
        getattr(self, fault)(self.server.archive)

    def send(self, body: bytes, status=200, length=None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
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
        third = rest[: len(data) // 3 + 1]
        if start:
            self.send(third, 206, len(rest), Content_Range=f"bytes {start}-")
        else:
            self.send(third, 200, len(rest))
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
    found = {path.name for path in root.iterdir()} - {cifar10.ARCHIVE}
    assert found == {cifar10.FOLDER, "cifar-10-lock"}
    for name in cifar10.MD5:
        expected = (small / cifar10.FOLDER / name).read_bytes()
        assert (root / cifar10.FOLDER / name).read_bytes() == expected


def assert_nothing_looks_finished(root: Path) -> None:
    assert not (root / cifar10.FOLDER).exists()
    assert not (root / cifar10.ARCHIVE).exists()


@pytest.mark.parametrize("fault", ["good", "redirect", "norange"])
def test_fetch(fault, server, small, tmp_path, monkeypatch):
    use(monkeypatch, server.url(fault))
    place = tmp_path / "new" / "place"
    assert cifar10.fetch(place, progress=False) == place / cifar10.FOLDER
    assert_whole(place, small)
    asked = len(server.seen)
    cifar10.fetch(place, progress=False)
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
def test_a_fault_is_named_leaves_nothing_and_the_next_try_works(
    fault, server, small, tmp_path, monkeypatch
):
    use(monkeypatch, server.url(fault))
    with pytest.raises(NotFetched, match=FAULTS[fault]) as caught:
        cifar10.fetch(tmp_path, progress=False)
    message = str(caught.value)
    assert cifar10.OFFICIAL_URL in message and str(tmp_path) in message  # what to do by hand
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


def test_a_crawling_source_is_left_and_its_speed_said(server, small, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "nnlib")
    monkeypatch.setattr(cifar10, "WATCH_SECONDS", 0.2)
    use(monkeypatch, server.url("slow"), server.url("good"))
    cifar10.fetch(tmp_path, progress=False)
    assert_whole(tmp_path, small)
    assert "127.0.0.1: sends only" in caplog.text
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


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no full disk to write to"
)
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
    archive = make_archive(small / cifar10.FOLDER, extra=member)
    (place / cifar10.ARCHIVE).write_bytes(archive)
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
    assert (tmp_path / cifar10.ARCHIVE).exists()  # it is yours, and is kept
    assert not server.seen  # nobody was asked


CHILD = """
import sys
from nnlib.data import cifar10
root, cifar10.SIZE, cifar10.SHA256 = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cifar10.fetch(root, progress=False)
"""


def fetch_in_child(root: Path) -> subprocess.Popen:
    arguments = [str(root), str(cifar10.SIZE), cifar10.SHA256]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments])


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


def test_auto_takes_what_can_be_had_and_says_so(server, tmp_path, monkeypatch, caplog, capsys):
    sizes = {"n_train": 20, "n_valid": 10, "n_test": 10, "progress": False}
    use(monkeypatch, server.url("missing"))
    data = load_dataset("auto", tmp_path, **sizes)
    assert data.source == "stand-in" and "not from CIFAR-10" in data.note
    said = caplog.text
    assert "stand-in" in said and "404" in said and str(tmp_path) not in said
    caplog.clear()
    load_dataset("auto", tmp_path, **sizes)
    assert len(server.seen) == 1 and not caplog.text  # asked once in a process, said once
    with pytest.raises(NotFetched):
        load_dataset("cifar10", tmp_path, **sizes)
    assert len(server.seen) == 2  # if you name it, it is tried again
    use(monkeypatch, server.url("good"))
    data = load_dataset("cifar10", tmp_path, **sizes)
    assert data.source == "cifar10 (unofficial copy)" and "unofficial" in data.note
    caplog.set_level("INFO", "nnlib")
    assert same(load_dataset("auto", tmp_path, **sizes), data)
    assert "Data: cifar10 (unofficial copy)" in caplog.text
    assert not capsys.readouterr().out  # a library doesn't print


def test_without_download_nothing_is_asked(server, tmp_path, monkeypatch):
    use(monkeypatch, server.url("good"))
    with pytest.raises(NotFetched, match="not on disk"):
        load_dataset("cifar10", tmp_path, download=False)
    drawn = load_dataset("auto", tmp_path, download=False, n_train=10, n_valid=10, n_test=10)
    assert drawn.source == "stand-in" and not server.seen
    found = load_dataset("auto", tmp_path, n_valid=10, progress=False)
    assert found.source != "stand-in"  # now it may download
