"""Training: epochs of stochastic gradient descent, validation after each, the best weights kept, exact resume.

Everything random in step t of epoch e is drawn from a generator made of (seed, what it is for, e or t), so that a run
which is broken off needs to remember no random state: it goes on from the step it had reached.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.checkpoints import load_model, save_model
from nnlib.datasets import Dataset
from nnlib.errors import DataError, TrainingDiverged
from nnlib.evaluation import evaluate
from nnlib.hyperparameters import Hyperparameters
from nnlib.losses import softmax_cross_entropy
from nnlib.model import MLP, Array
from nnlib.optimizers import SGD
from nnlib.preprocessing import Preprocessing, augment, fit_preprocessing
from nnlib.rundir import Record, RunDirectory, describe
from nnlib.schedules import make_schedule

ORDER, AUGMENTATION, DROPOUT = 1, 2, 3  # streams of random numbers, apart from each other and from the first weights


class History(list[Record]):
    """One record an epoch: epoch, step, learning_rate, train/valid loss and accuracy, seconds."""

    def column(self, name: str) -> Array:
        """Return one quantity over the epochs (E,), such as ``"valid_accuracy"``."""
        return np.array([record[name] for record in self])

    def best(self, select_by: str) -> Record:
        """Return the record with the highest accuracy or the lowest loss; the first of equals."""
        sign = -1 if select_by.endswith("loss") else 1
        return max(self, key=lambda record: sign * record[select_by])


@dataclass
class TrainingRun:
    """What training leaves: ``model`` has the best weights by validation, ``history`` one record an epoch.

    ``stopped`` is empty for a run that did all its epochs; else it says in words why it ended.
    """

    model: MLP
    history: History
    hyperparameters: Hyperparameters
    stopped: str = ""
    run_dir: Path | None = None

    @property
    def best(self) -> Record:
        """The record of the epoch whose weights ``model`` has."""
        return self.history.best(self.hyperparameters.select_by)

    @property
    def best_epoch(self) -> int:
        """The number of that epoch, from 1; 0 if no epoch was finished."""
        return int(self.best["epoch"]) if self.history else 0

    @property
    def seconds(self) -> float:
        """Training and validation time of all epochs."""
        return float(sum(record["seconds"] for record in self.history))

    def __repr__(self) -> str:
        if not self.history:
            return f"TrainingRun: no finished epoch ({self.stopped})"
        best = self.best
        text = f"TrainingRun: {len(self.history)} epochs in {self.seconds:.0f} s, best validation accuracy "
        text += f"{best['valid_accuracy']:.4f} (loss {best['valid_loss']:.4f}) after epoch {best['epoch']}"
        return text + (f"; {self.stopped}" if self.stopped else "")


@dataclass
class _Tally:
    """Sums over the part of the present epoch that is done."""

    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0


@dataclass
class Callback:
    """Base class for callbacks: each method gets the ``Trainer``, which has a ``stop(why)``. Override what you need."""

    def on_start(self, trainer: "Trainer") -> None:
        """Called once before the first step."""

    def on_step(self, trainer: "Trainer") -> None:
        """Called after each step."""

    def on_epoch(self, trainer: "Trainer") -> None:
        """Called after each epoch's validation; ``trainer.history[-1]`` is its record."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called once at the end, whatever ended the run."""


@dataclass
class EpochLines(Callback):
    """Prints one line an epoch."""

    out: Callable[[str], Any] = print

    def on_epoch(self, trainer: "Trainer") -> None:
        self.out(describe(trainer.history[-1], trainer.hp.epochs))


