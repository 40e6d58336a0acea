"""What widgets are made of: controls, a picture, readable errors, and one training at a time."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from html import escape
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from nnlib.errors import NNLibError
from nnlib.network.activations import ACTIVATIONS
from nnlib.plots.drawing import RED, png
from nnlib.training.hyperparameters import Hyperparameters

FIELDS = {field.name: field for field in fields(Hyperparameters)}
_training = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """Let only one widget train at a time: two would compete for the threads of one BLAS.

    Raises NNLibError if another widget is training.
    """
    if not _training.acquire(blocking=False):
        raise NNLibError("Another widget is training. Stop it first.")
    try:
        yield
    finally:
        _training.release()


def in_words(error: Exception) -> str:
    """Return an error as a line of HTML. An error of nnlib's own needs no class name before it."""
    text = str(error)
    if not isinstance(error, NNLibError):
        text = f"{type(error).__name__}: {text}"
    return f'<b role="alert" style="color: {RED}">{escape(text)}</b>'


def picture(height: int) -> Any:
    """Return an empty image, ``height`` pixels high, that shrinks with the page."""
    layout = {
        "height": f"{height}px",
        "max_width": "100%",
        "object_fit": "contain",
        "object_position": "left",
    }
    return w.Image(layout=layout)


def row(controls: Iterable[Any]) -> Any:
    """Return ``controls`` side by side; they wrap where the page is narrow."""
    return w.HBox([*controls], layout={"flex_flow": "row wrap"})


class Panel(w.VBox):  # type: ignore[misc]
    """Controls, and below them the picture that ``draw`` makes of their values.

    Each keyword argument is a control: ``draw`` gets its value under the same name. Widgets in
    ``between`` stand between the controls and the picture. If ``draw`` raises an error, its message
    is shown and the picture stays.
    """

    def __init__(
        self, draw: Callable[..., Figure], height: int, *between: Any, **controls: Any
    ) -> None:
        self.draw = draw
        self.controls = controls
        self.message = w.HTML(layout={"min_height": "32px"})  # so that nothing jumps
        self.picture = picture(height)
        super().__init__([row(controls.values()), *between, self.message, self.picture])
        for control in controls.values():
            control.observe(self.update, "value")
        self.update()

    def update(self, change: Any = None) -> None:
        """Draw again with the current values."""
        values = {name: control.value for name, control in self.controls.items()}
        try:
            self.picture.value = png(self.draw(**values))
            self.message.value = ""
        except Exception as error:
            self.message.value = in_words(error)


def control_for(name: str, value: Any) -> Any:
    """Return a control for one hyperparameter that offers only what its field allows."""
    about = FIELDS[name].metadata
    look = {
        "description": name.replace("_", " "),
        "tooltip": about["help"],
        "style": {"description_width": "100px"},
    }
    options = ACTIVATIONS if name == "activation" else about.get("options")
    if options:
        others = [option for option in options if option != value]
        return w.Dropdown(options=[value, *others], value=value, **look)
    if name == "hidden_sizes":
        sizes = ", ".join(str(size) for size in value)
        return w.Text(value=sizes, continuous_update=False, **look)
    look["value"] = value
    if isinstance(value, bool):
        return w.Checkbox(**look)
    low, high = about["range"]
    if name == "learning_rate":  # min and max are exponents of 10
        return w.FloatLogSlider(
            min=-4, max=1, step=0.05, readout_format=".4g", continuous_update=False, **look
        )
    if isinstance(value, int):
        return w.BoundedIntText(min=low, max=high, **look)
    if high == 1:  # a momentum, for example, must stay below 1
        return w.FloatSlider(min=low, max=0.99, step=0.01, continuous_update=False, **look)
    return w.BoundedFloatText(min=low, max=high, step=1e-4, **look)
