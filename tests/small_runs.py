"""Small runs that several test files train and compare."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import nnlib
from nnlib.network.saving import read_arrays
from nnlib.training.callbacks import Callback


def pictures(n: int, seed: int) -> nnlib.Dataset:
    """n pictures (3, 4, 4) of three classes that overlap; a sixth for validation, a sixth for the
    test."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    means = np.random.default_rng(99).normal(128, 25, (3, 3, 4, 4))
    images = np.clip(means[labels] + rng.normal(0, 60, (n, 3, 4, 4)), 0, 255).astype(np.uint8)
    return nnlib.Dataset.from_arrays(images, labels, ["a", "b", "c"], n_valid=n // 6, n_test=n // 6)


DATA = pictures(150, 0)  # 100 to train on: six batches of 16 and one of 4
PLAIN = nnlib.Hyperparameters(
    hidden_sizes=(8,), batch_size=16, epochs=3, learning_rate=0.05, momentum=0.0, seed=3
)
EVERYTHING = PLAIN.replace(
    activation="gelu",
    preprocessing="whiten",
    components=20,
    flip=True,
    shift=1,
    momentum=0.9,
    nesterov=True,
    clip_norm=2.0,
    l2=1e-3,
    l1=1e-3,
    l1_cut=5.0,
    dropout=0.2,
    input_dropout=0.1,
    label_smoothing=0.1,
    ema=0.9,
    schedule="cosine",
    warmup_steps=5,
)


class At(Callback):
    """Does something after one step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.do(trainer)


def stop(trainer):
    trainer.stop("enough")


def train(hp=PLAIN, data=DATA, *callbacks, **options) -> nnlib.TrainingRun:
    return nnlib.train(hp, data, progress=False, callbacks=callbacks, **options)


def timeless(history) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def same(run: nnlib.TrainingRun, other: nnlib.TrainingRun) -> bool:
    """Whether best weights and history, seconds apart, are the same bits."""
    if timeless(run.history) != timeless(other.history):
        return False
    p, q = run.model.parameters, other.model.parameters
    return all(p[n].tobytes() == q[n].tobytes() for n in p)


def on_disk(folder: Path) -> tuple:
    """All that a run folder says, seconds apart, as bits."""
    _, meta = read_arrays(folder / "last.npz")
    arrays = {}
    for path in folder.glob("*.npz"):
        for name, array in read_arrays(path)[0].items():
            arrays[path.name, name] = array.tobytes()
    run = nnlib.load_run(folder)
    return (
        arrays,
        meta["step"],
        timeless(meta["history"]),
        timeless(run.history),
        run.hyperparameters,
    )


def run_script(text: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
