"""A cache beside the data: arrays in ``.npy`` files, and one JSON file that says what they are.

The arrays are mapped into memory (``np.load(mmap_mode="r")``), so loading takes no time and all
processes that load them share one copy. Nothing is summed up to check them. The JSON is written
last, and holds the size and the modification time of every file: of those that the cache was made
from and of its own. If one of them differs, the cache is stale, damaged or incomplete, and it is
made anew.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.errors import CheckpointError
from nnlib.files import write_atomically, write_text
from nnlib.types import Array, Arrays

log = logging.getLogger(__name__)

FORMAT = 1  # to be raised when other arrays or facts are stored: older caches are then made anew

# What a cache holds: arrays by name, and facts about them that JSON can store.
Content = tuple[Arrays, dict[str, Any]]


def stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and modification time of each file. Raise OSError if one is missing."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def load(folder: Path, made_from: list[list[Any]]) -> Content | None:
    """Return what is cached in ``folder``, or None if there is nothing that fits ``made_from``."""
    try:
        about = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        paths = [_path(folder, name) for name in about["arrays"]]
        expected = {"format": FORMAT, "made_from": made_from, "stamps": stamps(paths)}
        if any(about[key] != value for key, value in expected.items()):
            return None
        arrays = {name: _map(path) for name, path in zip(about["arrays"], paths, strict=True)}
        return arrays, about["facts"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours
        return None


def load_or_make(
    folder: Path, made_from: list[list[Any]], make: Callable[[], Content]
) -> tuple[Content, bool]:
    """Return what is cached in ``folder``, and True. If nothing there fits, make it and save it.

    If it can't be saved (a read-only folder, a full disk), return what was made, and False.
    """
    found = load(folder, made_from)
    if found:
        return found, True
    import filelock

    made = None
    try:
        folder.mkdir(exist_ok=True)
        # Another process or thread that wants the same waits here, then finds it done.
        with filelock.FileLock(folder / "lock"):
            found = load(folder, made_from)
            if not found:
                made = make()
                _save(folder, made_from, *made)
                found = load(folder, made_from)
    except (OSError, CheckpointError, NotImplementedError) as problem:
        reason = problem.__cause__ or problem
        log.warning("No cache beside the data (%s): each load has to read all files.", reason)
    if found:
        return found, True
    return made or make(), False


def _save(folder: Path, made_from: list[list[Any]], arrays: Arrays, facts: dict[str, Any]) -> None:
    for left in folder.glob(".*.part"):  # a killed process left it; nobody writes it, by the lock
        left.unlink()
    paths = [
        write_atomically(_path(folder, name), functools.partial(np.save, arr=array))
        for name, array in arrays.items()
    ]
    about = {
        "format": FORMAT,
        "made_from": made_from,
        "stamps": stamps(paths),
        "arrays": list(arrays),
        "facts": facts,
    }
    write_text(folder / "cache.json", json.dumps(about, indent=1))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _map(path: Path) -> Array:
    # A plain array: np.memmap would pass its type on to every slice and copy.
    return np.asarray(np.load(path, mmap_mode="r"))
