"""The command line. Its options come from the fields of ``Hyperparameters``: one for each field."""

import json
import re
import statistics
import sys
import timeit
import tomllib
import traceback
import tracemalloc
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import Field, dataclass, field, fields, make_dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter

import nnlib
from nnlib.data import cifar10
from nnlib.data.dataset import Dataset
from nnlib.errors import HyperparameterError, NNLibError
from nnlib.network.mlp import MLP
from nnlib.searching import Range, SearchResults, checked, plan
from nnlib.training.hyperparameters import Hyperparameters

HELP = """A fully connected network for CIFAR-10, written by hand in NumPy.

`nnlib COMMAND --help` explains each command. The exit status is 0 if all went well, 1 for an error,
2 for wrong usage and 130 for Ctrl-C."""
EVERYWHERE = (
    "With every command: --json prints the result alone as JSON, everything else goes to stderr; "
    "--debug adds the traceback to an error."
)

# What a command found: it is printed as lines, or as JSON. With ok=False, the exit status is 1;
# with an entry "interrupted", it is 130.
Record = dict[str, Any]

settings: Any = {
    # One option takes several values: --hidden-sizes 64 32.
    "default_parameter": Parameter(consume_multiple=1, negative_iterable=()),
    "help_epilogue": EVERYWHERE,
    "suppress_keyboard_interrupt": False,
}
app = App(name="nnlib", help=HELP, version=nnlib.__version__, **settings)
data_app = App(name="data", help="Fetch CIFAR-10, check it, or say where it is.")
app.command(data_app)
app.register_install_completion_command(
    help="Let bash, zsh or fish complete nnlib's commands and options."
)


# ---- options -------------------------------------------------------------------------------------


def _whole_number(_: Any, tokens: Sequence[Any]) -> int:
    return int(tokens[0].value)


Whole = Annotated[int, Parameter(converter=_whole_number)]  # cyclopts itself would round 1.5


def _option(f: Field[Any], hint: Any) -> tuple[str, Any, Any]:
    """Turn a field of ``Hyperparameters`` into an option; its value is None unless it is given."""
    note = Parameter(help=_option_help(f, hint))
    return f.name, Annotated[_option_type(f, hint) | None, note], field(default=None)


def _option_type(f: Field[Any], hint: Any) -> Any:
    options = f.metadata.get("options")
    if options:
        return Literal[tuple(options)]
    if hint is int:
        return Whole
    if hint == tuple[int, ...]:
        return tuple[Whole, ...]
    for part in get_args(hint):  # one word or a tuple of words: take any number of words
        if get_origin(part) is tuple:
            return part
    return hint


def _option_help(f: Field[Any], hint: Any) -> str:
    text = str(f.metadata["help"])
    if hint is not bool and "options" not in f.metadata:  # those show what is allowed
        text += f"; {f.metadata['allowed']}"
    default = f.default
    if isinstance(default, tuple):
        default = " ".join(str(value) for value in default)
    return f"{text} [default: {default}]"


def _make_options() -> Any:
    hints = get_type_hints(Hyperparameters)
    options = [_option(f, hints[f.name]) for f in fields(Hyperparameters)]
    made = make_dataclass("Options", options, kw_only=True)
    made.__module__ = __name__  # cyclopts can't read a class that seems to come from elsewhere
    return made


Options: Any = _make_options()
Overrides = Annotated[
    Options,
    Parameter(name="*", group="Hyperparameters (they override the recipe and the file)"),
]
RecipeName: Any = Literal[Hyperparameters.recipes()]
Recipe = Annotated[
    RecipeName | None,
    Parameter(help="Hyperparameters to start from; `nnlib recipes` shows them."),
]
Config = Annotated[
    Path | None,
    Parameter(help="A TOML or JSON file with hyperparameters; it overrides the recipe."),
]
Root = Annotated[
    Path | None,
    Parameter(help="The folder with cifar-10-batches-py [default: NNLIB_DATA_DIR or data/]."),
]
DataName = Literal["auto", "cifar10", "standin"]
Flag = Annotated[bool, Parameter(negative=())]
DryRun = Annotated[
    bool,
    Parameter(negative=(), help="Only measure what it would take with these settings."),
]
Model = Annotated[
    Path,
    Parameter(help="A file that training wrote, such as RUN_DIR/best.npz, or RUN_DIR."),
]


@Parameter(name="*", group="Data")
@dataclass(kw_only=True, frozen=True)
class DataOptions:
    """Which images to load.

    Args:
        data: auto: CIFAR-10, or generated images (the stand-in) if it can't be had.
        train_images: Use only this many of the training images [default: all].
    """

    data: DataName = "auto"
    root: Root = None
    train_images: Whole | None = None


AUTO = DataOptions()


