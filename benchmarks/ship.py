"""Ship a trained network: ``python benchmarks/ship.py NAME RUN_DIR [--weights]``.

Puts the logs of the run into data/runs/NAME, and into results.json there how good its best weights are. With
``--weights`` these weights, rounded to float16, go into data/models/NAME.npz, and a model card beside them.
``--before`` names runs whose networks it began with, side by side: their logs go to data/runs/NAME/before_1,
before_2. The test set is looked at here, once, after everything has been chosen. ``--official`` names a file with the
first test images in their official pixels (images, labels), for data whose pixels are others.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import nnlib
from nnlib.training.hyperparameters import Hyperparameters

ROOT = Path(__file__).parents[1]
LOGS = ("hyperparameters.json", "environment.json", "history.csv", "log.txt")

CARD = """# {name}

A fully connected network with {layers}, trained by hand-written
backpropagation on the photographs of CIFAR-10. `benchmarks/ship.py` wrote this page and computed every number on it.

## How to load it

```python
import nnlib

model = nnlib.load_model("data/models/{name}.npz")
model.predict(images)  # uint8 (N, 3, 32, 32), raw pixels: preprocessing is part of the model
```

## Data

{source}, fingerprint `{fingerprint}`: {n_train:,} images to train, {n_valid:,} to choose epoch and
recipe, {n_test:,} to test. {unofficial}

## Recipe

{how}

{recipe}

Training took {minutes:.0f} minutes ({epochs} epochs, {cpu}, {threads} BLAS thread a run, with other work beside it).
The file is {megabytes:.1f} MB: weights and preprocessing as float16, {parameters:,} parameters.

## Results

| measured on | accuracy | loss (nats) |
| --- | --- | --- |
{metrics}

Validation chose the epoch; the test images chose nothing. Rounding to float16 moved the validation accuracy from
{exact:.4f} to {rounded:.4f}.

| class | accuracy (recall) | precision |
| --- | --- | --- |
{classes}

Calibration on the test images: mean confidence {confidence:.3f} where {accuracy:.3f} are right; expected calibration
error {ece:.3f} in ten bins.

## Limits

It knows ten classes and answers with one of them whatever it is shown; photographs of other sizes must be scaled to
32 × 32 first. It has no convolution: shifted, noisy or blurred images cost it accuracy (notebook 5 measures how much).
It is for teaching, not for decisions about anything.
"""


def calibration_error(confidence: Any, right: Any) -> float:
    """Return the mean gap of confidence and accuracy over ten bins of confidence (Naeini et al. 2015)."""
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
        splits |= {
            f"first {len(first):,} test images, official pixels": first,
            "the same images, here": same,
        }
    found = {name: nnlib.evaluate(model, split) for name, split in splits.items()}
    rows = {name: (each.accuracy, each.loss) for name, each in found.items()}
    p = (
        model.predict_proba(data.test.images) + model.predict_proba(data.test.images[..., ::-1])
    ) / 2
    right, of_label = p.argmax(axis=1) == data.test.labels, p[np.arange(len(p)), data.test.labels]
    return rows | {
        "test, averaged with the mirror image": (
            float(right.mean()),
            float(-np.log(of_label).mean()),
        )
    }


def card(
    path: Path,
    run: nnlib.TrainingRun,
    before: list[nnlib.TrainingRun],
    data: nnlib.Dataset,
    rows: Any,
    note: str,
) -> str:
    """Return the model card, in Markdown."""
    model, hp, plain, name = (
        nnlib.load_model(path),
        run.hyperparameters,
        Hyperparameters().to_dict(),
        path.stem,
    )
    test = nnlib.evaluate(model, data.test)
    probabilities = model.predict_proba(data.test.images)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == data.test.labels
    precision = test.confusion.diagonal() / test.confusion.sum(axis=0)
    classes = zip(data.classes, test.per_class.values(), precision, strict=True)
    environment = pd.read_json(run.run_dir / "environment.json", typ="series")
    how = f"`nnlib train --recipe {name} --run-dir runs/{name}`, seed {hp.seed}."
    if before:
        how = f"`nnlib train --recipe {name} --init FIRST/best.npz SECOND/best.npz --run-dir runs/{name}`,"
        how += f"\nseed {hp.seed}; it begins with networks that were trained before, side by side (`nnlib.join`).\n\n"
        how += (
            "| trained before | seed | epochs | validation accuracy |\n| --- | --- | --- | --- |\n"
        )
        for i, each in enumerate(before, 1):
            seed, n = each.hyperparameters.seed, len(each.history)
            how += f"| `best`, number {i} | {seed} | {n} | {each.best['valid_accuracy']:.4f} |\n"
    how += f"\n{note}" if note else ""
    changed = {
        k: v for k, v in hp.to_dict().items() if v != plain[k] and k not in ("seed", "epochs")
    }
    return CARD.format(
        name=name,
        layers=f"{model.layer_sizes[0]} inputs and layers of {', '.join(map(str, model.layer_sizes[1:]))} units",
        source=data.source,
        fingerprint=data.fingerprint,
        unofficial=""
        if data.source == "cifar10"
        else "These are the official images re-encoded as JPEG.",
        n_train=len(data.train),
        n_valid=len(data.valid),
        n_test=len(data.test),
        how=how,
        recipe="\n".join(
            [
                "| hyperparameter | value |",
                "| --- | --- |",
                *(f"| `{k}` | {v} |" for k, v in changed.items()),
            ]
        ),
        minutes=sum(each.seconds for each in (*before, run)) / 60,
        epochs=" + ".join(str(len(each.history)) for each in (*before, run)),
        cpu=environment["cpu"],
        threads=min(blas["num_threads"] for blas in environment["blas"]),
        megabytes=path.stat().st_size / 1e6,
        parameters=sum(p.size for p in model.parameters.values()),
        metrics="\n".join(
            f"| {what} | {accuracy:.4f} | {loss:.4f} |" for what, (accuracy, loss) in rows.items()
        ),
        exact=run.best["valid_accuracy"],
        rounded=rows["validation"][0],
        classes="\n".join(f"| {k} | {recall:.3f} | {p:.3f} |" for k, recall, p in classes),
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
    parser.add_argument("--before", nargs="*", type=Path, default=())
    parser.add_argument(
        "--note", default="", help="a sentence more in the card, about how it was trained"
    )
    parser.add_argument("--weights", action="store_true", help="the weights and a model card, too")
    parser.add_argument("--official", type=Path)
    options = parser.parse_args()
    data = nnlib.load_dataset("cifar10", download=False)
    logs, path = (
        ROOT / "data" / "runs" / options.name,
        ROOT / "data" / "models" / f"{options.name}.npz",
    )
    run, before = nnlib.load_run(options.run_dir), [nnlib.load_run(each) for each in options.before]
    for folder, each in (
        (logs, run),
        *((logs / f"before_{i}", each) for i, each in enumerate(before, 1)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for log in LOGS:
            shutil.copy(each.run_dir / log, folder)
    model = run.model
    if options.weights:
        model = nnlib.load_model(nnlib.save_model(run.model, path, storage="float16"))
    rows = metrics(model, data, options.official)
    (logs / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.weights:
        text = card(path, run, before, data, rows, options.note)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(options.name, rows)


if __name__ == "__main__":
    main()
