"""The command line: options follow Hyperparameters, and an error is one line and an exit status."""

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import nnlib
from nnlib import cli
from nnlib.searching import Range, Trial
from nnlib.training.hyperparameters import Hyperparameters

SMALL = ["--epochs", "2", "--hidden-sizes", "16", "8", "--batch-size", "32"]
SMALL += ["--preprocessing", "scale"]


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nnlib.Dataset:
    """Every command gets the same few images, and runs in a folder of its own."""
    data = nnlib.load_dataset("standin", n_train=200, n_valid=50, n_test=60)
    monkeypatch.setattr(nnlib, "load_dataset", lambda name, root=None: data)
    monkeypatch.chdir(tmp_path)
    return data


def given(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.run(arguments)
    return status, *capsys.readouterr()


def train(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return given(capsys, "train", "--run-dir", "r", "--quiet", *SMALL, *arguments)


def test_every_field_is_an_option_with_its_help(capsys):
    status, out, _ = given(capsys, "train", "--help")
    assert status == 0
    words = " ".join(out.replace("│", " ").split())
    for field in fields(Hyperparameters):
        assert f"--{field.name.replace('_', '-')} " in words
        assert " ".join(field.metadata["help"].split()[:3]) in words


def test_recipe_then_options():
    options = cli.Options(
        hidden_sizes=(128, 64), momentum=0.5, nesterov=False, activation=("tanh",)
    )
    expected = Hyperparameters.recipe(
        "quick", hidden_sizes=(128, 64), momentum=0.5, nesterov=False, activation="tanh"
    )
    assert cli.hyperparameters("quick", None, options) == expected
    assert cli.hyperparameters(None, None, None) == Hyperparameters()
    layers = cli.Options(hidden_sizes=(8, 8), activation=("tanh", "relu"))
    assert cli.hyperparameters(None, None, layers).activation == ("tanh", "relu")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", "epochs = 7\nhidden_sizes = [9, 8]\n"),
        ("c.json", '{"epochs": 7, "hidden_sizes": [9, 8]}'),
    ],
)
def test_recipe_then_file_then_options(name: str, text: str):
    Path(name).write_text(text)
    found = cli.hyperparameters("quick", Path(name), cli.Options(hidden_sizes=(5,)))
    assert found == Hyperparameters.recipe("quick", epochs=7, hidden_sizes=(5,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "no TOML or JSON"),
        ("epoch = 3", "Did you mean 'epochs'"),
        ("epochs = -1", "epochs: -1 is not"),
    ],
)
def test_a_file_that_is_wrong_is_refused(capsys, text: str, message: str):
    Path("c.toml").write_text(text)
    status, out, err = given(capsys, "train", "--config", "c.toml")
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_runs_own_file_is_a_config(capsys):
    assert train(capsys, "--momentum", "0.7")[0] == 0
    assert cli.hyperparameters(None, Path("r/hyperparameters.json"), None).momentum == 0.7


def test_json_alone_on_stdout(capsys, small_data: nnlib.Dataset):
    status, out, err = given(capsys, "train", "--json", "--run-dir", "r", *SMALL)
    run = json.loads(out)
    assert status == 0
    assert run["best weights"] == str(Path("r/best.npz"))
    assert 0 <= run["valid_accuracy"] <= 1
    assert "epoch   2/2" in err  # progress has gone where errors go
    status, out, _ = given(capsys, "test", "r/best.npz", "--json")
    result = nnlib.evaluate(nnlib.load_model("r/best.npz"), small_data.test)
    assert json.loads(out)["loss"] == result.loss
    assert json.loads(out)["per_class"] == result.per_class
    vary = ["--vary", "l2=0,0.1", "--directory", "s"]
    status, out, _ = given(capsys, "search", "--json", *vary, *SMALL)
    assert json.loads(out)["best"]["l2"] in (0, 0.1)
    status, out, _ = given(capsys, "data", "info", "--json")
    assert json.loads(out)["train"] == 200
    assert given(capsys, "train", "--json", "--l2", "-1")[:2] == (2, "")


