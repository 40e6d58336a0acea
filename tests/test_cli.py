"""The command line: options follow Hyperparameters, errors are one line, and the exit status says who erred."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import nnlib
from nnlib import cli
from nnlib.hyperparameters import Hyperparameters

SMALL = ["--epochs", "2", "--hidden-sizes", "16", "8", "--batch-size", "32", "--preprocessing", "scale"]


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nnlib.Dataset:
    """Every command gets the same few images, and a folder of its own to stand in."""
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
    options = cli.Options(hidden_sizes=(128, 64), momentum=0.5, nesterov=False, activation=("tanh",))
    expected = Hyperparameters.recipe("quick", hidden_sizes=(128, 64), momentum=0.5, nesterov=False, activation="tanh")
    assert cli.hyperparameters("quick", None, options) == expected
    assert cli.hyperparameters(None, None, None) == Hyperparameters()
    layers = cli.Options(hidden_sizes=(8, 8), activation=("tanh", "relu"))
    assert cli.hyperparameters(None, None, layers).activation == ("tanh", "relu")


def test_train_then_test(capsys, small_data: nnlib.Dataset):
    status, out, err = train(capsys, "--recipe", "quick", "--no-flip", "--l2", "0.001", "--activation", "relu", "tanh")
    assert status == 0 and f"best weights: {Path('r') / 'best.npz'}" in out
    assert "stand-in" in err  # the numbers are not those of CIFAR-10, and it says so
    saved = Hyperparameters.from_dict(json.loads(Path("r/hyperparameters.json").read_text()))
    expected = {"hidden_sizes": (16, 8), "activation": ("relu", "tanh"), "l2": 0.001, "flip": False, "momentum": 0.9}
    assert {name: getattr(saved, name) for name in expected} == expected

    status, out, _ = given(capsys, "test", "r/best.npz")
    result = nnlib.evaluate(nnlib.load_model("r/best.npz"), small_data.test)
    assert status == 0
    assert f"loss: {result.loss:.5g}\naccuracy: {result.accuracy:.5g}\n" in out and "images: 60" in out


def test_visualize_draws_every_layer_before_and_after(capsys):
    assert train(capsys)[0] == 0
    status, out, _ = given(capsys, "visualize", "r/best.npz", "--output", "drawn")
    names = ["weight_histograms", "weight_heatmaps", "first_layer_initial", "first_layer_trained"]
    files = [Path("drawn") / f"{name}.png" for name in names]
    assert status == 0 and out.splitlines() == [f"{path.stem}: {path}" for path in files]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)


def test_train_goes_on_where_it_stopped(capsys):
    assert train(capsys)[0] == 0
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
        (["test", "absent.npz"], 1, "absent.npz: there is no such file"),
        (["search"], 2, "nothing to search"),
        (["search", "--vary", "l2"], 2, "vary: 'l2' is not allowed"),
        (["report", "--notebooks-dir", "absent"], 1, "there are no notebooks"),
    ],
)
def test_errors_are_one_line_and_the_status_says_who_erred(capsys, arguments, status, message):
    found, out, err = given(capsys, *arguments)
    assert (found, out) == (status, "")
    assert err.startswith("nnlib: ") and err.count("\n") == 1 and message in err


def test_debug_adds_the_traceback(capsys):
    status, _, err = given(capsys, "test", "absent.npz", "--debug")
    assert status == 1 and err.startswith("Traceback") and err.splitlines()[-1].startswith("nnlib: absent.npz")


def test_a_bug_is_one_line_too(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nnlib, "load_model", lambda path: 1 / 0)
    assert given(capsys, "test", "x.npz") == (
        1,
        "",
        "nnlib: ZeroDivisionError: division by zero (--debug shows where)\n",
    )


def test_interrupt(monkeypatch: pytest.MonkeyPatch):
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nnlib, "load_model", interrupt)
    assert cli.run(["test", "x.npz"]) == 130


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=0.01,0.05", ("learning_rate", [0.01, 0.05])),
        ("batch-size=32", ("batch_size", [32])),
        ("hidden_sizes=[64],[128,64]", ("hidden_sizes", [[64], [128, 64]])),
        ("activation=relu, tanh", ("activation", ["relu", "tanh"])),
        ("flip=true,false", ("flip", [True, False])),
    ],
)
def test_values_to_vary(text: str, expected: tuple[str, list[object]]):
    assert cli._parse_vary(text) == expected


def test_ranges_to_vary():
    from nnlib.searching import Range

    assert cli._parse_vary("l2=1e-5..0.01") == ("l2", Range(1e-5, 0.01, log=True))
    assert cli._parse_vary("momentum=0..0.9") == ("momentum", Range(0, 0.9))
    assert cli._parse_vary("batch_size=32..512") == ("batch_size", Range(32, 512, log=True, whole=True))


def test_search_ranks_and_records(capsys):
    vary = ["--vary", "learning_rate=0.001,0.1", "--vary", "hidden_sizes=[8],[8,4]"]
    small = ["--epochs", "1", "--batch-size", "50", "--preprocessing", "scale"]
    status, out, _ = given(capsys, "search", "--directory", "s", *vary, *small)
    assert status == 0
    assert len(json.loads(Path("s/results.json").read_text())["trials"]) == 4
    accuracies = [float(row) for row in re.findall(r" complete +([\d.]+)", out)]
    assert len(accuracies) == 4 and accuracies == sorted(accuracies, reverse=True)
    assert re.search(r"best:\n  learning_rate: [\d.]+\n  hidden_sizes: \(8,( 4)?\)\n", out)


def test_data_commands(capsys, small_data: nnlib.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("NNLIB_DATA_DIR", str(tmp_path / "elsewhere"))
    assert given(capsys, "data", "path") == (0, f"{tmp_path / 'elsewhere'}\n", "")
    status, out, _ = given(capsys, "data", "verify")
    assert status == 1 and out.count("missing") == 7
    status, out, _ = given(capsys, "data", "info")
    assert status == 0 and "train: 200\n" in out and small_data.fingerprint in out


def test_report_passes_its_options_on(capsys, monkeypatch: pytest.MonkeyPatch):
    from nnlib import report

    asked: list[object] = []
    monkeypatch.setattr(report, "build", lambda *arguments: asked.extend(arguments))
    assert (
        given(
            capsys,
            "report",
            "--quick",
            "--notebooks",
            "01, 03",
            "--hide-code",
            "--author",
            "A",
            "--to",
            "pdf",
            "--recipe",
            "fast",
        )[0]
        == 0
    )
    assert asked == [Path("report"), ["01", "03"], "auto", True, "A", "hide", None, "fast", "pdf"]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "nnlib", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == nnlib.__version__
