"""Figures: each can be drawn, shows the numbers it was given, and is the same each time."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

import nnlib
from nnlib import plots
from nnlib.network.gradcheck import GradientReport, ParameterCheck
from nnlib.plots import drawing, gradients, images, network, search, training, weights
from nnlib.plots import evaluation as evaluation_plots
from nnlib.searching.results import SearchResults, Trial
from nnlib.training.rates import RangeTest

CLASSES = ("cat", "dog", "frog")


def make_split(n: int = 12, seed: int = 0) -> nnlib.Split:
    rng = np.random.default_rng(seed)
    return nnlib.Split(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 3)


def make_data() -> nnlib.Dataset:
    return nnlib.Dataset(make_split(30), make_split(9), make_split(6), CLASSES, "arrays")


def make_history(n: int = 4, shift: float = 0.0) -> list[dict[str, float]]:
    names = ("train_loss", "valid_loss", "train_accuracy", "valid_accuracy")
    return [{"epoch": e, **dict.fromkeys(names, 1 / e + shift)} for e in range(1, n + 1)]


def make_diagnostics() -> list[dict[str, float]]:
    names = ("gradient_norm_1", "gradient_norm_2", "weight_norm_1", "update_ratio_1", "dead_1")
    return [{"epoch": e} | dict.fromkeys(names if e > 1 else (), 0.1 / e) for e in (1, 2, 3)]


def make_range_test() -> RangeTest:
    return RangeTest(np.geomspace(1e-3, 1, 4), np.array([2.0, 1.0, 1.5, 4.0]))


def make_model() -> nnlib.MLP:
    model = nnlib.MLP((3072, 6, 5, 3), "relu", classes=CLASSES)
    for parameter in model.parameters.values():
        parameter += 0.1
    return model


def make_table() -> pd.DataFrame:
    rates, sizes = (0.01, 0.1, 1.0), ((8,), (16, 8))
    rows = [
        {
            "learning_rate": r,
            "hidden_sizes": s,
            "valid_accuracy": r / 4 + len(s) / 10,
            "seconds": 10 * r,
        }
        for r in rates
        for s in sizes
    ]
    return pd.DataFrame([*rows, {**rows[0], "valid_accuracy": float("nan")}])


def make_results() -> SearchResults:
    trials = [Trial(i, {"l2": i / 10}, history=make_history(shift=i / 10)) for i in range(8)]
    return SearchResults(
        nnlib.Hyperparameters(), {}, "grid", [*trials, Trial(8, {"l2": 9.0}, "failed")]
    )


def evaluation() -> nnlib.Evaluation:
    return nnlib.Evaluation(1.0, 0.5, np.array([[3, 1, 0], [2, 2, 0], [0, 1, 3]]), CLASSES)


def report():
    return nnlib.check_gradients(
        nnlib.MLP((5, 4, 3), "tanh"), np.eye(5, dtype=np.float32)[:3], np.arange(3), l2=0.1
    )


MODEL = make_model()
SOME = np.full((4, 3), 1 / 3)
PLANE = nnlib.MLP((2, 4, 3, 2), "tanh")
POINTS = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32)
FIGURES = {
    "image_grid": lambda: plots.image_grid(make_split().images, list("abcdefghijkl")),
    "samples_by_class": lambda: plots.samples_by_class(
        make_split(), CLASSES, n=6
    ),  # more than there are
    "class_balance": lambda: plots.class_balance(make_data()),
    "mean_images": lambda: plots.mean_images(make_split(), CLASSES),
    "activation_functions": lambda: plots.activation_functions(
        ["relu", "leaky_relu(0.2)", "gelu", "tanh"]
    ),
    "schedules": lambda: plots.schedules(
        {s: nnlib.make_schedule(s, 0.1, 50) for s in ("step", "cosine")}, 50
    ),
    "computation_graph": plots.computation_graph,
    "history": lambda: plots.history(make_history(), others=[make_history(7)]),
    "history_filters": lambda: plots.history(
        [], (make_history(), make_history(3)), MODEL.parameters["W1"].T
    ),
    "histories": lambda: plots.histories(
        {"a": make_history(), "b": make_history(shift=0.1)}, "valid_loss"
    ),
    "search_curves": lambda: plots.search_curves(make_results()),
    "gradient_errors": lambda: plots.gradient_errors(report()),
    "error_against_step": lambda: plots.error_against_step(
        [1e-8, 1e-4, 1], {"central": [1e-8, 0, 1e-1]}
    ),
    "confusion": lambda: plots.confusion(evaluation()),
    "per_class": lambda: plots.per_class(evaluation()),
    "mistakes": lambda: plots.mistakes(
        make_split(4).images, np.arange(4) % 3, np.zeros(4, int), SOME, CLASSES
    ),
    "prediction": lambda: plots.prediction(
        make_split().images[0], np.array([0.2, 0.7, 0.1]), CLASSES, 0
    ),
    "weight_histograms": lambda: plots.weight_histograms(
        MODEL.initial_parameters(), MODEL.parameters
    ),
    "weight_heatmaps": lambda: plots.weight_heatmaps(MODEL.initial_parameters(), MODEL.parameters),
    "first_layer_images": lambda: plots.first_layer_images(MODEL.parameters["W1"].T),
    "curves": lambda: plots.curves(
        {"a": [3, 2, 1], "b": [1, 2]}, "Two rows of numbers", "place", "number", log=True
    ),
    "small_multiples": lambda: plots.small_multiples(
        {"l2": {"0": make_history()}, "momentum": {"0.9": make_history()}}
    ),
    "calibration": lambda: plots.calibration(
        np.array([0.1, 0.5, 1.0, 1.0]), np.array([0, 1, 1, 0])
    ),
    "diagnostics": lambda: plots.diagnostics(make_diagnostics()),
    "gradient_norms": lambda: plots.gradient_norms(make_diagnostics()[1:]),
    "hidden_units": lambda: plots.hidden_units(PLANE, POINTS[:, :2], POINTS[:, 2], "A plane"),
    "learning_rate_test": lambda: plots.learning_rate_test(make_range_test()),
    "search_heatmap": lambda: plots.search_heatmap(make_table(), "learning_rate", "hidden_sizes"),
    "search_parallel": lambda: plots.search_parallel(
        make_table(), ["learning_rate", "hidden_sizes"]
    ),
    "search_importance": lambda: plots.search_importance({"learning_rate": 0.9, "l2": 0.1}),
    "search_cost": lambda: plots.search_cost({"grid": make_table(), "halving": make_table()[:2]}),
    "search_strips": lambda: plots.search_strips(make_table(), ["learning_rate", "hidden_sizes"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_and_says_what_it_shows(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert plots.png(figure, dpi=40).startswith(b"\x89PNG")
    for ax in figure.axes:
        assert ax.get_xlabel() or not len(ax.get_xticks()) or ax.get_label() == "<colorbar>"
    if not name.startswith(("image_grid", "search_strips")):
        assert any(ax.get_title() for ax in figure.axes)


@pytest.mark.parametrize("name", ["history", "weight_heatmaps"])
def test_figure_is_the_same_each_time(name):
    assert plots.png(FIGURES[name]()) == plots.png(FIGURES[name]())


def test_every_public_function_is_drawn_here():
    modules = (evaluation_plots, gradients, images, network, search, training, weights)
    public = {name for name in plots.__all__ for module in modules if _is_made_in(module, name)}
    no_figures = {"filters_of"}
    drawn_twice = {"history_filters"}
    assert public - no_figures == set(FIGURES) - drawn_twice


def _is_made_in(module, name):
    return getattr(vars(module).get(name), "__module__", "") == module.__name__


def test_pyplot_is_not_needed():
    code = """import sys
