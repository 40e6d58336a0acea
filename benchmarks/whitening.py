"""Which form of ZCA whitening should a recipe use? One table: ``python benchmarks/whitening.py``.

The forms are: one D × D matrix; two thin products, with 128 to 768 axes that have factors of their
own; and all images whitened once before the training, kept as float32, float16 or 8-bit numbers, so
that flips and shifts work on the whitened images. Each form trains the recipe ``sparse`` in a
process of its own, on one thread, from the same seed.

The seconds of an epoch are processor time of some steps of each form, all forms in turn. The
accuracy is that of a short training; it is kept in a run folder, so a run that was broken off
resumes, and a finished one is not trained again. The test images are not looked at.

Writes data/benchmarks/whitening.json and figures/benchmark_whitening.png.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pictures

import nnlib
from nnlib import plots
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.network.blas import Workspace, blas_threads
from nnlib.network.inputs import Preprocessing
from nnlib.network.saving import preprocessing_arrays, write_arrays
from nnlib.training.rundir import machine

ROOT = Path(__file__).parents[1]
THREADS = 1
PIECE = 500  # images that are whitened together


@dataclass(frozen=True)
class Form:
    """One way to whiten."""

    name: str
    components: int = 0  # axes that have factors of their own; 0: a D × D matrix
    kept_as: str = "pixels"  # whitened in each step; otherwise the dtype of images whitened once


FORMS = [
    Form("matrix"),
    Form("thin, 128 axes", 128),
    Form("thin, 256 axes", 256),
    Form("thin, 384 axes", 384),
    Form("thin, 512 axes", 512),
    Form("thin, 768 axes", 768),
    Form("once, float32", kept_as="float32"),
    Form("once, float16", kept_as="float16"),
    Form("once, 8 bits", kept_as="uint8"),
]


# ---- images that are whitened once ---------------------------------------------------------------


def whitened(split: nnlib.Split, zca: Preprocessing, kept_as: str, back: Preprocessing) -> Any:
    """Return ``split`` with whitened images (N, C, H, W) of the dtype ``kept_as``.

    8-bit numbers are those that ``back`` turns into the nearest whitened values.
    """
    images = np.empty(split.images.shape, kept_as)
    workspace = Workspace()
    for start in range(0, len(images), PIECE):
        x = zca.transform(split.images[start : start + PIECE], workspace)
        if kept_as == "uint8":
            x = np.rint((x - back.offset) / back.scale)
            x = np.clip(x, 0, 255)
        images[start : start + PIECE] = x.reshape(-1, *images.shape[1:])
    return replace(split, images=images)


def from_8_bits(zca: Preprocessing, images: Any) -> Preprocessing:
    """Return the map from 8-bit numbers to whitened values.

    0 to 255 cover all but one value in ten thousand.
    """
    x = zca.transform(images[:2000])
    limit = float(np.quantile(np.abs(x), 0.9999))
    n_inputs = x.shape[1]
    scale = np.full(n_inputs, limit / 127.5, np.float32)
    offset = np.full(n_inputs, -limit, np.float32)
    return Preprocessing(scale, offset)


# ---- one form, in a process of its own -----------------------------------------------------------


class Contest:
    """One form, ready to train: data, hyperparameters, and the map that a shipped file needs."""

    def __init__(self, form: Form, epochs: int) -> None:
        started = time.perf_counter()
        data = nnlib.load_dataset("cifar10", download=False)
        # nobody looks at the test images, so nobody whitens them
        self.data = replace(data, test=data.test.take(slice(0)))
        self.hp = nnlib.Hyperparameters.recipe("sparse", components=form.components, epochs=epochs)
        self.init: nnlib.MLP | None = None
        self.shipped_map: Preprocessing | None = None
        if form.kept_as != "pixels":
            self._whiten_once(form.kept_as)
        self.trainer = nnlib.Trainer(
            self.hp, self.data, progress=False, init=self.init, threads=THREADS
        )
        if self.shipped_map is None:
            self.shipped_map = self.trainer.model.preprocessing
        self.prepare_seconds = time.perf_counter() - started

    def _whiten_once(self, kept_as: str) -> None:
        """Replace the images by whitened ones."""
        pixels = self.data.train.images
        with blas_threads(THREADS):
            zca = fit_preprocessing("zca", pixels, floor=self.hp.whitening_floor, mirrored=True)
            back = from_8_bits(zca, pixels)
            train = whitened(self.data.train, zca, kept_as, back)
            valid = whitened(self.data.valid, zca, kept_as, back)
        self.data = replace(self.data, train=train, valid=valid)
        self.shipped_map = zca
        if kept_as == "uint8":
            # the trainer would draw the same first weights, but fit another map
            sizes = (pixels[0].size, *self.hp.hidden_sizes, len(self.data.classes))
            self.init = nnlib.MLP(sizes, self.hp.activation, seed=self.hp.seed, preprocessing=back)

    def held_mb(self) -> float:
        """Return the megabytes of the training images and of the map that each step uses."""
        n_bytes = self.data.train.images.nbytes
        used = self.trainer.model.preprocessing
        if used is not None:
            n_bytes += sum(a.nbytes for a in used.arrays.values())
        return n_bytes / 1e6


_contest: Contest  # of this process


def prepare(form: Form, epochs: int) -> dict[str, Any]:
    """Make this process's contest."""
    global _contest
    _contest = Contest(form, epochs)
    return {"prepare_seconds": _contest.prepare_seconds, "held_mb": _contest.held_mb()}


