"""Images with labels, split into train, valid and test: CIFAR-10, the drawn stand-in, or somebody's own arrays."""

import base64
import contextlib
import hashlib
import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.data import cifar10, standin
from nnlib.data.cifar10 import NotFetched, data_root, say
from nnlib.errors import DataError
from nnlib.files import AnyPath
from nnlib.network.inputs import refuse_channels_last
from nnlib.types import Array

NOTES = {
    "stand-in": "These numbers come from the drawn stand-in, not from CIFAR-10; to get the real images: "
    f"`nnlib data fetch`, or put {cifar10.OFFICIAL_URL} into the data folder.",
    cifar10.UNOFFICIAL: "These numbers come from an unofficial copy of CIFAR-10, whose pixels differ from the official "
    "files'; to get those: `nnlib data fetch` into another folder.",
}
HEADER = 2**16  # bytes of a cache before its images
_unreachable: set[Path] = set()  # where "auto" has tried to fetch, in this process, and failed


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, ...) uint8 or float32, and labels (N,) int64 from 0 to K - 1."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """The images and labels at ``rows``: indices, or a slice for a view."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits, the names of the K classes, and where they come from.

    ``fingerprint`` is a hash of all images and labels in their order: equal for equal data that are split alike.
    """

    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    fingerprint: str = ""
    recipe: tuple[
        Any, ...
    ] = ()  # a function and arguments that give the same again in another process

    def __post_init__(self) -> None:
        if not self.fingerprint:
            arrays = [
                array for s in (self.train, self.valid, self.test) for array in (s.images, s.labels)
            ]
            digest = hashlib.sha256(
                str([(array.shape, array.dtype.str) for array in arrays]).encode()
            )
            for array in arrays:
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
    ) -> "Dataset":
        """Somebody's own ``images`` and ``labels`` (N,) from 0 to K - 1.

        Images are uint8 pixels (N, C, H, W) or (N, ...), which training preprocesses, or floating (N, ...), made
        float32, which the network takes as they are: bring them to a standard deviation of about 1.
        ``n_valid`` and ``n_test`` of them, a tenth each by default, are set aside by ``seed``, every class in its
        share. Raises DataError for what does not fit.
        """
        whole, names = _checked(np.asarray(images), np.asarray(labels), classes)
        tenth = len(whole) // 10
        rest, test = stratified(whole.labels, tenth if n_test is None else n_test, seed)
        train, valid = stratified(whole.labels[rest], tenth if n_valid is None else n_valid, seed)
        return cls(
            whole.take(rest[train]), whole.take(rest[valid]), whole.take(test), names, "arrays"
        )

    @property
    def note(self) -> str:
        """A sentence to stand beside every number if the images are not CIFAR-10's official ones, else empty."""
        return NOTES.get(self.source, "")

    def subset(self, n: int, seed: int = 0) -> "Dataset":
        """The same with ``n`` of the training images, every class in its share. Raises DataError if there are fewer."""
        train = self.train.take(stratified(self.train.labels, n, seed)[1])
        recipe = (Dataset.subset, (self, n, seed)) if self.recipe else ()
        return replace(self, train=train, fingerprint="", recipe=recipe)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Other processes are sent the name of the cache, not 184 MB, and share what is in it."""
        return self.recipe or super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        sizes = (
            f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test images"
        )
        classes = f"{len(self.classes)} classes, fingerprint {self.fingerprint}"
        return f"Dataset({self.source}: {sizes} of {'×'.join(map(str, self.train.images.shape[1:]))}, {classes})"

    def _repr_html_(self) -> str:
        text = f"<p>{html.escape(repr(self)[8:-1])}</p><p>{html.escape(self.note)}</p>"
        if (
            self.train.images.shape[1:2] != (3,)
            or self.train.images.ndim != 4
            or self.train.images.dtype != np.uint8
        ):
            return text
        from PIL import Image

        shown = np.unique(self.train.labels, return_index=True)[1][
            :10
        ]  # the first image of each class
        strip, png = (
            np.concatenate(self.train.images[shown], axis=2).transpose(1, 2, 0),
            io.BytesIO(),
        )
        Image.fromarray(strip).save(png, "png")
        names = html.escape(", ".join(self.classes[label] for label in self.train.labels[shown]))
        style = f"width: {2 * strip.shape[1]}px; max-width: 100%; image-rendering: pixelated"
        source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        return f'{text}<img alt="One training image each: {names}" style="{style}" src="{source}"><p>{names}</p>'


def load_dataset(
    name: str = "auto",
    root: AnyPath | None = None,
    download: bool = True,
    n_valid: int = 5000,
    seed: int = 0,
    n_train: int = 45_000,
    n_test: int = 10_000,
    progress: bool = True,
) -> Dataset:
    """Load ``"cifar10"``, the ``"standin"``, or by ``"auto"`` CIFAR-10 if it can be had, else the stand-in; say which.

    ``root`` is the folder that holds ``cifar-10-batches-py`` (see ``data_root``); ``download`` lets it be fetched.
    ``n_valid`` training images are set aside for validation by ``seed`` alone, every class in its share. ``n_train``
    and ``n_test`` are sizes of the stand-in, which ``seed`` draws. Images are (N, 3, 32, 32) uint8. Raises DataError
    if CIFAR-10 is wanted and cannot be had, and (even by "auto") if it is there and damaged.
    """
    if name not in ("auto", "cifar10", "standin"):
        raise DataError(f"There is no data set {name!r}: it can be 'auto', 'cifar10' or 'standin'.")
    if name != "standin":
        root = data_root(root)
        try:
            data = _cifar10(
                root,
                download and (name == "cifar10" or root not in _unreachable),
                n_valid,
                seed,
                progress,
            )
            if name == "auto":
                say(f"Data: {data.source}.")
            return data
        except NotFetched as problem:
            if name == "cifar10":
                raise
            if root not in _unreachable:
                say(
                    f"{str(problem).splitlines()[0]}\nUsing the stand-in instead: pictures drawn by code."
                )
            _unreachable.update([root] if download else [])
    data = Dataset.from_arrays(
        *standin.draw(n_train + n_valid + n_test, seed), standin.CLASSES, n_valid, n_test, seed
    )
    return replace(data, source="stand-in")


def stratified(labels: Array, n: int, seed: int) -> tuple[Array, Array]:
    """Two parts of ``labels`` as rising indices: the rest, and ``n`` chosen by ``seed``, every class in its share.

    Of all indices in the order of their classes, at random within each, every N/n-th is chosen, so that each class
    is less than one image off its share. Raises DataError if there are fewer than ``n``.
    """
    if not isinstance(n, Integral) or not 0 <= n <= len(labels):
        raise DataError(
            f"{n!r} images cannot be set aside from {len(labels):,}; a whole number up to that is needed."
        )
    by_class = np.lexsort((standin.random_words(len(labels), seed), labels))
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[np.arange(n) * len(labels) // max(n, 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _cifar10(root: Path, download: bool, n_valid: int, seed: int, progress: bool) -> Dataset:
    """CIFAR-10 from the cache beside its files or, if that is missing, stale or damaged, from the files themselves."""
    folder = cifar10.fetch(root, progress, download)
    key = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in cifar10.files(folder)
    ]
    cache = root / "cifar-10-cache" / f"{n_valid}-valid-seed-{seed}.bin"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _open_cache(cache, key)
    images, labels, n_test, classes, source = cifar10.read(folder)
    whole = Split(images, labels)
    train, valid = (whole.take(rows) for rows in stratified(labels[:-n_test], n_valid, seed))
    data = Dataset(train, valid, whole.take(slice(-n_test, None)), classes, source)
    try:
        _write_cache(cache, key, data)
        return _open_cache(cache, key)
    except OSError as problem:
        say(f"No cache beside the data ({problem.strerror}): every load reads all of the files.")
        return data


def _write_cache(path: Path, key: list[Any], data: Dataset) -> None:
    """Write ``data`` in 64-bit words: their sum, a header in JSON, then images and labels of train, valid and test."""
    splits = (data.train, data.valid, data.test)
    header = {"key": key, "sizes": [len(split) for split in splits]}
    known = {"classes": data.classes, "source": data.source, "fingerprint": data.fingerprint}
    text = np.frombuffer(json.dumps(header | known).encode().ljust(HEADER - 8), np.uint8)
    words = [
        a.reshape(-1).view(np.uint64)
        for a in (text, *(s.images for s in splits), *(s.labels for s in splits))
    ]
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        with part.open("wb") as out:
            for array in (np.array([sum(int(w.sum()) for w in words) % 2**64], np.uint64), *words):
                array.tofile(out)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _open_cache(path: Path, key: list[Any]) -> Dataset:
    """The data in ``path``, mapped into memory, where every process that does the same shares them.

    Raises OSError, ValueError, KeyError or TypeError if they are not there, damaged, or from other files than ``key``.
    """
    words = np.asarray(np.memmap(path, np.uint64, "r"))
    header = json.loads(words[1 : HEADER // 8].tobytes())
    if words[0] != words[1:].sum() or header["key"] != key:
        raise ValueError(f"{path} is damaged or stale.")
    ends = np.cumsum(header["sizes"])
    images = words[HEADER // 8 : -ends[-1]].view(np.uint8).reshape(-1, 3, 32, 32)
    whole = Split(images, words[-ends[-1] :].view(np.int64))
    train, valid, test = (
        whole.take(slice(end - n, end)) for end, n in zip(ends, header["sizes"], strict=True)
    )
    known = tuple(header["classes"]), header["source"], header["fingerprint"]
    return Dataset(train, valid, test, *known, recipe=(_open_cache, (path, key)))


def _checked(
    images: Array, labels: Array, classes: Sequence[str] | None
) -> tuple[Split, tuple[str, ...]]:
    """What ``Dataset.from_arrays`` was given, in a Split's dtypes; DataError if it does not fit together."""
    floating = images.dtype.kind == "f"
    if images.ndim < 2 or labels.shape != images.shape[:1] or not len(labels):
        raise DataError(
            f"images {images.shape} and labels {labels.shape} must have the shapes (N, ...) and (N,)."
        )
    refuse_channels_last(images)
    if not floating and images.dtype != np.uint8:
        raise DataError(
            f"images are {images.dtype}: make them uint8 (pixels from 0 to 255) or float32."
        )
    if floating and not np.isfinite(images).all():
        raise DataError("images hold numbers that are not finite.")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype}: np.unique(labels, return_inverse=True)[1] makes whole numbers."
        )
    names = tuple(map(str, range(labels.max() + 1) if classes is None else classes))
    if labels.min() < 0 or labels.max() >= len(names) or (classes is None and labels.min() > 0):
        remedy = "np.unique(labels, return_inverse=True)[1] numbers them anew"
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, and {len(names)} classes from 0: {remedy}."
        )
    return Split(
        images.astype(np.float32 if floating else np.uint8, copy=False), labels.astype(np.int64)
    ), names
