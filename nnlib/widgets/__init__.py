"""Widgets: controls around the pictures and the trainer, for people to move."""

from nnlib.extras import need

need("notebooks", "ipywidgets")

from nnlib.widgets.explorers import (
    activation_explorer,
    browse_images,
    decision_boundary,
    draw,
    learning_rate_explorer,
    prediction_explorer,
    read_image,
    search_explorer,
    weight_browser,
)
from nnlib.widgets.playground import LivePlot, Playground
from nnlib.widgets.units import unit_browser

__all__ = [
    "LivePlot",
    "Playground",
    "activation_explorer",
    "browse_images",
    "decision_boundary",
    "draw",
    "learning_rate_explorer",
    "prediction_explorer",
    "read_image",
    "search_explorer",
    "unit_browser",
    "weight_browser",
]