from nnlib import plots
plots.png(plots.activation_functions(['relu']))
print(*sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib.pyplot" not in done.stdout.split()


def test_palette_is_seaborns():
    import seaborn

    assert seaborn.color_palette("colorblind").as_hex() == plots.PALETTE


def test_images_keep_their_pixels():
    images = make_split(5).images
    sheet = np.asarray(plots.image_grid(images, columns=3).axes[0].images[0].get_array())
    assert sheet.shape == (2 * 33, 3 * 33, 3)
    np.testing.assert_array_equal((255 * sheet[34:66, 34:66]).round(), images[4].transpose(1, 2, 0))
    grey = np.asarray(
        plots.image_grid(np.zeros((1, 1, 8, 8)), columns=1).axes[0].images[0].get_array()
    )
    assert grey[1:, 1:].max() == 0


def test_no_images_make_an_empty_grid():
    assert plots.png(plots.image_grid(make_split(0).images))


def test_history_marks_the_best_epoch():
    history = make_history()
    history[1]["valid_accuracy"], history[1]["valid_loss"] = 2.0, 0.25
    loss, accuracy = plots.history(history).axes
    assert accuracy.get_title() == "Accuracy 2.000 at best epoch 2"
    assert loss.get_title() == "Loss 0.250 at best epoch 2"
    (mark,) = [line for line in loss.lines if line.get_marker() == "o"]
    assert mark.get_xydata().tolist() == [[2.0, 0.25]]


def test_history_takes_records_with_gaps_and_losses_that_diverge():
    gaps = [{"epoch": 0.5, "train_loss": 1e9, "train_accuracy": 0.1}, *make_history(1)]
    loss, accuracy = plots.history(gaps).axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert [line.get_xdata().tolist() for line in accuracy.lines[:2]] == [[0.5, 1], [1]]


def test_histories_name_the_best_and_grey_the_rest():
    ax = plots.histories({str(i): make_history(shift=i) for i in range(9)}, top=2).axes[0]
    assert sorted(text.get_text() for text in ax.texts) == ["7", "8"]
    assert sum(line.get_color() == "0.8" for line in ax.lines) == 7


def test_labels_of_lines_do_not_overlap():
    ax = plots.schedules({name: lambda step: 0.1 for name in "abcd"}, 10).axes[0]
    places = sorted(text.get_position()[1] for text in ax.texts)
    assert np.diff(places).min() > 0.07
    assert places[-1] <= 1


def test_labels_are_moved_down_only_where_they_need_it():
    assert drawing._spread([], 0.1) == []
    assert drawing._spread([0.2, 0.5], 0.1) == [0.2, 0.5]
    np.testing.assert_allclose(drawing._spread([0.1, 0.48, 0.5, 1.2], 0.1), [0.1, 0.4, 0.5, 1])


def test_gradient_errors_above_the_tolerance_are_red():
    bad = GradientReport(
        tuple(
            ParameterCheck("data", n, (0,), 1, 1, e, 1, 0) for n, e in (("W1", 1e-9), ("b1", 1e-3))
        ),
        1e-7,
        "central",
    )
    colors = [patch.get_facecolor() for patch in plots.gradient_errors(bad).axes[0].patches]
    assert colors[0][:3] != colors[1][:3]


def test_confusion_shows_shares_of_rows():
    texts = [text.get_text() for text in plots.confusion(evaluation()).axes[0].texts]
    assert texts == ["75", "25", "0", "50", "50", "0", "0", "25", "75"]


def test_confusion_names_the_classes_on_both_axes():
    figure = plots.confusion(evaluation())
    plots.png(figure)  # labels may change when they are drawn
    ax = figure.axes[0]
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "dog", "frog"]
    assert {label.get_rotation() for label in ax.get_yticklabels()} == {0}


