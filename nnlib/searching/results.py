"""What a search found: a record of every trial, its winners, which differences are noise, and where to look next."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nnlib.errors import CheckpointError, NNLibError
from nnlib.extras import need
from nnlib.files import write_text
from nnlib.searching.spaces import Range, Settings, make_study
from nnlib.training.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Trial:
    """One setting and what came of it. ``status`` is complete, pruned (stopped early), diverged or failed.

    ``valid_accuracy`` is the highest and ``valid_loss`` the lowest of all epochs; ``best_epoch`` is that of the better
    weights by ``select_by``; ``seconds`` are those of training and validation.
    """

    number: int
    settings: Settings
    status: str = "complete"
    valid_accuracy: float = math.nan
    valid_loss: float = math.nan
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    seed: int = 0
    error: str = ""
    fingerprint: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """What trials that differ in their seed alone have in common."""
        return tuple((name, value) for name, value in self.settings.items() if name != "seed")

    def merit(self, select_by: str) -> float:
        """Return a number that is larger for a better trial."""
        return self.valid_accuracy if select_by == "valid_accuracy" else -self.valid_loss


@dataclass(repr=False)
class SearchResults:
    """All trials of a search by number, and what was asked; shown as text, it names the winners and what to doubt."""

    base: Hyperparameters
    data: dict[str, Any]  # source, fingerprint, valid_images
    method: str
    trials: list[Trial] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1
    interrupted: bool = field(default=False, compare=False)  # by Ctrl-C

    def add(self, trial: Trial) -> None:
        """Put a trial in its place, instead of an earlier record of it."""
        self.trials = sorted(
            [t for t in self.trials if t.number != trial.number] + [trial], key=lambda t: t.number
        )

    @property
    def best(self) -> Trial:
        """The best complete trial by ``base.select_by``, as ``best_by`` finds it."""
        return self.best_by(self.base.select_by)

    @property
    def best_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of the best trial, to train with."""
        return self.base.replace(**self.best.settings)

    def best_by(self, select_by: str) -> Trial:
        """Return the best trial of the setting that is best in the mean over its seeds.

        ``select_by`` is ``"valid_accuracy"`` or ``"valid_loss"``. Raises NNLibError if no trial is complete.
        """
        return max(self._ranked(select_by)[0], key=lambda t: t.merit(select_by))

    def _ranked(self, select_by: str) -> list[list[Trial]]:
        """Return the trials of each setting with complete ones only, the settings by falling merit."""
        settings = [s for s in by_setting(self.trials) if all(t.status == "complete" for t in s)]
        if not settings:
            reasons = (
                "the reasons stand in results.trials[i].error, and in its directory's results.json"
            )
            raise NNLibError(f"search: no trial is complete; {reasons}.")
        return sorted(settings, key=lambda s: -mean_merit(s, select_by))

    @property
    def noise(self) -> float:
        """1.96 standard errors of the best accuracy p: sqrt(p (1 - p) / N) for the N validation images."""
        p = mean_merit(self._ranked("valid_accuracy")[0], "valid_accuracy")
        return 1.96 * math.sqrt(p * (1 - p) / self.data["valid_images"])

    @property
    def ties(self) -> list[Trial]:
        """The best by accuracy and one trial of each setting whose accuracy is less than ``noise`` below, best first.

        Another draw of validation images could turn their order around.
        """
        best, *others = self._ranked("valid_accuracy")
        lowest = mean_merit(best, "valid_accuracy") - self.noise
        tied = [best, *(s for s in others if mean_merit(s, "valid_accuracy") > lowest)]
        return [max(s, key=lambda t: t.valid_accuracy) for s in tied]

    @property
    def hints(self) -> list[str]:
        """A sentence for each number whose best value lies on the border of what was searched."""
        limits = {
            f.name: f.metadata["range"] for f in fields(Hyperparameters) if "range" in f.metadata
        }
        found = []
        for name in [n for n in self.space if n in limits and n != "seed"]:
            values, at, (lowest, highest) = self.space[name], self.best.settings[name], limits[name]
            is_range = isinstance(values, Range)
            low, high = (values.low, values.high) if is_range else (min(values), max(values))
            place = values.place(at) if is_range else (at > low) if at in (low, high) else 0.5
            found += [f"widen {name} above {high:g}"] if place > 0.95 and high < highest else []
            found += [f"widen {name} below {low:g}"] if place < 0.05 and lowest < low < high else []
        return found

    def importance(self) -> dict[str, float]:
        """Return each hyperparameter's share in reaching the best quarter, largest first (Watanabe et al. 2023).

        Trials that have been pruned count with what they reached. Needs at least four trials.
        """
        need("search", "optuna")
        import optuna

        ended = [
            (t.settings, t.merit(self.base.select_by))
            for t in self.trials
            if t.status in ("complete", "pruned")
        ]
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        study = make_study(
            {n: v for n, v in self.space.items() if isinstance(v, Range) or len(v) > 1}, ended
        )
        return optuna.importance.get_param_importances(study, evaluator=evaluator)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a trial: its number, its settings, status, best validation accuracy and loss, cost."""
        need("search", "pandas")
        import pandas as pd

        measured = ("status", "valid_accuracy", "valid_loss", "best_epoch", "epochs", "seconds")
        rows = [
            {"trial": t.number, **t.settings} | {m: getattr(t, m) for m in measured}
            for t in self.trials
        ]
        return pd.DataFrame(rows)

    def mean_over_seeds(self) -> "pd.DataFrame":
        """Return one row a setting: seeds, mean and standard deviation of accuracy and loss, seconds in all."""
        table = self.to_dataframe()
        names = list(dict(self.trials[0].setting)) if self.trials else []
        figures = {
            f"{m}_{how}": (m, how)
            for m in ("valid_accuracy", "valid_loss")
            for how in ("mean", "std")
        }
        rows = table.groupby(names, sort=False).agg(
            seeds=("trial", "size"), **figures, seconds=("seconds", "sum")
        )
        return rows.reset_index().sort_values(
            "valid_accuracy_mean", ascending=False, ignore_index=True
        )

    def identity(self) -> dict[str, Any]:
        """Return, as JSON would, all that two calls of the same search have in common."""
        asked = {
            name: value
            for name, value in vars(self).items()
            if name not in ("trials", "interrupted")
        }
        return json.loads(json.dumps(asked | {"base": self.base.to_dict()}, default=vars))

    def save(self, path: str | Path) -> Path:
        """Write everything, histories included, to ``path`` as JSON, one line a trial, atomically."""
        trials = ",\n".join(json.dumps(vars(t)) for t in self.trials)
        return write_text(path, f'{json.dumps(self.identity())[:-1]}, "trials": [\n{trials}\n]}}\n')

    def __repr__(self) -> str:
        counts = Counter(t.status for t in self.trials)
        text = ", ".join(f"{n} {status}" for status, n in counts.items())
        seconds = sum(t.seconds for t in self.trials)
        lines = [
            f"SearchResults ({self.method}): {len(self.trials)} trials ({text}), {seconds:.0f} s of training"
        ]
        if counts["complete"]:
            lines += [
                f"best by {by}: {describe(self.best_by(f'valid_{by}'))}"
                for by in ("accuracy", "loss")
            ]
            noise = (
                f"the noise of {self.data['valid_images']:,} validation images, ±{self.noise:.4f}"
            )
            lines += [
                f"settings that tie with the best accuracy, within {noise}: {len(self.ties) - 1}"
            ]
            lines += [
                f"{hint}: the best value lies on the border of what was searched"
                for hint in self.hints
            ]
        return "\n".join(lines)


def describe(trial: Trial) -> str:
    """Return a trial as a line of text."""
    settings = ", ".join(
        f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in trial.settings.items()
    )
    return f"accuracy {trial.valid_accuracy:.4f}, loss {trial.valid_loss:.4f} (trial {trial.number}: {settings})"


def by_setting(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each setting, which differ in their seed alone."""
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.setting, []).append(trial)
    return list(groups.values())


def mean_merit(trials: Sequence[Trial], select_by: str) -> float:
    """Return the mean of what is larger for a better trial."""
    return fmean(t.merit(select_by) for t in trials)


def load_results(path: str | Path) -> SearchResults:
    """Return what ``save`` wrote to a file, or a search to its folder. Raises CheckpointError if it cannot be read."""
    path = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings = [
            {name: _tuple(value) for name, value in t["settings"].items()}
            for t in document["trials"]
        ]
        document["trials"] = [
            Trial(**t | {"settings": s}) for t, s in zip(document["trials"], settings, strict=True)
        ]
        for name, values in document["space"].items():
            document["space"][name] = (
                Range(**values) if isinstance(values, dict) else [*map(_tuple, values)]
            )
        return SearchResults(**document | {"base": Hyperparameters.from_dict(document["base"])})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: it does not hold the results of a search ({error})."
        ) from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
