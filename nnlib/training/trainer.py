"""Training: epochs of stochastic gradient descent, validation after each, the best weights kept, exact resume.

Everything random in step t of epoch e is drawn from a generator made of (seed, what it is for, e or t), so that a run
which is broken off needs to remember no random state: it goes on from the step it had reached.

The same seed gives the same bits on the same machine with the same versions and number of BLAS threads, whatever the
process did before. Elsewhere (another processor, BLAS, thread count) BLAS adds the terms of its sums in another order:
the last bits of the first steps differ, and grow to other weights, equally good, in the end. First weights, order of
images, augmentation and dropout masks do not come from BLAS, and are the same wherever NumPy draws the same numbers.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.data.dataset import Dataset
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.errors import DataError, HyperparameterError, TrainingDiverged
from nnlib.network.blas import blas_threads
from nnlib.network.losses import checked_loss, softmax_cross_entropy
from nnlib.network.mlp import MLP, Loss, checked_model, fingerprint, useful_threads
from nnlib.network.saving import load_model
from nnlib.training.batches import Batches
from nnlib.training.callbacks import Callback, interrupts, refuse_uncallable, reporter, warnings_of
from nnlib.training.evaluation import evaluate
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.rundir import Record, RunDirectory
from nnlib.training.schedules import make_schedule
from nnlib.training.sgd import SGD
from nnlib.types import Array


class History(list[Record]):
    """One record an epoch: epoch, step, learning_rate, train/valid loss and accuracy, seconds."""

    def column(self, name: str) -> Array:
        """Return one quantity over the epochs (E,), such as ``"valid_accuracy"``."""
        return np.array([record[name] for record in self])

    def ranked(self, select_by: str) -> list[Record]:
        """Return the records by falling accuracy or rising loss, equals in their order."""
        return sorted(
            self, key=lambda record: record[select_by], reverse=select_by == "valid_accuracy"
        )

    def best(self, select_by: str) -> Record:
        """Return the record with the highest accuracy or the lowest loss; the first of equals."""
        return self.ranked(select_by)[0]


@dataclass
class TrainingRun:
    """What training leaves: ``model`` has the best weights by validation, ``history`` one record an epoch.

    ``stopped`` is empty for a run that did all its epochs; else it says in words why it ended. ``warnings`` tell what
    was noticed on the way, such as dead units.
    """

    model: MLP
    history: History
    hyperparameters: Hyperparameters
    stopped: str = ""
    run_dir: Path | None = None
    warnings: tuple[str, ...] = ()

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
        text = f"TrainingRun: {len(self.history)} epochs in {self.seconds:.0f} s, best validation accuracy "
        text += "{valid_accuracy:.4f} (loss {valid_loss:.4f}) after epoch {epoch}".format_map(
            self.best
        )
        return text + (f"; {self.stopped}" if self.stopped else "")


@dataclass
class _Tally:
    """Sums over the part of the present epoch that is done."""

    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0


@dataclass(eq=False, repr=False)
class Trainer:
    """One training run in the making. ``nnlib.train`` is the short way to use it, and explains the arguments.

    ``step`` counts updates, ``epoch`` finished epochs; ``model`` has the present weights, ``evaluated`` the ones that
    validation sees (their moving average where ``hp.ema`` is set). Callbacks may call ``stop``.
    """

    hp: Hyperparameters
    data: Dataset
    run_dir: str | Path | None = None
    resume: bool = True
    progress: bool = True
    callbacks: Sequence[Any] = ()  # of Callback, or of anything that has some of its methods
    init: MLP | None = None
    keep_best: int = 1
    loss: Loss | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        hp, data = self.hp, self.data
        if not isinstance(hp, Hyperparameters) or not isinstance(data, Dataset):
            raise HyperparameterError(
                f"hp, data: give Hyperparameters and a Dataset, not {hp!r:.20}, {data!r:.20}."
            )
        refuse_uncallable(self.callbacks)
        if not len(data.train) or not len(data.valid):
            raise DataError(
                f"{len(data.train)} training and {len(data.valid)} validation images: both are needed."
            )
        if self.keep_best < 1 or (self.keep_best > 1 and self.run_dir is None):
            raise HyperparameterError(
                f"keep_best: {self.keep_best} is not allowed; 1, or more with a run_dir."
            )
        if self.threads is not None and self.threads < 1:
            raise HyperparameterError(
                f"threads: {self.threads} is not allowed; at least 1, or None."
            )
        with blas_threads(self.threads):  # whitening fits a large matrix
            self.model = build_model(hp, data, self.init)
        self.initial = {"seed": hp.seed, "sha256": fingerprint(self.model.parameters)}
        self.first_norms = {
            n: float(np.linalg.norm(p)) for n, p in self.model.parameters.items() if n[0] == "W"
        }
        loss = self.loss or partial(softmax_cross_entropy, label_smoothing=hp.label_smoothing)
        self.loss_function = checked_loss(loss, len(data.classes))
        self.l2, decoupled_l2 = (0.0, hp.l2) if hp.decoupled_l2 else (hp.l2, 0.0)
        self.optimizer = SGD(
            self.model.parameters,
            momentum=hp.momentum,
            nesterov=hp.nesterov,
            clip_norm=hp.clip_norm,
            decoupled_l2=decoupled_l2,
            l1=hp.l1,
            l1_cut=hp.l1_cut,
            ema=hp.ema,
        )
        self.evaluated = (
            self.model.with_parameters(self.optimizer.average) if hp.ema else self.model
        )
        self.batches = Batches(data.train, self.model, hp)
        self.steps_per_epoch = self.batches.per_epoch
        self.until, self.stopped, self.warnings = hp.epochs, "", dict[str, str]()
        names = ("decay_rate", "decay_every", "min_learning_rate", "warmup_steps")
        steps, options = (
            hp.epochs * self.steps_per_epoch,
            {name: getattr(hp, name) for name in names},
        )
        self.learning_rate = make_schedule(hp.schedule, hp.learning_rate, steps, **options)
        self.step, self.history, self.tally, self.last_loss = 0, History(), _Tally(), math.nan
        self.best_parameters = {name: p.copy() for name, p in self.evaluated.parameters.items()}
        self.directory = RunDirectory(self.run_dir) if self.run_dir is not None else None
        self.callbacks = [reporter(), *self.callbacks] if self.progress else list(self.callbacks)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    def limited_threads(self) -> AbstractContextManager[None]:
        """Limit BLAS to ``threads``, or to what this network's products can use, while a ``with`` lasts."""
        return blas_threads(self.threads or useful_threads(self.model, self.hp.batch_size))

    def stop(self, why: str) -> None:
        """Ask for the end after the present step; everything is saved and the run returned."""
        self.stopped = why

    def stop_early(self) -> None:
        """Stop if ``hp.patience`` epochs have gone by without a new best."""
        hp = self.hp
        if (
            hp.patience
            and self.history
            and self.epoch - self.history.best(hp.select_by)["epoch"] >= hp.patience
        ):
            self.stop(f"stopped early: no better {hp.select_by} in {hp.patience} epochs")

    def warn(self, what: str, details: str, remedy: str = "Try a smaller learning rate") -> None:
        """Say ``what`` is wrong, the first time that it is; log.txt and ``run.warnings`` keep it."""
        if what not in self.warnings:
            self.warnings[what] = f"epoch {self.epoch + 1}: {what}: {details}. {remedy}."
            if self.progress:
                print(self.warnings[what])

    def run(self, until: int | None = None) -> TrainingRun:
        """Train to the end of epoch ``until`` (default: all ``hp.epochs``) and return the run.

        Raises TrainingDiverged when the loss stops being finite; the best and the last checkpoint stay. This and any
        other exception has the run so far as its attribute ``run``.
        """
        self.until = min(until or self.hp.epochs, self.hp.epochs)
        try:
            with ExitStack() as stack:
                stack.enter_context(self.limited_threads())
                if self.directory is not None:
                    stack.enter_context(self.directory.locked())
                    self.directory.open(self, self.resume)
                if self.hp.warmup_steps > (steps := self.hp.epochs * self.steps_per_epoch):
                    self.warn(
                        "the warm-up does not end",
                        f"the run has {steps} steps",
                        "Try fewer warmup_steps",
                    )
                stack.enter_context(interrupts(self))
                for callback in self.callbacks:
                    stack.callback(_moment(callback, "on_end"), self)
                self._call("on_start")
                while self.epoch < self.until and not self.stopped:
                    self._train_epoch()
        except Exception as error:
            error.run = self.result()  # type: ignore[attr-defined]
            raise
        return self.result()

    def result(self) -> TrainingRun:
        """Return the run as it stands, with the best weights so far."""
        best = self.history.best(self.hp.select_by) if self.history else {}
        model, folder = (
            self.snapshot(self.best_parameters, best),
            self.directory.path if self.directory else None,
        )
        return TrainingRun(
            model, self.history, self.hp, self.stopped, folder, tuple(self.warnings.values())
        )

    def snapshot(self, parameters: dict[str, Array], record: Record) -> MLP:
        """Return a network of its own with a copy of ``parameters``, which knows where they come from."""
        model = self.model.with_parameters({name: p.copy() for name, p in parameters.items()})
        model.info = {
            "data": self.data.source,
            "fingerprint": self.data.fingerprint,
            "best": record,
        }
        model.info |= {"hyperparameters": self.hp.to_dict(), "initial": self.initial}
        return model

    def _train_epoch(self) -> None:
        """Do the rest of the present epoch: all of it, or what a run that was broken off had left."""
        end = (self.epoch + 1) * self.steps_per_epoch
        while self.step < end:
            started = time.perf_counter()
            self.train_step()
            self.tally.seconds += time.perf_counter() - started
            self._call("on_step")
            if self.stopped and self.step < end:
                return self._save()
        self._finish_epoch()

    def train_step(self) -> None:
        """Do one update, on the next batch."""
        model = self.model
        x, labels, masks = self.batches[self.step]
        with np.errstate(all="ignore"):  # a loss that is not finite is told in words below
            logits = model.forward(x, masks)
            loss, dlogits = self.loss_function(logits, labels)
            if not math.isfinite(loss):
                self._diverged(float(loss), model)
            model.backward(dlogits, self.l2, out=self.optimizer.into, factor=self.optimizer.factor)
            self.optimizer.step(self.learning_rate(self.step))
        self.step, self.last_loss = self.step + 1, float(loss)
        self.tally.loss += self.last_loss * len(x)
        self.tally.correct += int((logits.argmax(axis=1) == labels).sum())
        self.tally.seen += len(x)

    def _finish_epoch(self) -> None:
        """Validate, record, keep the weights if they are the best so far, and save."""
        started, tally = time.perf_counter(), self.tally
        with np.errstate(all="ignore"):
            valid = evaluate(self.evaluated, self.data.valid)
            if not math.isfinite(valid.loss):
                images = self.data.valid.images[:2500]
                self.evaluated.activations(self.evaluated.inputs(images))  # for pre_activations
                self._diverged(valid.loss, self.evaluated)
            for warning in warnings_of(self):
                self.warn(*warning)
        record = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "learning_rate": self.learning_rate(self.step - 1),
        }
        record |= {
            "train_loss": tally.loss / tally.seen,
            "train_accuracy": tally.correct / tally.seen,
        }
        record |= {"valid_loss": valid.loss, "valid_accuracy": valid.accuracy}
        record["seconds"] = tally.seconds + time.perf_counter() - started
        for measured in self._call("measure"):
            record |= measured or {}
        self.tally = _Tally()
        self.history.append(record)
        if self.history.best(self.hp.select_by) is record:
            for name, parameter in self.evaluated.parameters.items():
                self.best_parameters[name][...] = parameter
        self.stop_early()
        self._save(finished=True)
        self._call("on_epoch")

    def _save(self, finished: bool = False) -> None:
        if self.directory is not None:
            self.directory.save(self, finished)

    def _diverged(self, loss: float, model: MLP) -> None:
        """Raise TrainingDiverged, naming step, rate and the first layer whose numbers are not finite."""
        where = f"the logits (layer {model.n_layers}) overflow, all weights being finite"
        for layer, z in reversed([*enumerate([*model.pre_activations, np.zeros(1)], 1)]):
            names = [
                name
                for name in (f"W{layer}", f"b{layer}")
                if not np.isfinite(model.parameters[name]).all()
            ]
            if names:
                where = f"{names[0]} is not finite"
            elif not np.isfinite(z).all():
                where = f"the activations of layer {layer} overflow, its weights being finite"
        found = f"the loss is {loss} at step {self.step} (epoch {self.epoch + 1}): {where}"
        cause = f"the learning rate, {self.learning_rate(self.step):g} here, or inputs far larger than 1"
        remedy = "try a third of it, or a warm-up (warmup_steps), or clip_norm=1"
        kept = " The best weights so far are kept." if self.history else ""
        raise TrainingDiverged(f"{found}. The likely cause is {cause}: {remedy}.{kept}")

    def _call(self, moment: str) -> list[Any]:
        """Call all callbacks; if one fails, save what was learnt before the exception goes on."""
        try:
            return [_moment(callback, moment)(self) for callback in self.callbacks]
        except Exception:
            self._save()
            raise


