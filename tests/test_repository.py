"""The checkout keeps its promises: dependencies, a light import, notebooks run in order."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

import nnlib
from nnlib import extras

ROOT = Path(__file__).resolve().parents[1]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout, or git is not installed")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bounds(entries: list[str]) -> dict[str, str]:
    """Return the name and the bound of every package that pyproject.toml lists in ``entries``."""
    found = {}
    for entry in entries:
        requirement = Requirement(entry)
        bound = str(requirement.specifier)
        assert re.fullmatch(r">=[\d.]+", bound), f"{entry}: loose lower bounds only"
        found[requirement.name] = bound
    return found


def course() -> dict[str, str]:
    """Return the packages that the course needs: the core, and the extras that ``course`` joins."""
    optional = project()["optional-dependencies"]
    (joined,) = map(Requirement, optional["course"])
    assert joined.name == "nnlib"
    entries = list(project()["dependencies"])
    for extra in joined.extras:
        entries += optional[extra]
    return bounds(entries)


def test_environment_agrees_with_pyproject():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda = dict(re.findall(r"^  - ([a-z0-9-]+)(>=[\d.]+)?$", text, re.M))
    assert conda.pop("python") == project()["requires-python"]
    del conda["conda-forge"], conda["pip"]
    assert conda == course()
    assert re.search(r"^  - pip:\n +- -e \.$", text, re.M)


def test_a_package_has_the_same_bound_in_every_extra():
    optional = project()["optional-dependencies"]
    merged = course()
    for extra in ("notebooks", "search", "report"):
        assert bounds(optional[extra]).items() <= merged.items()


def test_messages_name_the_packages_of_each_extra():
    optional = project()["optional-dependencies"]
    for extra, packages in extras.EXTRAS.items():
        assert list(packages) == sorted(bounds(optional[extra]))


def test_core_leaves_out_what_only_the_course_needs():
    core = set(bounds(project()["dependencies"]))
    assert core == {
        *("numpy", "scipy", "threadpoolctl", "lazy-loader", "filelock", "pooch", "requests"),
        *("tqdm", "matplotlib", "pillow", "cyclopts"),
    }


@pytest.mark.parametrize(
    ("missing", "use", "extra"),
    [
        ("ipywidgets", "nnlib.widgets", "notebooks"),
        ("ipywidgets", "nnlib.LivePlot", "notebooks"),
        ("nbconvert", "nnlib.report", "report"),
        ("optuna", "nnlib.search({'learning_rate': [0.1]}, None)", "search"),
    ],
)
def test_a_missing_package_says_what_to_install(missing: str, use: str, extra: str):
    """None in sys.modules stands for a package that is not installed: importing it fails."""
    code = f"""
import sys
import nnlib
sys.modules["{missing}"] = None
try:
    {use}
except nnlib.NNLibError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    wanted = f"{missing}. Install the extra {extra!r}: pip install {' '.join(extras.EXTRAS[extra])}"
    assert wanted in done.stdout, done.stderr


def loaded_by(code: str) -> set[str]:
    """Run ``code`` in a new Python and return the packages that it loads, without Python's own."""
    count = "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}{count}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split()) - set(sys.stdlib_module_names) - {"__main__"}


def test_import_nnlib_loads_next_to_nothing():
    assert loaded_by("import nnlib") == {"nnlib", "lazy_loader"}


def test_the_network_loads_numpy_and_scipy_alone():
    code = (
        "import nnlib, numpy; "
        "nnlib.MLP((4, 3, 2)).loss_and_gradients(numpy.ones((1, 4), numpy.float32), [1])"
    )
    others = {"PIL", "cyclopts", "filelock", "matplotlib", "optuna", "pandas", "pooch", "tqdm"}
    loaded = loaded_by(code)
    assert "numpy" in loaded
    assert not others & loaded


def test_training_loads_no_picture_and_no_table():
    code = (
        "import nnlib; data = nnlib.load_dataset('standin', n_train=20, n_valid=5, n_test=5); "
        "nnlib.train(nnlib.Hyperparameters(hidden_sizes=(4,), epochs=1), data, progress=False)"
    )
    heavy = {"IPython", "ipywidgets", "matplotlib", "nbconvert", "optuna", "pandas", "seaborn"}
    loaded = loaded_by(code)
    assert "numpy" in loaded
    assert not heavy & loaded


ROOMS = ["data", "network", "plots", "report", "searching", "training", "widgets"]


def test_rooms_are_reached_after_a_bare_import():
    code = f"import nnlib; print(*(getattr(nnlib, room).__name__ for room in {ROOMS}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [f"nnlib.{room}" for room in ROOMS], done.stderr
    folders = {path.parent.name for path in (ROOT / "nnlib").glob("*/__init__.py")}
    assert folders == set(ROOMS)


def test_every_public_name_is_there_and_the_stub_tells_editors_the_same():
    stub = (ROOT / "nnlib/__init__.pyi").read_text(encoding="utf-8")
    listed = re.findall(r'^    "(\w+)",$', stub, re.M)
    assert sorted(listed) == sorted(nnlib.__all__) == sorted(dir(nnlib))
    for name in listed:
        assert getattr(nnlib, name) is not None


def test_reading_order_names_files_that_exist():
    files = re.findall(r"^ ?\d+\. ``([\w/]+\.py)``", nnlib.__doc__ or "", re.M)
    assert len(files) == 10
    for name in files:
        assert (ROOT / "nnlib" / name).is_file(), name


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