@dataclass
class ProgressBar(Callback):
    """Shows epoch, loss, images per second and time left in a terminal or a notebook."""

    bar: Any = field(default=None, repr=False)

    def on_start(self, trainer: "Trainer") -> None:
        from tqdm.auto import tqdm

        total = trainer.steps_per_epoch * trainer.until
        self.bar = tqdm(total=total, initial=trainer.step, unit="step", dynamic_ncols=True, mininterval=0.2)

    def on_step(self, trainer: "Trainer") -> None:
        self.bar.update(1)
        if trainer.step % 10 == 0:
            t = trainer.tally
            text = f"loss {t.loss / max(t.seen, 1):.3f}, {t.seen / max(t.seconds, 1e-9):,.0f} images/s"
            valid = f", valid accuracy {trainer.history[-1]['valid_accuracy']:.4f}" if trainer.history else ""
            epoch = min(trainer.epoch + 1, trainer.until)
            self.bar.set_description(f"epoch {epoch}/{trainer.until}", refresh=False)
            self.bar.set_postfix_str(text + valid, refresh=False)

    def on_end(self, trainer: "Trainer") -> None:
        if self.bar is not None:
            self.bar.close()


class Trainer:
    """One training run in the making. ``nnlib.train`` is the short way to use it.

    ``step`` counts updates, ``epoch`` finished epochs; ``model`` has the present weights, ``evaluated`` the ones that
    validation sees (their moving average where ``hp.ema`` is set). Callbacks may call ``stop``.
    """

    def __init__(
        self,
        hp: Hyperparameters,
        data: Dataset,
        *,
        run_dir: str | Path | None = None,
        resume: bool = True,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        init: MLP | None = None,
    ) -> None:
        if not len(data.train) or not len(data.valid):
            raise DataError(f"{len(data.train)} training and {len(data.valid)} validation images: both are needed.")
        self.hp, self.data = hp, data
        self.model = build_model(hp, data)
        if init is not None:
            for name, parameter in self.model.parameters.items():
                parameter[...] = init.parameters[name]
        self.optimizer = SGD(
            self.model.parameters,
            momentum=hp.momentum,
            nesterov=hp.nesterov,
            clip_norm=hp.clip_norm,
            decoupled_l2=hp.l2 if hp.decoupled_l2 else 0.0,
            ema=hp.ema,
        )
        self.evaluated = self.model
        if hp.ema:
            self.evaluated = self.model.astype(self.model.dtype)
            self.evaluated.parameters = self.optimizer.average
        self.n_train = len(data.train.labels)
        self.steps_per_epoch = math.ceil(self.n_train / hp.batch_size)
        self.until = hp.epochs
        self.learning_rate = self._make_schedule()
        self.step, self.history, self.tally = 0, History(), _Tally()
        self.best_parameters = {name: p.copy() for name, p in self.evaluated.parameters.items()}
        self.stopped, self.resume = "", resume
        self.directory = RunDirectory(run_dir) if run_dir is not None else None
        self.callbacks = [*_reporters(progress), *callbacks]
        self._order: tuple[int, Array] = (-1, np.empty(0, np.int64))

    def _make_schedule(self) -> Callable[[int], float]:
        hp = self.hp
        return make_schedule(
            hp.schedule,
            hp.learning_rate,
            hp.epochs * self.steps_per_epoch,
            decay_rate=hp.decay_rate,
            decay_every=hp.decay_every,
            min_learning_rate=hp.min_learning_rate,
            warmup_steps=hp.warmup_steps,
        )

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    def stop(self, why: str) -> None:
        """Ask for the end after the present step; everything is saved and the run returned."""
        self.stopped = why

    def stop_early(self) -> None:
        """Stop if ``hp.patience`` epochs have gone by without a new best."""
        hp = self.hp
        if hp.patience and self.history and self.epoch - self.history.best(hp.select_by)["epoch"] >= hp.patience:
            self.stop(f"stopped early: no better {hp.select_by} in {hp.patience} epochs")

    def run(self, until: int | None = None) -> TrainingRun:
        """Train to the end of epoch ``until`` (default: all ``hp.epochs``) and return the run.

        Raises TrainingDiverged when the loss stops being finite; the best and the last checkpoint stay.
        """
        self.until = min(until or self.hp.epochs, self.hp.epochs)
        with ExitStack() as stack:
            if self.directory is not None:
                stack.enter_context(self.directory.locked())
                self.directory.open(self, self.resume)
            stack.enter_context(_interrupts(self))
            stack.callback(self._call, "on_end")
            self._call("on_start")
            while self.epoch < self.until and not self.stopped:
                self._train_epoch()
        return self.result()

    def result(self) -> TrainingRun:
        """Return the run as it stands, with the best weights so far."""
        model = self.model.astype(self.model.dtype)
        model.parameters = {name: p.copy() for name, p in self.best_parameters.items()}
        best = self.history.best(self.hp.select_by) if self.history else {}
        model.info = {"data": self.data.source, "fingerprint": self.data.fingerprint, "best": best}
        model.info["hyperparameters"] = self.hp.to_dict()
        return TrainingRun(model, self.history, self.hp, self.stopped, self.directory.path if self.directory else None)

    def _train_epoch(self) -> None:
        """Do the rest of the present epoch: all of it, or what a run that was broken off had left."""
        done = self.step - self.epoch * self.steps_per_epoch
        for batch in range(done, self.steps_per_epoch):
            started = time.perf_counter()
            self._train_step(batch)
            self.tally.seconds += time.perf_counter() - started
            self._call("on_step")
            if self.stopped and batch < self.steps_per_epoch - 1:
                return self._save()
        self._finish_epoch()

    def _train_step(self, batch: int) -> None:
        """One update on one batch of the present epoch's order."""
        hp, model = self.hp, self.model
        start = batch * hp.batch_size
        chosen = self._epoch_order()[start : start + hp.batch_size]
        labels = self.data.train.labels[chosen]
        x = self._inputs(chosen)
        masks = model.dropout_masks(len(x), self._rng(DROPOUT, self.step), hp.dropout, hp.input_dropout)
        with np.errstate(all="ignore"):  # a loss that is not finite is told in words below
            logits = model.forward(x, masks)
            loss, dlogits = softmax_cross_entropy(logits, labels, label_smoothing=hp.label_smoothing)
            if not math.isfinite(loss):
                self._diverged(float(loss))
            l2 = 0.0 if hp.decoupled_l2 else hp.l2
            model.backward(dlogits, l2, out=self.optimizer.into, factor=self.optimizer.factor)
            self.optimizer.step(self.learning_rate(self.step))
        self.step += 1
        self.tally.loss += float(loss) * len(x)
        self.tally.correct += int((logits.argmax(axis=1) == labels).sum())
        self.tally.seen += len(x)

    def _inputs(self, chosen: Array) -> Array:
        """Return the network's inputs for the training images ``chosen``, augmented for this step."""
        images = self.data.train.images[chosen]
        if self.hp.flip or self.hp.shift:
            images = augment(images, self._rng(AUGMENTATION, self.step), flip=self.hp.flip, shift=self.hp.shift)
        return self.model.inputs(images)

    def _epoch_order(self) -> Array:
        if self._order[0] != self.epoch:
            self._order = (self.epoch, self._rng(ORDER, self.epoch).permutation(self.n_train))
        return self._order[1]

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.hp.seed, stream, index])

    def _finish_epoch(self) -> None:
        """Validate, record, keep the weights if they are the best so far, and save."""
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            valid = evaluate(self.evaluated, self.data.valid)
        if not math.isfinite(valid.loss):
            self._diverged(valid.loss)
        tally, self.tally = self.tally, _Tally()
        record = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "learning_rate": self.learning_rate(self.step - 1),
            "train_loss": tally.loss / tally.seen,
            "train_accuracy": tally.correct / tally.seen,
            "valid_loss": valid.loss,
            "valid_accuracy": valid.accuracy,
            "seconds": tally.seconds + time.perf_counter() - started,
        }
        self.history.append(record)
        best = self.history.best(self.hp.select_by)
        if best is record:
            for name, parameter in self.evaluated.parameters.items():
                self.best_parameters[name][...] = parameter
        self.stop_early()
        self._save(new_best=best is record)
        self._call("on_epoch")

    def _save(self, new_best: bool = False) -> None:
        if self.directory is None:
            return
        if new_best:
            save_model(self.result().model, self.directory.best)
        self.directory.save(self)

    def _diverged(self, loss: float) -> None:
        """Raise TrainingDiverged, naming step, rate and the first layer whose numbers are not finite."""
        bad = [name for name, p in self.model.parameters.items() if not np.isfinite(p).all()]
        where = f"{bad[0]} is not finite" if bad else "the weights are still finite, the logits overflow"
        raise TrainingDiverged(
            f"the loss is {loss} at step {self.step} (epoch {self.epoch + 1}): {where}. "
            f"The likely cause is the learning rate, {self.learning_rate(self.step):g} here: try a third of it, or a "
            f"warm-up (warmup_steps), or clip_norm=1. The best weights so far are kept."
        )

    def _call(self, moment: str) -> None:
        for callback in self.callbacks:
            getattr(callback, moment, lambda trainer: None)(self)


