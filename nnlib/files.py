"""Files: where things are, the paths that users give, and writing a file whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nnlib.errors import CheckpointError

AnyPath = str | os.PathLike[str]

CHECKOUT = Path(__file__).resolve().parents[1]

# Data and figures go into the checkout that nnlib runs from, or into the current folder if nnlib
# is installed somewhere else.
IN_A_CHECKOUT = (CHECKOUT / "pyproject.toml").is_file()
HOME = CHECKOUT if IN_A_CHECKOUT else Path()


def user_path(path: AnyPath) -> Path:
    """Return a user's path with ``~`` expanded, and absolute, so that os.chdir doesn't move it."""
    return Path(path).expanduser().absolute()


def write_atomically(path: AnyPath, write: Callable[[IO[bytes]], Any]) -> Path:
    """Let ``write(file)`` fill a temporary file, then rename it to ``path``.

    Whatever happens, ``path`` holds either the whole new file or the old one. Raises
    CheckpointError if the file can't be written: no space, or no permission.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # the content reaches the disk before the name does
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: it cannot be written ({reason}). Make room, or name another place. What was "
            "saved before is intact, and the same call continues from it."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows can't open folders, and doesn't need this."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: AnyPath, content: bytes) -> Path:
    """Write ``content`` to ``path`` atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    return write_atomically(path, write)


def write_text(path: AnyPath, text: str) -> Path:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    return write_bytes(path, text.encode())