def test_recipes_as_a_file_of_options(capsys):
    status, out, _ = given(capsys, "recipes", "--json")
    found = json.loads(out)
    assert status == 0 and set(found) == set(Hyperparameters.recipes())
    for name, differing in found.items():
        assert Hyperparameters(**differing) == Hyperparameters.recipe(name)
    assert "  learning_rate: 0.2\n" in given(capsys, "recipes")[1]


def test_dry_run_measures_and_writes_nothing(capsys):
    status, out, _ = given(capsys, "train", "--dry-run", "--json", *SMALL)
    found = json.loads(out)
    assert status == 0 and not list(Path().iterdir())
    assert found["layers"] == [3072, 16, 8, 10]
    assert found["parameters"] == 3073 * 16 + 17 * 8 + 9 * 10
    assert found["hyperparameters"]["hidden_sizes"] == [16, 8]
    assert found["hyperparameters"]["l2"] == 0
    assert found["steps"] == 14
    assert 0 < found["training_seconds"] < 60
    assert 1 <= found["memory_mb"] < 500


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ("--vary l2=0,0.1,0.2 --vary momentum=0,0.5 --seeds 2 --workers 2", 12),
        ("--vary l2=0,0.1,0.2 --vary seed=0..99 --method random --n-trials 9", 9),
        ("--vary l2=0.1..1 --method tpe", 20),
    ],
)
def test_dry_run_of_a_search_counts_its_runs(capsys, options: str, runs: int):
    out = given(capsys, "search", "--dry-run", *options.split(), *SMALL)[1]
    assert f"runs: {runs}\n" in out
    assert not list(Path().iterdir())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str):
    script = cli.app.generate_completion(shell=shell)
    assert all(word in script for word in ("visualize", "learning-rate", "label-smoothing"))


def test_train_then_test(capsys, small_data: nnlib.Dataset):
    status, out, err = train(
        capsys, "--recipe", "quick", "--no-flip", "--l2", "0.001", "--activation", "relu", "tanh"
    )
    assert status == 0 and f"best weights: {Path('r') / 'best.npz'}" in out
    assert "stand-in" in err  # the numbers are not those of CIFAR-10, and it says so
    saved = Hyperparameters.from_dict(json.loads(Path("r/hyperparameters.json").read_text()))
    expected = {
        "hidden_sizes": (16, 8),
        "activation": ("relu", "tanh"),
        "l2": 0.001,
        "flip": False,
        "momentum": 0.9,
    }
    assert {name: getattr(saved, name) for name in expected} == expected

    status, out, _ = given(capsys, "test", "r/best.npz")
    result = nnlib.evaluate(nnlib.load_model("r/best.npz"), small_data.test)
    assert status == 0 and "images: 60" in out
    assert f"loss: {result.loss:.5g}\naccuracy: {result.accuracy:.5g}\n" in out


def test_visualize_draws_every_layer_before_and_after(capsys):
    assert train(capsys)[0] == 0
    status, out, _ = given(capsys, "visualize", "r/best.npz", "--output", "drawn")
    names = ["weight_histograms", "weight_heatmaps", "first_layer_initial", "first_layer_trained"]
    files = [Path("drawn") / f"{name}.png" for name in names]
    assert status == 0 and out.splitlines() == [f"{path.stem}: {path}" for path in files]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    first = given(capsys, "visualize", "r")[1].splitlines()[0]
    assert first == f"{names[0]}: {Path('figures/weights') / names[0]}.png"


def test_train_goes_on_where_it_stopped(capsys):
    status, _, err = train(capsys)
    assert status == 0 and "training in" not in err  # --quiet
    before = Path("r/best.npz").read_bytes()
    assert train(capsys)[0] == 0
    assert Path("r/best.npz").read_bytes() == before


