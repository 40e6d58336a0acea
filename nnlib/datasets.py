"""Images with labels, split into train, valid and test: CIFAR-10, the drawn stand-in, or somebody's own arrays."""

import base64
import contextlib
import hashlib
import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnlib import cifar10, standin
from nnlib.cifar10 import Array, data_root, say
from nnlib.errors import DataError

NOTES = {
    "stand-in": "These numbers come from the drawn stand-in, not from CIFAR-10; to get the real images: "
    f"`nnlib data fetch`, or put {cifar10.OFFICIAL_URL} into the data folder.",
    "cifar10 (unofficial copy)": "These numbers come from an unofficial copy of CIFAR-10, whose pixels differ from the "
    "official files'; to get those: `nnlib data fetch` into another folder.",
}
HEADER = 2**16  # bytes of a cache before its images
_no_network: dict[Path, str] = {}  # where "auto" has already found, in this process, that nothing can be fetched


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, ...) uint8 or float32, and labels (N,) int64 from 0 to K - 1."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """The images and labels at ``rows``, indices or a slice."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits, the names of the K classes, and where they come from.

    ``fingerprint`` is a hash of every image and label in their order: equal for equal data, split alike.
    """

    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    fingerprint: str = ""
    _recipe: tuple[Any, ...] = field(default=(), repr=False)  # a function and its arguments, for pickle

    def __post_init__(self) -> None:
        if not self.fingerprint:
            splits = (self.train, self.valid, self.test)
            digest = hashlib.sha256(str([(s.images.shape, s.images.dtype.str) for s in splits]).encode())
            for array in [a for s in splits for a in (s.images, s.labels)]:
                digest.update(np.ascontiguousarray(array).data)
            object.__setattr__(self, "fingerprint", digest.hexdigest()[:12])

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        n_valid: int | None = None,
        n_test: int | None = None,
        seed: int = 0,
        source: str = "arrays",
    ) -> "Dataset":
        """Somebody's own data: ``images`` (N, ...) uint8 or floating (kept as float32), ``labels`` (N,) from 0 to K - 1.

        ``n_valid`` and ``n_test`` images, by default a tenth each, are set aside, every class in its share.
        Raises DataError for what does not fit.
        """
        images, labels, classes = _checked(np.asarray(images), np.asarray(labels), classes)
        tenth = len(labels) // 10
        rest, test = stratified(labels, tenth if n_test is None else n_test, seed)
        train, valid = stratified(labels[rest], tenth if n_valid is None else n_valid, seed)
        whole = Split(images, labels)
        return cls(whole.take(rest[train]), whole.take(rest[valid]), whole.take(test), classes, source)

    @property
    def note(self) -> str:
        """A sentence to print beside every number, if the images are not the official ones; else empty."""
        return NOTES.get(self.source, "")

    def subset(self, n: int, seed: int = 0) -> "Dataset":
        """The same data with ``n`` of the training images, every class in its share. Raises DataError if n is too large."""
        _, rows = stratified(self.train.labels, n, seed)
        recipe = (Dataset.subset, (self, n, seed)) if self._recipe else ()
        return Dataset(self.train.take(rows), self.valid, self.test, self.classes, self.source, _recipe=recipe)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Other processes get the cache's name instead of 184 MB, and share one copy of what is in it."""
        return self._recipe or super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in ("train", "valid", "test"))
        images = f"{'×'.join(map(str, self.train.images.shape[1:]))} {self.train.images.dtype}"
        return f"Dataset({self.source}: {sizes}; {images}; {len(self.classes)} classes; fingerprint {self.fingerprint})"

    def _repr_html_(self) -> str:
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        rows = "".join(f"<tr><th>{name}</th><td>{len(split):,} images</td></tr>" for name, split in splits.items())
        text = " ".join(filter(None, [f"Source: {self.source}; fingerprint {self.fingerprint}.", self.note]))
        return f"<table>{rows}</table><p>{html.escape(text)}</p>{self._strip()}"

    def _strip(self) -> str:
        """One training image of each class, side by side as HTML, if they are images (3, H, W) uint8; else empty."""
        images, labels = self.train.images, self.train.labels
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            return ""
        import matplotlib.image

        shown = [c for c in range(len(self.classes)) if (labels == c).any()][:10]
        strip = np.concatenate([images[np.argmax(labels == c)] for c in shown], axis=2).transpose(1, 2, 0)
        png = io.BytesIO()
        matplotlib.image.imsave(png, np.ascontiguousarray(strip), format="png", metadata={"Software": None})
        names = html.escape(", ".join(self.classes[c] for c in shown))
        return (
            f'<img alt="One image each: {names}" style="width:{2 * strip.shape[1]}px;image-rendering:pixelated" '
            f'src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"><p>{names}</p>'
        )


def load_dataset(
    name: str = "auto",
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    n_valid: int = 5000,
    seed: int = 0,
    n_train: int = 45_000,
    n_test: int = 10_000,
    progress: bool = True,
) -> Dataset:
    """Load ``"cifar10"``, the ``"standin"``, or what there is: ``"auto"`` takes CIFAR-10 if it can, and says what it took.

    ``root`` is the folder that holds ``cifar-10-batches-py`` (see ``data_root``); ``download`` lets it be fetched.
    ``n_valid`` training images are set aside for validation, by ``seed`` alone, every class in its share. ``n_train``
    and ``n_test`` are sizes of the stand-in, and ``seed`` then draws it too. Images are (N, 3, 32, 32) uint8.
    Raises DataError if CIFAR-10 is wanted and cannot be had, or is there and damaged ("auto" too).
    """
    if name not in ("auto", "cifar10", "standin"):
        raise DataError(f"There is no data set {name!r}: it can be 'auto', 'cifar10' or 'standin'.")
    if name != "standin":
        try:
            return _cifar10(data_root(root), download, n_valid, seed, progress, patient=name == "cifar10")
        except cifar10.NotFetched as problem:
            if name == "cifar10":
                raise
            say(f"{str(problem).splitlines()[0]}\nUsing the stand-in instead: pictures drawn by code.")
    images, labels = standin.draw(n_train + n_valid + n_test, seed)
    pool, test = Split(images, labels).take(slice(n_train + n_valid)), slice(n_train + n_valid, None)
    train, valid = stratified(pool.labels, n_valid, seed)
    return Dataset(pool.take(train), pool.take(valid), Split(images[test], labels[test]), standin.CLASSES, "stand-in")


