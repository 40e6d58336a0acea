"""From the recipe ``classic`` to ``best``, one change at a time: ``make ablation``.

Every step trains for the same few epochs with the change of its row and of all rows above, so that a row's difference
to the one above is what this change brings, given those before it; in another order it would bring something else. The
last row is the shipped run of ``best``, which trains 25 times as long. The test set is not looked at.

Writes data/benchmarks/ablation.json and figures/benchmark_ablation.png; a run that was broken off goes on.
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
    "initialisation by fan-in (He)": {"initialisation": "auto"},
    "whitened inputs, 768 components": {"preprocessing": "whiten", "components": 768},
    "mirror images": {"flip": True},
    "shifts by up to 3 pixels": {"shift": 3},
    "Nesterov momentum 0.9": {"momentum": 0.9, "nesterov": True},
    "cosine schedule from 0.1, warmed up": {
        "schedule": "cosine",
        "learning_rate": 0.1,
        "warmup_steps": 500,
        "min_learning_rate": 0.0,
    },
    "L2 0.0003 instead of 0.001": {"l2": 3e-4},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "dropout 0.05 on inputs, 0.1 on hidden units": {"dropout": 0.1, "input_dropout": 0.05},
}


def settings(epochs: int) -> dict[str, nnlib.Hyperparameters]:
    """Return the hyperparameters of each row; the last is ``best`` but for its epochs."""
    hp, rows = nnlib.Hyperparameters.recipe("classic", epochs=epochs), {}
    for name, change in CHANGES.items():
        hp = rows[name] = hp.replace(**change)
    same = ("epochs", "decay_rate", "decay_every")  # the cosine schedule uses no decay
    best = nnlib.Hyperparameters.recipe("best")
    assert hp == best.replace(**{name: getattr(hp, name) for name in same}), (
        "the last row is not the recipe best"
    )
    return rows


def row(name: str, history: History) -> dict[str, Any]:
    """Return what a run's history says in the table."""
    best = history.best("valid_accuracy")["valid_accuracy"]
    train = history[-1]["train_accuracy"]
    return {"change": name, "epochs": len(history), "valid_accuracy": best, "train_accuracy": train}


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Return bars of each row's validation accuracy, with what the row adds to the one above."""
    table = pd.DataFrame(rows)
    gain = table["valid_accuracy"].diff()
    labels = [
        f"{a:.3f}" + ("" if pd.isna(g) else f"  ({g:+.3f})")
        for a, g in zip(table["valid_accuracy"], gain, strict=True)
    ]
    figure, (ax,) = pictures.axes(1, 5)
    ends = ["classic", *(f"+ {name}" for name in table["change"][1:])]
    bars = ax.barh(
        ends, table["valid_accuracy"], color=[plots.BLUE] * (len(rows) - 1) + [plots.ORANGE]
    )
    ax.bar_label(bars, labels, padding=4, fontsize=9)
    ax.set(
        title="From classic to best, one change at a time",
        xlabel="best validation accuracy",
        xlim=(0, 0.87),
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
        "--epochs", type=int, default=12, help="epochs of every row but the last [default: 12]"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "ablation", help="where the runs are kept"
    )
    options = parser.parse_args()
    data, rows, all_settings = nnlib.load_dataset("cifar10"), [], settings(options.epochs)
    for number, (name, hp) in enumerate(all_settings.items()):
        run = nnlib.train(hp, data, run_dir=options.runs / f"{options.epochs}-epochs-{number:02}")
        rows.append(row(name, run.history))
    shipped = History(RunDirectory(ROOT / "data" / "runs" / "best").read_history())
    rows.append(row(f"{len(shipped)} epochs", shipped))
    for each, hp in zip(
        rows, [*all_settings.values(), nnlib.Hyperparameters.recipe("best")], strict=True
    ):
        each["minutes"] = each["epochs"] * epoch_seconds(hp, data) / 60
    document = {
        "machine": machine(),
        "data": data.source,
        "fingerprint": data.fingerprint,
        "rows": rows,
    }
    (ROOT / "data" / "benchmarks" / "ablation.json").write_text(
        json.dumps(document, indent=1) + "\n", encoding="utf-8"
    )
    (ROOT / "figures" / "benchmark_ablation.png").write_bytes(plots.png(picture(rows), dpi=150))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
