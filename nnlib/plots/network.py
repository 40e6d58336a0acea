"""Figures of what a network is made of: activations, the computation graph, hidden units."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnlib.network.activations import get_activation
from nnlib.network.losses import softmax
from nnlib.network.mlp import MLP
from nnlib.plots.drawing import BLUE, GREY, PALETTE, RED, draw_images, draw_lines, subplots
from nnlib.plots.weights import as_images
from nnlib.types import Array


def activation_functions(names: Sequence[str]) -> Figure:
    """Draw value and derivative of activations, side by side."""
    figure, (left, right) = subplots(1, 2, xlabel="pre-activation z")
    left.set(title="Forward: the output of the unit", ylabel="value f(z)")
    right.set(title="Backward: the factor on the gradient", ylabel="derivative f′(z)")
    z = np.linspace(-4, 4, 801)
    values = {}
    derivatives = {}
    for name in names:
        function = get_activation(name)
        value = function.value(z)
        values[name] = (z, value)
        derivatives[name] = (z, function.derivative(z, value))
    draw_lines(left, values)
    draw_lines(right, derivatives)
    return figure


# From each node of the graph to the next: what is computed forward, and what is computed backward.
NODES = ("$X$", "$Z_1$", "$A_1$", "$Z_2$", "$A_2$", "$Z_3$", "$L$")
ARROWS = (
    ("$X W_1 + b_1$", r"$\Delta_1 W_1^T$"),
    ("$f(Z_1)$", r"$\odot f'(Z_1)$"),
    ("$A_1 W_2 + b_2$", r"$\Delta_2 W_2^T$"),
    ("$f(Z_2)$", r"$\odot f'(Z_2)$"),
    ("$A_2 W_3 + b_3$", r"$\Delta_3 W_3^T$"),
    ("softmax,\ncross-entropy", r"$\Delta_3 = (P - Y)/B$"),
)


def computation_graph() -> Figure:
    """Draw two hidden layers as a graph: what each step computes forward and backward."""
    title = "Blue, forward: values. Red, backward: derivatives of the loss"
    figure, (ax,) = subplots(height=2.4, title=title, xlim=(-0.4, 6.4), ylim=(-1, 1))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    box = {"boxstyle": "round", "fc": "w", "ec": GREY}
    for i, name in enumerate(NODES):
        ax.text(i, 0, name, ha="center", va="center", fontsize=14, bbox=box)
    for i, (forward, backward) in enumerate(ARROWS):
        _draw_arrow(ax, i + 0.2, i + 0.8, 0.25, forward, BLUE)
        _draw_arrow(ax, i + 0.8, i + 0.2, -0.25, backward, RED)
    return figure


def _draw_arrow(ax: Axes, start: float, end: float, y: float, text: str, color: str) -> None:
    """Draw a level arrow, and its text on the side that is away from the nodes."""
    ax.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "color": color})
    middle = (start + end) / 2
    ax.text(middle, 1.9 * y, text, color=color, ha="center", va="center", fontsize=9)


def hidden_units(model: MLP, points: Array, labels: Array, title: str = "") -> Figure:
    """Draw how a network with two classes divides the plane, and what each hidden unit sees of it.

    ``points`` are (N, 2), their ``labels`` (N,) 0 or 1. Each first-layer unit has a line where its
    z is 0, and a map under a number of the same color. Number 2.1 is the first unit of layer 2.
    """
    figure, (left, right) = subplots(1, 2, height=4.8, title="Hidden units (white: active)")
    n = 60  # the network is asked at n × n points of the plane
    edge = 1.1 * float(np.abs(points).max())
    x = np.linspace(-edge, edge, n, dtype=model.dtype)
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    *hidden, logits = model.activations(grid)
    probability = softmax(logits)[:, 1]  # of class 1
    first_layer = model.pre_activations[0].T

    left.imshow(
        probability.reshape(n, n),
        cmap="BrBG",
        vmin=-1,  # beyond 0 and 1, so that the colors stay pale
        vmax=2,
        extent=(-edge, edge, -edge, edge),
        origin="lower",
        zorder=1,
    )
    for z, color in zip(first_layer, cycle(PALETTE), strict=False):
        _draw_zero(left, x, z, color, 1.5)
    _draw_zero(left, x, probability - 0.5, "black", 2.5)
    for k, marker, color in ((0, "o", "#8c510a"), (1, "s", "#01665e")):
        of_class = points[labels == k]
        left.plot(*of_class.T, marker, color=color, ms=5, mec="white", mew=0.7)
    left.set(title=title, xlabel="first input", ylabel="second input")

    names = []
    for i, layer in enumerate(hidden, start=1):
        for j in range(1, layer.shape[1] + 1):
            names.append(f"\n\n{i}.{j}")
    maps = as_images(np.concatenate(hidden, axis=1).T, (1, n, n))
    draw_images(right, maps[:, :, ::-1], 4, names)  # an image's first row is at its top
    for text, color in zip(right.texts[: len(first_layer)], cycle(PALETTE), strict=False):
        text.set(color=color, weight="bold")
    return figure


def _draw_zero(ax: Axes, x: Array, values: Array, color: str, width: float) -> None:
    """Draw a line where ``values`` (n²,) are zero on the square grid of ``x`` (n,), if anywhere."""
    if values.min() < 0 < values.max():
        square = values.reshape(len(x), len(x))
        ax.contour(x, x, square, [0], colors=color, linewidths=width)