def test_run_folder_by_default(capsys):
    assert given(capsys, "train", "--quiet", *SMALL)[0] == 0
    assert len(list(Path("runs").glob("train-*/best.npz"))) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--bogus"], 2, "Unknown option: --bogus"),
        (["frobnicate"], 2, 'Unknown command "frobnicate"'),
        (["train", "--learning-rate", "fast"], 2, "--learning-rate"),
        (["train", "--learning-rate", "-1"], 2, "learning_rate: -1.0 is not allowed"),
        (["train", "--recipe", "slow"], 2, "slow"),
        (["test"], 2, "MODEL"),
        (
            ["test", "absent.npz"],
            1,
            "absent.npz: there is no such file; nnlib train writes RUN_DIR/best.npz",
        ),
        (["train", "--config", "absent.toml"], 2, "config: absent.toml is no TOML or JSON file"),
        (["report", "--to", "markdown"], 2, "--to"),
        (["search"], 2, "nothing to search"),
        (["search", "--vary", "l2"], 2, "vary: 'l2' is not allowed"),
        (["search", "--vary", "l2=0,1", "--vary", "l2=2"], 2, "vary: a field is given twice"),
        (["search", "--vary", "l2=3..1"], 2, "vary: 'l2=3..1' is not allowed; range"),
        (["search", "--vary", "learning_rate=0.1,abc"], 2, "learning_rate: 'abc' is not allowed"),
        (["report", "--notebooks-dir", "absent"], 1, "there are no notebooks"),
        (["train", "--epochs", "1.5"], 2, "--epochs"),
        (["train", "--hidden-sizes", "8", "2.5"], 2, "--hidden-sizes"),
        (["train", "--hidden-sizes", "--dry-run"], 2, "--hidden-sizes"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(capsys, arguments, status, message):
    found, out, err = given(capsys, *arguments)
    assert (found, out) == (status, "")
    assert err.startswith("nnlib: ") and err.count("\n") == 1 and message in err


def test_debug_adds_the_traceback(capsys):
    status, _, err = given(capsys, "test", "absent.npz", "--debug")
    assert status == 1 and err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("nnlib: absent.npz")


def test_a_bug_is_one_line_too(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nnlib, "load_model", lambda path: 1 / 0)
    assert given(capsys, "test", "x.npz") == (
        1,
        "",
        "nnlib: ZeroDivisionError: division by zero (--debug shows where)\n",
    )


def test_interrupt(capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nnlib, "load_model", interrupt)
    assert given(capsys, "test", "x.npz") == (130, "", "nnlib: interrupted\n")


def test_errors_that_need_the_data_to_be_seen(capsys):
    status, out, err = given(capsys, "search", "--dry-run", "--vary", "l2=0.1..1", *SMALL)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("nnlib: l2: a grid needs a list")
    status, out, err = given(capsys, "train", "--train-images", "0", *SMALL)
    assert (status, out) == (1, "")
    assert "0 training and 50 validation images" in err.splitlines()[-1]


def test_a_search_without_a_result_says_where_the_reasons_are(capsys):
    vary = ["--vary", "learning_rate=900,1000"]
    status, _, err = given(capsys, "search", *vary, "--directory", "s", *SMALL)
    assert status == 1 and "no trial is complete" in err and "results.json" in err
    assert "the loss is" in Path("s/results.json").read_text()


def test_interrupted_training_says_how_to_continue(capsys, monkeypatch: pytest.MonkeyPatch):
    def at_once(trainer: nnlib.Trainer) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext(trainer.stop("interrupted"))

    monkeypatch.setattr(nnlib.training.trainer, "interrupts", at_once)
    status, out, _ = train(capsys)
    assert status == 130 and "interrupted: --run-dir r continues the run\n" in out


def test_a_search_interrupted_before_its_first_result_says_so(
    capsys, monkeypatch: pytest.MonkeyPatch
):
    pruned = Trial(0, {"l2": 0}, status="pruned")
    empty = nnlib.SearchResults(Hyperparameters(), {}, "halving", [pruned], interrupted=True)
    monkeypatch.setattr(nnlib, "search", lambda *arguments, **options: empty)
    status, out, err = given(capsys, "search", "--vary", "l2=0,1", *SMALL)
    assert (status, out) == (130, "") and err.splitlines()[-1] == "nnlib: interrupted"


def test_a_place_that_cannot_be_written_is_named(capsys):
    assert train(capsys)[0] == 0
    Path("file").touch()
    for place in ("file", "file/x"):
        status, out, err = given(capsys, "visualize", "r", "--output", place)
        assert (status, out) == (1, "")
        assert err.startswith("nnlib: file") and err.endswith("; name another place.\n")


@pytest.mark.parametrize("command", [["train"], ["search"], ["data", "info"], ["report"]])
def test_every_help_explains_the_common_options(capsys, command):
    out = given(capsys, *command, "--help")[1]
    assert "--json" in out and "--debug" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=0.01,0.05", ("learning_rate", [0.01, 0.05])),
        ("batch-size=32", ("batch_size", [32])),
        ("hidden_sizes=[64],[128,64]", ("hidden_sizes", [[64], [128, 64]])),
        ("activation=relu, tanh", ("activation", ["relu", "tanh"])),
        ("flip=true,false", ("flip", [True, False])),
        (
            "activation=leaky_relu(0.2),[relu,tanh]",
            ("activation", ["leaky_relu(0.2)", ["relu", "tanh"]]),
        ),
        ('schedule="cosine",constant', ("schedule", ["cosine", "constant"])),
        ("l2=1e-5,truest", ("l2", [1e-5, "truest"])),
    ],
)
def test_values_to_vary(text: str, expected: tuple[str, list[object]]):
    assert cli._parse_vary(text) == expected


