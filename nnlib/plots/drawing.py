"""What all figures share: their look, drawing pieces, and how they reach the page and the disk.

They are made without pyplot, whose state is one for the whole process, so that widgets may draw in a thread. Such a
figure does not display itself: ``show`` puts it on the page with its alt text, and into the folder of figures.
"""

import io
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnlib.extras import need
from nnlib.files import HOME, write_atomically
from nnlib.types import Array

# seaborn's palette "colorblind", written out: importing seaborn for ten colours would take a second
BLUE, ORANGE, GREEN, RED, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#949494"
PALETTE = [BLUE, ORANGE, GREEN, RED, "#cc78bc", "#ca9161", "#fbafe4", GREY, "#ece133", "#56b4e9"]
LOOK: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
}
LOOK |= {
    "axes.prop_cycle": cycler(color=PALETTE),
    "font.size": 10.5,
    "axes.titlesize": 12,
    "grid.color": "0.9",
}
LOOK |= {"svg.hashsalt": "nnlib"}  # names inside an SVG come from this, not from chance
UNITS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (share of images)"}
_one_at_a_time = (
    threading.RLock()
)  # Matplotlib's settings are global, and it promises nothing about threads


@contextmanager
def style() -> Iterator[None]:
    """The one look of all figures, for the time of a ``with`` block; for one's own figures too."""
    with _one_at_a_time, matplotlib.rc_context(LOOK):
        yield


@style()
def png(figure: Figure, dpi: int = 100) -> bytes:
    """Return ``figure`` as PNG: the same bytes for the same figure."""
    out = io.BytesIO()
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)  # draws once, where savefig draws twice
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


@style()
def _trimmed(figure: Figure, kind: str, *undated: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, bbox_inches="tight", metadata=dict.fromkeys(undated))
    return out.getvalue()


def show(figure: Figure, name: str = "", alt: str = "") -> None:
    """Display ``figure`` with ``alt`` (default: its titles) for those who cannot see it, and save it as ``name``.png.

    Line drawings are saved as SVG too. The folder is NNLIB_FIGURES_DIR, else figures/ of the checkout, else ./figures.
    """
    need("notebooks", "IPython")
    from IPython.display import Image, display

    files = {".png": _trimmed(figure, "png", "Software")}
    if not any(ax.images or len(ax.collections) for ax in figure.axes):
        files[".svg"] = _trimmed(figure, "svg", "Date", "Creator")
    folder = Path(os.environ.get("NNLIB_FIGURES_DIR") or HOME / "figures")
    for suffix, content in files.items() if name else ():
        write_atomically(folder / (name + suffix), methodcaller("write", content))
    alt = alt or "; ".join(filter(None, (ax.get_title() for ax in figure.axes)))
    width = (
        int.from_bytes(files[".png"][16:20]) * 100 // 150
    )  # of the page's pixels: the image has three for each two
    display(Image(files[".png"], width=width, alt=alt))  # type: ignore[no-untyped-call]


def subplots(
    rows: int = 1, columns: int = 1, height: float = 3.6, share: bool = False, **labels: Any
) -> Any:
    """Return a figure, 9 by ``height`` inches, and an array of its axes, which all have ``labels``."""
    figure = Figure(figsize=(9, height), layout="constrained")
    with style():
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for ax in axes:
        ax.tick_params(
            labelsize=10, grid_color="0.9"
        )  # ticks are made when they are needed, outside of the style
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
    """Write each line's label beside its end, in its colour, moved apart where two would overlap."""
    for ax in axes:
        ax.autoscale_view()
        to_axes = ax.transData + ax.transAxes.inverted()
        lines = [
            (line, np.asarray(line.get_ydata(), float))
            for line in ax.lines
            if str(line.get_label())[0] != "_"
        ]
        ends = [
            (to_axes.transform((1, y[np.isfinite(y)][-1]))[1], line)
            for line, y in lines
            if np.isfinite(y).any()
        ]
        ends.sort(key=lambda end: end[0])
        above = 1 + gap
        places = [above := min(height, above - gap) for height, _ in ends[::-1]][
            ::-1
        ]  # from the top down
        for place, (_, line) in zip(places, ends, strict=True):
            ax.text(
                1.02,
                place,
                str(line.get_label()),
                color=line.get_color(),
                transform=ax.transAxes,
                va="center",
            )


def draw_images(
    ax: Axes, images: Array, columns: int, titles: Sequence[str] = (), rows: Sequence[str] = ()
) -> None:
    """Draw images (N, C, H, W), uint8 or from 0 to 1, on one sheet, with ``titles`` and names of ``rows``."""
    images = images / 255 if images.dtype == np.uint8 else images
    n, _, height, width = images.shape
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    top = (
        height + 1 + math.ceil(n_lines * 0.018 * width * columns)
    )  # an image, and the room above it for its title
    sheet = np.ones((max(math.ceil(n / columns), 1) * columns, top, width + 1, 3), np.float32)
    sheet[:n, top - height :, 1:] = images.transpose(
        0, 2, 3, 1
    )  # a grey channel is spread over the three
    sheet = sheet.reshape(-1, columns, top, width + 1, 3).swapaxes(1, 2)
    ax.imshow(sheet.reshape(-1, columns * (width + 1), 3), interpolation="nearest")
    for i, title in enumerate(titles):
        x, y = (i % columns + 0.5) * (width + 1), (i // columns + 1) * top - height - 1
        ax.text(x, y, title, ha="center", va="bottom", fontsize=9)
    ax.set(
        xticks=[], yticks=[(i + 1) * top - height / 2 for i in range(len(rows))], yticklabels=rows
    )
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
