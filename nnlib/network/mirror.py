"""The mirror image of a network: it sees in an image what the network sees in the mirrored one."""

import numpy as np

from nnlib.errors import HyperparameterError
from nnlib.network.mlp import MLP, checked_model

TOLERANCE = (
    0.01  # of the inputs' own size: weights and axes of shipped models are rounded to float16
)


def mirror_image(model: MLP, shape: tuple[int, int, int] = (3, 32, 32)) -> MLP:
    """Return the network whose logits for images are those of ``model`` for the mirrored images.

    ``shape`` (C, H, W) is that of one image. Mirroring moves each pixel x[i] to x[m(i)], so the
    only change is in the first layer: its weights for pixel i become those for pixel m(i),
    W1[i] ← W1[m(i)]. This needs inputs that are pixels, or pixels whitened by "zca" that was fitted
    on mirrored images too (``flip=True``): mirroring and whitening may then change places.

    Raises HyperparameterError for any other network.
    """
    model = checked_model(model)
    n_pixels = int(np.prod(shape))
    mirror = np.arange(n_pixels).reshape(shape)[..., ::-1].ravel()
    if model.layer_sizes[0] != n_pixels or not _commutes(model, shape, mirror):
        raise HyperparameterError(
            f"model: {model!r} does not see pixels, or its whitening is not symmetric. Mirror the "
            'images instead, or train with preprocessing="zca" and flip=True.'
        )
    parameters = {name: p.copy() for name, p in model.parameters.items()}
    parameters["W1"] = np.ascontiguousarray(parameters["W1"][mirror])
    twin = model.with_parameters(parameters)
    twin.info = model.info | {"mirror_image": True, "initial": {"sha256": "mirrored"}}
    return twin


def _commutes(model: MLP, shape: tuple[int, int, int], mirror: np.ndarray) -> bool:
    """Return whether preprocessing mirrored images equals mirroring preprocessed ones."""
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    first_then_mirrored = model.inputs(images)[:, mirror]
    mirrored_first = model.inputs(np.ascontiguousarray(images[..., ::-1]))
    difference = np.abs(first_then_mirrored - mirrored_first).max()
    return bool(difference <= TOLERANCE * np.abs(mirrored_first).max())
