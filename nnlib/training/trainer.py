"""Training: epochs of stochastic gradient descent, validation after each, the best weights kept,
exact resume.

Everything random in step t of epoch e is drawn from a generator made of (seed, what it is for, e or
t). So a run that was broken off has no random state to remember: it resumes from the step it had
reached.

The same seed gives the same bits on the same machine with the same versions and number of BLAS
threads, whatever the process did before. On another processor, or with another BLAS or thread
count, BLAS adds up its sums in another order: the last bits of the first steps differ, and in the
end the weights do too, though they are equally good. The first weights, the order of images,
augmentation and dropout masks don't come from BLAS; they are the same wherever NumPy draws the same
numbers.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.data.dataset import Dataset
from nnlib.data.preprocessing import fit_preprocessing
from nnlib.errors import CheckpointError, DataError, HyperparameterError, TrainingDiverged
from nnlib.network.blas import blas_threads
from nnlib.network.losses import checked_loss, softmax_cross_entropy
from nnlib.network.mlp import MLP, Loss, checked_model, fingerprint, useful_threads
from nnlib.network.saving import copy_arrays, load_model, preprocessing_arrays, preprocessing_from
from nnlib.training.batches import Batches
from nnlib.training.callbacks import Callback, interrupts, refuse_uncallable, reporter
from nnlib.training.evaluation import Evaluation, evaluate
from nnlib.training.health import LOOKED_AT, growth_warnings, network_warnings, weight_norms
from nnlib.training.history import History, Record, State, Tally, TrainingRun
from nnlib.training.hyperparameters import Hyperparameters
from nnlib.training.rundir import RunDirectory, blas_libraries, machine
from nnlib.training.schedules import Schedule, make_schedule
from nnlib.training.sgd import SGD
from nnlib.types import Arrays


@dataclass(eq=False, repr=False)
class Trainer:
    """One training run in the making. ``nnlib.train`` is the short way to use it, and explains the
    arguments.

    ``step`` counts updates, ``epoch`` finished epochs. ``model`` has the current weights,
    ``evaluated`` the ones that validation sees (their moving average if ``hp.ema`` is set).
    Callbacks may call ``stop``.
    """

    hp: Hyperparameters
    data: Dataset
    run_dir: str | Path | None = None
    resume: bool = True
    progress: bool = True
    callbacks: Sequence[Any] = ()  # of Callback, or of anything that has some of its methods
    init: MLP | None = None
    loss: Loss | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        self._check_arguments()
        hp = self.hp
        if self.progress:
            self.callbacks = [reporter(), *self.callbacks]
        self.directory = None if self.run_dir is None else RunDirectory(self.run_dir)

        with blas_threads(self.threads):  # whitening fits a large matrix
            self.model = build_model(hp, self.data, self.init)
        self.initial = {"seed": hp.seed, "sha256": fingerprint(self.model.parameters)}
        self.first_norms = weight_norms(self.model.parameters)

        self.batches = Batches(self.data.train, self.model, hp)
        self.steps_per_epoch = self.batches.per_epoch
        loss = self.loss or partial(softmax_cross_entropy, label_smoothing=hp.label_smoothing)
        self.loss_function = checked_loss(loss, len(self.data.classes))
        self.l2 = 0.0 if hp.decoupled_l2 else hp.l2  # through the gradient
        self.optimizer = make_optimizer(hp, self.model)
        self.learning_rate = schedule_of(hp, self.steps_per_epoch)
        self.evaluated = self.model
        if hp.ema:
            self.evaluated = self.model.with_parameters(self.optimizer.average)

        self.until = hp.epochs  # the epoch at whose end ``run`` returns
        self.stopped = ""  # why the run ended before that
        self.step = 0
        self.last_loss = math.nan  # of the last step's batch
        self.tally = Tally()
        self.history = History()
        self.warnings: dict[str, str] = {}
        self.best_parameters = copies(self.evaluated.parameters)

    def _check_arguments(self) -> None:
        hp, data = self.hp, self.data
        if not isinstance(hp, Hyperparameters) or not isinstance(data, Dataset):
            raise HyperparameterError(
                f"hp, data: give Hyperparameters and a Dataset, not {hp!r:.20}, {data!r:.20}."
            )
        refuse_uncallable(self.callbacks)
        if not len(data.train) or not len(data.valid):
            found = f"{len(data.train)} training and {len(data.valid)} validation images"
            raise DataError(f"{found}: both are needed.")
        if self.threads is not None and self.threads < 1:
            raise HyperparameterError(
                f"threads: {self.threads} is not allowed; at least 1, or None."
            )

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    def limited_threads(self) -> AbstractContextManager[None]:
        """Limit BLAS, inside a ``with``, to ``threads`` or to what the products can use."""
        return blas_threads(self.threads or useful_threads(self.model, self.hp.batch_size))

    def stop(self, why: str) -> None:
        """Ask for the end after the current step; everything is saved and the run returned."""
        self.stopped = why

    def stop_early(self) -> None:
        """Stop if ``hp.patience`` epochs have gone by without a new best."""
        hp = self.hp
        if not hp.patience or not self.history:
            return
        since_best = self.epoch - self.history.best(hp.select_by)["epoch"]
        if since_best >= hp.patience:
            self.stop(f"stopped early: no better {hp.select_by} in {hp.patience} epochs")

    def warn(self, what: str, details: str, remedy: str = "Try a smaller learning rate") -> None:
        """Say ``what`` is wrong, but only the first time; log.txt and ``run.warnings`` keep it."""
        if what not in self.warnings:
            self.warnings[what] = f"epoch {self.epoch + 1}: {what}: {details}. {remedy}."
            if self.progress:
                print(self.warnings[what])

    def run(self, until: int | None = None) -> TrainingRun:
        """Train to the end of epoch ``until`` (default: all ``hp.epochs``) and return the run.

        Raises TrainingDiverged when the loss stops being finite; the best and the last checkpoint
        stay. This and any other exception has the run so far as its attribute ``run``.
        """
        self.until = min(until or self.hp.epochs, self.hp.epochs)
        try:
            with ExitStack() as stack:
                stack.enter_context(self.limited_threads())
                if self.directory is not None:
                    stack.enter_context(self.directory.locked())
                    self._open(self.directory)
                self._warn_of_warmup()
                stack.enter_context(interrupts(self))
                for callback in self.callbacks:
                    stack.callback(_hook(callback, "on_end"), self)
                self._call("on_start")
                while self.epoch < self.until and not self.stopped:
                    self._train_epoch()
        except Exception as error:
            error.run = self.result()  # type: ignore[attr-defined]
            raise
        return self.result()

    def _open(self, directory: RunDirectory) -> None:
        """Claim the run's folder, and go on from the state in it, if there is one."""
        hyperparameters = self.hp.to_dict()
        environment = self._environment()
        state = directory.claim(hyperparameters, environment, self.resume)
        if state is not None:
            try:
                self.load(state)
            except CheckpointError as error:
                raise CheckpointError(f"{directory.path}: {error}") from None
            self.stop_early()
        directory.describe_run(hyperparameters, environment)
        if self.history:
            # the state knows the best weights: a file that is damaged, or ahead of it, is put right
            directory.save_best(self.result().model)
        self._write_history(directory)

    def _environment(self) -> dict[str, Any]:
        """Return what else the run depends on: data, first weights, machine, libraries."""
        data = self.data
        return {
            "data": data.source,
            "fingerprint": data.fingerprint,
            "images": {
                "train": len(data.train),
                "valid": len(data.valid),
                "test": len(data.test),
            },
            "initial_weights": self.initial["sha256"],
            **machine(),
            "blas": blas_libraries(),
        }

    def _warn_of_warmup(self) -> None:
        steps = self.hp.epochs * self.steps_per_epoch
        if self.hp.warmup_steps > steps:
            details = f"the run has {steps} steps"
            self.warn("the warm-up does not end", details, "Try fewer warmup_steps")

    def state(self) -> State:
        """Return a copy of everything that an exact resume needs."""
        groups = {
            "parameters": self.model.parameters,
            "velocity": self.optimizer.velocity,
            "average": self.optimizer.average,
        }
        if not self._best_is_current():
            groups["best"] = self.best_parameters
        arrays = copies(preprocessing_arrays(self.model.preprocessing))
        for group, values in groups.items():
            for name, array in values.items():
                arrays[f"{group}.{name}"] = array.copy()
        return State(
            arrays=arrays,
            step=self.step,
            tally=replace(self.tally),
            history=History(dict(record) for record in self.history),
            warnings=dict(self.warnings),
            fingerprint=self.data.fingerprint,
        )

    def load(self, state: State) -> None:
        """Go on from ``state``: the next step is the one that would have followed it.

        Raises CheckpointError if it is the state of another network or was trained on other data.
        """
        if state.fingerprint not in ("", self.data.fingerprint):
            was, now = state.fingerprint, self.data.fingerprint
            raise CheckpointError(f"state: its data have the fingerprint {was}, these {now}.")
        copy_arrays(self.model.parameters, state.arrays, "state", "parameters.")
        copy_arrays(self.optimizer.velocity, state.arrays, "state", "velocity.")
        copy_arrays(self.optimizer.average, state.arrays, "state", "average.")
        if "best.W1" in state.arrays:
            copy_arrays(self.best_parameters, state.arrays, "state", "best.")
        else:
            self._keep_best()
        preprocessing = preprocessing_from(state.arrays)
        self.model.preprocessing = preprocessing
        self.evaluated.preprocessing = preprocessing
        self.step = state.step
        self.optimizer.steps = state.step
        self.tally = replace(state.tally)
        self.history[:] = [dict(record) for record in state.history]
        self.warnings = dict(state.warnings)

    def result(self) -> TrainingRun:
        """Return the run as it stands, with the best weights so far."""
        best = self.history.best(self.hp.select_by) if self.history else {}
        return TrainingRun(
            model=self.snapshot(self.best_parameters, best),
            history=self.history,
            hyperparameters=self.hp,
            stopped=self.stopped,
            run_dir=None if self.directory is None else self.directory.path,
            warnings=tuple(self.warnings.values()),
        )

    def snapshot(self, parameters: Arrays, record: Record) -> MLP:
        """Return a network with copies of ``parameters``, which knows where they come from."""
        model = self.model.with_parameters(copies(parameters))
        model.info = {
            "data": self.data.source,
            "fingerprint": self.data.fingerprint,
            "best": record,
            "hyperparameters": self.hp.to_dict(),
            "initial": self.initial,
        }
        return model

    def _train_epoch(self) -> None:
        """Do the rest of the current epoch: all of it, or what a broken-off run had left."""
        end = (self.epoch + 1) * self.steps_per_epoch
        while self.step < end:
            started = time.perf_counter()
            self.train_step()
            self.tally.seconds += time.perf_counter() - started
            self._call("on_step")
            if self.stopped and self.step < end:
                self._save()
                return
        self._finish_epoch()

    def train_step(self) -> None:
        """Do one update, on the next batch."""
        x, labels, masks = self.batches[self.step]
        with np.errstate(all="ignore"):  # a loss that isn't finite is explained below
            logits = self.model.forward(x, masks)
            loss, dlogits = self.loss_function(logits, labels)
            self._refuse_divergence(float(loss), self.model)
            self.model.backward(dlogits, self.l2, out=self.optimizer.gradients)
            self.optimizer.step(self.learning_rate(self.step))
        self.step += 1
        self.last_loss = float(loss)
        self.tally.loss += self.last_loss * len(x)
        self.tally.correct += int((logits.argmax(axis=1) == labels).sum())
        self.tally.seen += len(x)

    def _finish_epoch(self) -> None:
        """Validate, record, keep the weights if they are the best so far, and save."""
        started = time.perf_counter()
        valid = self._validate()
        tally = self.tally
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
        for measured in self._call("measure"):
            record.update(measured or {})
        self.tally = Tally()
        self.history.append(record)
        if self._best_is_current():
            self._keep_best()
        self.stop_early()
        self._save()
        self._call("on_epoch")

    def _validate(self) -> Evaluation:
        """Evaluate the weights; warn if something is wrong, or raise TrainingDiverged."""
        looked_at = self.data.valid.take(slice(LOOKED_AT))
        with np.errstate(all="ignore"):
            valid = evaluate(self.evaluated, self.data.valid)
            if not math.isfinite(valid.loss):
                # keeps the pre-activations, which tell where the numbers stopped being finite
                self.evaluated.activations(self.evaluated.inputs(looked_at.images))
            self._refuse_divergence(valid.loss, self.evaluated)
            for what, details in network_warnings(
                self.evaluated, looked_at.images, looked_at.labels
            ):
                self.warn(what, details)
            for what, details in growth_warnings(self.model.parameters, self.first_norms):
                self.warn(what, details)
        return valid

    def _best_is_current(self) -> bool:
        """Return whether no step was done since the epoch with the best weights."""
        return bool(self.history) and self.history.best(self.hp.select_by)["step"] == self.step

    def _keep_best(self) -> None:
        """Copy the evaluated weights into the best ones, in place."""
        for name, p in self.evaluated.parameters.items():
            self.best_parameters[name][...] = p

    def _save(self) -> None:
        """Save all that an exact resume needs, and before it the best model if it is new."""
        if self.directory is None:
            return
        if self._best_is_current():
            self.directory.save_best(self.result().model)
        self.directory.save(self.state())
        self._write_history(self.directory)

    def _write_history(self, directory: RunDirectory) -> None:
        remarks = [*self.warnings.values(), self.stopped]
        directory.write_history(self.history, self.hp.epochs, remarks)

    def _refuse_divergence(self, loss: float, model: MLP) -> None:
        """Raise TrainingDiverged unless ``loss`` is finite, naming step, rate and layer."""
        if math.isfinite(loss):
            return
        rate = self.learning_rate(self.step)
        found = f"the loss is {loss} at step {self.step} (epoch {self.epoch + 1})"
        cause = f"the learning rate, {rate:g} here, or inputs far larger than 1"
        remedy = "try a third of it, or a warm-up (warmup_steps), or clip_norm=1"
        kept = " The best weights so far are kept." if self.history else ""
        raise TrainingDiverged(
            f"{found}: {first_overflow(model)}. The likely cause is {cause}: {remedy}.{kept}"
        )

    def _call(self, moment: str) -> list[Any]:
        """Call all callbacks; if one fails, save what was learned and raise the exception again."""
        try:
            return [_hook(callback, moment)(self) for callback in self.callbacks]
        except Exception:
            self._save()
            raise


