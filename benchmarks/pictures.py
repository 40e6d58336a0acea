"""The benchmark's pictures: each function turns the content of one JSON file into a ``Figure``."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nnlib import plots

COLOURS = {"nnlib": plots.BLUE, "PyTorch eager": plots.ORANGE, "products alone": plots.GREY}


def axes(columns: int, height: float = 3.8) -> Any:
    """Return a figure and its ``columns`` axes side by side."""
    with plots.style():
        figure = Figure(figsize=(9, height), layout="constrained")
        return figure, figure.subplots(1, columns, squeeze=False)[0]


def speed(result: dict[str, Any]) -> Figure:
    """Bars of images a second, with the range of the rounds."""
    table = pd.DataFrame(result["table"]).sort_values("median")
    figure, (ax,) = axes(1, 4.2)
    colors = [
        COLOURS.get(name, plots.BLUE if name.startswith("nnlib") else "0.75")
        for name in table["name"]
    ]
    spread = [table["median"] - table["min"], table["max"] - table["median"]]
    ax.barh(table["name"], table["median"], color=colors, xerr=spread, ecolor="0.3", capsize=3)
    for place, (median, high) in enumerate(zip(table["median"], table["max"], strict=True)):
        ax.text(high, place, f"  {median:,}", va="center")
    ax.set(
        title="Training 3072-1024-256-10, batch 256: what surrounds the products is small",
        xlabel="images a second",
    )
    ax.grid(False, axis="y")
    ax.margins(x=0.12)
    return figure


def scaling(result: dict[str, Any]) -> Figure:
    """Images a second against the hidden size, for each number of threads, and the batch size."""
    table = pd.DataFrame(result["table"])
    most = table["threads"].max()
    figure, (left, right) = axes(2)
    for (name, threads), rows in table[table["batch_size"] == 256].groupby(
        ["name", "threads"], sort=False
    ):
        line = "-" if threads == most else ":"
        left.loglog(
            rows["hidden"],
            rows["median"],
            line,
            marker="o",
            ms=4,
            color=COLOURS[name],
            label=f"{name}, {threads}",
        )
    for name, rows in table[(table["hidden"] == 1024) & (table["threads"] == most)].groupby(
        "name", sort=False
    ):
        rows = rows.sort_values("batch_size")
        right.loglog(
            rows["batch_size"], rows["median"], marker="o", ms=4, color=COLOURS[name], label=name
        )
    left.set(
        title="Wider layers cost what their arithmetic costs",
        xlabel="units of the first hidden layer",
    )
    left.set_ylabel("images a second")
    right.set(
        title="Larger batches pay, up to a few hundred", xlabel="images in a batch, hidden 1024-256"
    )
    left.legend(title="threads", fontsize=8)
    right.legend(fontsize=8)
    return figure


def small(result: dict[str, Any]) -> Figure:
    """Bars of images a second on small networks, each contestant at its best number of threads."""
    table = pd.DataFrame(result["best"])
    figure, (ax,) = axes(1, 3.4)
    names = [name for name in COLOURS if name in table]
    for place, name in enumerate(names):
        bars = ax.bar(
            [x + 0.27 * (place - 1) for x in range(len(table))],
            table[name],
            0.25,
            color=COLOURS[name],
        )
        ax.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        bars.set_label(name)
    ticks = [f"{row['inputs']} inputs\nbatch {row['batch_size']}" for row in result["best"]]
    ax.set_xticks(range(len(table)), ticks)
    ax.set(
        title="Small networks, hidden (64, 32), each at its best number of threads",
        ylabel="images a second",
    )
    ax.legend(fontsize=9)
    return figure


def threads(result: dict[str, Any]) -> Figure:
    """Bars of a small network's speed, alone and beside a busy neighbor."""
    table = pd.DataFrame(result["table"])
    figure, (ax,) = axes(1, 3.2)
    busy = table["busy neighbors"] > 0
    names = [
        f"{'busy machine' if b else 'quiet machine'}\n{t}"
        for b, t in zip(busy, table["threads"], strict=True)
    ]
    spread = [table["median"] - table["min"], table["max"] - table["median"]]
    bars = ax.bar(
        names,
        table["median"],
        color=[plots.ORANGE if b else plots.BLUE for b in busy],
        yerr=spread,
        capsize=3,
    )
    ax.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white")
    ax.set(
        title="A small network beside a busy process: one thread does not wait for another",
        ylabel="images a second",
    )
    return figure


def accuracy(result: dict[str, Any]) -> Figure:
    """Bars of the seconds that each seed of ``fast`` needs, beside one epoch of PyTorch."""
    rows = result["rows"]
    figure, (ax,) = axes(1, 3.0)
    labels = [f"fast, seed {row['seed']}" for row in rows] + [f"one epoch of\n{result['peer']}"]
    epoch = pd.Series([row["peer_epoch_seconds"] for row in rows]).median()
    seconds = [row.get("seconds") or 0 for row in rows] + [epoch]
    bars = ax.barh(labels, seconds, color=[plots.BLUE] * len(rows) + [plots.ORANGE])
    ax.bar_label(bars, fmt="{:.1f} s", padding=4)
    ax.set(
        title=f"Time to a validation accuracy of {result['target']}, preparation included",
        xlabel="seconds",
    )
    ax.margins(x=0.12)
    return figure


def whitening(result: dict[str, Any]) -> Figure:
    """Bars for each form of ZCA: time, memory, file and accuracy, side by side."""
    table = pd.DataFrame(result["rows"])
    colors = []
    for form in table["form"]:
        if form.startswith("thin"):
            colors.append(plots.BLUE)
        elif form.startswith("once"):
            colors.append(plots.ORANGE)
        else:
            colors.append(plots.GREY)
    panels = {
        "seconds_per_epoch": ("seconds an epoch", "{:.0f}"),
        "peak_mb": ("peak memory (MB)", "{:.0f}"),
        "map_mb": ("whitening in the file (MB)", "{:.1f}"),
    }
    figure, all_axes = axes(len(panels) + 1, 4.2)
    for ax, (name, (title, digits)) in zip(all_axes, panels.items(), strict=False):
        bars = ax.barh(table["form"], table[name], color=colors)
        ax.bar_label(bars, fmt=digits, padding=3, fontsize=9)
        ax.set_title(title, fontsize=10.5)
        ax.margins(x=0.3)
    # dots, not bars: the axis doesn't begin at zero, because the differences are small
    last = all_axes[-1]
    last.scatter(table["valid_accuracy"], table["form"], color=colors)
    for place, accuracy in enumerate(table["valid_accuracy"]):
        last.text(accuracy, place, f"   {accuracy:.3f}", va="center", fontsize=9)
    last.set_title(f"accuracy, {result['epochs']} epochs", fontsize=10.5)
    last.margins(x=0.45)
    for ax in all_axes:
        ax.set_ylim(len(table) - 0.5, -0.5)
        ax.grid(False, axis="y")
    for ax in all_axes[1:]:
        ax.set_yticklabels([])
    return figure


def draw(folder: Path, figures: Path) -> None:
    """Draw every part that has a file in ``folder`` to ``figures``/benchmark_*.png."""
    for make in (speed, scaling, small, threads, accuracy, whitening):
        source = folder / f"{make.__name__}.json"
        if source.exists():
            figure = make(json.loads(source.read_text(encoding="utf-8")))
            (figures / f"benchmark_{make.__name__}.png").write_bytes(plots.png(figure, dpi=150))
