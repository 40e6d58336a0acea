"""Ship a trained network: ``python benchmarks/ship.py NAME RUN_DIR [--weights]``.

Puts the logs of the run into data/runs/NAME, and into results.json there how good its best weights
are. With ``--weights`` these weights, rounded to float16, go into data/models/NAME.npz, and a model
card beside them. The test set is looked at here, once, after everything has been chosen.
``--official`` names a file with the first test images in their official pixels (images, labels),
for data whose pixels are others.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import nnlib
from nnlib.network.inputs import Preprocessing
from nnlib.training.hyperparameters import Hyperparameters

ROOT = Path(__file__).parents[1]
LOGS = ("hyperparameters.json", "environment.json", "history.csv", "log.txt")

CARD = """# {name}

A fully connected network with {layers}, trained by
hand-written backpropagation on the photographs of CIFAR-10. `benchmarks/ship.py` wrote this page
and computed every number on it.

## How to load it

```python
import nnlib

model = nnlib.load_model("data/models/{name}.npz")
model.predict(images)  # uint8 (N, 3, 32, 32), raw pixels: preprocessing is part of the model
```

## Data

{source}, fingerprint `{fingerprint}`: {n_train:,} images to train, {n_valid:,} to choose
epoch and recipe, {n_test:,} to test. {unofficial}

## Recipe

`nnlib train --recipe {name} --run-dir runs/{name}`, seed {seed}.{note}

{recipe}

{inputs}

Training took {minutes:.0f} minutes ({epochs} epochs, {cpu}, {threads} BLAS thread a run, with other
work beside it). The file is {megabytes:.1f} MB: weights and preprocessing as float16, packed.
The network has {parameters:,} parameters.{sparsity}

## Results

{metrics}

Validation chose the epoch; the test images chose nothing. Rounding to float16 moved the validation
accuracy from {exact:.4f} to {rounded:.4f}.

{classes}

Calibration on the test images: mean confidence {confidence:.3f} where {accuracy:.3f} are right;
expected calibration error {ece:.3f} in ten bins.

## Limits