def _moment(callback: Callback, name: str) -> Callable[[Trainer], Any]:
    return getattr(callback, name, getattr(Callback(), name))  # a callback need not be a Callback


def train(
    hp: Hyperparameters,
    data: Dataset,
    run_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    init: MLP | None = None,
    keep_best: int = 1,
    loss: Loss | None = None,
    threads: int | None = None,
) -> TrainingRun:
    """Train a network as ``hp`` says on ``data.train``, validating on ``data.valid`` after each epoch.

    With ``run_dir`` everything is saved there as it comes, and the same call goes on where a broken-off one stopped
    (``resume=False`` starts again). Further options, best given by name:

    - ``progress=True`` shows a bar in a terminal or a notebook, a line an epoch elsewhere; False is quiet;
    - ``callbacks=()`` are told of each step and epoch (see ``Callback``);
    - ``init=None`` is a network whose weights, and preprocessing with them, are the first;
    - ``keep_best=1`` is how many models ``run_dir`` keeps: ``best.npz``, and the next best by their epochs, such as
      ``best-epoch-0007.npz``;
    - ``loss=None``: a function of (logits, labels) that returns (value, dlogits), to train by instead of
      ``softmax_cross_entropy``, which measures validation in any case;
    - ``threads=None``: how many threads BLAS uses during the run, in the whole process; None gives small networks one.
      Beside other busy processes 1 can be many times faster than more, for threads wait for each other.

    Ctrl-C ends the run after the present step and returns it. Raises TrainingDiverged, CheckpointError if ``run_dir``
    belongs to another run or cannot be written, and what a callback raises; each has the run so far as ``error.run``.
    """
    return Trainer(
        hp, data, run_dir, resume, progress, callbacks, init, keep_best, loss, threads
    ).run()


