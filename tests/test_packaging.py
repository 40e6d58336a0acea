"""Around the code: pages that name it, the API reference, exact versions, the wheel's content."""

import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import nnlib


def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_map_names_every_room_and_file(root: Path):
    """CONTRIBUTING.md has a line for each room, with all of its files and no others."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    house = text.split("## The house")[1].split("\n## ")[0]
    named = set()
    for room, files in re.findall(r"^\| `([\w./]+)` \| [^|]+ \| ([^|]*) \|$", house, re.M):
        for name in re.findall(r"`([\w.]+)`", files):
            named.add(f"{room}{name}" if room.endswith("/") else name)
    here = {
        path.relative_to(root / "nnlib").as_posix()
        for path in (root / "nnlib").glob("**/*.py")
        if path.parent == root / "nnlib" or path.name != "__init__.py"
    }
    here = {name for name in here if not name.startswith("report/templates")}
    assert named == here


def one_batch(root: Path) -> str:
    return (root / "docs/one_batch.md").read_text(encoding="utf-8")


def test_the_way_of_a_batch_names_what_exists(root: Path):
    names = re.findall(r"`(nnlib\.[\w.]+)`", one_batch(root))
    assert len(names) > 20
    for name in names:
        pkgutil.resolve_name(name)


def test_the_way_of_a_batch_is_the_one_that_a_step_takes(root: Path):
    """Trace one real step: the functions in the table of steps are called, in the table's order."""
    steps = one_batch(root).split("## Every step")[1].split("## After every epoch")[0]
    rows = re.findall(r"^\| \d+ \|.*$", steps, re.M)
    stated = []
    for row in rows:
        name = re.search(r"`nnlib\.([\w.]+)`", row)
        if name:
            stated.append(name[1].rpartition(".")[2])
    assert len(stated) == 10
    data = nnlib.load_dataset("standin", n_train=200, n_valid=20, n_test=20)
    hp = nnlib.Hyperparameters(
        hidden_sizes=(8, 8),
        preprocessing="whiten",
        components=8,
        flip=True,
        dropout=0.1,
        momentum=0.9,
        l2=1e-3,
    )
    trainer = nnlib.Trainer(hp, data, progress=False)
    called: list[str] = []

    def watch(frame, event, _):
        if event == "call" and "nnlib" in frame.f_code.co_filename:
            called.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        trainer.train_step()
    finally:
        sys.setprofile(None)
    stated[stated.index("make_schedule")] = "schedule"  # the function that it returned
    assert [name for name in dict.fromkeys(called) if name in stated] == stated
    # the rows without a number are parts of the rows with one
    assert {"product", "add_scaled", "value"} <= set(called)


def test_version_is_the_same_everywhere(root: Path):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == nnlib.__version__ == project(root)["version"]
    assert (
        citation["license"] == project(root)["license"]
        and citation["references"][0]["year"] == 2009
    )
    assert f"## {nnlib.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_lock_is_exact_and_fits_the_bounds(root: Path):
    """Every line is one version of one package; every dependency has a line within its bounds."""
    lines = (root / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line) for line in lines]
    assert all(
        re.fullmatch(r"==[\w.+]+", str(entry.specifier)) and not entry.url for entry in locked
    )
    versions: dict[str, list[str]] = {}
    for entry in locked:
        versions.setdefault(entry.name, []).append(str(entry.specifier)[2:])
    optional = project(root)["optional-dependencies"]
    entries = [*project(root)["dependencies"]]
    for extra in ("notebooks", "search", "report", "cluster", "pdf", "test"):
        entries += optional[extra]
    for entry in map(Requirement, entries):
        if entry.name == "nnlib":  # an extra that names others
            continue
        assert versions[entry.name], entry
        assert all(entry.specifier.contains(version) for version in versions[entry.name]), entry


def test_docs_are_made_without_a_warning(root: Path, tmp_path: Path):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    modules = [
        f"nnlib.{path.stem}" for path in (root / "nnlib").glob("*.py") if path.stem[:2] != "__"
    ]
    command = [sys.executable, "-W", "error", "-m", "pdoc", "--docformat", "google"]
    command += ["-o", str(tmp_path), "nnlib", *modules]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "Return the logits" in (tmp_path / "nnlib.html").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (root / "nnlib").glob("*/__init__.py")}
    assert {path.stem for path in (tmp_path / "nnlib").glob("*.html")} >= {*rooms, "errors", "cli"}


def test_wheel_carries_what_is_needed(root: Path, tmp_path: Path):
    """The wheel holds types, recipes and the template. Building it offline needs setuptools."""
    pytest.importorskip("setuptools", minversion="77")
    if not (root / ".git").exists():
        pytest.skip("this is no git checkout")
    sources = tmp_path / "sources"  # setuptools leaves a folder in what it builds from
    subprocess.run(["git", "clone", "--quiet", root, sources], check=True, capture_output=True)
    code = f"import setuptools.build_meta as b; print(b.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=sources, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "nnlib/py.typed",
        "nnlib/training/recipes.toml",
        "nnlib/__init__.pyi",
        "nnlib/report/templates/nnlib/style.css",
    } <= names
    template = {
        name.rpartition("/")[2]
        for name in names
        if "share/jupyter/nbconvert/templates/nnlib/" in name
    }
    assert template == {path.name for path in (root / "nnlib/report/templates/nnlib").iterdir()}
    assert not [name for name in names if name.startswith(("tests", "notebooks", "data/"))]