def test_titles_say_what_to_see():
    title = FIGURES["error_against_step"]().axes[0].get_title()
    assert title == "Large h: the curve bends. Small h: rounding. The best h lies between."
    assert FIGURES["histories"]().axes[0].get_title() == "Validation loss"
    splits = [ax.get_title() for ax in FIGURES["class_balance"]().axes]
    assert splits == [f"{s}: {n} to {n} per class" for s, n in SPLIT_SIZES]


SPLIT_SIZES = (("training", 10), ("validation", 3), ("test", 2))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("valid_accuracy", "validation accuracy"),
        ("train_loss", "training loss"),
        ("seconds", "seconds"),
        ("best_epoch", "best epoch"),
    ],
)
def test_quantities_are_written_in_words(value, words):
    assert drawing.quantity_words(value) == words


def test_search_figures_name_their_value_in_words():
    rates = ["learning_rate", "hidden_sizes"]
    heat_map, color_bar = plots.search_heatmap(make_table(), *rates).axes
    assert heat_map.get_title() == "Best validation accuracy for each pair"
    assert color_bar.get_ylabel() == "validation accuracy"
    for figure in (FIGURES["search_strips"](), FIGURES["search_cost"]()):
        assert figure.axes[0].get_ylabel() == "validation accuracy"
    places = plots.search_parallel(make_table(), rates).axes[0].get_xticklabels()
    assert [place.get_text() for place in places] == [*rates, "validation accuracy"]


