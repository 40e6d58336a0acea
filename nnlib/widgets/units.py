"""A browser for the units of a first layer."""

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure

from nnlib.data.dataset import Split
from nnlib.network.mlp import MLP
from nnlib.plots import locality as pictures
from nnlib.training import locality
from nnlib.widgets.controls import Panel

EXCITING = 12  # images


def unit_browser(model: MLP, split: Split, n: int = 64) -> Panel:
    """Browse the ``n`` most influential first-layer units of ``model``, on the images of ``split``.

    For each unit: its filter, its pattern (Haufe et al. 2014), and the images that excite it most.
    ``draw(rank)`` of the panel returns one unit's figure, for pages without widgets. Needs a model
    of color images, and raises HyperparameterError for one without a hidden layer.
    """
    strength = locality.influence(model, split.images)
    units = np.argsort(-strength, kind="stable")[:n]
    weights = model.parameters["W1"][:, units]
    activation = model.activations(model.inputs(split.images))[0][:, units]
    pixels = split.images.reshape(len(split), -1) / np.float32(255)
    weighing = weights  # of pixels
    if model.preprocessing is not None:
        weighing = model.preprocessing.filters(weights).T
    patterns = locality.patterns(pixels, weighing)
    used = locality.pixels_used(weights)

    def draw(rank: int) -> Figure:
        unit = int(units[rank])
        exciting = np.argsort(-activation[:, rank], kind="stable")[:EXCITING]
        active = (activation[:, rank] > 0).mean()
        title = f"Unit {unit}: uses {used[rank]} pixels, active for {active:.0%} of the images"
        return pictures.unit_portrait(weights.T, patterns, rank, split.images[exciting], title)

    last = len(units) - 1
    rank = w.IntSlider(0, 0, last, description="unit", continuous_update=False)
    panel = Panel(draw, 540, rank=rank)
    panel.children[0].children += (_step("previous", rank, -1), _step("next", rank, 1))
    return panel


def _step(name: str, slider: w.IntSlider, by: int) -> w.Button:
    """Return a button that moves ``slider`` by one place, from the last one to the first."""
    button = w.Button(description=name.capitalize(), tooltip=f"{name} unit")

    def move(_: w.Button) -> None:
        slider.value = (slider.value + by) % (slider.max + 1)

    button.on_click(move)
    return button