def _load(source: DataOptions) -> Dataset:
    data = nnlib.load_dataset(source.data, root=source.root)
    if data.note:
        print(data.note, file=sys.stderr)
    if source.train_images is None:
        return data
    return data.subset(source.train_images)


def hyperparameters(recipe: str | None, config: Path | None, options: Any) -> Hyperparameters:
    """Return the recipe (or the defaults), overridden by the file, and both by the options."""
    base = Hyperparameters.recipe(recipe) if recipe else Hyperparameters()
    changes = _read_config(config) if config else {}
    if options:
        for name, value in vars(options).items():
            if value is not None:
                changes[name] = value
        if options.activation and len(options.activation) == 1:
            changes["activation"] = options.activation[0]  # one for all layers
    return base.replace(**changes)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        parsed = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return dict(parsed)
    except (OSError, ValueError, TypeError) as error:
        problem = f"{path} is no TOML or JSON file of fields and values ({error})"
        raise HyperparameterError(f"config: {problem}.") from None


def _estimate(
    hp: Hyperparameters, data: Dataset, runs: int, times: float, threads: int | None
) -> Record:
    """Return what ``runs`` trainings would take: parameters, memory and time.

    Together they take ``times`` as long as one training. Twenty steps are measured, and not kept.
    """
    tracemalloc.start()
    trainer = nnlib.Trainer(hp, data, progress=False, threads=threads)
    with trainer.limited_threads():
        measured = timeit.repeat(trainer.train_step, number=1, repeat=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    images = sum(split.images.nbytes for split in (data.train, data.valid, data.test))
    steps = hp.epochs * trainer.steps_per_epoch
    seconds = times * steps * statistics.median(measured)
    return {
        "hyperparameters": hp.to_dict(),
        "layers": trainer.model.layer_sizes,
        "steps": steps,
        "runs": runs,
        "parameters": sum(array.size for array in trainer.model.parameters.values()),
        "memory_mb": round((peak + images) / 1e6),
        "training_seconds": seconds,
        "estimated_time": str(timedelta(seconds=round(seconds))),
    }


# ---- commands ------------------------------------------------------------------------------------


@app.command
def train(
    *,
    recipe: Recipe = None,
    config: Config = None,
    run_dir: Path | None = None,
    resume: bool = True,
    quiet: Flag = False,
    init: tuple[Path, ...] = (),
    threads: Whole | None = None,
    dry_run: DryRun = False,
    source: DataOptions = AUTO,
    options: Overrides = None,
) -> Record:
    """Train a network; RUN_DIR gets its history and the best weights by validation.

    Args:
        run_dir: Folder of the run [default: runs/ and the time].
        resume: Continue the run that is in RUN_DIR.
        quiet: Show no progress.
        init: Start with the weights of a saved model, or of several, joined to a wide one.
        threads: BLAS threads [default: as many as help; beside busy programs, 1 is faster].
    """
    hp = hyperparameters(recipe, config, options)
    data = _load(source)
    if dry_run:
        return _estimate(hp, data, runs=1, times=1, threads=threads)
    folder = run_dir or Path("runs", f"train-{_now()}")
    first = _first_model(init)
    if not quiet:
        words = "the preprocessing is fitted to the images first"
        print(f"training in {folder}; {words}", file=sys.stderr)
    run = nnlib.train(
        hp, data, run_dir=folder, resume=resume, progress=not quiet, init=first, threads=threads
    )
    found: Record = {"run": str(run)}
    if run.history:
        found.update(run.best)
    found["best weights"] = folder / "best.npz"
    if run.stopped == "interrupted":
        found["interrupted"] = f"--run-dir {folder} continues the run"
    return found


def _now() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}"


def _first_model(paths: Sequence[Path]) -> MLP | None:
    """Return the model to start with: the saved one, several joined, or None."""
    models = [nnlib.load_model(path) for path in paths]
    if not models:
        return None
    if len(models) == 1:
        return models[0]
    return nnlib.join(models)


@app.command
def test(
    model: Model,
    /,
    *,
    split: Literal["test", "valid", "train"] = "test",
    source: DataOptions = AUTO,
) -> Record:
    """Print the loss and the accuracy of a saved model on the test images.

    Args:
        split: Which images.
    """
    loaded = nnlib.load_model(model)
    data = _load(source)
    result = nnlib.evaluate(loaded, getattr(data, split))
    trained_on = loaded.info.get("data", data.source)
    if trained_on != data.source:
        print(f"note: the model was trained on other images: {trained_on}", file=sys.stderr)
    return {
        "data": data.source,
        "split": split,
        "images": int(result.confusion.sum()),
        "loss": result.loss,
        "accuracy": result.accuracy,
        "standard_error": result.standard_error,
        "per_class": result.per_class,
    }


