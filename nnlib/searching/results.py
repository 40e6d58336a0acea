"""What a search found: a record of every trial, the winners, the ties, and where to look next."""

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
from nnlib.files import AnyPath, user_path, write_text
from nnlib.searching.spaces import Range, Settings, make_study
from nnlib.training.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Trial:
    """One setting and its results.

    ``status`` is complete, pruned (stopped early), diverged or failed. ``valid_accuracy`` is the
    highest and ``valid_loss`` the lowest of all epochs; ``best_epoch`` is the epoch with the better
    weights by ``select_by``; ``seconds`` is the time of training and validation.
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
        """The settings without the seed: equal for trials that differ in their seed alone."""
        return tuple((name, value) for name, value in self.settings.items() if name != "seed")

    def merit(self, select_by: str) -> float:
        """Return a number that is larger for a better trial."""
        return self.valid_accuracy if select_by == "valid_accuracy" else -self.valid_loss


@dataclass(repr=False)
class SearchResults:
    """All trials of a search, sorted by number, and the question that it answers.

    Its text names the winners, the ties, and values on the border of the space.
    """

    base: Hyperparameters
    data: dict[str, Any]  # source, fingerprint, valid_images
    method: str
    trials: list[Trial] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1
    interrupted: bool = field(default=False, compare=False)  # by Ctrl-C

    def add(self, trial: Trial) -> None:
        """Insert a trial by its number; an earlier record of it is replaced."""
        others = [t for t in self.trials if t.number != trial.number]
        self.trials = sorted([*others, trial], key=lambda t: t.number)

    @property
    def best(self) -> Trial:
        """The best complete trial by ``base.select_by``, see ``best_by``."""
        return self.best_by(self.base.select_by)

    @property
    def best_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of the best trial, to train with."""
        return self.base.replace(**self.best.settings)

    def best_by(self, select_by: str) -> Trial:
        """Return the best trial of the best setting; settings compare by the mean over their seeds.

        ``select_by`` is ``"valid_accuracy"`` or ``"valid_loss"``. Raises NNLibError if no setting
        is complete.
        """
        best_setting = self._ranked(select_by)[0]
        return max(best_setting, key=lambda t: t.merit(select_by))

    def _complete(self) -> list[list[Trial]]:
        """Return the trials of each setting whose trials are all complete."""
        groups = by_setting(self.trials)
        return [group for group in groups if all(t.status == "complete" for t in group)]

    def _ranked(self, select_by: str) -> list[list[Trial]]:
        """Return the trials of each complete setting, the best setting first."""
        groups = self._complete()
        if not groups:
            raise NNLibError(
                "search: no trial is complete; the reasons are in results.trials[i].error "
                "and in results.json in the search's directory."
            )
        return sorted(groups, key=lambda group: -mean_merit(group, select_by))

    @property
    def noise(self) -> float:
        """1.96 standard errors of the best accuracy p: 1.96·√(p(1-p)/N) for N validation images."""
        p = mean_merit(self._ranked("valid_accuracy")[0], "valid_accuracy")
        return 1.96 * math.sqrt(p * (1 - p) / self.data["valid_images"])

    @property
    def ties(self) -> list[Trial]:
        """One trial of each setting whose accuracy is less than ``noise`` below the best one.

        The best setting comes first. Other validation images could change their order.
        """
        ranked = self._ranked("valid_accuracy")
        lowest = mean_merit(ranked[0], "valid_accuracy") - self.noise
        tied = ranked[:1]  # also where the noise is 0
        for group in ranked[1:]:
            if mean_merit(group, "valid_accuracy") > lowest:
                tied.append(group)
        return [max(group, key=lambda t: t.valid_accuracy) for group in tied]

    @property
    def hints(self) -> list[str]:
        """One hint for each number whose best value lies on the border of its list or range."""
        limits = _limits()
        found = []
        for name, values in self.space.items():
            if name == "seed" or name not in limits:
                continue
            lowest, highest = limits[name]
            best = self.best.settings[name]
            if isinstance(values, Range):
                low, high = values.low, values.high
                at_bottom = values.place(best) < 0.05
                at_top = values.place(best) > 0.95
            else:
                low, high = min(values), max(values)
                at_bottom = best == low
                at_top = best == high
            # A single value has no border, and nothing lies beyond the field's own limits.
            if at_top and low < high < highest:
                found.append(f"widen {name} above {high:g}")
            if at_bottom and lowest < low < high:
                found.append(f"widen {name} below {low:g}")
        return found

    def importance(self) -> dict[str, float]:
        """Return each hyperparameter's share in reaching the best quarter, largest first.

        The method is PED-ANOVA (Watanabe et al. 2023). Pruned trials count with what they reached.
        Needs at least four trials.
        """
        need("search", "optuna")
        import optuna

        ended = []
        for trial in self.trials:
            if trial.status in ("complete", "pruned"):
                ended.append((trial.settings, trial.merit(self.base.select_by)))
        varied = {}
        for name, values in self.space.items():
            if isinstance(values, Range) or len(values) > 1:
                varied[name] = values
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        study = make_study(varied, ended)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row per trial: number, settings, status, best accuracy and loss, cost."""
        need("search", "pandas")
        import pandas as pd

        measured = ("status", "valid_accuracy", "valid_loss", "best_epoch", "epochs", "seconds")
        rows = []
        for trial in self.trials:
            values = {name: getattr(trial, name) for name in measured}
            rows.append({"trial": trial.number, **trial.settings, **values})
        return pd.DataFrame(rows)

    def mean_over_seeds(self) -> "pd.DataFrame":
        """Return one row per setting: seeds, mean and spread of accuracy and loss, total seconds.

        The spread is the standard deviation over the seeds. The best mean accuracy comes first.
        """
        names = [name for name, _ in self.trials[0].setting] if self.trials else []
        groups = self.to_dataframe().groupby(names, sort=False)
        table = groups.agg(
            seeds=("trial", "size"),
            valid_accuracy_mean=("valid_accuracy", "mean"),
            valid_accuracy_std=("valid_accuracy", "std"),
            valid_loss_mean=("valid_loss", "mean"),
            valid_loss_std=("valid_loss", "std"),
            seconds=("seconds", "sum"),
        ).reset_index()
        return table.sort_values("valid_accuracy_mean", ascending=False, ignore_index=True)

    def identity(self) -> dict[str, Any]:
        """Return what two calls of the same search have in common, as JSON reads it back."""
        asked = {
            "base": self.base.to_dict(),
            "data": self.data,
            "method": self.method,
            "space": self.space,
            "seed": self.seed,
            "seeds": self.seeds,
        }
        return json.loads(json.dumps(asked, default=vars))  # vars turns a Range into its fields

    def save(self, path: AnyPath) -> Path:
        """Write everything, histories included, to ``path`` as JSON, one line per trial.

        The file is written whole or not at all. Raises CheckpointError if it can't be written.
        """
        asked = json.dumps(self.identity())
        trials = ",\n".join(json.dumps(vars(t)) for t in self.trials)
        text = asked.removesuffix("}") + f', "trials": [\n{trials}\n]}}\n'
        return write_text(user_path(path), text)

    def __repr__(self) -> str:
        counts = Counter(t.status for t in self.trials)
        text = ", ".join(f"{n} {status}" for status, n in counts.items())
        count = f"{len(self.trials)} trials ({text})"
        seconds = sum(t.seconds for t in self.trials)
        lines = [f"SearchResults ({self.method}): {count}, {seconds:.0f} s of training"]
        if not self._complete():
            return lines[0]
        lines.append(f"best by accuracy: {describe(self.best_by('valid_accuracy'))}")
        lines.append(f"best by loss: {describe(self.best_by('valid_loss'))}")
        noise = f"the noise of {self.data['valid_images']:,} validation images, ±{self.noise:.4f}"
        ties = len(self.ties) - 1
        lines.append(f"settings that tie with the best accuracy, within {noise}: {ties}")
        for hint in self.hints:
            lines.append(f"{hint}: the best value lies on the border of what was searched")
        return "\n".join(lines)


def _limits() -> dict[str, tuple[float, float]]:
    """Return the least and the greatest value that each numeric hyperparameter may have."""
    found = {}
    for f in fields(Hyperparameters):
        if "range" in f.metadata:
            found[f.name] = f.metadata["range"]
    return found


def describe(trial: Trial) -> str:
    """Return a trial as a line of text."""
    parts = []
    for name, value in trial.settings.items():
        parts.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    place = f"trial {trial.number}: {', '.join(parts)}"
    return f"accuracy {trial.valid_accuracy:.4f}, loss {trial.valid_loss:.4f} ({place})"


def by_setting(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each setting, which differ in their seed alone."""
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.setting, []).append(trial)
    return list(groups.values())