def train(
    hp: Hyperparameters,
    data: Dataset,
    run_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    init: MLP | None = None,
) -> TrainingRun:
    """Train a network as ``hp`` says on ``data.train``, validating on ``data.valid`` after each epoch.

    With ``run_dir`` everything is saved there as it comes, and the same call goes on where a broken-off one stopped
    (``resume=False`` starts again). ``init`` gives the first weights. Ctrl-C ends the run after the present step and
    returns it. Raises TrainingDiverged, and CheckpointError if ``run_dir`` belongs to another run.
    """
    return Trainer(hp, data, run_dir=run_dir, resume=resume, progress=progress, callbacks=callbacks, init=init).run()


def load_run(run_dir: str | Path) -> TrainingRun:
    """Return the run saved in ``run_dir`` without training. Raises CheckpointError if there is none."""
    directory = RunDirectory(run_dir)
    hp = Hyperparameters.from_dict(directory.read_hyperparameters())
    return TrainingRun(load_model(directory.best), History(directory.read_history()), hp, run_dir=directory.path)


def build_model(hp: Hyperparameters, data: Dataset) -> MLP:
    """Return the untrained network that ``hp`` describes for ``data``, its preprocessing fitted on training images."""
    images = data.train.images
    preprocessing = None
    if images.dtype == np.uint8:
        preprocessing = _fitted(images, hp)
    n_inputs = preprocessing.n_inputs if preprocessing else math.prod(images.shape[1:])
    sizes = (n_inputs, *hp.hidden_sizes, len(data.classes))
    options = {"initialisation": hp.initialisation, "preprocessing": preprocessing, "classes": data.classes}
    return MLP(sizes, hp.activation, seed=hp.seed, **options)  # type: ignore[arg-type]


_last_fit: list[tuple[Array, tuple[Any, ...], Preprocessing]] = []


def _fitted(images: Array, hp: Hyperparameters) -> Preprocessing:
    """Fit the preprocessing, or take the last one if it was for the same images: whitening takes seconds."""
    key = (hp.preprocessing, hp.components, hp.whitening_floor)
    if _last_fit and _last_fit[0][0] is images and _last_fit[0][1] == key:
        return _last_fit[0][2]
    fitted = fit_preprocessing(hp.preprocessing, images, components=hp.components, floor=hp.whitening_floor)
    _last_fit[:] = [(images, key, fitted)]
    return fitted


def _reporters(progress: bool) -> list[Callback]:
    if not progress:
        return []
    return [ProgressBar() if sys.stderr.isatty() or in_notebook() else EpochLines()]


def in_notebook() -> bool:
    """Return whether this code runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")  # a kernel has loaded it
    return hasattr(ipython and ipython.get_ipython(), "kernel")


@contextmanager
def _interrupts(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C stop ``trainer`` after its present step; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        trainer.stop("interrupted")
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