It knows ten classes and answers with one of them whatever it is shown; photographs of other sizes
must be scaled to 32 × 32 first. It has no convolution: shifted, noisy or blurred images cost it
accuracy (notebook 5 measures how much). It is for teaching, not for decisions about anything.
"""


def calibration_error(confidence: Any, right: Any) -> float:
    """Return the mean gap of confidence and accuracy over ten bins (Naeini et al. 2015)."""
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = np.bincount(bins, weights=confidence - right, minlength=10)
    return float(np.abs(gaps).sum() / len(bins))


def metrics(
    model: nnlib.MLP, data: nnlib.Dataset, official: Path | None
) -> dict[str, tuple[float, float]]:
    """Return accuracy and loss on everything that is measured on."""
    splits = {"validation": data.valid, "test": data.test}
    if official is not None:
        with np.load(official) as file:
            first = nnlib.Split(file["images"], file["labels"].astype(np.int64))
        same = nnlib.Split(data.test.images[: len(first)], data.test.labels[: len(first)])
        assert (same.labels == first.labels).all(), "these are not the first test images"
        splits[f"first {len(first):,} test images, official pixels"] = first
        splits["the same images, here"] = same
    rows = {}
    for name, split in splits.items():
        found = nnlib.evaluate(model, split)
        rows[name] = (found.accuracy, found.loss)
    mirrored = data.test.images[..., ::-1]
    p = (model.predict_proba(data.test.images) + model.predict_proba(mirrored)) / 2
    accuracy = (p.argmax(axis=1) == data.test.labels).mean()
    loss = -np.log(p[np.arange(len(p)), data.test.labels]).mean()
    rows["test, averaged with the mirror image"] = (float(accuracy), float(loss))
    return rows


def describe_inputs(preprocessing: Preprocessing) -> str:
    """Return a sentence about what stands before the first layer."""
    if preprocessing.axes is not None:
        n_pixels, n_axes = preprocessing.axes.shape
        return (
            "Before the first layer, two thin products whiten the pixels (ZCA):\n"
            f"{n_axes} of the {n_pixels} principal axes have factors of their own, and the others "
            "share one."
        )
    if preprocessing.matrix is not None:
        n_pixels, n_inputs = preprocessing.matrix.shape
        return f"Before the first layer, {n_pixels} pixels are whitened to {n_inputs} inputs."
    return "Before the first layer, pixels are only shifted and scaled."


def describe_sparsity(model: nnlib.MLP) -> str:
    """Return a sentence about the zeros of the first layer, or nothing if there are hardly any."""
    W1 = model.parameters["W1"]
    share = np.count_nonzero(W1) / W1.size
    if share > 0.99:
        return ""
    per_unit = np.median(np.count_nonzero(W1, axis=0))
    return (
        f"\nOf the first layer's weights {share:.1%} are not zero: a median of {per_unit:.0f} "
        f"of a unit's {len(W1)}."
    )


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    columns = head.count("|") - 1
    lines = [head, "|" + " --- |" * columns]
    for row in rows:
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def changed_fields(hp: Hyperparameters) -> dict[str, Any]:
    """Return the hyperparameters that differ from their defaults, without seed and epochs."""
    defaults = Hyperparameters().to_dict()
    changed = {}
    for name, value in hp.to_dict().items():
        if value != defaults[name] and name not in ("seed", "epochs"):
            changed[name] = value
    return changed


def card(path: Path, run: nnlib.TrainingRun, data: nnlib.Dataset, rows: Any, note: str) -> str:
    """Return the model card, in Markdown."""
    model = nnlib.load_model(path)
    test = nnlib.evaluate(model, data.test)
    probabilities = model.predict_proba(data.test.images)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == data.test.labels
    precision = test.confusion.diagonal() / test.confusion.sum(axis=0)
    environment = json.loads((run.run_dir / "environment.json").read_text(encoding="utf-8"))
    n_inputs, *layers = model.layer_sizes
    fields = changed_fields(run.hyperparameters)
    recipe = [(f"`{name}`", str(value)) for name, value in fields.items()]
    measured = [(what, f"{accuracy:.4f}", f"{loss:.4f}") for what, (accuracy, loss) in rows.items()]
    classes = []
    for name, recall, p in zip(data.classes, test.per_class.values(), precision, strict=True):
        classes.append((name, f"{recall:.3f}", f"{p:.3f}"))
    unofficial = "These are the official images re-encoded as JPEG."
    return CARD.format(
        name=path.stem,
        layers=f"{n_inputs} inputs and layers of {', '.join(map(str, layers))} units",
        source=data.source,
        fingerprint=data.fingerprint,
        unofficial="" if data.source == "cifar10" else unofficial,
        n_train=len(data.train),
        n_valid=len(data.valid),
        n_test=len(data.test),
        seed=run.hyperparameters.seed,
        note=f"\n{note}" if note else "",
        recipe=table("| hyperparameter | value |", recipe),
        inputs=describe_inputs(model.preprocessing),
        minutes=run.seconds / 60,
        epochs=len(run.history),
        cpu=environment["cpu"],
        threads=min(blas["num_threads"] for blas in environment["blas"]),
        megabytes=path.stat().st_size / 1e6,
        parameters=sum(p.size for p in model.parameters.values()),
        sparsity=describe_sparsity(model),
        metrics=table("| measured on | accuracy | loss (nats) |", measured),
        exact=run.best["valid_accuracy"],
        rounded=rows["validation"][0],
        classes=table("| class | accuracy (recall) | precision |", classes),
        confidence=confidence.mean(),
        accuracy=right.mean(),
        ece=calibration_error(confidence, right),
    )


def main() -> None:
    """Copy logs, write weights and card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--note", default="", help="a sentence more in the card, about how it was trained"
    )
    parser.add_argument("--weights", action="store_true", help="the weights and a model card, too")
    parser.add_argument("--official", type=Path)
    options = parser.parse_args()
    data = nnlib.load_dataset("cifar10", download=False)
    logs = ROOT / "data" / "runs" / options.name
    path = ROOT / "data" / "models" / f"{options.name}.npz"
    run = nnlib.load_run(options.run_dir)
    logs.mkdir(parents=True, exist_ok=True)
    for log in LOGS:
        shutil.copy(run.run_dir / log, logs)
    model = run.model
    if options.weights:
        model = nnlib.load_model(nnlib.save_model(run.model, path, storage="float16"))
    rows = metrics(model, data, options.official)
    (logs / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.weights:
        text = card(path, run, data, rows, options.note)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(options.name, rows)


if __name__ == "__main__":
    main()
