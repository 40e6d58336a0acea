"""What widgets are made of: a panel of controls and a picture, errors in words, and one training at a time."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from html import escape
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from nnlib.errors import NNLibError
from nnlib.network.activations import ACTIVATIONS
from nnlib.plots.drawing import RED, png
from nnlib.training.hyperparameters import Hyperparameters

FIELDS = {f.name: f for f in fields(Hyperparameters)}
_training = threading.Lock()


def alone() -> ExitStack:
    """Let one widget train at a time, while a ``with`` lasts: two would fight for the threads of one BLAS."""
    if not _training.acquire(blocking=False):
        raise NNLibError("Another widget is training: stop it first.")
    stack = ExitStack()
    stack.callback(_training.release)
    return stack


def in_words(error: Exception) -> str:
    """Return an error as a line of HTML; one of nnlib's own without its kind."""
    text = str(error) if isinstance(error, NNLibError) else f"{type(error).__name__}: {error}"
    return f'<b role="alert" style="color: {RED}">{escape(text)}</b>'


def picture(height: int) -> Any:
    """Return an empty image, ``height`` pixels high, which shrinks with the page."""
    fit = {"max_width": "100%", "object_fit": "contain", "object_position": "left"}
    return w.Image(layout={"height": f"{height}px", **fit})


def row(controls: Any) -> Any:
    """Return ``controls`` side by side, in more lines where the page is narrow."""
    return w.HBox([*controls], layout={"flex_flow": "row wrap"})


class Panel(w.VBox):  # type: ignore[misc]
    """``controls`` by name, and below them the picture that ``draw(**values)`` makes; an error is told in words.

    Widgets that are ``between`` the two have no value that ``draw`` needs.
    """

    def __init__(
        self, draw: Callable[..., Figure], height: int, *between: Any, **controls: Any
    ) -> None:
        self.draw, self.controls = draw, controls
        self.message, self.picture = w.HTML(layout={"min_height": "32px"}), picture(height)
        super().__init__([row(controls.values()), *between, self.message, self.picture])
        for control in controls.values():
            control.observe(self.update, "value")
        self.update()

    def update(self, change: Any = None) -> None:
        """Draw again with the present values."""
        try:
            self.picture.value = png(
                self.draw(**{name: c.value for name, c in self.controls.items()})
            )
            self.message.value = ""
        except Exception as error:
            self.message.value = in_words(error)


def control_for(name: str, value: Any) -> Any:
    """Return a control for one hyperparameter, which offers only what its field allows."""
    about = FIELDS[name].metadata
    look = {"value": value, "description": name.replace("_", " "), "tooltip": about["help"]}
    look["style"] = {"description_width": "100px"}
    if options := ACTIVATIONS if name == "activation" else about.get("options"):
        return w.Dropdown(options=[*dict.fromkeys([value, *options])], **look)
    if name == "hidden_sizes":
        return w.Text(continuous_update=False, **look | {"value": ", ".join(map(str, value))})
    if isinstance(value, bool):
        return w.Checkbox(**look)
    low, high = about["range"]
    if name == "learning_rate":
        return w.FloatLogSlider(
            min=-4, max=1, step=0.05, readout_format=".4g", continuous_update=False, **look
        )
    if isinstance(value, int):
        return w.BoundedIntText(min=low, max=high, **look)
    if high == 1:
        return w.FloatSlider(min=low, max=0.99, step=0.01, continuous_update=False, **look)
    return w.BoundedFloatText(min=low, max=high, step=1e-4, **look)
