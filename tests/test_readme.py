"""README.md and docs/ are true: code runs, commands exist, links lead to files, numbers fit."""

import json
import pkgutil
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

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a page that name ``language``; commands name none."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [body for name, body in fences if name == language]


@each_page
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = nnlib.load_dataset("standin", n_train=6000, n_valid=200, n_test=100)
    monkeypatch.setattr(nnlib, "load_dataset", lambda *_: small)  # no download in a test
    known = dict(nnlib.ACTIVATIONS)
    try:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            exec(compile(block, page.name, "exec"), {})
    finally:  # a page may register an activation
        nnlib.ACTIVATIONS.clear()
        nnlib.ACTIVATIONS.update(known)
    if page.name == "README.md":
        assert (tmp_path / "runs/first/best.npz").exists()


def test_readme_is_short_and_its_example_too():
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 120
    (example,) = blocks(readme, "python")
    assert len(example.splitlines()) <= 6


def test_make_commands_exist():
    makefile = text_of("Makefile")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    named = set()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        # only code: in prose, "make" is also a word
        code = [*blocks(text, ""), *re.findall(r"`([^`\n]+)`", text)]
        named |= set(re.findall(r"\bmake ([\w-]+)", "\n".join(code)))
    assert {"report", "test", "lab", "help", "lint"} <= named
    assert named <= targets


def commands(*languages: str) -> list[str]:
    lines = []
    for page in PAGES:
        for language in languages:
            for block in blocks(page.read_text(encoding="utf-8"), language):
                lines += [line for line in block.splitlines() if line.startswith("nnlib ")]
    return lines


