"""Preprocessing: statistics, the fit on training images alone, folding, and augmentation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib.data.preprocessing import augment, fit_preprocessing
from nnlib.network.blas import Workspace
from nnlib.training.trainer import build_model

KINDS = ("scale", "standardize", "whiten", "zca")


def pictures(n: int = 300, seed: int = 0, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    """Pictures (n, 3, 4, 5) whose channels differ and whose neighboring pixels are alike."""
    rng = np.random.default_rng(seed)
    channels = np.array([90, 120, 150])[: shape[0], None, None]
    rows = rng.normal(0, 40, (n, *shape)).cumsum(axis=-1) / 2
    return np.clip(rows + channels, 0, 255).astype(np.uint8)


def test_scale_divides_by_255():
    images = pictures(5)
    x = fit_preprocessing("scale", images).transform(images)
    assert x.dtype == np.float32 and x.shape == (5, 60)
    np.testing.assert_allclose(x, images.reshape(5, 60) / 255, rtol=2e-7)


def test_standardize_gives_each_channel_mean_0_and_variance_1():
    images = pictures()
    x = fit_preprocessing("standardize", images).transform(images)
    x = x.reshape(images.shape).astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.var(axis=(0, 2, 3)), 1, rtol=1e-6)

    # Without channels, there is one mean and one variance for all.
    flat = images.reshape(len(images), -1)
    x = fit_preprocessing("standardize", flat).transform(images)
    flat = flat.astype(np.float64)
    np.testing.assert_allclose(x, (flat - flat.mean()) / flat.std(), atol=1e-5)


def test_a_constant_channel_does_not_divide_by_zero():
    images = pictures()
    images[:, 1] = 77
    x = fit_preprocessing("standardize", images).transform(images)
    np.testing.assert_allclose(x.reshape(images.shape)[:, 1], 0, atol=0.01)


@pytest.mark.parametrize("floor", [0, 0.1])
def test_whitening_makes_inputs_uncorrelated(floor):
    images = pictures()
    fitted = fit_preprocessing("whiten", images, floor=floor)
    x = fitted.transform(images).astype(np.float64)
    flat = images.reshape(len(images), -1) / 255
    e = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1]  # largest first
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x.T @ x / len(x), np.diag(e / (e + floor * e.mean())), atol=2e-4)


@pytest.mark.parametrize("floor", [0, 0.1])
def test_zca_is_whitening_turned_back_so_that_inputs_stay_at_their_pixels(floor):
    images = pictures()
    pca = fit_preprocessing("whiten", images, floor=floor)
    zca = fit_preprocessing("zca", images, floor=floor)
    flat = images.reshape(len(images), -1) / 255
    e, V = np.linalg.eigh(np.cov(flat.T, bias=True))
    expected = (flat - flat.mean(axis=0)) @ V / np.sqrt(e + floor * e.mean()) @ V.T
    x = zca.transform(images)
    np.testing.assert_allclose(x, expected, atol=2e-3)
    np.testing.assert_allclose(zca.matrix, zca.matrix.T, atol=1e-4 * abs(zca.matrix).max())
    lengths = np.linalg.norm(pca.transform(images), axis=1)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), lengths, rtol=1e-3)


@pytest.mark.parametrize("floor", [0.05, 0.5])
def test_zca_with_few_components_gives_the_other_axes_one_factor(floor):
    images = pictures()
    thin = fit_preprocessing("zca", images, floor=floor, components=7)
    flat = images.reshape(len(images), -1) / 255
    e, V = np.linalg.eigh(np.cov(flat.T, bias=True))
    e, V = e[::-1], V[:, ::-1]
    shared = np.where(np.arange(60) < 7, e, e[7:].mean())
    expected = (flat - flat.mean(axis=0)) @ V / np.sqrt(shared + floor * e.mean()) @ V.T
    np.testing.assert_allclose(thin.transform(images), expected, atol=2e-3)
    assert thin.n_inputs == 60 and thin.axes.shape == (60, 7) and thin.matrix is None
    x = fit_preprocessing("zca", images, floor=floor, components=60).transform(images)
    whole = fit_preprocessing("zca", images, floor=floor)
    np.testing.assert_allclose(x, whole.transform(images))


@pytest.mark.parametrize("components", [0, 7])
def test_mirrored_zca_is_fitted_on_the_images_and_their_mirror_images(components):
    images = pictures()
    both = np.concatenate([images, images[..., ::-1]])
    fitted = fit_preprocessing("zca", images, components=components, mirrored=True)
    expected = fit_preprocessing("zca", both, components=components).transform(images)
    np.testing.assert_allclose(fitted.transform(images), expected, atol=2e-3)
    x = fitted.transform(images).reshape(images.shape)
    mirrored = fitted.transform(images[..., ::-1]).reshape(images.shape)
    # Mirroring and whitening may change places.
    np.testing.assert_allclose(mirrored, x[..., ::-1], atol=2e-3)
    plain = fit_preprocessing("zca", images, components=components).transform(images)
    assert abs(plain - x.reshape(plain.shape)).max() > 0.05


def test_components_are_the_first_columns():
    images = pictures()
    whole = fit_preprocessing("whiten", images)
    few = fit_preprocessing("whiten", images, components=7)
    assert few.n_inputs == 7 and whole.n_inputs == 60
    x, y = whole.transform(images)[:, :7], few.transform(images)
    np.testing.assert_allclose(abs(y), abs(x), atol=1e-3)  # an axis may point either way
    assert fit_preprocessing("whiten", images, components=999).n_inputs == 60


def test_statistics_come_from_20_000_images_always_the_same():
    images = pictures(20_100, shape=(1, 1, 2))
    chosen = np.random.default_rng(0).choice(20_100, 20_000, replace=False)
    scale = fit_preprocessing("standardize", images).scale[0]
    assert scale == pytest.approx(1 / images[chosen].std(), rel=1e-7)
    assert scale != pytest.approx(1 / images.std(), rel=1e-7)


def test_what_was_fitted_last_is_kept_for_images_of_the_same_content():
    first = fit_preprocessing("whiten", pictures())
    assert fit_preprocessing("whiten", pictures()) is first
    assert fit_preprocessing("whiten", pictures(), floor=0.2) is not first
    images = pictures()
    again = fit_preprocessing("whiten", images)
    images[0] += 1
    assert (fit_preprocessing("whiten", images).matrix != again.matrix).any()


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_change_nothing(kind):
    images = pictures(9)
    fitted = fit_preprocessing(kind, pictures(), components=5)
    workspace = Workspace()
    first = fitted.transform(pictures(12, seed=1), workspace)
    again = fitted.transform(images, workspace)
    assert np.shares_memory(first, again)
    np.testing.assert_array_equal(again, fitted.transform(images))


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_images_are_looked_at(kind):
    images, labels = pictures(), np.arange(300) % 3
    data = nnlib.Dataset.from_arrays(images, labels)
    black = np.zeros_like(data.valid.images)
    black_valid = nnlib.Split(black, data.valid.labels)
    black_test = nnlib.Split(black, data.test.labels)
    other = nnlib.Dataset(data.train, black_valid, black_test, data.classes, "x")
    hp = nnlib.Hyperparameters(hidden_sizes=(4,), preprocessing=kind)
    fitted, twin = build_model(hp, data).preprocessing, build_model(hp, other).preprocessing
    alone = fit_preprocessing(kind, data.train.images)
    for name in ("scale", "offset", "matrix"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(twin, name))
        np.testing.assert_array_equal(getattr(fitted, name), getattr(alone, name))


@pytest.mark.parametrize("kind, components", [*((kind, 8) for kind in KINDS), ("zca", 0)])
def test_folding_takes_raw_pixels(kind, components):
    images = pictures()
    fitted = fit_preprocessing(kind, images, components=components)
    rng = np.random.default_rng(1)
    W, b = rng.standard_normal((fitted.n_inputs, 6)), rng.standard_normal(6)
    V, c = fitted.fold(W, b)
    flat = images.reshape(len(images), -1).astype(np.float64)
    np.testing.assert_allclose(flat @ V + c, fitted.transform(images) @ W + b, atol=1e-4)
    # One row for each unit: the weights that it gives to the pixels.
    np.testing.assert_array_equal(fitted.filters(W), V.T)


def test_refusals():
    unknown = r"^preprocessing: 'whitn' is not known.*'whiten'\?"
    with pytest.raises(nnlib.HyperparameterError, match=unknown):
        fit_preprocessing("whitn", pictures(3))
    fitted = fit_preprocessing("scale", pictures(3))
    too_few = r"^images: 12 numbers an image, .* made for 60"
    with pytest.raises(nnlib.HyperparameterError, match=too_few):
        fitted.transform(np.zeros((2, 3, 2, 2), np.uint8))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """One image (C, H, W) moved by whole pixels, edges repeated, one pixel at a time."""
    _, height, width = image.shape
    result = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            from_row = min(max(row - down, 0), height - 1)
            from_column = min(max(column - right, 0), width - 1)
            result[:, row, column] = image[:, from_row, from_column]
    return result


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans(), st.integers(0, 6))
def test_augmentation_is_a_mirror_image_and_a_shift(seed, n, flip, shift):
    images = pictures(n, seed=seed % 7)
    kept = images.copy()
    result = augment(images, np.random.default_rng(seed), flip=flip, shift=shift)
    assert result.dtype == np.uint8
    steps = range(-shift, shift + 1)
    for image, got in zip(images, result, strict=True):
        ways = [image, image[..., ::-1]] if flip else [image]
        candidates = (moved(w, down, right) for w in ways for down in steps for right in steps)
        assert any((candidate == got).all() for candidate in candidates)
    np.testing.assert_array_equal(images, kept)


def test_augmentation_does_every_thing_it_may_and_is_seeded():
    images = np.repeat(pictures(1), 2000, axis=0)
    a = augment(images, np.random.default_rng(3), flip=True, shift=1)
    b = augment(images, np.random.default_rng(3), flip=True, shift=1)
    np.testing.assert_array_equal(a, b)
    _, counts = np.unique(a.reshape(2000, -1), axis=0, return_counts=True)
    assert len(counts) == 2 * 3 * 3
    assert counts.min() > 60  # 111 expected of each, standard deviation 10
    mirrored = augment(images, np.random.default_rng(3), flip=True)
    n = (mirrored == images[..., ::-1]).all(axis=(1, 2, 3)).sum()
    assert abs(n - 1000) < 4 * np.sqrt(500)
    np.testing.assert_array_equal(augment(images, np.random.default_rng(0)), images)


def test_augmentation_draws_the_same_numbers_whatever_the_images_are():
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    augment(pictures(5), one, flip=True, shift=2)
    augment(pictures(5, seed=9, shape=(1, 8, 8)), other, flip=True, shift=2)
    assert one.random() == other.random()


def test_augmentation_in_a_workspace_is_the_same():
    workspace = Workspace()
    nine, seven = pictures(9), pictures(7, seed=5)
    first = augment(nine, np.random.default_rng(1), flip=True, shift=2, workspace=workspace)
    again = augment(seven, np.random.default_rng(2), flip=True, shift=2, workspace=workspace)
    assert np.shares_memory(first, again)
    without = augment(seven, np.random.default_rng(2), flip=True, shift=2)
    np.testing.assert_array_equal(again, without)


def test_augmentation_refuses_what_is_no_image():
    with pytest.raises(nnlib.HyperparameterError, match=r"flip.*\(5, 60\)"):
        augment(np.zeros((5, 60), np.uint8), np.random.default_rng(0), flip=True)


def test_images_of_another_layout_or_kind_are_refused():
    preprocessing = fit_preprocessing("scale", np.zeros((9, 3, 8, 8), np.uint8))
    model = nnlib.MLP((192, 5, 2), preprocessing=preprocessing)
    images = np.zeros((4, 3, 8, 8), np.uint8)
    assert model.predict(images).shape == (4,)
    turn = r"channels last: give images\.transpose\(0, 3, 1, 2\)"
    with pytest.raises(nnlib.DataError, match=turn):
        model.predict(images.transpose(0, 2, 3, 1))
    with pytest.raises(nnlib.HyperparameterError, match=r"^images: float32 .* takes uint8 pixels"):
        model.predict(images.astype(np.float32))
    assert repr(model) == "MLP(192-5-2, leaky_relu, float32)"
