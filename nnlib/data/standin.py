"""A data set drawn by code, in the shape of CIFAR-10, for when the real one cannot be had.

Whole numbers only, from the raw words of a Philox counter (Salmon et al. 2011), which NumPy keeps as they are from
version to version: the same seed gives the same bytes on every machine.
"""

import math
from collections.abc import Callable

import numpy as np

from nnlib.types import Array

Shape = Callable[[Array, Array, Array], Array]

BLOCK = 1000  # pictures drawn at a time, a hundred of each class
PIXEL = 130  # units of length in a pixel: twice 65, so that half pixels and the turns below are whole numbers
EIGHTH = np.array(
    [(65, 0), (63, 16), (60, 25), (56, 33), (52, 39)], np.int32
)  # 65 (cos, sin), exactly
TURNS = np.concatenate(
    [EIGHTH, EIGHTH * (1, -1), EIGHTH[:, ::-1], EIGHTH[:, ::-1] * (1, -1)], dtype=np.int32
)
# from 5 numbers to 32, linearly
UPSCALE = np.maximum(
    8 - abs(np.arange(32, dtype=np.int32)[:, None] - 8 * np.arange(5, dtype=np.int32)), 0
)


def random_words(n: int, *seed: int) -> Array:
    """(n,) uint64 of random bits, the same for the same ``seed`` everywhere."""
    return np.random.Philox(np.random.SeedSequence(seed)).random_raw(n)


# A shape of size r tells how deep inside it the points (u, v) lie, negative outside: all (B, 1, 32, 32) int32. Of two
# shapes, the minimum is where they overlap and the maximum where either is.


def _disc(u: Array, v: Array, r: Array) -> Array:
    return (r * r - u * u - v * v) // (2 * r)


def _square(u: Array, v: Array, r: Array) -> Array:
    return r * 7 // 8 - np.maximum(abs(u), abs(v))


def _bar(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(r - abs(u), r // 4 - abs(v))


def _ring(shape: Shape) -> Shape:
    return lambda u, v, r: np.minimum(shape(u, v, r), -shape(u, v, r * 5 // 9))


def _wave(v: Array, r: Array) -> Array:
    return r // 6 - abs((v + r // 3) % (2 * r // 3) - r // 3)


def _checks(u: Array, v: Array, r: Array) -> Array:
    across, down = _wave(u, r), _wave(v, r)
    return np.minimum(
        _square(u, v, r), -np.maximum(np.minimum(across, -down), np.minimum(-across, down))
    )


SHAPES: dict[str, tuple[tuple[int, int, int], Shape]] = {  # name: (usual colour, shape)
    "disc": ((195, 65, 55), _disc),
    "ring": ((205, 139, 45), _ring(_disc)),
    "square": ((65, 93, 195), _square),
    "frame": ((55, 157, 185), _ring(_square)),
    "triangle": (
        (65, 157, 73),
        lambda u, v, r: np.minimum(v + r // 2, (r - v) // 2 - abs(u) * 7 // 8),
    ),
    "cross": ((185, 185, 73), lambda u, v, r: np.maximum(_bar(u, v, r), _bar(v, u, r))),
    "bar": ((149, 73, 177), _bar),
    "stripes": ((111, 111, 111), lambda u, v, r: np.minimum(_square(u, v, r), _wave(v, r))),
    "checks": ((177, 177, 177), _checks),
    "dots": ((139, 101, 65), lambda u, v, r: _disc(abs(u) - r // 2, abs(v) - r // 2, r * 2 // 5)),
}
CLASSES = tuple(SHAPES)


def draw(n: int, seed: int = 0) -> tuple[Array, Array]:
    """``n`` pictures (n, 3, 32, 32) uint8 and labels (n,) int64, in each thousand a hundred of each class.

    A seed's first pictures are the same, however many are drawn.
    """
    images, labels = np.empty((n, 3, 32, 32), np.uint8), np.empty(n, np.int64)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        images[rows], labels[rows] = (array[: n - start] for array in _draw_block(seed, start))
    return images, labels


def _draw_block(*seed: int) -> tuple[Array, Array]:
    """BLOCK pictures: a shape of random colour, size, place and turn, more or less clear before clouds and in noise."""
    lots = iter(random_words(BLOCK * 16, *seed, 0).reshape(16, BLOCK))

    def pick(
        low: int, high: int, channels: int = 1
    ) -> Array:  # (BLOCK, channels, 1, 1) int32 from low to high
        numbers = [
            low + (next(lots) % np.uint64(high - low + 1)).astype(np.int32) for _ in range(channels)
        ]
        return np.stack(numbers, axis=1)[:, :, None, None]

    labels = np.argsort(next(lots), kind="stable") % len(SHAPES)
    grid = 2 * np.arange(32, dtype=np.int32) - 31  # half pixels from the middle
    x, y = grid - pick(-8, 8), grid[:, None] - pick(-8, 8)
    cos, sin = np.moveaxis(TURNS[pick(0, len(TURNS) - 1)], -1, 0)
    u, v, size = cos * x - sin * y, sin * x + cos * y, pick(6 * PIXEL, 12 * PIXEL)
    depth, colour = np.empty_like(u), pick(-90, 90, 3)
    for label, (usual, shape) in enumerate(SHAPES.values()):
        rows = labels == label
        depth[rows] = shape(u[rows], v[rows], size[rows])
        colour[rows] += np.array(usual, np.int32)[:, None, None]
    clouds = UPSCALE @ _random_bytes((BLOCK, 3, 5, 5), *seed, 1) @ UPSCALE.T * 70 // (64 * 128)
    picture = pick(40, 215, 3) + clouds
    cover = np.clip(depth + PIXEL // 2, 0, PIXEL) * pick(40, 100)  # the edge is one pixel soft
    picture += (colour - picture) * cover // (100 * PIXEL)
    picture += _random_bytes(picture.shape, *seed, 2) * pick(5, 50) // 128
    return np.clip(picture, 0, 255).astype(np.uint8), labels.astype(np.int64)


def _random_bytes(shape: tuple[int, ...], *seed: int) -> Array:
    """int32 from -128 to 127."""
    words = random_words(-(-math.prod(shape) // 8), *seed).astype("<u8")
    return words.view(np.uint8)[: math.prod(shape)].reshape(shape).astype(np.int32) - 128
