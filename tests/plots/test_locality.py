"""Local receptive fields: the measures on cases with known answers, and what the pictures show."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

import nnlib
from nnlib import plots
from nnlib.training import locality

SHAPE = (3, 32, 32)


def weights_at(*places: tuple[int, int, int], value: float = 1.0) -> np.ndarray:
    """One unit (3072, 1) with ``value`` at each (channel, row, column)."""
    W = np.zeros(SHAPE, np.float32)
    for place in places:
        W[place] = value
    return W.reshape(-1, 1)


def block(size: int, row: int = 4, column: int = 9, channel: int = 0) -> np.ndarray:
    rows, columns = range(row, row + size), range(column, column + size)
    return weights_at(*((channel, r, c) for r in rows for c in columns))


# ---- measures ------------------------------------------------------------------------------------


def test_spread_of_a_block_is_known_wherever_it_lies():
    # an even 3 × 3 block: variance (1 + 0 + 1) / 3 each way, so spread² = 4/3
    for row, column, channel in ((0, 0, 0), (4, 9, 2), (29, 29, 1)):
        found = locality.spread(block(3, row, column, channel))
        assert found == pytest.approx([np.sqrt(4 / 3)])
    assert locality.spread(np.ones((3072, 1))) == pytest.approx([np.sqrt(2 * 1023 / 12)])


def test_spread_weighs_by_size_and_not_by_sign():
    # |w| = 1 and 3, four columns apart: variance 4² · 1/4 · 3/4 = 3
    unit = weights_at((0, 5, 10)) - 3 * weights_at((1, 5, 14))
    assert locality.spread(unit) == pytest.approx([np.sqrt(3)])
    assert locality.centers(unit) == pytest.approx(np.array([[5, 13]]))


def test_a_unit_without_weights_has_no_center_and_does_not_disturb_the_others():
    W = np.concatenate([np.zeros((3072, 1)), block(3)], axis=1)
    assert np.isnan(locality.spread(W)).tolist() == [True, False]
    assert np.isnan(locality.centers(W)).tolist() == [[True, True], [False, False]]
    assert locality.centers(W)[1] == pytest.approx([5, 10])
    assert locality.pixels_used(W).tolist() == [0, 9]


def test_pixels_are_counted_once_for_all_channels():
    unit = weights_at((0, 1, 1), (1, 1, 1), (2, 1, 1), (0, 1, 2))
    assert np.count_nonzero(unit) == 4 and locality.pixels_used(unit).tolist() == [2]


def test_shuffling_keeps_all_but_the_places():
    rng = np.random.default_rng(0)
    W = np.concatenate([block(3), block(5) * rng.standard_normal((3072, 1))], axis=1)
    W[1024 + 4 * 32 + 9, 0] = 7  # the first pixel of the block has a second channel
    moved = locality.shuffled(W)
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(W, axis=0))
    np.testing.assert_array_equal(locality.pixels_used(moved), locality.pixels_used(W))
    assert (locality.spread(moved) > 3 * locality.spread(W)).all()
    # channels move together, units do not
    where = np.flatnonzero(moved[:, 0] == 7) % 1024
    assert moved[where, 0] == 1
    same = np.concatenate([block(3)] * 2, axis=1)
    assert (locality.shuffled(same)[:, 0] != locality.shuffled(same)[:, 1]).any()


def test_shuffling_is_repeated_by_its_seed():
    W = block(4)
    np.testing.assert_array_equal(locality.shuffled(W, 3), locality.shuffled(W, 3))
    assert (locality.shuffled(W, 3) != locality.shuffled(W, 4)).any()


def test_influence_is_deviation_times_outgoing_length():
    model = nnlib.MLP((2, 3, 2), "relu")
    model.parameters["W1"][:] = [[1, 0, -1], [0, 1, -1]]
    model.parameters["W2"][:] = [[3, 4], [0, 0], [1, 1]]
    x = np.array([[1, 5], [3, 5]], np.float32)  # unit 1: 1 and 3; unit 2: always 5; unit 3: dead
    assert locality.influence(model, x).tolist() == [5, 0, 0]
    x[:, 1] = [5, 9]
    assert locality.influence(model, x).tolist() == [5, 0, 0]  # nobody listens to unit 2
    model.parameters["W2"][1] = [0, 1]
    assert locality.influence(model, x).tolist() == [5, 2, 0]
    with pytest.raises(nnlib.HyperparameterError, match="no hidden layer"):
        locality.influence(nnlib.MLP((2, 2)), x)


def test_patterns_are_the_covariance_times_the_filter():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5)) + 3
    W = rng.standard_normal((5, 4))
    expected = np.cov(x.T, bias=True) @ W
    np.testing.assert_allclose(locality.patterns(x, W), expected.T, atol=1e-12)


def test_a_pattern_shows_the_signal_and_not_the_noise_that_a_filter_subtracts():
    # Haufe et al. 2014, section 2: x1 = signal + noise, x2 = noise. The filter (1, -1) weighs both
    # channels alike, though the signal is in the first one only: the pattern says so.
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal((2, 100_000))
    x = np.stack([signal + noise, noise], axis=1)
    pattern = locality.patterns(x, np.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(pattern, [[1, 0]], atol=0.02)


def test_keep_largest_prunes_by_size():
    W = np.array([[0.1, -5.0], [2.0, 0.0], [-0.3, 0.2]])
    kept = locality.keep_largest(W, 3)
    np.testing.assert_array_equal(kept, [[0, -5], [2, 0], [-0.3, 0]])
    np.testing.assert_array_equal(locality.keep_largest(W, 6), W)
    assert not locality.keep_largest(W, 0).any()
    for n in (-1, 7):
        with pytest.raises(nnlib.HyperparameterError, match=f"n: {n}"):
            locality.keep_largest(W, n)


# ---- pictures ------------------------------------------------------------------------------------


def test_a_pair_is_a_filter_and_its_pattern_each_on_its_own_scale():
    filters = np.concatenate([block(3).T, np.zeros((1, 3072)), -10 * block(3, 20).T])
    figure = plots.filters_and_patterns(filters, 0.01 * filters[::-1], pairs=2)
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (32 * 2 + 3, 65 * 2 + 3, 3)
    np.testing.assert_allclose(sheet[5, 10], [1, 0.5, 0.5])  # the first unit's filter: red
    np.testing.assert_allclose(sheet[21, 33 + 10], [0, 0.5, 0.5])  # its pattern: the last filter
    np.testing.assert_allclose(sheet[:32, 68:100], 0.5)  # a row of zeros is grey
    np.testing.assert_allclose(sheet[:32, 32], 1)
    np.testing.assert_allclose(sheet[35:, 68:], 1)  # there is no fourth unit
    assert plots.png(figure)


def test_filter_rows_may_be_shorter():
    rows = {"epoch 0": block(3).T.repeat(2, axis=0), "epoch 1": block(3).T.astype(np.float16)}
    ax = plots.filter_rows(rows, "a film").axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["epoch 0", "epoch 1"]
    sheet = ax.images[0].get_array()
    np.testing.assert_allclose(sheet[33 + 1 + 5, 1 + 10], [1, 0.5, 0.5])
    np.testing.assert_allclose(sheet[33:, 33:], 1)


def test_the_spike_has_exactly_the_zeros():
    weights = np.array([0, 0, 0, 1e-9, -0.5, 0.5, 0.25, 0.1])
    ax = plots.weight_spike(weights, {"dense": np.full(8, 0.2)}).axes[0]
    assert ax.get_title() == "37.5% of the weights are exactly zero"
    bars = [patch.get_height() for patch in ax.patches if to_hex(patch.get_fc()) == plots.ORANGE]
    assert bars == [3]
    for extreme in (np.zeros(4), np.ones(4)):
        assert plots.png(plots.weight_spike(extreme))


def test_histograms_name_their_medians_and_leave_out_units_without_weights():
    spreads = {"sparse": np.array([1.0, 2.0, np.nan, 9.0]), "shuffled": np.array([12.0, 13.0])}
    ax = plots.spread_histogram(spreads).axes[0]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "sparse: median 2.0" in texts and "shuffled: median 12.5" in texts
    assert "an even 3 × 3 square: 1.2" in texts  # sqrt(8/6) = 1.15
    ax = plots.pixel_counts({"sparse": np.array([3, 60, 1000])}).axes[0]
    assert ax.get_legend().get_texts()[0].get_text() == "sparse: median 60 of 1,024"


def test_the_map_has_rows_downwards_and_counts_units():
    W = np.concatenate([block(3, 4, 9), block(3, 4, 9), block(3, 20, 1, channel=2)], axis=1)
    left, right = plots.center_map(W, locality.centers(W), locality.spread(W)).axes[:2]
    users = left.images[0].get_array()
    assert (users[5, 10], users[21, 2], users[0, 0]) == (2, 1, 0)
    points = sorted(map(tuple, right.collections[0].get_offsets()))  # (column, row)
    assert points == [pytest.approx((2, 21)), pytest.approx((10, 5)), pytest.approx((10, 5))]
    assert left.get_ylim() == right.get_ylim() == (31.5, -0.5)


def test_pruning_draws_both_ways_against_the_share_left():
    trained = [{"share_nonzero": s, "valid_accuracy": 0.6, "spread": 8} for s in (1, 0.04)]
    pruned = [{"share_nonzero": 0.04, "valid_accuracy": 0.3, "spread": 9}]
    accuracy, spreads = plots.pruning(trained, pruned).axes
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[1, 0.04], [0.04]]
    assert [line.get_ydata().tolist() for line in spreads.lines] == [[8, 8], [9]]


def test_a_portrait_frames_the_unit_that_it_shows():
    filters = np.concatenate([block(3, row).T for row in range(10)])
    images = np.zeros((4, 3, 32, 32), np.uint8)
    figure = plots.unit_portrait(filters, -filters, 9, images, "the tenth")
    sheet, large, pattern, exciting = figure.axes
    (frame,) = sheet.patches
    assert frame.get_xy() == (33 + 0.5, 33 + 0.5)  # the second row's second place
    assert large.images[0].get_array()[1 + 10, 1 + 10].tolist() == [1, 0.5, 0.5]
    assert pattern.images[0].get_array()[1 + 10, 1 + 10].tolist() == [0, 0.5, 0.5]
    assert exciting.images[0].get_array().shape == (2 * 33, 2 * 33, 3)
    assert figure.get_suptitle() == "the tenth"
