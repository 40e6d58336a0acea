"""A data set drawn by code, in the shape of CIFAR-10, for when the real one cannot be had.

Whole numbers only, from the raw words of a Philox counter (Salmon et al. 2011), which NumPy keeps as they are from
version to version: the same seed gives the same bytes on every machine.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = Callable[[Array, Array, Array], Any]

BLOCK = 1000  # pictures drawn at a time, a hundred of each class
PIXEL = 130  # units of length in a pixel: twice 65, so that half pixels and the turns below are whole numbers
TURNS = np.array([(65, 0), (63, 16), (60, 25), (56, 33), (52, 39)], np.int32)  # 65 (cos, sin), exactly


def random_words(n: int, *seed: int) -> Array:
    """(n,) uint64 of random bits, the same for the same ``seed`` everywhere."""
    return np.random.Philox(np.random.SeedSequence(seed)).random_raw(n)


# A shape of size r tells how deep inside it the point (u, v) lies, negative outside: all (B, 32, 32) int32. Both of two
# shapes is their minimum, either one their maximum, and all but one its negative.


def _disc(u: Array, v: Array, r: Array) -> Any:
    return (r * r - u * u - v * v) // (2 * r)


def _square(u: Array, v: Array, r: Array) -> Any:
    return r * 7 // 8 - np.maximum(abs(u), abs(v))


def _bar(u: Array, v: Array, r: Array) -> Any:
    return np.minimum(r - abs(u), r // 4 - abs(v))


def _ring(shape: Shape) -> Shape:
    return lambda u, v, r: np.minimum(shape(u, v, r), -shape(u, v, r * 5 // 9))


def _wave(v: Array, r: Array) -> Any:
    return r // 6 - abs((v + r // 3) % (2 * r // 3) - r // 3)


def _checks(u: Array, v: Array, r: Array) -> Any:
    return np.minimum(
        _square(u, v, r), -np.maximum(np.minimum(_wave(u, r), -_wave(v, r)), np.minimum(-_wave(u, r), _wave(v, r)))
    )


SHAPES: dict[str, tuple[tuple[int, int, int], Shape]] = {  # name: (usual colour, shape)
    "disc": ((176, 83, 76), _disc),
    "ring": ((183, 136, 69), _ring(_disc)),
    "square": ((83, 103, 176), _square),
    "frame": ((76, 149, 169), _ring(_square)),
    "triangle": ((83, 149, 89), lambda u, v, r: np.minimum(v + r // 2, (r - v) // 2 - abs(u) * 7 // 8)),
    "cross": ((169, 169, 89), lambda u, v, r: np.maximum(_bar(u, v, r), _bar(v, u, r))),
    "bar": ((143, 89, 163), _bar),
    "stripes": ((116, 116, 116), lambda u, v, r: np.minimum(_square(u, v, r), _wave(v, r))),
    "checks": ((163, 163, 163), _checks),
    "dots": ((136, 109, 83), lambda u, v, r: _disc(abs(u) - r // 2, abs(v) - r // 2, r * 2 // 5)),
}
CLASSES = tuple(SHAPES)


def draw(n: int, seed: int = 0) -> tuple[Array, Array]:
    """``n`` pictures (n, 3, 32, 32) uint8 and labels (n,) int64, in each thousand a hundred of each class.

    A seed's first pictures are the same, however many are drawn.
    """
    images, labels = np.empty((n, 3, 32, 32), np.uint8), np.empty(n, np.int64)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        drawn = _draw_block(seed, start)
        images[rows], labels[rows] = (array[: n - start] for array in drawn)
    return images, labels


def _draw_block(*seed: int) -> tuple[Array, Array]:
    """BLOCK pictures: a shape of random colour, size, place and turn, a shaded background, and noise over both."""
    words = random_words(BLOCK * (24 + 3 * 32 * 32 // 8), *seed)
    lots = iter(words[: BLOCK * 24].reshape(24, BLOCK))
    noise = words[BLOCK * 24 :].astype("<u8").view(np.uint8).reshape(BLOCK, 3, 32, 32).astype(np.int32) - 128

    def pick(low: int, high: int, channels: int = 1) -> Array:  # (BLOCK, channels, 1, 1) int32 from low to high
        numbers = [low + (next(lots) % np.uint64(high - low + 1)).astype(np.int32) for _ in range(channels)]
        return np.stack(numbers, axis=1)[:, :, None, None]

    labels = np.argsort(next(lots), kind="stable") % len(SHAPES)
    grid = 2 * np.arange(32, dtype=np.int32) - 31  # in half pixels from the middle
    cos, sin = TURNS[pick(0, len(TURNS) - 1)[:, 0]].transpose(3, 0, 1, 2)
    sin = sin * (2 * pick(0, 1)[:, 0] - 1)
    x, y = grid - pick(-8, 8)[:, 0], grid[:, None] - pick(-8, 8)[:, 0]
    u, v, size = cos * x - sin * y, sin * x + cos * y, pick(7 * PIXEL, 12 * PIXEL)[:, 0]
    depth, colour = np.empty((BLOCK, 1, 32, 32), np.int32), pick(-90, 90, 3)
    for label, (usual, shape) in enumerate(SHAPES.values()):
        rows = labels == label
        depth[rows, 0] = shape(u[rows], v[rows], size[rows])
        colour[rows] += np.array(usual, np.int32)[:, None, None]
    shade = (pick(-50, 50, 3) * grid + pick(-50, 50, 3) * grid[:, None]) // 32
    picture = pick(40, 215, 3) + shade
    picture += (colour - picture) * np.clip(depth + PIXEL // 2, 0, PIXEL) // PIXEL  # edges one pixel soft
    picture += noise * pick(10, 50) // 128
    return np.clip(picture, 0, 255).astype(np.uint8), labels.astype(np.int64)
