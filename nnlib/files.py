"""Files: where things lie, paths that users give, and writing a file whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nnlib.errors import CheckpointError

AnyPath = str | os.PathLike[str]

CHECKOUT = Path(__file__).resolve().parents[1]
# data and figures lie in the checkout that nnlib runs from; installed elsewhere, in the current folder
HOME = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path()


def user_path(path: AnyPath) -> Path:
    """Return a path that a user gave: ``~`` expanded, and absolute, so that os.chdir does not move it."""
    return Path(path).expanduser().absolute()


def write_atomically(path: AnyPath, write: Callable[[IO[bytes]], Any]) -> Path:
    """Let ``write(file)`` fill a temporary file, then move it to ``path``: the whole new file, or the old one.

    Raises CheckpointError if it cannot be written, for want of room or of permission.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        remedy = "Make room, or name another place; what was saved before is whole, and the same call goes on from it."
        raise CheckpointError(
            f"{path}: it cannot be written ({error.strerror or error}). {remedy}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows cannot open folders and needs none of it."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: AnyPath, content: bytes) -> Path:
    """Write ``content`` to ``path`` atomically."""
    return write_atomically(path, lambda file: file.write(content))


def write_text(path: AnyPath, text: str) -> Path:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    return write_bytes(path, text.encode())
