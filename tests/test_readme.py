"""What the README says is so: its code runs, its commands exist, its links lead somewhere, its results are recorded."""

import json
import re
import shlex
import subprocess
import sys

import pytest

import nnlib
from nnlib.rundir import RunDirectory


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def _blocks(readme: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.M | re.S)
    return [body for name, body in fences if name == language]


def test_python_blocks_run(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = nnlib.load_dataset("standin", n_train=6000, n_valid=200, n_test=100)
    monkeypatch.setattr(nnlib, "load_dataset", lambda *_: small)  # no download in a test
    for block in _blocks(readme, "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs/first/best.npz").exists()


def test_make_commands_exist(readme, root):
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M))
    code = "\n".join([*_blocks(readme, ""), *re.findall(r"`([^`\n]+)`", readme)])  # prose makes other things
    named = set(re.findall(r"\bmake ([\w-]+)", code))
    assert {"report", "test", "lab", "help"} <= named <= targets


def test_terminal_commands_run(readme, tmp_path):
    lines = [line for block in _blocks(readme, "") for line in block.splitlines() if line.startswith("nnlib ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "report":
            continue  # test_report.py and test_notebooks.py do that
        if words[0] in ("train", "search"):
            words += ["--data", "standin", "--train-images", "300"]
            words += [] if "--epochs" in words else ["--epochs", "1", "--components", "8"]
        if words[0] in ("test", "data"):
            words += ["--data", "standin"]
        done = subprocess.run([sys.executable, "-m", "nnlib", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_links_lead_to_files(readme, root):
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        if not target.startswith("http"):
            assert (root / target).exists(), target


def test_results_are_those_of_the_shipped_run_and_notebook(readme, root):
    """The table's validation accuracy is the shipped history's best, its test accuracy the one that 05 printed."""
    row = next(line for line in readme.splitlines() if line.startswith("| `quick`"))
    history = RunDirectory(root / "data/runs/quick").read_history()
    best = max(record["valid_accuracy"] for record in history)
    assert f"{best:.4f}" in row
    assert nnlib.load_model(root / "data/models/quick.npz").info["best"]["valid_accuracy"] == best
    cells = json.loads((root / "notebooks/05_testing.ipynb").read_text(encoding="utf-8"))["cells"]
    printed = "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))
    assert re.search(r"test accuracy (0\.\d+)", printed)[1] in row


@pytest.mark.parametrize("name", ["best", "classic", "quick"])
def test_results_are_those_of_the_shipped_logs_and_weights(readme, root, name, real_images):
    cells = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`")).split(" | ")
    history = RunDirectory(root / "data/runs" / name).read_history()
    assert int(cells[2]) == len(history)
    assert cells[4] == f"{max(record['valid_accuracy'] for record in history):.4f}"
    model = nnlib.load_model(root / "data/models" / f"{name}.npz")
    data = nnlib.load_dataset("cifar10", real_images)
    if data.source != model.info["data"]:
        pytest.skip("these are other pixels than those that the README's numbers come from")
    assert cells[5].strip(" |") == f"{nnlib.evaluate(model, data.test).accuracy:.4f}"
    assert nnlib.Hyperparameters.from_dict(model.info["hyperparameters"]) == nnlib.RECIPES[name]


def test_speed_is_that_of_the_shipped_benchmark(readme, root):
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in (root / "data/benchmarks").glob("*.json")}
    table = {row["name"]: row["median"] for row in results["speed"]["table"]}
    for name, ratio in results["speed"]["nnlib_over"].items():
        assert f"| {name} | {table[name]:,} | {ratio['median']:.2f} |" in readme
    assert f"| nnlib | {table['nnlib']:,} | |" in readme
    seconds = [row["seconds"] for row in results["accuracy"]["rows"]]
    assert f"in {min(seconds):.1f} to {max(seconds):.1f} seconds" in " ".join(readme.split())
    assert f"peaks at {results['memory']['peak_resident_mb']:.0f} MB" in " ".join(readme.split())
