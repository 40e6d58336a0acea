"""Figures of a trained network's answers: which are right, and how sure the network is."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nnlib.extras import need
from nnlib.plots.drawing import GREEN, GREY, ORANGE, RED, draw_images, label_lines, subplots
from nnlib.plots.images import image_grid
from nnlib.training.evaluation import Evaluation
from nnlib.types import Array


def confusion(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix: the percentage of each true class that got each prediction."""
    need("notebooks", "seaborn")
    import seaborn

    totals = evaluation.confusion.sum(axis=1, keepdims=True)
    percentages = 100 * evaluation.confusion / np.maximum(totals, 1)  # a class may have no images
    figure, (ax,) = subplots(height=6, title="Confusion matrix: each row adds up to 100%")
    seaborn.heatmap(
        percentages,
        ax=ax,
        annot=True,
        fmt=".0f",
        cmap="Blues",
        vmin=0,
        vmax=100,
        xticklabels=evaluation.classes,
        yticklabels=evaluation.classes,
        cbar_kws={"label": "images of the true class (%)"},
    )
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)  # seaborn may turn the names upright
    return figure


def per_class(evaluation: Evaluation) -> Figure:
    """Draw the accuracy on each class, best first, and on all images."""
    title = f"Accuracy for each class (dashed line: all images, {evaluation.accuracy:.3f})"
    figure, (ax,) = subplots(title=title, xlabel="accuracy (fraction of the class's images)")
    ranked = dict(sorted(evaluation.per_class.items(), key=lambda item: item[1]))
    bars = ax.barh(list(ranked), list(ranked.values()))
    ax.bar_label(bars, fmt="%.3f", label_type="center", color="white", fontsize=9)
    ax.axvline(evaluation.accuracy, color=ORANGE, ls="--")
    return figure


def mistakes(
    images: Array, true: Array, predicted: Array, probabilities: Array, classes: Sequence[str]
) -> Figure:
    """Draw images (N, C, H, W) with their true class, predicted class and its probability.

    ``true`` and ``predicted`` are class numbers (N,), ``probabilities`` is (N, K).
    """
    titles = []
    for t, p, row in zip(true, predicted, probabilities, strict=True):
        titles.append(f"{classes[t]}\n→ {classes[p]} {100 * row[p]:.0f}%")
    title = "True class → predicted class and its probability"
    return image_grid(images, titles, columns=6, title=title)


def prediction(image: Array, probabilities: Array, classes: Sequence[str], label: int) -> Figure:
    """Draw one image (C, H, W) and the probabilities (K,) of its classes.

    The true class, number ``label``, is green; a wrong guess is red.
    """
    figure, (left, right) = subplots(1, 2)
    guess = int(np.argmax(probabilities))
    colors = [GREY] * len(classes)
    colors[guess] = RED
    colors[label] = GREEN  # also if it is the guess
    draw_images(left, image[None], 1)
    left.set_title(f"True class: {classes[label]}")
    bars = right.barh(classes, probabilities, color=colors)
    right.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    right.set(xlim=(0, 1.1), xlabel="probability", title=f"Predicted: {classes[guess]}")
    right.invert_yaxis()
    return figure


def calibration(confidence: Array, right: Array, bins: int = 10) -> Figure:
    """Draw how many predictions have each confidence, and what fraction of them is right.

    ``confidence`` (N,) is the probability of the predicted class, and ``right`` (N,) is 1 where
    the prediction was right and 0 elsewhere.
    """
    unit = "confidence (probability of the predicted class)"
    figure, (above, below) = subplots(2, 1, height=5, xlim=(0, 1), xlabel=unit, ylabel="images")
    counts, _ = np.histogram(confidence, bins, (0, 1))
    right_counts, _ = np.histogram(confidence[right > 0], bins, (0, 1))
    divisor = np.maximum(counts, 1)  # a bin may be empty
    accuracy = right_counts / divisor
    standard_error = np.sqrt(accuracy * (1 - accuracy) / divisor)
    middles = (np.arange(bins) + 0.5) / bins
    above.bar(middles, accuracy, width=0.9 / bins, yerr=standard_error)
    above.plot([0, 1], [0, 1], "--", color=RED, label="perfectly\ncalibrated")
    title = "How often is the network right at each level of confidence?"
    above.set(title=title, ylabel="accuracy", ylim=(0, 1))
    below.bar(middles, counts, width=0.9 / bins, color=GREY)
    label_lines(above)
    return figure
