"""Widgets: controls around the pictures and the trainer, for people to move."""

from nnlib.extras import need

need("notebooks", "ipywidgets")

from nnlib.widgets.controls import Panel
from nnlib.widgets.experiments import decision_boundary, learning_rate_explorer
from nnlib.widgets.explorers import (
    activation_explorer,
    browse_images,
    prediction_explorer,
    search_explorer,
    weight_browser,
)
from nnlib.widgets.painting import draw, read_image
from nnlib.widgets.playground import LivePlot, Playground, training_playground
from nnlib.widgets.units import unit_browser

__all__ = [
    "LivePlot",
    "Panel",
    "Playground",
    "activation_explorer",
    "browse_images",
    "decision_boundary",
    "draw",
    "learning_rate_explorer",
    "prediction_explorer",
    "read_image",
    "search_explorer",
    "training_playground",
    "unit_browser",
    "weight_browser",
]