@dataclass(frozen=True)
class RangeTest:
    """What ``find_learning_rate`` found: ``rates`` (S,), and the smoothed training ``losses`` (S,) at them."""

    rates: Array
    losses: Array

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the loss was lowest: the loss falls fast there, and far from diverging."""
        return float(self.rates[self.losses.argmin()]) / 10

    def __repr__(self) -> str:
        return f"RangeTest: suggestion {self.suggestion:.2g}, of {len(self.rates)} rates up to {self.rates[-1]:.2g}"


def find_learning_rate(
    hp: Hyperparameters, data: Dataset, low: float = 1e-5, high: float = 10.0, steps: int = 200
) -> RangeTest:
    """Train by ``hp``, but at a rate that grows from ``low`` to ``high`` in ``steps`` steps (Smith 2017).

    Ends early where the loss, smoothed over about ten steps, is four times its best, or not finite.
    """
    if not 0 < low < high or steps < 2:
        raise HyperparameterError(
            f"low, high, steps: {low}, {high}, {steps}; 0 < low < high and steps > 1 are needed."
        )
    rates, losses, mean = np.geomspace(low, high, steps), list[float](), 0.0
    trainer = Trainer(hp, data, progress=False)
    trainer.learning_rate = lambda step: float(rates[step])
    with suppress(TrainingDiverged), trainer.limited_threads(), interrupts(trainer):
        while trainer.step < steps and not trainer.stopped:
            trainer.train_step()
            mean += 0.1 * (trainer.last_loss - mean)
            losses.append(mean / (1 - 0.9**trainer.step))
            if losses[-1] > 4 * min(losses):
                break
    return RangeTest(rates[: len(losses)], np.array(losses))


def load_run(run_dir: str | Path) -> TrainingRun:
    """Return the run saved in ``run_dir`` without training. Raises CheckpointError if there is none."""
    directory = RunDirectory(run_dir)
    hp = Hyperparameters.from_dict(directory.read_json("hyperparameters.json"))
    return TrainingRun(
        load_model(directory.best), History(directory.read_history()), hp, run_dir=directory.path
    )


def build_model(hp: Hyperparameters, data: Dataset, init: MLP | None = None) -> MLP:
    """Return the untrained network that ``hp`` describes for ``data``, its preprocessing fitted on training images.

    With ``init`` it has a copy of that network's weights, and its preprocessing, whose axes the weights are made for.
    Raises HyperparameterError if ``init`` is another network than ``hp`` and ``data`` need.
    """
    images = data.train.images
    preprocessing = None
    if images.dtype == np.uint8:
        mirrored = hp.flip and images.ndim == 4
        fit = partial(
            fit_preprocessing,
            hp.preprocessing,
            components=hp.components,
            floor=hp.whitening_floor,
            mirrored=mirrored,
        )
        preprocessing = checked_model(init).preprocessing if init else fit(images)
    n_inputs = preprocessing.n_inputs if preprocessing else math.prod(images.shape[1:])
    options: dict[str, Any] = {
        "initialisation": hp.initialisation,
        "classes": data.classes,
        "seed": hp.seed,
    }
    model = MLP(
        (n_inputs, *hp.hidden_sizes, len(data.classes)),
        hp.activation,
        preprocessing=preprocessing,
        **options,
    )
    if init is not None:
        needed, given = ((m.layer_sizes, m.activation) for m in (model, init))
        if needed != given:
            raise HyperparameterError(
                f"init: its layers are {given}, but hp and data need {needed}."
            )
        model.parameters = {name: p.astype(model.dtype) for name, p in init.parameters.items()}
    return model