def _hook(callback: Any, name: str) -> Callable[[Trainer], Any]:
    """Return the callback's method, or one that does nothing: it need not be a Callback."""
    found: Callable[[Trainer], Any] = getattr(callback, name, getattr(Callback(), name))
    return found


def copies(arrays: Arrays) -> Arrays:
    """Return a copy of each array, under the same names."""
    return {name: array.copy() for name, array in arrays.items()}


def first_overflow(model: MLP) -> str:
    """Say where the numbers of the last forward pass stop being finite first."""
    for layer in range(1, model.n_layers + 1):
        for name in (f"W{layer}", f"b{layer}"):
            if not np.isfinite(model.parameters[name]).all():
                return f"{name} is not finite"
        is_hidden = layer < model.n_layers
        if is_hidden and not np.isfinite(model.pre_activations[layer - 1]).all():
            return f"the activations of layer {layer} overflow, its weights being finite"
    return f"the logits (layer {model.n_layers}) overflow, all weights being finite"


def make_optimizer(hp: Hyperparameters, model: MLP) -> SGD:
    """Return the optimizer that ``hp`` describes for the parameters of ``model``."""
    return SGD(
        model.parameters,
        momentum=hp.momentum,
        nesterov=hp.nesterov,
        clip_norm=hp.clip_norm,
        decoupled_l2=hp.l2 if hp.decoupled_l2 else 0.0,
        l1=hp.l1,
        l1_cut=hp.l1_cut,
        ema=hp.ema,
    )


