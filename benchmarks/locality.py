"""How local does an L1 penalty make the first layer?

``python benchmarks/locality.py --threads 1`` trains the recipe ``sparse`` for 16 epochs with a row
of penalties λ, from none at all to five times the recipe's. It measures for each how many weights
are left, how far apart they lie, and how good the network is on the validation images. The network
without a penalty is also pruned: the same number of weights kept, the largest ones, and no training
after that. One more network sees the training images as they are, neither shifted nor mirrored. The
test set is not looked at.

Writes data/benchmarks/locality.json and locality_filters.npz (some units' filters for each λ, and a
film of 24 units' filters over the epochs). Run it again after an interruption: it continues where
it stopped. It takes about half an hour on one core. With ``--picture`` it trains nothing and draws
figures/filters_patterns.png from the shipped network instead.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import nnlib
from nnlib import plots
from nnlib.network.blas import blas_threads
from nnlib.network.saving import read_arrays, write_arrays
from nnlib.plots.locality import filters_and_patterns
from nnlib.training import locality
from nnlib.training.rundir import machine

ROOT = Path(__file__).parents[1]
PENALTIES = {0.0: 0.0, 2e-5: 50.0, 1e-4: 20.0, 5e-5: 30.0, 5e-6: 50.0}  # λ and its β, as trained
FILMED = 2e-5
FRAMES = (0, 1, 2, 4, 8, 12, 16)  # epochs
UNITS, UNITS_IN_FILM = 12, 24


class Film(nnlib.Callback):
    """Keeps W1 at some epochs, on disk: an interrupted run continues with the frames it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, epoch: int) -> Path:
        return self.folder / f"frame-{epoch:02}.npz"

    def measure(self, trainer: nnlib.Trainer) -> dict[str, Any]:
        """Write a frame. This is called before the epoch is saved, so no frame is ever missing."""
        epoch = trainer.epoch + 1  # the one that is ending
        if epoch in FRAMES:
            self.folder.mkdir(exist_ok=True)
            W1 = trainer.model.parameters["W1"].astype(np.float16)
            write_arrays(self.path(epoch), {"W1": W1}, {"kind": "frame"})
        return {}

    def frame(self, model: nnlib.MLP, epoch: int) -> Any:
        """Return W1 as it was after ``epoch`` epochs."""
        if epoch == 0:
            return model.initial_parameters()["W1"]
        return read_arrays(self.path(epoch))[0]["W1"]


def settings(epochs: int) -> dict[float, nnlib.Hyperparameters]:
    """Return the hyperparameters of each λ."""
    base = nnlib.Hyperparameters.recipe("sparse").replace(epochs=epochs)
    return {l1: base.replace(l1=l1, l1_cut=cut) for l1, cut in PENALTIES.items()}


def median(values: Any) -> float:
    """Return the median over the units that have weights."""
    return round(float(np.nanmedian(values)), 4)


def measures(W1: Any) -> dict[str, Any]:
    """Return what the table says about a first layer's weights (D, H)."""
    each = np.count_nonzero(W1, axis=0)
    alive = each > 0
    return {
        "nonzero": int(each.sum()),
        "share_nonzero": float(each.mean() / len(W1)),
        "units_with_weights": int(alive.sum()),
        "weights_a_unit": float(np.median(each[alive])),
        "pixels_a_unit": float(np.median(locality.pixels_used(W1)[alive])),
        "spread": median(locality.spread(W1)),
        "shuffled_spread": median(locality.spread(locality.shuffled(W1))),
    }


def strongest(model: nnlib.MLP, split: nnlib.Split, n: int) -> Any:
    """Return the numbers of the ``n`` most influential units, the strongest first."""
    return np.argsort(-locality.influence(model, split.images), kind="stable")[:n]


def pruned(model: nnlib.MLP, n: int) -> nnlib.MLP:
    """Return ``model`` with the ``n`` largest weights of its first layer and no others."""
    twin = model.astype(model.dtype)
    twin.parameters["W1"] = locality.keep_largest(twin.parameters["W1"], n)
    return twin