def test_block_means():
    matrix = np.arange(24.0).reshape(6, 4)
    np.testing.assert_allclose(weights._block_means(matrix, 2), [[4.5, 6.5], [16.5, 18.5]])
    np.testing.assert_array_equal(weights._block_means(matrix), matrix)
    assert weights._block_means(np.ones((7, 3)), 3).tolist() == [[1, 1, 1]] * 3


def test_heatmaps_share_a_symmetric_scale():
    before, after = plots.weight_heatmaps(MODEL.initial_parameters(), MODEL.parameters).axes[:2]
    (low, high), other = before.images[0].get_clim(), after.images[0].get_clim()
    assert low == -high
    assert other == (low, high)


def test_first_layer_images_are_sorted_by_length_and_scaled_each():
    filters = np.outer([1.0, 3.0, 2.0], np.linspace(-1, 1, 3072))
    filters[1] *= -1
    sheet = np.asarray(
        plots.first_layer_images(filters, n=2, columns=2).axes[0].images[0].get_array()
    )
    first, second = sheet[1:33, 1:33], sheet[1:33, 34:66]
    np.testing.assert_allclose(first[0, 0, 0], 1, atol=1e-6)
    np.testing.assert_allclose(first, 1 - second, atol=1e-6)


def test_search_heatmap_takes_the_best_of_each_pair():
    texts = {
        text.get_text()
        for text in plots.search_heatmap(make_table(), "learning_rate", "hidden_sizes")
        .axes[0]
        .texts
    }
    assert texts == {"0.103", "0.203", "0.125", "0.225", "0.350", "0.450"}


def test_parallel_coordinates_put_few_values_on_steps_and_many_on_a_scale():
    ax = plots.search_parallel(make_table(), ["learning_rate", "hidden_sizes"]).axes[0]
    lines = [line.get_ydata() for line in ax.lines]
    assert len(lines) == 6  # the trial without an accuracy has none
    np.testing.assert_allclose(
        lines[-1], [1, 1, 1]
    )  # the best is drawn last: rate 1, sizes (16, 8)
    np.testing.assert_allclose(lines[0][:2], [0, 0])
    assert {"0.01", "0.1", "1", "(8,)", "(16, 8)"} <= {text.get_text() for text in ax.texts}
    rates = pd.DataFrame(
        {"learning_rate": np.geomspace(0.001, 1, 9), "valid_accuracy": np.linspace(0, 1, 9)}
    )
    ax = plots.search_parallel(rates, ["learning_rate"]).axes[0]
    np.testing.assert_allclose(
        [line.get_ydata() for line in ax.lines], np.linspace([0, 0], [1, 1], 9), atol=1e-9
    )


