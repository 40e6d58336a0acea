"""Run the course's notebooks: in a fresh kernel, with parameters, and clean enough to commit or to print."""

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
from nnlib.files import HOME

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 6 * 3600  # seconds; the longest training on real data takes a good part of an hour


class ReportError(NNLibError):
    """The report could not be made, or a notebook in it failed."""


@dataclass(frozen=True)
class Page:
    """One executed notebook; ``error`` says in one line where it stopped, None where it did not."""

    name: str
    notebook: NotebookNode
    seconds: float
    error: str | None = None

    @property
    def title(self) -> str:
        """The notebook's first heading, otherwise its file name."""
        texts = "\n".join(
            cell.source for cell in self.notebook.cells if cell.cell_type == "markdown"
        )
        heading = re.search(r"^# +(.+)$", texts, re.M)
        return heading[1].strip() if heading else self.name

    def printed(self) -> str:
        """All that its cells printed."""
        return "\n".join(
            out.get("text", "") for cell in self.notebook.cells for out in cell.get("outputs", [])
        )


def find_notebooks(
    folder: str | Path | None = None, chosen: Iterable[str] | None = None
) -> list[Path]:
    """Return the numbered notebooks in ``folder`` (default: the checkout's, or notebooks/ here), or the ``chosen``."""
    folder = Path(folder or HOME / "notebooks")
    paths = sorted(folder.glob("[0-9][0-9]*_*.ipynb"))
    if not paths:
        remedy = "run this in a checkout of nnlib, or name the folder with notebooks_dir (--notebooks-dir)"
        raise ReportError(
            f"{folder}: there are no notebooks named like 01_name.ipynb here; {remedy}."
        )
    return paths if chosen is None else [_choose(name, paths) for name in chosen]


def _choose(name: str, paths: list[Path]) -> Path:
    for path in paths:
        if name in (path.name, path.stem) or path.stem.split("_")[0] == name.zfill(2):
            return path
    raise ReportError(
        f"notebook {name!r} is not there; there are {', '.join(p.stem for p in paths)}."
    )


def execute(
    path: str | Path,
    parameters: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    label: str = "",
) -> Page:
    """Run a notebook in its folder and a fresh kernel; the file stays as it is. The result is clean enough to commit.

    ``parameters`` are set at the end of the cell tagged ``parameters``, those that it names, and stand there in the
    result; ``env`` adds to the kernel's environment; ``label`` stands beside the progress bar that a terminal shows.
    """
    path = Path(path).resolve()
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises errors of many kinds, and what they say is for programmers
        raise ReportError(f"{path}: this is no notebook.") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
        if "parameters" in cell.metadata.get("tags", ()):
            known = re.findall(r"^(\w+) *=", cell.source, re.M)
            cell.source += "".join(
                f"\n{n} = {value!r}" for n, value in (parameters or {}).items() if n in known
            )
    # The kernel runs in another folder; and a bar that is saved says 0 % for ever.
    kernel_env = os.environ | {"NNLIB_DATA_DIR": str(data_root().resolve()), "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    error = _run(notebook, path.parent, kernel_env | (env or {}), label or path.stem)
    for cell in notebook.cells:  # drop what is of one moment or machine: widget views, versions
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})
            ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    return Page(
        path.stem,
        notebook,
        time.perf_counter() - start,
        _explain(error, notebook) if error else None,
    )


def _run(notebook: NotebookNode, folder: Path, env: dict[str, str], label: str) -> Exception | None:
    """Execute the cells in place; return what stopped it, if anything did."""
    options: Any = {
        "timeout": CELL_TIMEOUT,
        "kernel_name": "python3",
        "coalesce_streams": True,
        "record_timing": False,
    }
    with tqdm(total=len(notebook.cells), desc=label, unit="cell", leave=False, disable=None) as bar:
        # silent: the kernel warns of its transport at each start, and at Ctrl-C
        options |= {
            "extra_arguments": ["--log-level=50"],
            "on_cell_complete": lambda **_: bar.update(),
        }
        client = NotebookClient(notebook, **options)
        try:
            client.execute(env=env, cwd=str(folder))
        except (CellControlSignal, DeadKernelError, AssertionError) as error:
            if hasattr(
                client, "_async_cleanup_kernel_future"
            ):  # nbclient has ended the kernel, because of Ctrl-C
                raise KeyboardInterrupt from None
            return error
    return None


def _explain(error: Exception, notebook: NotebookNode) -> str:
    """Name the last code cell that began, and the error, in one line."""
    number = sum(cell.get("execution_count") is not None for cell in notebook.cells)
    name, text = (
        getattr(error, "ename", type(error).__name__),
        getattr(error, "evalue", str(error).strip()),
    )
    return f"cell {max(number, 1)}: {name}: {text}".splitlines()[0]


def refresh(
    notebooks: Iterable[str] | None = None, notebooks_dir: str | Path | None = None
) -> None:
    """Execute notebooks and write them back with their outputs; one that fails is left as it was."""
    for path in find_notebooks(notebooks_dir, notebooks):
        page = execute(path)
        if page.error:
            raise ReportError(f"{page.name}, {page.error}. The file is as it was.")
        nbformat.write(page.notebook, path)
        print(f"{page.name}: {page.seconds:.0f} s")