def mean_merit(trials: Sequence[Trial], select_by: str) -> float:
    """Return the mean of the trials' merits, which is larger for a better setting."""
    return fmean(t.merit(select_by) for t in trials)


def load_results(path: AnyPath) -> SearchResults:
    """Return the results in a file that ``save`` wrote, or in the directory of a search.

    Raises CheckpointError if they can't be read.
    """
    path = user_path(path)
    if path.is_dir():
        path = path / "results.json"
    try:
        return _from_document(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"these are not the results of a search ({error})"
        raise CheckpointError(f"{path}: {problem}.") from None


def _from_document(document: dict[str, Any]) -> SearchResults:
    trials = []
    for record in document.pop("trials"):
        settings = {name: _tuple(value) for name, value in record.pop("settings").items()}
        trials.append(Trial(settings=settings, **record))
    space: dict[str, Any] = {}
    for name, values in document.pop("space").items():
        if isinstance(values, dict):
            space[name] = Range(**values)
        else:
            space[name] = [_tuple(value) for value in values]
    base = Hyperparameters.from_dict(document.pop("base"))
    return SearchResults(base=base, trials=trials, space=space, **document)


def _tuple(value: Any) -> Any:
    """Return a list as the tuple that it was before JSON."""
    return tuple(value) if isinstance(value, list) else value
