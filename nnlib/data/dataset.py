"""Images with labels in three splits: CIFAR-10, the stand-in, or your own arrays."""

import base64
import functools
import hashlib
import html
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.data import cache, cifar10, standin
from nnlib.data.cifar10 import NotFetched, data_root
from nnlib.errors import DataError
from nnlib.files import AnyPath
from nnlib.network.inputs import refuse_channels_last
from nnlib.types import Array, Arrays

log = logging.getLogger(__name__)

NOTES = {
    "stand-in": (
        "These numbers come from the stand-in (images drawn by code), not from CIFAR-10. To get "
        f"the real images: `nnlib data fetch`, or put {cifar10.OFFICIAL_URL} into the data folder."
    ),
    cifar10.UNOFFICIAL: (
        "These numbers come from an unofficial copy of CIFAR-10, whose pixels differ from the "
        "official files. To get those: `nnlib data fetch` into another folder."
    ),
}
# In which folders "auto" has tried to download CIFAR-10, in this process, and failed.
_unreachable: set[Path] = set()


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, ...) uint8 or float32, and labels (N,) int64 from 0 to K - 1."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> "Split":
        """Return the images and labels at ``rows``: indices, or a slice for a view."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits, the names of the K classes, and where they come from."""

    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...]
    source: str

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        n_valid: int | None = None,
        n_test: int | None = None,
        seed: int = 0,
        valid: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
    ) -> "Dataset":
        """Make a data set of your own images and labels: arrays, lists, tensors or DataFrames.

        Images are pixels from 0 to 255, (N, C, H, W) or (N, ...), which become uint8 and which
        training preprocesses; or floats (N, ...), which become float32 and which the network takes
        as they are: bring them to a standard deviation of about 1. Labels (N,) or (N, 1) are whole
        numbers from 0 to K - 1. Without ``classes``, the classes are named by their numbers.

        ``valid`` and ``test`` are pairs (images, labels). Where one is not given, images are set
        aside from the others: ``n_valid`` and ``n_test`` of them, by default a tenth each, drawn by
        ``seed`` so that every class gets its share. Raises DataError for what does not fit.
        """
        whole = _checked(images, labels)
        tenth = len(whole) // 10
        rest = np.arange(len(whole))
        if test is None:
            rest, rows = stratified(whole.labels, tenth if n_test is None else n_test, seed)
            test_split = whole.take(rows)
        else:
            test_split = _checked_pair("test", test, n_test, whole)
        if valid is None:
            n = tenth if n_valid is None else n_valid
            train_rows, rows = stratified(whole.labels[rest], n, seed)
            valid_split = whole.take(rest[rows])
            rest = rest[train_rows]
        else:
            valid_split = _checked_pair("valid", valid, n_valid, whole)
        all_labels = np.concatenate([whole.labels, valid_split.labels, test_split.labels])
        names = _class_names(classes, all_labels)
        return cls(whole.take(rest), valid_split, test_split, names, "arrays")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all images and labels, in their order: equal for equal data, split alike."""
        arrays = []
        for split in (self.train, self.valid, self.test):
            arrays += [split.images, split.labels]
        kinds = [(array.shape, array.dtype.str) for array in arrays]
        digest = hashlib.sha256(str(kinds).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:12]

    @property
    def note(self) -> str:
        """What to print beside every number if these are not CIFAR-10's official images, or ""."""
        return NOTES.get(self.source, "")

    def subset(self, n: int, seed: int = 0) -> "Dataset":
        """Return the same data with ``n`` of the training images, every class in its share.

        Raises DataError if there are fewer.
        """
        rows = stratified(self.train.labels, n, seed)[1]
        part = replace(self, train=self.train.take(rows))
        if self._origin:
            _remember_origin(part, Dataset.subset, self, n, seed)
        return part

    @property
    def _origin(self) -> tuple[Any, ...]:
        """A function and arguments that give the same data in another process, or ()."""
        return vars(self).get("origin", ())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Send other processes the name of the cache, not 184 MB. They share what is in it."""
        return self._origin or super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        sizes = (
            f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test images"
        )
        shape = "×".join(map(str, self.train.images.shape[1:]))
        classes = f"{len(self.classes)} classes, fingerprint {self.fingerprint}"
        return f"Dataset({self.source}: {sizes} of {shape}, {classes})"

    def _repr_html_(self) -> str:
        about = repr(self).removeprefix("Dataset(").removesuffix(")")
        text = f"<p>{html.escape(about)}</p><p>{html.escape(self.note)}</p>"
        images = self.train.images
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            return text
        from PIL import Image

        _, first = np.unique(self.train.labels, return_index=True)  # one image of each class
        first = first[:10]
        strip = np.concatenate(images[first], axis=2).transpose(1, 2, 0)
        png = io.BytesIO()
        Image.fromarray(strip).save(png, "png")
        names = html.escape(", ".join(self.classes[label] for label in self.train.labels[first]))
        style = f"width: {2 * strip.shape[1]}px; max-width: 100%; image-rendering: pixelated"
        source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        alt = f"One training image each: {names}"
        return f'{text}<img alt="{alt}" style="{style}" src="{source}"><p>{names}</p>'


def _remember_origin(data: Dataset, function: Any, *arguments: Any) -> None:
    """Let ``data`` be sent to other processes as a call of ``function``.

    This is not a field, so that dataclasses.replace makes a data set without it: other arrays come
    from elsewhere.
    """
    vars(data)["origin"] = (function, arguments)


def load_dataset(
    name: str = "cifar10",
    root: AnyPath | None = None,
    download: bool = True,
    n_valid: int = 5000,
    seed: int = 0,
    n_train: int = 45_000,
    n_test: int = 10_000,
    progress: bool = True,
) -> Dataset:
    """Load ``"cifar10"``, the ``"standin"``, or ``"auto"``.

    ``"auto"`` is CIFAR-10 if it is on disk or can be downloaded, otherwise the stand-in, images
    drawn by code. A log message, the data set's ``source`` and its repr say which one you got.

    ``root`` is the folder that holds ``cifar-10-batches-py`` (see ``data_root``). ``download``
    allows CIFAR-10 to be downloaded into it, with a ``progress`` bar. ``n_valid`` training images
    are set aside for validation by ``seed`` alone, every class in its share. ``n_train`` and
    ``n_test`` are sizes of the stand-in, which ``seed`` draws. Images are (N, 3, 32, 32) uint8;
    CIFAR-10's arrays are read-only. Raises DataError if CIFAR-10 is wanted and can't be had, and,
    for "auto" as well, if its files are there but damaged.
    """
    if name not in ("auto", "cifar10", "standin"):
        raise DataError(f"There is no data set {name!r}: it can be 'auto', 'cifar10' or 'standin'.")
    if name == "cifar10":
        return _load_cifar10(data_root(root), download, n_valid, seed, progress)
    if name == "auto":
        place = data_root(root)
        try:
            may_download = download and place not in _unreachable
            data = _load_cifar10(place, may_download, n_valid, seed, progress)
            log.info("Data: %s", data.source)
            return data
        except NotFetched as problem:
            if place not in _unreachable:
                reason = str(problem).splitlines()[0]
                log.warning("%s\nUsing the stand-in instead: images drawn by code.", reason)
            if download:
                _unreachable.add(place)
    images, labels = standin.draw(n_train + n_valid + n_test, seed)
    data = Dataset.from_arrays(images, labels, standin.CLASSES, n_valid, n_test, seed)
    return replace(data, source="stand-in")


def stratified(labels: Array, n: int, seed: int) -> tuple[Array, Array]:
    """Split ``labels`` in two, both as rising indices: the rest, and ``n`` chosen by ``seed``.

    All indices are put in the order of their classes, at random within each class, and every
    N/n-th is chosen. So each class is less than one image off its share. Raises DataError if there
    are fewer than ``n``.
    """
    if not isinstance(n, Integral) or not 0 <= n <= len(labels):
        raise DataError(
            f"{n!r} images cannot be set aside from {len(labels):,}. "
            "It takes a whole number, at most that many."
        )
    by_class = np.lexsort((standin.random_words(len(labels), seed), labels))
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[np.arange(n) * len(labels) // max(n, 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# ---- CIFAR-10 and its cache ----


def _load_cifar10(root: Path, download: bool, n_valid: int, seed: int, progress: bool) -> Dataset:
    """Load CIFAR-10 from the cache beside its files, which is made at the first load."""
    folder = cifar10.fetch(root, progress, download)
    made_from = cache.stamps(cifar10.files(folder))
    place = root / "cifar-10-cache"
    content, saved = cache.load_or_make(place, made_from, functools.partial(_read_all, folder))
    data = _split(*content, n_valid, seed)
    if saved:
        _remember_origin(data, _from_cache, place, made_from, n_valid, seed)
    return data


def _from_cache(place: Path, made_from: list[list[Any]], n_valid: int, seed: int) -> Dataset:
    """Return in another process what ``_load_cifar10`` returned in the first one."""
    content = cache.load(place, made_from)
    if content is None:
        raise DataError(f"{place} is not the cache that was there before. Load the data set again.")
    data = _split(*content, n_valid, seed)
    _remember_origin(data, _from_cache, place, made_from, n_valid, seed)
    return data


def _read_all(folder: Path) -> cache.Content:
    """Read the files in ``folder`` for the cache: all images once, whatever the split.

    They are stored in the order of the usual split (train, valid, test; a tenth for validation,
    seed 0), so that its three parts are slices of the mapped file, which processes share. The parts
    of any other split have to be copied. ``places`` says where each image of the files went.
    """
    images, labels, n_test, classes, source = cifar10.read(folder)
    n_train = len(labels) - n_test
    n_valid = n_train // 10
    train, valid = stratified(labels[:n_train], n_valid, seed=0)
    order = np.concatenate([train, valid, np.arange(n_train, len(labels))])
    arrays = {"images": images[order], "labels": labels, "places": np.argsort(order)}
    facts = {"n_test": n_test, "classes": classes, "source": source}
    fingerprint = _split(arrays, facts, n_valid, seed=0).fingerprint
    facts["usual"] = {"n_valid": n_valid, "seed": 0, "fingerprint": fingerprint}
    return arrays, facts


def _split(arrays: Arrays, facts: dict[str, Any], n_valid: int, seed: int) -> Dataset:
    """Split what ``_read_all`` has read."""
    labels = arrays["labels"]
    n_train = len(labels) - facts["n_test"]
    train, valid = stratified(labels[:n_train], n_valid, seed)
    test = np.arange(n_train, len(labels))
    data = Dataset(
        train=_cached_split(arrays, train),
        valid=_cached_split(arrays, valid),
        test=_cached_split(arrays, test),
        classes=tuple(facts["classes"]),
        source=facts["source"],
    )
    usual = facts.get("usual", {})
    if (n_valid, seed) == (usual.get("n_valid"), usual.get("seed")):
        vars(data)["fingerprint"] = usual["fingerprint"]  # known: no need to hash 184 MB again
    return data


def _cached_split(arrays: Arrays, rows: Array) -> Split:
    """Return the images at ``rows`` of the files: a slice if they lie side by side, else a copy."""
    places = arrays["places"][rows]
    if len(places) and (np.diff(places) == 1).all():
        images = arrays["images"][places[0] : places[-1] + 1]
    else:
        images = arrays["images"][places]
    split = Split(images, arrays["labels"][rows])
    # Mapped images belong to all processes and can't be changed. So copies can't be either.
    split.images.flags.writeable = False
    split.labels.flags.writeable = False
    return split


# ---- your own arrays ----


def _checked_pair(name: str, pair: Any, n: int | None, whole: Split) -> Split:
    """Convert and check the pair (images, labels) that was given as ``valid`` or ``test``."""
    if n:
        raise DataError(f"n_{name}={n}, and {name} is given as well: leave out one of the two.")
    try:
        images, labels = pair
    except (TypeError, ValueError):
        found = type(pair).__name__
        raise DataError(f"{name} must be a pair (images, labels), not {found}.") from None
    split = _checked(images, labels, f"{name}: ")
    found = f"{split.images.shape[1:]} {split.images.dtype}"
    needed = f"{whole.images.shape[1:]} {whole.images.dtype}"
    if found != needed:
        raise DataError(f"{name}: its images are {found} each, and the training images {needed}.")
    return split


def _checked(images: Any, labels: Any, part: str = "") -> Split:
    """Convert and check images and labels. An error message starts with ``part``."""
    images = _as_array(images, f"{part}images")
    labels = _as_array(labels, f"{part}labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim < 2 or labels.shape != images.shape[:1] or not len(labels):
        remedy = ""
        if labels.ndim == 2:
            remedy = " If the labels are one-hot, give labels.argmax(axis=1)."
        raise DataError(
            f"{part}images {images.shape} and labels {labels.shape} must have the shapes (N, ...) "
            f"and (N,).{remedy}"
        )
    refuse_channels_last(images)
    return Split(_as_images(images, part), _as_labels(labels, part))


def _as_array(values: Any, name: str) -> Array:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as problem:  # ragged lists; tensors on a GPU
        raise DataError(f"{name} can't be made into an array: {problem}") from problem


def _as_images(images: Array, part: str) -> Array:
    """Return floats as float32, and whole numbers as uint8."""
    kind = images.dtype.kind
    if kind == "f":
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise DataError(f"{part}images hold numbers that are not finite.")
        return images
    if kind not in "iu":
        raise DataError(
            f"{part}images are {images.dtype}: make them uint8 (pixels from 0 to 255) or float32."
        )
    low = images.min()
    high = images.max()
    if low < 0 or high > 255:
        raise DataError(
            f"{part}images are {images.dtype} from {low} to {high}: make them uint8 (pixels from "
            "0 to 255) or float32."
        )
    return images.astype(np.uint8, copy=False)


def _as_labels(labels: Array, part: str) -> Array:
    """Return whole numbers as int64, and refuse everything else."""
    kind = labels.dtype.kind
    if kind in "iu":
        return labels.astype(np.int64)
    if kind != "f":
        remedy = "np.unique(labels, return_inverse=True)[1] makes whole numbers"
    elif (labels == np.round(labels)).all():
        remedy = "labels.astype(int) makes whole numbers"
    else:
        remedy = "nnlib needs the number of each image's class, a whole number from 0"
    raise DataError(f"{part}labels are {labels.dtype}: {remedy}.")


def _class_names(classes: Sequence[str] | None, labels: Array) -> tuple[str, ...]:
    """Return the names of the classes, by default their numbers. Refuse labels without a name."""
    low = labels.min()
    high = labels.max()
    names = range(high + 1) if classes is None else classes
    if low < 0 or high >= len(names) or (classes is None and low > 0):
        remedy = "np.unique(labels, return_inverse=True)[1] numbers them anew"
        raise DataError(
            f"labels run from {low} to {high}, and {len(names)} classes from 0: {remedy}."
        )
    return tuple(map(str, names))