def test_cost_shows_each_trial_of_each_search():
    ax = plots.search_cost({"grid": make_table(), "halving": make_table()[:2]}).axes[0]
    np.testing.assert_allclose(
        ax.lines[1].get_xydata(), make_table()[:2][["seconds", "valid_accuracy"]]
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["grid", "halving"]


def test_importance_is_drawn_with_the_largest_on_top():
    ax = plots.search_importance({"learning_rate": 0.9, "l2": 0.1}).axes[0]
    assert [
        (label.get_text(), bar.get_width())
        for label, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)
    ] == [
        ("l2", 0.1),
        ("learning_rate", 0.9),
    ]


def test_style_leaves_no_trace_even_between_threads():
    import matplotlib

    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=lambda: plots.png(FIGURES["schedules"]())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before


def test_show_saves_png_and_for_line_drawings_svg(tmp_path, monkeypatch):
    monkeypatch.setenv("NNLIB_FIGURES_DIR", str(tmp_path / "new"))
    for _ in range(2):
        plots.show(FIGURES["schedules"](), "lines")
        plots.show(FIGURES["image_grid"](), "images")
        plots.show(FIGURES["image_grid"]())
        files = {path.name: path.read_bytes() for path in sorted((tmp_path / "new").iterdir())}
        assert [*files] == ["images.png", "lines.png", "lines.svg"]
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert b"<dc:date>" not in files["lines.svg"]


def test_show_displays_with_alt_text_in_a_kernel(tmp_path):
    code = """from nnlib import plots
figure = plots.activation_functions(["relu"])
plots.show(figure, "relu", "Value and derivative of ReLU")
plots.show(figure)"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", extra_arguments=["--log-level=40"]
    )
    client.execute(env={**os.environ, "NNLIB_FIGURES_DIR": str(tmp_path)})
    named, plain = notebook.cells[0].outputs
    assert named["output_type"] == "display_data"
    assert named["metadata"]["image/png"]["alt"] == "Value and derivative of ReLU"
    assert 800 < named["metadata"]["image/png"]["width"] < 950
    assert (
        plain["metadata"]["image/png"]["alt"]
        == "Forward: the output of the unit; Backward: the factor on the gradient"
    )
    assert [path.name for path in sorted(Path(tmp_path).iterdir())] == ["relu.png", "relu.svg"]


def test_diagnostics_show_every_layer_and_a_guide_at_a_thousandth():
    axes = plots.diagnostics(make_diagnostics()).axes
    lines = [[line for line in ax.lines if line.get_label() != "_"] for ax in axes]
    assert [[line.get_label() for line in shown] for shown in lines] == [
        ["layer 1", "layer 2"],
        ["layer 1"],
        ["layer 1"],
        ["layer 1"],
    ]
    np.testing.assert_allclose(lines[0][0].get_ydata(), [np.nan, 0.05, 0.1 / 3])
    assert axes[2].lines[-1].get_ydata()[0] == 1e-3


def test_the_range_test_marks_its_suggestion():
    ax = plots.learning_rate_test(make_range_test()).axes[0]
    assert ax.get_xscale() == "log" and ax.lines[1].get_xdata()[0] == pytest.approx(0.001)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 1, 1.5, 4])


def test_a_hidden_unit_has_a_line_where_its_z_is_zero_and_a_map_of_its_values():
    model = nnlib.MLP((2, 2, 2), "tanh")
    model.parameters["W1"][:] = [[1, 0], [0, 1]]
    model.parameters["b1"][:] = [-0.5, 9]  # z of unit 2 is nowhere 0
    left, right = plots.hidden_units(model, POINTS[:, :2], POINTS[:, 2]).axes
    first, boundary = [c.get_paths()[0].vertices for c in left.collections]  # no line for unit 2
    np.testing.assert_allclose(first[:, 0], 0.5, atol=1e-5)
    assert len(boundary) > 2 and [text.get_text().strip() for text in right.texts] == ["1.1", "1.2"]
    sheet = right.images[0].get_array()
    rows, columns = sheet.shape[0], sheet.shape[1] // 4
    assert (
        sheet[rows // 2, 2, 0] < 0.5 < sheet[rows // 2, columns - 3, 0]
    )  # unit 1 rises from left to right
