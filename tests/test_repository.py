"""The tree keeps its promises: dependencies, floors, size, and notebooks that were run once, in order."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file imports only from files with smaller numbers: the design's floors, ground floor first.
FLOORS = {
    "errors": 0,
    "cifar10": 1,
    "activations": 1,
    "losses": 1,
    "schedules": 1,
    "initialisation": 1,
    "products": 0,
    "standin": 1,
    "hyperparameters": 1.5,
    "datasets": 1.5,
    "preprocessing": 2,
    "model": 2.5,
    "optimizers": 2.5,
    "batches": 3,
    "gradcheck": 3,
    "checkpoints": 3,
    "evaluation": 3.5,
    "rundir": 3.5,
    "callbacks": 4,
    "training": 4.5,
    "spaces": 4.6,
    "results": 4.8,
    "cluster": 4.8,
    "searching": 5,
    "drawing": 6,
    "notebooks": 6,
    "search_plots": 6.2,
    "plots": 6.4,
    "controls": 6.4,
    "playground": 6.6,
    "widgets": 7,
    "report": 7,
    "cli": 8,
    "__main__": 9,
}
MODULES = sorted((ROOT / "nnlib").glob("*.py"))


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout, or git is not installed")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def dependencies() -> dict[str, str]:
    """Every package of pyproject.toml that people need to run, and its bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.fullmatch(r"([a-z0-9-]+)(>=[\d.]+)", entry) for entry in project["dependencies"]]
    assert all(found), "loose lower bounds only"
    return {entry[1]: entry[2] for entry in found if entry}


def test_environment_agrees_with_pyproject():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda = dict(re.findall(r"^  - ([a-z0-9-]+)(>=[\d.]+)?$", text, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert conda.pop("python") == project["requires-python"]
    del conda["conda-forge"], conda["pip"]
    assert conda == dependencies()
    assert re.search(r"^  - pip:\n +- -e \.$", text, re.M)


def imports(path: Path) -> set[str]:
    """Names of the nnlib modules that a file imports, anywhere in it, except for type checking."""
    found = set()
    for node in ast.walk(_without_typing_only(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.split(".")[0] == "nnlib"
            }
        elif isinstance(node, ast.ImportFrom):
            inside = (
                (node.module or "").removeprefix("nnlib").strip(".")
                if node.level or _is_nnlib(node)
                else None
            )
            if inside == "":
                found |= {alias.name for alias in node.names}
            elif inside is not None:
                found.add(inside.split(".")[0])
    return found


def _is_nnlib(node: ast.ImportFrom) -> bool:
    return (node.module or "").split(".")[0] == "nnlib"


def _without_typing_only(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            node.body = [ast.Pass()]
    return tree


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.stem != "__init__"], ids=lambda path: path.stem
)
def test_imports_go_downwards(path: Path):
    assert path.stem in FLOORS, f"say in FLOORS on which floor {path.name} stands"
    upwards = {
        name for name in imports(path) if name in FLOORS and FLOORS[name] >= FLOORS[path.stem]
    }
    assert not upwards, (
        f"{path.name} (floor {FLOORS[path.stem]}) imports from its own floor or above: {upwards}"
    )
    if FLOORS[path.stem] < 6:
        assert "" not in imports(path), f"{path.name} imports all of nnlib"


def test_import_nnlib_loads_little():
    heavy = (
        "pandas",
        "seaborn",
        "matplotlib",
        "optuna",
        "distributed",
        "IPython",
        "ipywidgets",
        "nbconvert",
    )
    code = f"import nnlib, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def docstring_lines(node: ast.AST) -> set[int]:
    if (
        not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        or ast.get_docstring(node) is None
    ):
        return set()
    return set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = path.read_text(encoding="utf-8")
    said = set().union(*(docstring_lines(node) for node in ast.walk(ast.parse(text))))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        number not in said and line.strip() != "" and line.strip()[0] != "#"
        for number, line in lines
    )


def test_nnlib_stays_small():
    lines = {path.name: lines_of_code(path) for path in MODULES}
    # Lines that hold code. The plan asked for 3,000 in all; search, widgets, report and commands took it further away:
    # this number may go down, not up.
    assert sum(lines.values()) <= 3880, lines


def test_files_stay_short():
    """A file holds one idea, in at most 400 lines, with all that is said about it."""
    files = [
        path
        for folder in ("nnlib", "tests", "benchmarks", "notebooks")
        for path in (ROOT / folder).glob("*.py")
    ]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: n for name, n in lines.items() if n > 400}


def test_functions_stay_short():
    lengths = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                whole = (node.end_lineno or 0) - node.lineno + 1
                lengths[f"{path.stem}.{node.name}"] = whole - len(docstring_lines(node))
    assert sorted(lengths.values())[len(lengths) // 2] <= 8
    assert not {name: n for name, n in lengths.items() if n > 40}


def test_no_large_file_and_no_data_is_tracked():
    for path in tracked():
        assert path.stat().st_size < 15_000_000, path
        assert not re.search(
            r"data_batch_\d|test_batch$|cifar-10-python|batches\.meta", path.name
        ), path


def test_no_path_of_a_machine_is_tracked():
    machine = re.compile(r"(?<![\w.$/])/(?:home|root|work|tmp|Users)/\w")
    for path in tracked():
        if path.suffix in {
            ".md",
            ".toml",
            ".yml",
            ".json",
            ".csv",
            ".txt",
            ".cfg",
        } or path.name in {"Makefile", "run"}:
            assert not machine.search(path.read_text(encoding="utf-8")), path


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted(
    (ROOT / "notebooks/solutions").glob("*.ipynb")
)  # they run in tests/test_exercises.py


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_was_run_once_in_order(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "parameters" in code[0].metadata.get("tags", [])
    assert any(cell.outputs for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [
        output
        for output in outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS], ids=lambda path: path.stem)
def test_committed_notebook_knows_no_machine(path: Path):
    notebook = nbformat.read(path, as_version=4)
    text = json.dumps(_without_pictures(notebook))
    assert not re.search(r"(?<![\w.$/])/(?:home|root|work|tmp|Users)/", text)
    assert not re.search(r" at 0x[0-9a-f]{6,}", text)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def _without_pictures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output.data[kind]
    return notebook