def main() -> None:
    """Train the networks that are not there yet, measure all, and write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads [default: 1]")
    parser.add_argument("--epochs", type=int, default=16, help="of every run [default: 16]")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "locality", help="where the runs are kept"
    )
    parser.add_argument("--picture", action="store_true", help="draw the README's picture only")
    options = parser.parse_args()
    if options.picture:
        (ROOT / "figures" / "filters_patterns.png").write_bytes(plots.png(picture(), dpi=150))
        return
    if hasattr(os, "nice"):
        os.nice(10)  # it may run for long beside other work
    with blas_threads(options.threads):
        run(options)


def train(hp: nnlib.Hyperparameters, data: nnlib.Dataset, options: argparse.Namespace) -> Any:
    """Return the finished run of ``hp`` and its film; a run that is there already is only read."""
    name = f"{hp.epochs}-epochs-{hp.l1:g}"
    if not hp.flip:
        name += "-as-they-are"
    film = Film(options.runs / name / "film")
    done = nnlib.train(
        hp, data, run_dir=options.runs / name, callbacks=[film], threads=options.threads
    )
    return done, film


def row(done: nnlib.TrainingRun) -> dict[str, Any]:
    """Return a run's line in the table."""
    hp = done.hyperparameters
    return {
        "l1": hp.l1,
        "l1_cut": hp.l1_cut,
        "flip": hp.flip,
        "shift": hp.shift,
        **measures(done.model.parameters["W1"]),
        "valid_accuracy": done.best["valid_accuracy"],
        "train_accuracy": done.history[-1]["train_accuracy"],
        "epoch": done.best_epoch,
    }


def run(options: argparse.Namespace) -> None:
    """Train and measure one network after the other; both files are written anew after each."""
    data = nnlib.load_dataset("cifar10")
    document = {
        "machine": machine(),
        "data": data.source,
        "fingerprint": data.fingerprint,
        "recipe": "sparse",
        "epochs": options.epochs,
        "rows": [],
        "pruned": [],
    }
    arrays: dict[str, Any] = {}
    all_settings = settings(options.epochs)
    dense, _ = train(all_settings[0.0], data, options)
    for l1, hp in all_settings.items():
        done, film = train(hp, data, options)
        document["rows"].append(row(done))
        units = strongest(done.model, data.valid, UNITS)
        W1 = done.model.parameters["W1"]
        arrays[f"filters_{l1:g}"] = W1.T[units].astype(np.float16)
        if l1 > 0:
            document["pruned"].append(pruning(dense.model, l1, np.count_nonzero(W1), data.valid))
        if l1 == FILMED:
            arrays |= frames(done.model, film, data.valid, options.epochs)
        print(row(done), flush=True)
        write(document, arrays)
    # shifts and mirror images know where pixels lie: does it work without them?
    plain, _ = train(all_settings[FILMED].replace(flip=False, shift=0), data, options)
    document["images_as_they_are"] = row(plain)
    write(document, arrays)


def pruning(dense: nnlib.MLP, l1: float, n: int, split: nnlib.Split) -> dict[str, Any]:
    """Return the table's line for ``dense`` pruned to ``n`` weights, as many as λ = ``l1`` left."""
    twin = pruned(dense, n)
    accuracy = nnlib.evaluate(twin, split).accuracy
    return {"as_l1": l1, **measures(twin.parameters["W1"]), "valid_accuracy": accuracy}


def frames(model: nnlib.MLP, film: Film, split: nnlib.Split, epochs: int) -> dict[str, Any]:
    """Return the film: filters of the units that have the most influence in the end."""
    units = strongest(model, split, UNITS_IN_FILM)
    kept = [epoch for epoch in FRAMES if epoch <= epochs]
    return {f"film_{e}": film.frame(model, e).T[units].astype(np.float16) for e in kept}


def write(document: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write both files, the rows by rising λ."""
    document["rows"].sort(key=lambda row: row["l1"])
    document["pruned"].sort(key=lambda row: row["as_l1"])
    folder = ROOT / "data" / "benchmarks"
    text = json.dumps(document, indent=1) + "\n"
    (folder / "locality.json").write_text(text, encoding="utf-8")
    np.savez_compressed(folder / "locality_filters.npz", **arrays)


def picture() -> Figure:
    """Return filters and patterns of 24 units of the shipped network.

    The first twelve are those with the most influence; then come the most local of the 300 with the
    most influence.
    """
    data = nnlib.load_dataset("cifar10")
    model = nnlib.load_model(ROOT / "data" / "models" / "sparse.npz")
    units = strongest(model, data.valid, 300)
    spread = locality.spread(model.parameters["W1"][:, units])
    most_local = [unit for unit in units[np.argsort(spread)] if unit not in units[:12]]
    chosen = [*units[:12], *most_local[:12]]
    weights = model.parameters["W1"][:, chosen]
    pixels = data.valid.images.reshape(len(data.valid), -1) / np.float32(255)
    patterns = locality.patterns(pixels, model.preprocessing.filters(weights).T)
    return filters_and_patterns(weights.T, patterns, pairs=6)


if __name__ == "__main__":
    main()
