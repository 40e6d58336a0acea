"""The mirror image of a network, and the two side by side."""

import numpy as np
import pytest

import nnlib
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.network.mirror import mirror_image

SHAPE = (3, 4, 5)


def network(kind: str, **options) -> tuple[nnlib.MLP, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (300, *SHAPE), np.uint8)
    images[..., 0] //= 3  # the left edge is darker: whitening is symmetric only if it is made so
    fitted = fit_preprocessing(kind, images, **options)
    model = nnlib.MLP((fitted.n_inputs, 7, 5, 3), preprocessing=fitted, seed=1)
    model.parameters["W3"] *= 100  # first weights give logits near zero: too small to tell apart
    return model, images


@pytest.mark.parametrize(
    "kind, options",
    [
        ("scale", {}),
        ("standardize", {}),
        ("zca", {"mirrored": True}),
        ("zca", {"mirrored": True, "components": 9}),
    ],
)
def test_the_mirror_image_answers_for_mirrored_images(kind, options):
    model, images = network(kind, **options)
    twin = mirror_image(model, SHAPE)
    expected = model.predict_logits(images[..., ::-1])
    np.testing.assert_allclose(twin.predict_logits(images), expected, rtol=1e-3, atol=2e-3)
    assert abs(expected - model.predict_logits(images)).max() > 0.5
    again = mirror_image(twin, SHAPE)
    np.testing.assert_array_equal(again.parameters["W1"], model.parameters["W1"])


def test_side_by_side_they_are_one_network_with_the_mean_of_both_logits():
    model, images = network("zca", mirrored=True, components=9)
    whole = nnlib.join([model, mirror_image(model, SHAPE)])
    mean = (model.predict_logits(images) + model.predict_logits(images[..., ::-1])) / 2
    assert whole.layer_sizes == (60, 14, 10, 3)
    np.testing.assert_allclose(whole.predict_logits(images), mean, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["whiten", "zca"])
def test_networks_whose_inputs_are_not_symmetric_are_refused(kind):
    model, _ = network(kind)
    with pytest.raises(nnlib.HyperparameterError, match=r"^model: .*flip=True"):
        mirror_image(model, SHAPE)