def stratified(labels: Array, n: int, seed: int) -> tuple[Array, Array]:
    """Indices of ``labels`` in two parts, both rising: the rest, and ``n`` chosen at random, every class in its share.

    In a list of all indices ordered by class, and at random within each, every N/n-th one is chosen: of each class
    less than one image more or fewer than its share. Raises DataError if there are not ``n``.
    """
    if not 0 <= n <= len(labels):
        raise DataError(f"{n} images cannot be set aside from {len(labels)}.")
    order = np.argsort(standin.random_words(len(labels), seed), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[np.arange(n) * len(labels) // max(n, 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _cifar10(root: Path, download: bool, n_valid: int, seed: int, progress: bool, patient: bool) -> Dataset:
    """CIFAR-10 from its cache beside the files, or from the files, which may have to be fetched first."""
    folder = root / cifar10.FOLDER
    if not folder.exists():
        if root in _no_network and not patient:
            raise cifar10.NotFetched(_no_network[root])
        if not (download or cifar10.by_hand(root)):
            raise cifar10.NotFetched(f"CIFAR-10 is not on disk.\nIt would be {folder}; download=True may fetch it.")
        try:
            cifar10.fetch(root, progress)
        except cifar10.NotFetched as problem:
            _no_network[root] = str(problem)
            raise
    key = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in cifar10.files(folder)]
    cache = root / "cifar-10-cache" / f"{n_valid}-valid-seed-{seed}.bin"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or stale, or damaged
        return _open_cache(cache, key)
    raw = cifar10.read(folder)
    pool = len(raw.labels) - raw.n_test
    train, valid = stratified(raw.labels[:pool], n_valid, seed)
    whole = Split(raw.images, raw.labels)
    test = slice(pool, None)
    data = Dataset(whole.take(train), whole.take(valid), whole.take(test), raw.classes, raw.source)
    try:
        _write_cache(cache, key, data)
        return _open_cache(cache, key)
    except OSError as problem:
        say(f"No cache beside the data ({problem.strerror}): every load reads all of its files, in seconds.")
        return data


def _write_cache(path: Path, key: list[Any], data: Dataset) -> None:
    """Write ``data`` as 64-bit words: their sum, a header in JSON, images and labels of train, valid and test."""
    splits = (data.train, data.valid, data.test)
    header = {"key": key, "sizes": [len(split) for split in splits], "classes": data.classes, "source": data.source}
    text = json.dumps(header | {"fingerprint": data.fingerprint}).encode().ljust(HEADER - 8)
    arrays = [np.frombuffer(text, np.uint8), *(s.images for s in splits), *(s.labels for s in splits)]
    words = [array.reshape(-1).view(np.uint64) for array in arrays]
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        with part.open("wb") as out:
            for piece in (np.array([sum(int(piece.sum()) for piece in words) % 2**64], np.uint64), *words):
                piece.tofile(out)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _open_cache(path: Path, key: list[Any]) -> Dataset:
    """The data in ``path``, mapped into memory and so shared with every process that does the same.

    Raises OSError, ValueError, KeyError or TypeError if it is not there, damaged, or made from files other than ``key``.
    """
    words = np.asarray(np.memmap(path, np.uint64, "r"))
    header = json.loads(words[1 : HEADER // 8].tobytes())
    if words[0] != words[1:].sum() or header["key"] != key:
        raise ValueError(f"{path} is damaged or stale.")
    ends = np.cumsum(header["sizes"])
    images = words[HEADER // 8 : -ends[-1]].view(np.uint8).reshape(-1, 3, 32, 32)
    whole = Split(images, words[-ends[-1] :].view(np.int64))
    train, valid, test = (whole.take(slice(end - n, end)) for end, n in zip(ends, header["sizes"], strict=True))
    known = (tuple(header["classes"]), header["source"], header["fingerprint"])
    return Dataset(train, valid, test, *known, _recipe=(_open_cache, (path, key)))


def _checked(images: Array, labels: Array, classes: Sequence[str] | None) -> tuple[Array, Array, tuple[str, ...]]:
    """What ``Dataset.from_arrays`` was given, in the dtypes of a Split; DataError if it does not fit together."""
    if images.ndim < 2 or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(f"Images of shape {images.shape} and labels of shape {labels.shape} are not (N, ...) and (N,).")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"Images are {images.dtype}: make them uint8 (pixels from 0 to 255) or float32.")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError("Images hold numbers that are not finite.")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"Labels are {labels.dtype}, not whole numbers: np.unique(labels, return_inverse=True) makes them."
        )
    names = tuple(map(str, range(labels.max() + 1) if classes is None else classes))
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}; {len(names)} classes allow 0 to {len(names) - 1}."
        )
    return (
        images.astype(images.dtype if images.dtype == np.uint8 else np.float32, copy=False),
        labels.astype(np.int64),
        names,
    )
