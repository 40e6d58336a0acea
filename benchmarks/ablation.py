"""From the recipe ``classic`` to ``sparse``, one change at a time: ``make ablation``.

Each row trains for the same few epochs, with its own change and all changes above it. So the
difference to the row above is what this change brings, given those before it; in another order it
would bring something else. Two rows below them are the shipped runs of ``sparse``, which trains
longer, and ``best``, which is also wider. The test set is not looked at.

Writes data/benchmarks/ablation.json and figures/benchmark_ablation.png. A run that was broken off
goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pictures
from contestants import epoch_seconds
from matplotlib.figure import Figure

import nnlib
from nnlib import plots
from nnlib.training.history import History
from nnlib.training.rundir import RunDirectory, machine

ROOT = Path(__file__).parents[1]
CHANGES: dict[str, dict[str, Any]] = {
    "classic": {},
    "ReLU": {"activation": "relu"},
    "initialization by fan-in (He)": {"initialization": "auto"},
    "ZCA-whitened inputs, 512 axes": {"preprocessing": "zca", "components": 512},
    "mirror images": {"flip": True},
    "shifts by up to 3 pixels": {"shift": 3},
    "Nesterov momentum 0.9": {"momentum": 0.9, "nesterov": True},
    "cosine schedule from 0.2, warmed up": {
        "schedule": "cosine",
        "learning_rate": 0.2,
        "warmup_steps": 300,
        "min_learning_rate": 0.0,
    },
    "L2 0.0003 instead of 0.001": {"l2": 3e-4},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "L1 0.00002 on the first layer, cut at 50 times that": {"l1": 2e-5, "l1_cut": 50.0},
}
# Fields in which the last row may differ from the recipe: its epochs, and what cosine doesn't use.
UNUSED = ("epochs", "decay_rate", "decay_every")
SHIPPED = {"sparse": "{epochs} epochs", "best": "4096-512 units, L1 0.00001, {epochs} epochs"}


def settings(epochs: int) -> dict[str, nnlib.Hyperparameters]:
    """Return the hyperparameters of each row; the last is ``sparse`` but for its epochs."""
    hp = nnlib.Hyperparameters.recipe("classic", epochs=epochs)
    rows = {}
    for name, change in CHANGES.items():
        hp = hp.replace(**change)
        rows[name] = hp
    kept = {name: getattr(hp, name) for name in UNUSED}
    sparse = nnlib.Hyperparameters.recipe("sparse", **kept)
    assert hp == sparse, "the last row is not the recipe sparse"
    return rows


def row(name: str, history: History, minutes: float) -> dict[str, Any]:
    """Return what a run's history says in the table."""
    return {
        "change": name,
        "epochs": len(history),
        "valid_accuracy": history.best("valid_accuracy")["valid_accuracy"],
        "train_accuracy": history[-1]["train_accuracy"],
        "minutes": minutes,
    }


def shipped_history(name: str) -> History:
    """Return the history of a run in data/runs."""
    records = RunDirectory(ROOT / "data" / "runs" / name).read_history()
    return History(records)


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Return bars of each row's validation accuracy, with what the row adds to the one above."""
    table = pd.DataFrame(rows)
    gains = table["valid_accuracy"].diff()
    labels = []
    for accuracy, gain in zip(table["valid_accuracy"], gains, strict=True):
        label = f"{accuracy:.3f}"
        if not pd.isna(gain):
            label += f"  ({gain:+.3f})"
        labels.append(label)
    n_trained = len(rows) - len(SHIPPED)
    colors = [plots.BLUE] * n_trained + [plots.ORANGE] * len(SHIPPED)
    names = ["classic", *(f"+ {name}" for name in table["change"][1:])]
    figure, (ax,) = pictures.axes(1, 5)
    bars = ax.barh(names, table["valid_accuracy"], color=colors)
    ax.bar_label(bars, labels, padding=4, fontsize=9)
    ax.set(
        title="From classic to sparse and best, one change at a time",
        xlabel="best validation accuracy",
        xlim=(0, 0.9),
    )
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    return figure


def main() -> None:
    """Train the rows that are not there yet, and write table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs", type=int, default=12, help="epochs of each row that is trained [default: 12]"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "ablation", help="where the runs are kept"
    )
    options = parser.parse_args()
    data = nnlib.load_dataset("cifar10")
    rows = []
    for number, (name, hp) in enumerate(settings(options.epochs).items()):
        # the folder is named after the change, so that runs of an older list of changes don't fit
        slug = "".join(c if c.isalnum() else "-" for c in name.lower())
        folder = options.runs / f"{options.epochs}-epochs-{number:02}-{slug}"
        run = nnlib.train(hp, data, run_dir=folder)
        minutes = len(run.history) * epoch_seconds(hp, data) / 60
        rows.append(row(name, run.history, minutes))
    for name, change in SHIPPED.items():
        history = shipped_history(name)
        minutes = len(history) * epoch_seconds(nnlib.Hyperparameters.recipe(name), data) / 60
        rows.append(row(change.format(epochs=len(history)), history, minutes))
    document = {
        "machine": machine(),
        "data": data.source,
        "fingerprint": data.fingerprint,
        "rows": rows,
    }
    path = ROOT / "data" / "benchmarks" / "ablation.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (ROOT / "figures" / "benchmark_ablation.png").write_bytes(plots.png(picture(rows), dpi=150))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
