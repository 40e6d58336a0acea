"""Run notebooks: in a fresh kernel, with parameters, and clean enough to commit or print."""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from nnlib.data.cifar10 import data_root
from nnlib.errors import NNLibError
from nnlib.files import HOME, AnyPath, user_path

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 6 * 3600  # seconds; the longest training on real data takes most of an hour


class ReportError(NNLibError):
    """The report could not be made, or a notebook in it failed."""


@dataclass(frozen=True)
class Page:
    """One executed notebook; ``error`` says in one line where it stopped, None if it did not."""

    name: str
    notebook: NotebookNode
    seconds: float
    error: str | None = None

    @property
    def title(self) -> str:
        """The notebook's first heading, or its file name if there is none."""
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown":
                heading = re.search(r"^# +(.+)$", cell.source, re.M)
                if heading:
                    return heading[1].strip()
        return self.name

    def printed(self) -> str:
        """Return all text that its cells printed."""
        texts = []
        for cell in self.notebook.cells:
            for output in cell.get("outputs", []):
                texts.append(output.get("text", ""))
        return "\n".join(texts)


def find_notebooks(
    folder: AnyPath | None = None, chosen: Iterable[str] | None = None
) -> list[Path]:
    """Return the numbered notebooks in ``folder``, or only the ``chosen`` ones, by number or name.

    Without a folder, they are those of the checkout, or of ``notebooks/`` in the current folder.
    Raises ReportError if there are none, or a chosen one is missing.
    """
    folder = user_path(folder or HOME / "notebooks")
    paths = sorted(folder.glob("[0-9][0-9]*_*.ipynb"))
    if not paths:
        problem = f"{folder}: there are no notebooks named like 01_name.ipynb here"
        remedy = "name their folder with notebooks_dir (--notebooks-dir)"
        raise ReportError(f"{problem}; run this in a checkout of nnlib, or {remedy}.")
    if chosen is None:
        return paths
    return [_choose(name, paths) for name in chosen]


def _choose(name: str, paths: list[Path]) -> Path:
    for path in paths:
        number = path.stem.split("_")[0]
        if name in (path.name, path.stem) or name.zfill(2) == number:
            return path
    names = ", ".join(path.stem for path in paths)
    raise ReportError(f"notebook {name!r} is not there; there are {names}.")


def execute(
    path: AnyPath,
    parameters: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    label: str = "",
) -> Page:
    """Run a notebook in its folder and a fresh kernel; the file itself does not change.

    The result is clean enough to commit. ``parameters`` are appended to the cell tagged
    ``parameters``, if it names them. ``env`` is added to the kernel's environment. ``label`` is
    shown beside the progress bar in a terminal. Raises ReportError if the file is no notebook.
    """
    path = user_path(path).resolve()
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises errors of many kinds, and their text is for programmers
        raise ReportError(f"{path}: this is no notebook.") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += _assignments(cell.source, parameters or {})
    kernel_env = dict(os.environ)
    kernel_env["NNLIB_DATA_DIR"] = str(data_root().resolve())  # the kernel runs in another folder
    kernel_env["TQDM_DISABLE"] = "1"  # a saved bar would say 0 % forever
    kernel_env.update(env or {})
    start = time.perf_counter()
    stopped_by = _run(notebook, path.parent, kernel_env, label or path.stem)
    seconds = time.perf_counter() - start
    _clean(notebook)
    error = None if stopped_by is None else _explain(stopped_by, notebook)
    return Page(path.stem, notebook, seconds, error)


def _assignments(source: str, parameters: dict[str, Any]) -> str:
    """Return lines that set the ``parameters`` which ``source`` sets as well."""
    known = re.findall(r"^(\w+) *=", source, re.M)
    lines = [f"\n{name} = {value!r}" for name, value in parameters.items() if name in known]
    return "".join(lines)


def _clean(notebook: NotebookNode) -> None:
    """Drop what belongs to one moment or machine: views of widgets, and versions."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET_VIEW not in o.get("data", {})]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.metadata = nbformat.from_dict(metadata)


def _run(notebook: NotebookNode, folder: Path, env: dict[str, str], label: str) -> Exception | None:
    """Execute the cells in place; return the error that stopped them, if any."""
    with tqdm(total=len(notebook.cells), desc=label, unit="cell", leave=False, disable=None) as bar:

        def advance(**_: Any) -> None:
            bar.update()

        options: Any = {
            "timeout": CELL_TIMEOUT,
            "kernel_name": "python3",
            "coalesce_streams": True,
            "record_timing": False,
            # The kernel would warn of its transport at each start, and at Ctrl-C.
            "extra_arguments": ["--log-level=50"],
            "on_cell_complete": advance,
        }
        client = NotebookClient(notebook, **options)
        try:
            client.execute(env=env, cwd=str(folder))
        except (CellControlSignal, DeadKernelError, AssertionError) as error:
            # At Ctrl-C, nbclient ends the kernel and raises one of these errors.
            if hasattr(client, "_async_cleanup_kernel_future"):
                raise KeyboardInterrupt from None
            return error
    return None


def _explain(error: Exception, notebook: NotebookNode) -> str:
    """Name the last code cell that began, and the error, in one line."""
    begun = [cell for cell in notebook.cells if cell.get("execution_count") is not None]
    number = max(len(begun), 1)
    name = getattr(error, "ename", type(error).__name__)
    text = getattr(error, "evalue", str(error).strip())
    return f"cell {number}: {name}: {text}".splitlines()[0]


def refresh(notebooks: Iterable[str] | None = None, notebooks_dir: AnyPath | None = None) -> None:
    """Execute notebooks and write them back with their outputs.

    Raises ReportError at the first one that fails; its file does not change.
    """
    for path in find_notebooks(notebooks_dir, notebooks):
        page = execute(path)
        if page.error:
            raise ReportError(f"{page.name}, {page.error}. The file is unchanged.")
        nbformat.write(page.notebook, path)
        print(f"{page.name}: {page.seconds:.0f} s")