def test_ranges_to_vary():
    assert cli._parse_vary("l2=1e-5..0.01") == ("l2", Range(1e-5, 0.01, log=True))
    assert cli._parse_vary("momentum=0..0.9") == ("momentum", Range(0, 0.9))
    whole = Range(32, 512, log=True, whole=True)
    assert cli._parse_vary("batch_size=32..512") == ("batch_size", whole)


def test_search_ranks_and_records(capsys):
    vary = ["--vary", "learning_rate=0.001,0.1", "--vary", "hidden_sizes=[8],[8,4]"]
    small = ["--epochs", "1", "--batch-size", "50", "--preprocessing", "scale"]
    status, out, _ = given(capsys, "search", "--directory", "s", *vary, *small)
    assert status == 0
    assert len(json.loads(Path("s/results.json").read_text())["trials"]) == 4
    accuracies = [float(row) for row in re.findall(r" complete +([\d.]+)", out)]
    assert len(accuracies) == 4 and accuracies == sorted(accuracies, reverse=True)
    assert re.search(r"best:\n  learning_rate: [\d.]+\n  hidden_sizes: \(8,( 4)?\)\n", out)


def test_data_commands(
    capsys, small_data: nnlib.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("NNLIB_DATA_DIR", str(tmp_path / "elsewhere"))
    assert given(capsys, "data", "path") == (0, f"{tmp_path / 'elsewhere'}\n", "")
    assert json.loads(given(capsys, "data", "path", "--json")[1]) == str(tmp_path / "elsewhere")
    status, out, _ = given(capsys, "data", "verify")
    assert status == 1 and out.count("missing") == 7
    status, out, _ = given(capsys, "data", "info")
    assert status == 0 and "train: 200\n" in out and small_data.fingerprint in out


def test_report_passes_its_options_on(capsys, monkeypatch: pytest.MonkeyPatch):
    from nnlib.report import export

    asked: dict[str, object] = {}

    def build(output: Path, **options: object) -> Path:
        asked.update(options)
        return output / "report.pdf"

    monkeypatch.setattr(export, "build", build)
    options = ["--quick", "--hide-code", "--author", "A", "--to", "pdf", "--recipe", "fast"]
    status, out, _ = given(capsys, "report", "--notebooks", "01, 03", *options)
    assert (status, out) == (0, f"report: {Path('report/report.pdf')}\n")
    assert asked == {
        "notebooks": ["01", "03"],
        "dataset": "auto",
        "quick": True,
        "author": "A",
        "code": "hide",
        "notebooks_dir": None,
        "recipe": "fast",
        "to": "pdf",
    }


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "nnlib", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == nnlib.__version__


def test_help_goes_into_a_pipe_that_knows_no_greek():
    """Pipes on Windows are like that, and the help has λ and ‖ in it."""
    command = [sys.executable, "-m", "nnlib", "train", "--help"]
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0 and b"--label-smoothing" in done.stdout