def test_terminal_commands_run(tmp_path):
    lines = commands("")
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "report":
            continue  # tests/report does that
        if words[0] in ("train", "search"):
            words += ["--data", "standin", "--train-images", "300"]
            if "--epochs" not in words:
                words += ["--epochs", "1", "--components", "8"]
        if words[0] in ("test", "data"):
            words += ["--data", "standin"]
        done = subprocess.run(
            [sys.executable, "-m", "nnlib", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_options_in_the_prose_exist():
    """Every option that docs/report.md and docs/search.md name is one of its command's."""
    for page, command in (("docs/report.md", "report"), ("docs/search.md", "search")):
        done = subprocess.run(
            [sys.executable, "-m", "nnlib", command, "--help"], capture_output=True, text=True
        )
        asked = set(re.findall(r"`(--[a-z-]+)", text_of(page)))
        assert asked
        assert not {option for option in asked if option not in done.stdout}


@each_page
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_page_of_docs_is_linked():
    readme = text_of("README.md")
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in readme, page.name


def test_list_of_names_is_complete():
    names = set(re.findall(r"`nnlib\.(\w+)`", text_of("docs/api.md")))
    for name in names:
        pkgutil.resolve_name(f"nnlib.{name}")
    assert not set(nnlib.__all__) - names


RUNS = sorted(path.parent.name for path in (ROOT / "data/runs").glob("*/results.json"))
RECIPES = [name for name in RUNS if "_seed" not in name]
MODELS = sorted(path.stem for path in (ROOT / "data/models").glob("*.npz"))


def history_of(name: str) -> list[dict]:
    return RunDirectory(ROOT / "data/runs" / name).read_history()


def hyperparameters_of(name: str) -> nnlib.Hyperparameters:
    settings = json.loads(text_of(f"data/runs/{name}/hyperparameters.json"))
    return nnlib.Hyperparameters.from_dict(settings)


def results_of(name: str) -> dict:
    return json.loads(text_of(f"data/runs/{name}/results.json"))


def benchmark(name: str) -> dict:
    return json.loads(text_of(f"data/benchmarks/{name}.json"))


def minutes_or_seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


@pytest.mark.parametrize("name", RECIPES)
def test_results_are_those_of_the_shipped_logs(name):
    """The numbers of a row: epochs, time, and the accuracies of the best weights."""
    history = history_of(name)
    found = results_of(name)
    numbers = [
        f"{len(history)}",
        minutes_or_seconds(sum(record["seconds"] for record in history)),
        f"{max(record['valid_accuracy'] for record in history):.4f}",
        f"{found['test'][0]:.4f}",
        f"{found['test, averaged with the mirror image'][0]:.4f}",
        f"{found['first 1,000 test images, official pixels'][0]:.3f}",
    ]
    row = re.search(rf"^\| `{name}` \| [^|]+ \| (.*) \|$", text_of("README.md"), re.M)
    assert row, f"README.md has no row for {name}: {' | '.join(numbers)}"
    assert row[1].split(" | ") == numbers, f"it should say {' | '.join(numbers)}"


def test_every_row_of_results_has_a_run():
    rows = re.findall(r"^\| `(\w+)` \|", text_of("README.md"), re.M)
    assert sorted(rows) == sorted(RECIPES)


@pytest.mark.parametrize("name", ["quick", "fast", "sparse", "dense"])
def test_spread_is_that_of_three_seeds(name):
    names = [name, f"{name}_seed1", f"{name}_seed2"]
    assert [hyperparameters_of(n).seed for n in names] == [0, 1, 2]
    of_test = [results_of(n)["test"][0] for n in names]
    stated = f"- `{name}` {np.mean(of_test):.4f} ± {np.std(of_test, ddof=1):.4f}\n"
    assert stated in text_of("docs/results.md")


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_are_those_of_the_recipes(name):
    recipe = nnlib.Hyperparameters.recipe(name.partition("_seed")[0])
    assert hyperparameters_of(name).replace(seed=0) == recipe


def test_five_recipes_differ_from_classic_in_one_thing():
    classic = nnlib.Hyperparameters.recipe("classic").to_dict()
    changes = []
    for name in RECIPES:
        recipe = nnlib.Hyperparameters.recipe(name).to_dict()
        changes.append(sum(classic[field] != value for field, value in recipe.items()))
    assert changes.count(1) >= 5


@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_are_as_good_as_their_card_says(name, real_images):
    model = nnlib.load_model(ROOT / "data/models" / f"{name}.npz")
    found = results_of(name)
    card = text_of(f"data/models/{name}.md")
    assert f"| test | {found['test'][0]:.4f} |" in card
    assert f"`{model.info['fingerprint']}`" in card
    best = max(record["valid_accuracy"] for record in history_of(name))
    assert found["validation"][0] == pytest.approx(best, abs=1e-3)  # what float16 may cost
    data = nnlib.load_dataset("cifar10", real_images)
    if data.fingerprint != model.info["fingerprint"]:
        pytest.skip("these are other pixels than those that the README's numbers come from")
    assert nnlib.evaluate(model, data.test).accuracy == pytest.approx(found["test"][0], abs=2e-4)


def test_shipped_weights_stay_small():
    sizes = [(ROOT / "data/models" / f"{name}.npz").stat().st_size for name in MODELS]
    assert max(sizes) < 15_000_000
    assert sum(sizes) < 40_000_000


def test_ablation_is_that_of_the_shipped_results():
    page = text_of("docs/results.md")
    for above, row in pairwise(benchmark("ablation")["rows"]):
        gain = row["valid_accuracy"] - above["valid_accuracy"]
        line = (
            f"| + {row['change']} | {row['epochs']} | {row['valid_accuracy']:.4f} | {gain:+.4f} |"
        )
        assert line in page


def test_speed_is_that_of_the_shipped_benchmark():
    """docs/speed.md shows every contestant, and names the fastest of the plain NumPy versions."""
    page = text_of("docs/speed.md")
    speed = benchmark("speed")
    table = {row["name"]: row["median"] for row in speed["table"]}
    ratios = {name: table["nnlib"] / median for name, median in table.items()}
    for name, ratio in speed["nnlib_over"].items():
        ratios[name] = ratio["median"]  # measured part by part, better than medians divided
    assert f"| nnlib | {table.pop('nnlib'):,} | |\n" in page
    for name, median in table.items():
        assert f"| {name} | {median:,} | {ratios[name]:.2f} |\n" in page
    plain = {name: median for name, median in table.items() if name.startswith("NumPy")}
    fastest = max(plain, key=plain.__getitem__)
    assert f"The fastest plain NumPy is *{fastest}*" in page


def test_numbers_about_speed_are_those_of_the_shipped_benchmarks():
    page = on_one_line(text_of("docs/speed.md"))
    accuracy, memory = benchmark("accuracy"), benchmark("memory")
    seconds = [row["seconds"] for row in accuracy["rows"]]
    peer = [row["peer_epoch_seconds"] for row in accuracy["rows"]]
    assert f"accuracy of {accuracy['target']} in {min(seconds):.1f} to {max(seconds):.1f} s" in page
    assert f"takes {min(peer):.1f} to {max(peer):.1f} seconds" in page
    assert f"peaks at {memory['peak_resident_mb']:.0f} MB" in page
    assert f"takes {memory['evaluation_seconds']:.2f} s" in page
    assert f"alone take {memory['evaluation_products_seconds']:.2f} s" in page
    nnlib_speed = benchmark("speed")["table"][0]["median"]
    assert f"{nnlib_speed:,} images a second on two cores" in text_of("README.md")