@app.command
def visualize(model: Model, /, *, output: Path = Path("figures", "weights")) -> Record:
    """Draw the weights of every layer, before and after training.

    There are histograms and heat maps, and the first layer as images.

    Args:
        output: Folder for the pictures.
    """
    from nnlib import plots

    loaded = nnlib.load_model(model)
    before = loaded.initial_parameters()
    after = loaded.parameters
    output.mkdir(parents=True, exist_ok=True)
    figures = {
        "weight_histograms": plots.weight_histograms(before, after),
        "weight_heatmaps": plots.weight_heatmaps(before, after),
    }
    for name, parameters in {"initial": before, "trained": after}.items():
        filters = plots.filters_of(loaded, parameters["W1"])
        if filters.shape[1] == 3 * 32 * 32:  # only those of CIFAR-10's shape are images
            figures[f"first_layer_{name}"] = plots.first_layer_images(filters)
    found: Record = {}
    for name, figure in figures.items():
        found[name] = output / f"{name}.png"
        figure.savefig(found[name], dpi=150)
    return found


@app.command
def search(
    *,
    vary: list[str] | None = None,
    recipe: Recipe = None,
    config: Config = None,
    method: Literal["grid", "random", "tpe", "halving"] = "grid",
    n_trials: Whole | None = None,
    workers: Whole = 1,
    scheduler: str | None = None,
    directory: Path | None = None,
    search_seed: Whole = 0,
    seeds: Whole = 1,
    dry_run: DryRun = False,
    source: DataOptions = AUTO,
    options: Overrides = None,
) -> Record:
    """Train with many hyperparameters and rank them by validation; DIRECTORY records every trial.

    Args:
        vary: A field and its values; give it once per field: learning_rate=0.01,0.05 or
            hidden_sizes=[64],[128,64]. With random, tpe and halving also a range, which is
            logarithmic if it starts above 0: l2=1e-5..1e-2.
        method: How settings are chosen.
        n_trials: How many settings are tried [default: 20; with grid all; with halving the grid's,
            or 27].
        workers: Processes that train at the same time.
        scheduler: Address of a Dask scheduler, tcp://HOST:8786, whose workers train instead.
        directory: Folder of the record; an interrupted search continues there.
        search_seed: Fixes which settings are drawn.
        seeds: How many seeds each setting is trained with.
    """
    if not vary:
        raise HyperparameterError("there is nothing to search: name fields and values with --vary.")
    base = hyperparameters(recipe, config, options)
    space = checked(dict(_parse_vary(text) for text in vary), base)
    if len(space) < len(vary):
        raise HyperparameterError("vary: a field is given twice; name it once with all its values.")
    data = _load(source)
    if dry_run:
        rungs = plan(SearchResults(base, {}, method, space=space, seeds=seeds), n_trials, workers)
        epochs = sum(rung.settings * rung.epochs for rung in rungs) * seeds
        times = epochs / base.epochs / workers
        return _estimate(base, data, rungs[0].settings * seeds, times, threads=None)
    folder = directory or Path("runs", f"search-{_now()}")
    results = nnlib.search(
        space,
        data,
        base,
        method=method,
        n_trials=n_trials,
        seed=search_seed,
        workers=workers,
        executor=scheduler,
        directory=folder,
        seeds=seeds,
    )
    if results.interrupted and all(trial.status != "complete" for trial in results.trials):
        raise KeyboardInterrupt  # there is nothing to rank
    best = results.best.settings
    if seeds > 1:
        table = results.mean_over_seeds()
    else:
        table = results.to_dataframe().sort_values("valid_accuracy", ascending=False)
    print(table.head(20).to_string(index=False))
    found = {"search": str(results), "best": best, "every trial": folder / "results.json"}
    if results.interrupted:
        found["interrupted"] = f"--directory {folder} continues the search"
    return found


# A word in the values of --vary, which JSON needs in quotes: cosine, leaky_relu(0.2).
WORD = re.compile(r'(?<![\w".])(?!true\b|false\b)[A-Za-z_][\w.()+-]*')


def _parse_vary(text: str) -> tuple[str, Any]:
    """Read ``name=value,value``, JSON without quotes around words, or ``name=low..high``."""
    name, _, values = text.partition("=")
    if not values:
        raise HyperparameterError(
            f"vary: {text!r} is not allowed; give a field and its values, as in l2=0,0.001."
        )
    low, dots, high = values.partition("..")
    try:
        if dots:
            parsed: Any = _range(json.loads(low), json.loads(high))
        else:
            parsed = json.loads("[" + WORD.sub(r'"\g<0>"', values) + "]")
    except (ValueError, TypeError) as error:
        raise HyperparameterError(f"vary: {text!r} is not allowed; {error}") from None
    return name.replace("-", "_"), parsed


