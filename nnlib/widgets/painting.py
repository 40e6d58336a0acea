"""A widget to paint or upload an image, and to see what the network takes it for."""

import io
from collections.abc import Iterable
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageOps

from nnlib import plots
from nnlib.errors import DataError
from nnlib.network.mlp import MLP
from nnlib.types import Array
from nnlib.widgets.controls import Panel

SKY = "#9cc3e6"
SEA = "#2f5d8a"
WHITE = "#ffffff"
SHIP = (27, 28, 34, 35, 36, 37)  # the squares it is made of


def read_image(content: bytes, name: str = "the file") -> Array:
    """Return the square in the middle of any image file as (3, 32, 32) uint8.

    Each pixel is the mean of a block of the file's pixels, on white where they are transparent.
    Raises DataError if ``content`` isn't an image; ``name`` is for the message.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    except Exception:  # Pillow raises many kinds, and what they say is for programmers
        raise DataError(
            f"{name}: this can't be read as an image. Use a PNG or a JPEG file."
        ) from None
    white = Image.new("RGBA", image.size, "white")
    opaque = Image.alpha_composite(white, image).convert("RGB")
    small = ImageOps.fit(opaque, (32, 32), Image.Resampling.BOX)
    return np.array(small).transpose(2, 0, 1).copy()


def draw(model: MLP) -> Panel:
    """Paint on 8 × 8 squares, by mouse or keyboard, or upload an image: what does ``model`` see?

    It starts with a ship. An uploaded image replaces all squares, and you can paint on it.
    """
    painted = {}  # the colors of the squares that cover the image, by place
    for i in range(64):
        painted[i] = SKY if i < 40 else SEA
    for i in SHIP:
        painted[i] = WHITE
    upload = w.FileUpload(
        accept="image/*", description="Upload an image", layout={"width": "180px"}
    )
    color = w.ColorPicker(value="#8c510a", description="color")
    fill = w.Button(description="Fill all")
    layout = {"width": "30px", "height": "30px", "margin": "1px"}
    squares = []
    for i in range(64):
        place = f"row {i // 8 + 1}, column {i % 8 + 1}"
        squares.append(w.Button(tooltip=place, layout=layout))

    def predict(upload: Any) -> Figure:
        if upload:
            image = read_image(upload[-1]["content"], upload[-1]["name"])
        else:
            image = np.zeros((3, 32, 32), np.uint8)
        blocks = image.reshape(3, 8, 4, 8, 4)  # a view: painting a block paints the image
        for i, button in enumerate(squares):
            button.style.button_color = painted.get(i)
            if i in painted:
                red_green_blue = np.reshape(ImageColor.getrgb(painted[i]), (3, 1, 1))
                blocks[:, i // 8, :, i % 8] = red_green_blue
        probabilities = model.predict_proba(image[None])[0]
        guess = int(probabilities.argmax())
        figure = plots.prediction(image, probabilities, model.classes, guess)
        figure.axes[0].set_title("What the network sees")
        return figure

    def paint(places: Iterable[int]) -> None:
        for i in places:
            painted[i] = color.value
        panel.update()

    def paint_square(button: Any) -> None:
        paint([squares.index(button)])

    def paint_all(button: Any) -> None:
        paint(range(64))

    def uncover(change: Any) -> None:
        painted.clear()

    for button in squares:
        button.on_click(paint_square)
    fill.on_click(paint_all)
    # Registered before the panel's own observer: the squares are gone when the panel draws.
    upload.observe(uncover, "value")
    grid = w.GridBox(squares, layout={"grid_template_columns": "repeat(8, 32px)"})
    panel = Panel(predict, 360, grid, upload=upload)
    panel.children[0].children += (color, fill)  # beside the upload button
    return panel
