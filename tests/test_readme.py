"""What the README says is so: its code runs, its commands exist, its links lead somewhere, its results are recorded."""

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import nnlib
from nnlib.training.rundir import RunDirectory


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
    code = "\n".join(
        [*_blocks(readme, ""), *re.findall(r"`([^`\n]+)`", readme)]
    )  # prose makes other things
    named = set(re.findall(r"\bmake ([\w-]+)", code))
    assert {"report", "test", "lab", "help"} <= named <= targets


def test_terminal_commands_run(readme, tmp_path):
    lines = [
        line
        for block in _blocks(readme, "")
        for line in block.splitlines()
        if line.startswith("nnlib ")
    ]
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
        done = subprocess.run(
            [sys.executable, "-m", "nnlib", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_links_lead_to_files(readme, root):
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        if not target.startswith("http"):
            assert (root / target).exists(), target


RUNS = sorted(
    path.parent.name for path in (Path(__file__).parents[1] / "data/runs").glob("*/results.json")
)
RECIPES = [name for name in RUNS if "_seed" not in name]
MODELS = sorted(path.stem for path in (Path(__file__).parents[1] / "data/models").glob("*.npz"))


def _logs(root: Path, name: str) -> list[RunDirectory]:
    """The shipped logs of a recipe: those of the networks that it began with, if any, and its own."""
    folder = root / "data/runs" / name
    return [RunDirectory(path) for path in [*sorted(folder.glob("before_*")), folder]]


def _hyperparameters(root: Path, name: str) -> nnlib.Hyperparameters:
    text = (root / "data/runs" / name / "hyperparameters.json").read_text(encoding="utf-8")
    return nnlib.Hyperparameters.from_dict(json.loads(text))


def _results(root: Path, name: str) -> dict:
    return json.loads((root / "data/runs" / name / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECIPES)
def test_results_are_those_of_the_shipped_logs(readme, root, name):
    cells = (
        next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        .strip(" |")
        .split(" | ")
    )
    histories = [log.read_history() for log in _logs(root, name)]
    assert cells[2] == " + ".join(str(len(history)) for history in histories)
    seconds = sum(record["seconds"] for history in histories for record in history)
    assert cells[3] == (f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s")
    found = _results(root, name)
    alone = json.loads((root / "data/benchmarks/recipes.json").read_text(encoding="utf-8"))["rows"]
    assert cells[4] == next(
        f"{row['seconds_per_epoch']:.1f} s" for row in alone if row["recipe"] == name
    )
    assert cells[5] == f"{max(record['valid_accuracy'] for record in histories[-1]):.4f}"
    assert cells[6] == f"{found['test'][0]:.4f}"
    assert cells[7] == f"{found['first 1,000 test images, official pixels'][0]:.3f}"


@pytest.mark.parametrize("name", ["quick", "fast"])
def test_spread_is_that_of_three_seeds(readme, root, name):
    names = [name, f"{name}_seed1", f"{name}_seed2"]
    assert [_hyperparameters(root, n).seed for n in names] == [0, 1, 2]
    of_test = [_results(root, n)["test"][0] for n in names]
    assert f"`{name}` {np.mean(of_test):.4f} ± {np.std(of_test, ddof=1):.4f}" in " ".join(
        readme.split()
    )


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_are_those_of_the_recipes(root, name):
    assert _hyperparameters(root, name).replace(seed=0) == nnlib.Hyperparameters.recipe(
        name.partition("_seed")[0]
    )


def test_five_recipes_differ_from_classic_in_one_thing():
    classic = nnlib.Hyperparameters.recipe("classic").to_dict()
    differences = [
        sum(classic[k] != v for k, v in nnlib.Hyperparameters.recipe(name).to_dict().items())
        for name in RECIPES
    ]
    assert differences.count(1) >= 5


@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_are_as_good_as_their_card_says(root, name, real_images):
    model, found = nnlib.load_model(root / "data/models" / f"{name}.npz"), _results(root, name)
    card = (root / "data/models" / f"{name}.md").read_text(encoding="utf-8")
    assert f"| test | {found['test'][0]:.4f} |" in card and f"`{model.info['fingerprint']}`" in card
    best = max(record["valid_accuracy"] for record in _logs(root, name)[-1].read_history())
    assert found["validation"][0] == pytest.approx(best, abs=1e-3)  # what float16 may cost
    data = nnlib.load_dataset("cifar10", real_images)
    if data.fingerprint != model.info["fingerprint"]:
        pytest.skip("these are other pixels than those that the README's numbers come from")
    assert nnlib.evaluate(model, data.test).accuracy == pytest.approx(found["test"][0], abs=2e-4)


def test_shipped_weights_stay_small(root):
    sizes = [(root / "data/models" / f"{name}.npz").stat().st_size for name in MODELS]
    assert max(sizes) < 15_000_000 and sum(sizes) < 40_000_000


def test_ablation_is_that_of_the_shipped_results(readme, root):
    rows = json.loads((root / "data/benchmarks/ablation.json").read_text(encoding="utf-8"))["rows"]
    for above, row in pairwise(rows):
        gain = row["valid_accuracy"] - above["valid_accuracy"]
        line = (
            f"| + {row['change']} | {row['epochs']} | {row['valid_accuracy']:.4f} | {gain:+.4f} |"
        )
        assert line in readme


def test_speed_is_that_of_the_shipped_benchmark(readme, root):
    results = {
        path.stem: json.loads(path.read_text("utf-8"))
        for path in (root / "data/benchmarks").glob("*.json")
    }
    table = {row["name"]: row["median"] for row in results["speed"]["table"]}
    for name, ratio in results["speed"]["nnlib_over"].items():
        assert f"| {name} | {table[name]:,} | {ratio['median']:.2f} |" in readme
    assert f"| nnlib | {table['nnlib']:,} | |" in readme
    seconds = [row["seconds"] for row in results["accuracy"]["rows"]]
    assert f"in {min(seconds):.1f} to {max(seconds):.1f} seconds" in " ".join(readme.split())
    assert f"peaks at {results['memory']['peak_resident_mb']:.0f} MB" in " ".join(readme.split())
