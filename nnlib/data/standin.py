"""The stand-in: images drawn by code, in the shape of CIFAR-10, for when CIFAR-10 can't be had.

It uses whole numbers only, from the raw words of a Philox counter (Salmon et al. 2011), which NumPy
keeps the same from version to version. So the same seed gives the same bytes on every machine.
"""

import math
from collections.abc import Callable

import numpy as np

from nnlib.types import Array

Shape = Callable[[Array, Array, Array], Array]

BLOCK = 1000  # images drawn at a time, a hundred of each class
PIXEL = 130  # units of length in a pixel: twice 65, so that half pixels and turns are whole numbers

# The angles that shapes are turned by, as 65 (cos, sin): Pythagorean triples make them exact.
EIGHTH = np.array([(65, 0), (63, 16), (60, 25), (56, 33), (52, 39)], np.int32)
MIRRORED = EIGHTH[:, ::-1]
TURNS = np.concatenate([EIGHTH, EIGHTH * (1, -1), MIRRORED, MIRRORED * (1, -1)], dtype=np.int32)

# A matrix (32, 5) that interpolates 5 numbers to 32, linearly.
_DISTANCE = abs(np.arange(32, dtype=np.int32)[:, None] - 8 * np.arange(5, dtype=np.int32))
UPSCALE = np.maximum(8 - _DISTANCE, 0)


def random_words(n: int, *seed: int) -> Array:
    """Return (n,) uint64 of random bits, the same for the same ``seed`` everywhere."""
    return np.random.Philox(np.random.SeedSequence(seed)).random_raw(n)


# A shape of size r tells how deep inside it the points (u, v) lie, negative outside: all are
# (B, 1, 32, 32) int32. Two shapes overlap where their minimum is positive.


def _disc(u: Array, v: Array, r: Array) -> Array:
    return (r * r - u * u - v * v) // (2 * r)


def _square(u: Array, v: Array, r: Array) -> Array:
    return r * 7 // 8 - np.maximum(abs(u), abs(v))


def _bar(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(r - abs(u), r // 4 - abs(v))


def _ring(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(_disc(u, v, r), -_disc(u, v, r * 5 // 9))


def _frame(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(_square(u, v, r), -_square(u, v, r * 5 // 9))


def _triangle(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(v + r // 2, (r - v) // 2 - abs(u) * 7 // 8)


def _cross(u: Array, v: Array, r: Array) -> Array:
    return np.maximum(_bar(u, v, r), _bar(v, u, r))


def _wave(v: Array, r: Array) -> Array:
    return r // 6 - abs((v + r // 3) % (2 * r // 3) - r // 3)


def _stripes(u: Array, v: Array, r: Array) -> Array:
    return np.minimum(_square(u, v, r), _wave(v, r))


def _checks(u: Array, v: Array, r: Array) -> Array:
    across = _wave(u, r)
    down = _wave(v, r)
    one_of_them = np.maximum(np.minimum(across, -down), np.minimum(-across, down))
    return np.minimum(_square(u, v, r), -one_of_them)


def _dots(u: Array, v: Array, r: Array) -> Array:
    return _disc(abs(u) - r // 2, abs(v) - r // 2, r * 2 // 5)


# Each class has a usual color (red, green, blue) and a shape.
SHAPES: dict[str, tuple[tuple[int, int, int], Shape]] = {
    "disc": ((195, 65, 55), _disc),
    "ring": ((205, 139, 45), _ring),
    "square": ((65, 93, 195), _square),
    "frame": ((55, 157, 185), _frame),
    "triangle": ((65, 157, 73), _triangle),
    "cross": ((185, 185, 73), _cross),
    "bar": ((149, 73, 177), _bar),
    "stripes": ((111, 111, 111), _stripes),
    "checks": ((177, 177, 177), _checks),
    "dots": ((139, 101, 65), _dots),
}
CLASSES = tuple(SHAPES)


def draw(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw ``n`` images (n, 3, 32, 32) uint8 and their labels (n,) int64.

    Every thousand has a hundred of each class. A seed's first images are the same, however many
    are drawn.
    """
    images = np.empty((n, 3, 32, 32), np.uint8)
    labels = np.empty(n, np.int64)
    for start in range(0, n, BLOCK):
        block_images, block_labels = _draw_block(seed, start)
        images[start : start + BLOCK] = block_images[: n - start]
        labels[start : start + BLOCK] = block_labels[: n - start]
    return images, labels


def _draw_block(*seed: int) -> tuple[Array, Array]:
    """Draw BLOCK images: a shape of random color, size, place and angle before noisy clouds."""
    lots = iter(random_words(BLOCK * 16, *seed, 0).reshape(16, BLOCK))

    def pick(low: int, high: int) -> Array:
        """Return one number from low to high for each image, (BLOCK, 1, 1, 1) int32."""
        numbers = low + (next(lots) % np.uint64(high - low + 1)).astype(np.int32)
        return numbers[:, None, None, None]

    def pick_color(low: int, high: int) -> Array:
        """Return three numbers for each image, (BLOCK, 3, 1, 1) int32."""
        return np.concatenate([pick(low, high) for _ in range(3)], axis=1)

    labels = np.argsort(next(lots), kind="stable") % len(SHAPES)

    # Each pixel's place in the turned shape, counted from the shape's middle.
    grid = 2 * np.arange(32, dtype=np.int32) - 31  # in half pixels from the image's middle
    x = grid - pick(-8, 8)
    y = grid[:, None] - pick(-8, 8)
    cos, sin = np.moveaxis(TURNS[pick(0, len(TURNS) - 1)], -1, 0)
    u = cos * x - sin * y
    v = sin * x + cos * y
    size = pick(6 * PIXEL, 12 * PIXEL)

    depth = np.empty_like(u)
    color = pick_color(-90, 90)
    for label, (usual, shape) in enumerate(SHAPES.values()):
        rows = labels == label
        depth[rows] = shape(u[rows], v[rows], size[rows])
        color[rows] += np.array(usual, np.int32)[:, None, None]

    clouds = UPSCALE @ _random_bytes((BLOCK, 3, 5, 5), *seed, 1) @ UPSCALE.T * 70 // (64 * 128)
    image = pick_color(40, 215) + clouds
    # How much of each pixel the shape covers. Its edge is one pixel soft, and it is a little clear.
    cover = np.clip(depth + PIXEL // 2, 0, PIXEL) * pick(40, 100)
    image += (color - image) * cover // (100 * PIXEL)
    image += _random_bytes(image.shape, *seed, 2) * pick(5, 50) // 128
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.int64)


def _random_bytes(shape: tuple[int, ...], *seed: int) -> Array:
    """Return random int32 from -128 to 127."""
    n = math.prod(shape)
    n_words = math.ceil(n / 8)
    words = random_words(n_words, *seed).astype("<u8")
    return words.view(np.uint8)[:n].reshape(shape).astype(np.int32) - 128