def schedule_of(hp: Hyperparameters, steps_per_epoch: int) -> Schedule:
    """Return the learning rate that ``hp`` describes, as a function of the step."""
    return make_schedule(
        hp.schedule,
        hp.learning_rate,
        hp.epochs * steps_per_epoch,
        decay_rate=hp.decay_rate,
        decay_every=hp.decay_every,
        min_learning_rate=hp.min_learning_rate,
        warmup_steps=hp.warmup_steps,
    )


def train(
    hp: Hyperparameters,
    data: Dataset,
    run_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    init: MLP | None = None,
    loss: Loss | None = None,
    threads: int | None = None,
) -> TrainingRun:
    """Train a network as ``hp`` says on ``data.train``, and validate it on ``data.valid`` after
    each epoch.

    With ``run_dir`` everything is saved there along the way, and the same call goes on where a
    broken-off one stopped (``resume=False`` starts again). More options, best given by name:

    - ``progress=True`` shows a bar in a terminal or notebook, one line per epoch elsewhere; False
      is quiet;
    - ``callbacks=()`` are called at each step and epoch (see ``Callback``);
    - ``init=None`` is a network to start from: its weights, and the preprocessing they were made
      for;
    - ``loss=None``: a function of (logits, labels) that returns (value, dlogits), to train by
      instead of ``softmax_cross_entropy``, which measures validation in any case;
    - ``threads=None``: how many threads BLAS uses during the run, in the whole process; None gives
      small networks one. Beside other busy processes, 1 can be many times faster than more, because
      threads wait for each other.

    Ctrl-C ends the run after the current step and returns it. Raises TrainingDiverged,
    CheckpointError if ``run_dir`` belongs to another run or can't be written, and whatever a
    callback raises; each has the run so far as ``error.run``.
    """
    trainer = Trainer(hp, data, run_dir, resume, progress, callbacks, init, loss, threads)
    return trainer.run()


