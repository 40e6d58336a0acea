"""Figures of the gradient check: backpropagation against numerical derivatives."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nnlib.network.gradcheck import GradientReport
from nnlib.plots.drawing import BLUE, RED, draw_lines, label_lines, subplots

SMALLEST = 1e-17  # drawn in place of an error of 0, which has no place on a logarithmic axis


def gradient_errors(report: GradientReport) -> Figure:
    """Draw the largest relative error of each parameter's gradient, and the tolerance."""
    title = "Backpropagation vs. numerical derivatives: every bar should end below the line"
    figure, (ax,) = subplots(title=title)
    ax.set(xlabel="parameter", ylabel="largest relative error", yscale="log")
    names = list(report.errors)
    errors = np.maximum(list(report.errors.values()), SMALLEST)
    colors = np.where(errors <= report.tolerance, BLUE, RED)
    bars = ax.bar(names, errors, color=colors)
    ax.bar_label(bars, fmt="%.0e", fontsize=9)
    ax.axhline(report.tolerance, color=RED, ls="--", label=f"tolerance\n{report.tolerance:.0e}")
    label_lines(ax)
    return figure


def error_against_step(hs: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the relative error of numerical derivatives against their step h, on log axes."""
    title = "Large h: the curve bends. Small h: rounding. The best h lies between."
    figure, (ax,) = subplots(title=title, xscale="log", yscale="log")
    ax.set(xlabel="step h", ylabel="relative error")
    lines = {}
    for name, values in errors.items():
        lines[name] = (hs, np.maximum(values, SMALLEST))
    draw_lines(ax, lines, marker="o", ms=3)
    return figure
