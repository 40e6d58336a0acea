"""Pictures: every function that draws returns a Matplotlib ``Figure``, and ``show`` displays it."""

from nnlib.plots.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    UNITS,
    png,
    show,
    style,
)
from nnlib.plots.evaluation import calibration, confusion, mistakes, per_class, prediction
from nnlib.plots.gradients import error_against_step, gradient_errors
from nnlib.plots.images import class_balance, image_grid, mean_images, samples_by_class
from nnlib.plots.network import activation_functions, computation_graph, hidden_units
from nnlib.plots.search import (
    search_cost,
    search_curves,
    search_heatmap,
    search_importance,
    search_parallel,
    search_strips,
)
from nnlib.plots.training import (
    curves,
    diagnostics,
    gradient_norms,
    histories,
    history,
    learning_rate_test,
    schedules,
    small_multiples,
)
from nnlib.plots.weights import (
    filters_of,
    first_layer_images,
    weight_heatmaps,
    weight_histograms,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "RED",
    "UNITS",
    "activation_functions",
    "calibration",
    "class_balance",
    "computation_graph",
    "confusion",
    "curves",
    "diagnostics",
    "error_against_step",
    "filters_of",
    "first_layer_images",
    "gradient_errors",
    "gradient_norms",
    "hidden_units",
    "histories",
    "history",
    "image_grid",
    "learning_rate_test",
    "mean_images",
    "mistakes",
    "per_class",
    "png",
    "prediction",
    "samples_by_class",
    "schedules",
    "search_cost",
    "search_curves",
    "search_heatmap",
    "search_importance",
    "search_parallel",
    "search_strips",
    "show",
    "small_multiples",
    "style",
    "weight_heatmaps",
    "weight_histograms",
]