def load_run(run_dir: str | Path) -> TrainingRun:
    """Return the run saved in ``run_dir`` without training. Raises CheckpointError if there is
    none."""
    directory = RunDirectory(run_dir)
    hp = Hyperparameters.from_dict(directory.read_json("hyperparameters.json"))
    history = History(directory.read_history())
    return TrainingRun(load_model(directory.best), history, hp, run_dir=directory.path)


def build_model(hp: Hyperparameters, data: Dataset, init: MLP | None = None) -> MLP:
    """Return the untrained network that ``hp`` describes for ``data``, its preprocessing fitted on
    training images.

    With ``init`` it has a copy of that network's weights, and its preprocessing, which the weights
    were made for. Raises HyperparameterError if ``init`` is another network than ``hp`` and
    ``data`` need.
    """
    images = data.train.images
    n_inputs = math.prod(images.shape[1:])
    preprocessing = None
    if images.dtype == np.uint8:
        if init is not None:
            preprocessing = checked_model(init).preprocessing
        else:
            preprocessing = fit_preprocessing(
                hp.preprocessing,
                images,
                components=hp.components,
                floor=hp.whitening_floor,
                mirrored=hp.flip and images.ndim == 4,  # rows of pixels have no mirror image
            )
        if preprocessing is not None:
            n_inputs = preprocessing.n_inputs
    model = MLP(
        (n_inputs, *hp.hidden_sizes, len(data.classes)),
        hp.activation,
        initialization=hp.initialization,
        classes=data.classes,
        seed=hp.seed,
        preprocessing=preprocessing,
    )
    if init is not None:
        needed = model.layer_sizes, model.activation
        given = init.layer_sizes, init.activation
        if needed != given:
            raise HyperparameterError(
                f"init: its layers are {given}, but hp and data need {needed}."
            )
        model.parameters = {name: p.astype(model.dtype) for name, p in init.parameters.items()}
    return model
