"""What all figures share: their look, what they are drawn from, and how they are shown and saved.

Figures are made without pyplot, whose state is global, so that widgets can draw in a thread. Such
a figure doesn't display itself: ``show`` puts it on the page, with its alt text, and saves it.
"""

import io
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnlib.extras import need
from nnlib.files import HOME, write_bytes
from nnlib.types import Array

# seaborn's "colorblind" palette, written out: importing seaborn for ten colors takes a second
BLUE = "#0173b2"
ORANGE = "#de8f05"
GREEN = "#029e73"
RED = "#d55e00"
GREY = "#949494"
PALETTE = [BLUE, ORANGE, GREEN, RED, "#cc78bc", "#ca9161", "#fbafe4", GREY, "#ece133", "#56b4e9"]

LOOK: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.titlesize": 12,
    "font.size": 10.5,
    "grid.color": "0.9",
    "svg.hashsalt": "nnlib",  # names inside an SVG come from this, not from chance
}
UNITS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (fraction of images)"}

# Matplotlib's settings are global, and it promises nothing about threads.
_one_at_a_time = threading.RLock()

SAVED_DPI = 150
PAGE_DPI = 100  # pixels of the page per inch; a saved image has 1.5 pixels for each of them


def quantity_words(name: str) -> str:
    """Return a quantity's readable name: ``"valid_accuracy"``, ``"validation accuracy"``."""
    split, _, rest = name.partition("_")
    words = {"train": "training", "valid": "validation"}.get(split, split)
    return f"{words} {rest}".replace("_", " ").strip()


@contextmanager
def style() -> Iterator[None]:
    """Give every figure made inside the ``with`` block nnlib's look; your own figures too."""
    with _one_at_a_time, matplotlib.rc_context(LOOK):
        yield


@style()
def png(figure: Figure, dpi: int = PAGE_DPI) -> bytes:
    """Return ``figure`` as PNG. The same figure always gives the same bytes."""
    out = io.BytesIO()
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)  # draws once, where savefig draws twice
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


@style()
def _trimmed(figure: Figure, kind: str, *omitted: str) -> bytes:
    """Return ``figure`` in the format ``kind``, without margins and the ``omitted`` metadata."""
    out = io.BytesIO()
    metadata = dict.fromkeys(omitted)
    figure.savefig(out, format=kind, dpi=SAVED_DPI, bbox_inches="tight", metadata=metadata)
    return out.getvalue()


def show(figure: Figure, name: str = "", alt: str = "") -> None:
    """Display ``figure``; with a ``name``, save it as ``name``.png, and line drawings as SVG too.

    ``alt`` describes the figure to readers who can't see it (default: its titles). The folder is
    NNLIB_FIGURES_DIR if that is set, otherwise figures/ in the checkout, otherwise ./figures.
    """
    need("notebooks", "IPython")
    from IPython.display import Image, display

    image = _trimmed(figure, "png", "Software")
    if name:
        folder = Path(os.environ.get("NNLIB_FIGURES_DIR") or HOME / "figures")
        write_bytes(folder / f"{name}.png", image)
        if _is_line_drawing(figure):
            write_bytes(folder / f"{name}.svg", _trimmed(figure, "svg", "Date", "Creator"))
    if not alt:
        titles = [ax.get_title() for ax in figure.axes]
        alt = "; ".join(title for title in titles if title)
    width = int.from_bytes(image[16:20]) * PAGE_DPI // SAVED_DPI  # a PNG has its width there
    display(Image(image, width=width, alt=alt))  # type: ignore[no-untyped-call]


def _is_line_drawing(figure: Figure) -> bool:
    return not any(ax.images or len(ax.collections) for ax in figure.axes)


def subplots(
    rows: int = 1, columns: int = 1, height: float = 3.6, share: bool = False, **labels: Any
) -> Any:
    """Return a figure of 9 by ``height`` inches and a flat array of its axes.

    All axes get the same ``labels``: anything that ``ax.set`` takes.
    """
    figure = Figure(figsize=(9, height), layout="constrained")
    with style():
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for ax in axes:
        # Matplotlib makes ticks when it needs them, which is outside of the style.
        ax.tick_params(labelsize=10, grid_color="0.9")
        ax.set(**labels)
    return figure, axes


def draw_lines(
    ax: Axes, named: Mapping[str, tuple[Any, Any]], gap: float = 0.075, **look: Any
) -> None:
    """Draw a line for each pair of x and y, with its name beside its end."""
    for name, (x, y) in named.items():
        ax.plot(x, y, label=name, **look)
    label_lines(ax, gap=gap)


def label_lines(*axes: Axes, gap: float = 0.075) -> None:
    """Write each line's label beside its end, in its color, and keep the labels from overlapping.

    ``gap`` is the least distance between two labels, as a fraction of the height of the axes.
    """
    for ax in axes:
        ax.autoscale_view()
        ends = _line_ends(ax)
        heights = _spread([height for height, _ in ends], gap)
        for height, (_, line) in zip(heights, ends, strict=True):
            text = str(line.get_label())
            color = line.get_color()
            ax.text(1.02, height, text, color=color, transform=ax.transAxes, va="center")


def _line_ends(ax: Axes) -> list[tuple[float, Line2D]]:
    """Return (height, line) for each labeled line: where it ends, from 0 to 1, lowest first."""
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = []
    for line in ax.lines:
        if str(line.get_label()).startswith("_"):  # Matplotlib's sign for "no label"
            continue
        y = np.asarray(line.get_ydata(), float)
        y = y[np.isfinite(y)]
        if len(y) > 0:
            _, height = to_axes.transform((1, y[-1]))
            ends.append((height, line))
    return sorted(ends, key=lambda end: end[0])


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted ``heights`` down where needed: none above 1, all at least ``gap`` apart."""
    spread = []
    above = 1 + gap
    for height in reversed(heights):
        above = min(height, above - gap)
        spread.append(above)
    return spread[::-1]


def draw_images(
    ax: Axes, images: Array, columns: int, titles: Sequence[str] = (), rows: Sequence[str] = ()
) -> None:
    """Draw images (N, C, H, W), uint8 or from 0 to 1, in a grid.

    ``titles`` go above the images; the names in ``rows`` go to the left of the rows.
    """
    if images.dtype == np.uint8:
        images = images / 255
    n, _, height, width = images.shape
    cell_width = width + 1  # a white line between the images
    title_lines = max((title.count("\n") + 1 for title in titles), default=0)
    title_height = math.ceil(title_lines * 0.018 * width * columns)
    cell_height = height + 1 + title_height
    n_rows = max(math.ceil(n / columns), 1)

    # All images go into one array: a white cell for each, and then the cells are laid out in rows.
    cells = np.ones((n_rows * columns, cell_height, cell_width, 3), np.float32)
    cells[:n, -height:, 1:] = images.transpose(0, 2, 3, 1)  # a gray channel fills all three
    sheet = cells.reshape(n_rows, columns, cell_height, cell_width, 3).swapaxes(1, 2)
    ax.imshow(sheet.reshape(-1, columns * cell_width, 3), interpolation="nearest")

    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        x = (column + 0.5) * cell_width
        y = (row + 1) * cell_height - height - 1
        ax.text(x, y, title, ha="center", va="bottom", fontsize=9)
    middles = [(row + 1) * cell_height - height / 2 for row in range(len(rows))]
    ax.set(xticks=[], yticks=middles, yticklabels=rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