def step_seconds(steps: int) -> float:
    """Return the median time of one step: processor time, which other programs hardly change.

    On one thread it is the time that a step takes on a quiet machine.
    """
    trainer = _contest.trainer
    times = []
    with trainer.limited_threads():
        for _ in range(steps):
            started = time.process_time()
            trainer.train_step()
            times.append(time.process_time() - started)
    return statistics.median(times)


def peak_mb() -> float:
    """Return this process's peak resident memory, shared cache included; NaN on Windows."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: a new process begins with the peak of the one that started it
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


def train(run_dir: Path) -> dict[str, Any]:
    """Train, or go on where a run was broken off; return accuracy and size of the shipped file."""
    contest = _contest
    run = nnlib.train(
        contest.hp,
        contest.data,
        run_dir=run_dir,
        progress=False,
        init=contest.init,
        threads=THREADS,
    )
    shipped = run.model.with_parameters(run.model.parameters)
    shipped.preprocessing = contest.shipped_map
    arrays = preprocessing_arrays(contest.shipped_map)
    halves = {name: a.astype("float16") for name, a in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        whole = nnlib.save_model(shipped, Path(folder) / "whole.npz", storage="float16")
        map_alone = write_arrays(Path(folder) / "map.npz", halves, {}, pack=True)
        file_mb = whole.stat().st_size / 1e6
        map_mb = map_alone.stat().st_size / 1e6
    W1 = run.model.parameters["W1"]
    return {
        "valid_accuracy": run.history.best("valid_accuracy")["valid_accuracy"],
        "share_of_W1": float(np.count_nonzero(W1) / W1.size),
        "file_mb": file_mb,
        "map_mb": map_mb,
    }


# ---- all forms -----------------------------------------------------------------------------------


def measure(forms: list[Form], epochs: int, rounds: int, steps: int, runs: Path | None) -> Any:
    """Return one row for each form. Without ``runs`` nothing is trained to the end."""
    pools = {}
    rows: dict[Form, dict[str, Any]] = {}
    for form in forms:
        pools[form] = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        rows[form] = {"form": form.name, "components": form.components, "kept_as": form.kept_as}
        rows[form].update(pools[form].submit(prepare, form, epochs).result())
        print(f"{form.name}: ready after {rows[form]['prepare_seconds']:.0f} s", flush=True)
    seconds: dict[Form, list[float]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            seconds[form].append(pools[form].submit(step_seconds, steps).result())
    steps_per_epoch = -(-45_000 // 256)
    for form in forms:
        rows[form]["seconds_per_epoch"] = statistics.median(seconds[form]) * steps_per_epoch
        rows[form]["peak_mb"] = pools[form].submit(peak_mb).result()
    for form in forms:
        if runs is not None:
            folder = runs / f"{epochs}-epochs-{form.name.replace(', ', '-').replace(' ', '-')}"
            rows[form].update(pools[form].submit(train, folder).result())
            print(f"{form.name}: {rows[form]['valid_accuracy']:.4f}", flush=True)
        pools[form].shutdown()
    return list(rows.values())


def main() -> None:
    """Measure, then write table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs", type=int, default=6, help="epochs of each form's training [default: 6]"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each form's steps are timed [default: 5]"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "whitening", help="where the runs are kept"
    )
    parser.add_argument(
        "--quick", action="store_true", help="three forms, no training; writes nothing"
    )
    options = parser.parse_args()
    if options.quick:
        chosen = [FORMS[0], FORMS[4], FORMS[8]]
        rows = measure(chosen, options.epochs, rounds=2, steps=3, runs=None)
        print(pd.DataFrame(rows).to_string(index=False))
        return
    rows = measure(FORMS, options.epochs, options.rounds, steps=8, runs=options.runs)
    data = nnlib.load_dataset("cifar10", download=False)
    document = {
        "machine": machine(),
        "data": data.source,
        "fingerprint": data.fingerprint,
        "recipe": "sparse",
        "epochs": options.epochs,
        "threads": THREADS,
        "timing": "processor time",
        "rows": rows,
    }
    path = ROOT / "data" / "benchmarks" / "whitening.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    figure = pictures.whitening(document)
    (ROOT / "figures" / "benchmark_whitening.png").write_bytes(plots.png(figure, dpi=150))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