def _range(low: Any, high: Any) -> Range:
    """Return a range: logarithmic above 0, and of whole numbers if both ends are whole."""
    whole = isinstance(low, int) and isinstance(high, int)
    return Range(low, high, log=low > 0, whole=whole)


@app.command
def report(
    *,
    output: Path = Path("report"),
    to: Literal["html", "pdf"] = "html",
    notebooks: str | None = None,
    data: DataName = "auto",
    recipe: Recipe = None,
    quick: Flag = False,
    author: str | None = None,
    show_code: Annotated[bool | None, Parameter(negative="--hide-code")] = None,
    notebooks_dir: Path | None = None,
    in_place: Flag = False,
) -> Record:
    """Run the notebooks and write a report of them: OUTPUT/index.html, or report.pdf there.

    Args:
        output: Folder for the report and its figures.
        to: pdf is printed from the HTML page, with a Chromium on this machine.
        notebooks: Only these, by number or name: 01,03.
        data: auto: CIFAR-10, or generated images (the stand-in) if it can't be had.
        quick: Short runs; their numbers are less good.
        author: A name for the title page.
        show_code: Unfold the code, or leave it out.
        notebooks_dir: Folder of the notebooks.
        in_place: Write no report; save the notebooks with their new outputs.
    """
    from nnlib.report import export, refresh

    chosen = [name.strip() for name in notebooks.split(",")] if notebooks else None
    if in_place:
        refresh(chosen, notebooks_dir)
        return {}
    code = {None: "fold", True: "show", False: "hide"}[show_code]
    target = export.build(
        output,
        notebooks=chosen,
        dataset=data,
        quick=quick,
        author=author,
        code=code,
        notebooks_dir=notebooks_dir,
        recipe=recipe,
        to=to,
    )
    return {"report": target}


@app.command
def recipes() -> Record:
    """Show the recipes: named hyperparameters, and where they differ from the defaults."""
    defaults = vars(Hyperparameters())
    found: Record = {}
    for recipe in Hyperparameters.recipes():
        hp = Hyperparameters.recipe(recipe)
        found[recipe] = {name: v for name, v in vars(hp).items() if v != defaults[name]}
    return found


@data_app.command
def fetch(*, root: Root = None) -> Record:
    """Download CIFAR-10 (170 MB), unless it is on disk."""
    return {"folder": cifar10.fetch(root)}


@data_app.command
def verify(*, root: Root = None) -> Record:
    """Compare each file with the official one; the exit status is 1 if any differs."""
    states = cifar10.verify(root)
    return {**states, "ok": all(state == "official" for state in states.values())}


@data_app.command
def info(*, source: DataOptions = AUTO) -> Record:
    """Describe the data set: where it comes from, its classes, and how many images it has."""
    data = _load(source)
    return {
        "source": data.source,
        "fingerprint": data.fingerprint,
        "classes": ", ".join(data.classes),
        "train": len(data.train),
        "valid": len(data.valid),
        "test": len(data.test),
    }


@data_app.command
def path(*, root: Root = None) -> Path:
    """Print the folder where cifar-10-batches-py is, or would be downloaded to."""
    return cifar10.data_root(root)


# ---- output and exit status ----------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run the command in ``arguments`` and return the exit status.

    It is 0 if all went well, 1 for an error, 2 for wrong usage and 130 for Ctrl-C.
    """
    as_json = "--json" in arguments
    words = [word for word in arguments if word not in ("--json", "--debug")]
    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            found = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if found is None:  # --help and --version print by themselves
            found = {}
        _print(found, as_json)
        return _exit_status(found)
    except KeyboardInterrupt as interrupt:
        reason = interrupt.args[0] if interrupt.args else "interrupted"
        print("nnlib:", reason, file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print("nnlib:", _explain(error), file=sys.stderr)
        return 2 if isinstance(error, CycloptsError | HyperparameterError) else 1


def _print(found: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2, default=str))
    elif isinstance(found, dict):
        _show(found)
    else:
        print(found)


def _show(found: Record, indent: str = "") -> None:
    """Print what a command found, as a person reads it."""
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _show(value, indent + "  ")
        elif isinstance(value, float):
            print(f"{indent}{name}: {value:.5g}")
        else:
            print(f"{indent}{name}: {value}".rstrip())


def _exit_status(found: Any) -> int:
    if not isinstance(found, dict):
        return 0
    if "interrupted" in found:
        return 130
    return 0 if found.get("ok", True) else 1


def _explain(error: Exception) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; name another place."
    if isinstance(error, NNLibError | CycloptsError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def main() -> NoReturn:
    """Entry point of the command ``nnlib``."""
    # A pipe on Windows may not know λ.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))
