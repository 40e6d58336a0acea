"""The command line. The fields of ``Hyperparameters`` are its options: a new field is an option at once."""

import json
import re
import statistics
import subprocess
import sys
import timeit
import tomllib
import traceback
import tracemalloc
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter

import nnlib
from nnlib.data import cifar10
from nnlib.errors import HyperparameterError, NNLibError
from nnlib.files import CHECKOUT
from nnlib.searching.results import SearchResults
from nnlib.searching.search import plan
from nnlib.searching.spaces import Range, checked
from nnlib.training.hyperparameters import Hyperparameters

HELP = """A fully connected network for CIFAR-10, written by hand in NumPy.

`nnlib COMMAND --help` explains each command. Exit status: 0; 1 for what went wrong; 2 for misuse; 130 for Ctrl-C."""
EVERYWHERE = "With any command: --json prints JSON, and all else to stderr; --debug adds the traceback to an error."
WORD = re.compile(
    r'(?<![\w".])(?!true\b|false\b)[A-Za-z_][\w.()+-]*'
)  # what JSON wants to have in quotes

many = Parameter(consume_multiple=1, negative_iterable=())  # --hidden-sizes 64 32
usual: Any = {
    "default_parameter": many,
    "help_epilogue": EVERYWHERE,
    "suppress_keyboard_interrupt": False,
}
app = App(name="nnlib", help=HELP, version=nnlib.__version__, **usual)
data_app = App(name="data", help="Fetch CIFAR-10, check it, or say where it is.")
app.command(data_app)
app.register_install_completion_command(
    help="Let bash, zsh or fish complete nnlib's commands and options."
)
Record = dict[
    str, Any
]  # what a command found: it is printed, as lines or as JSON; ok=False in it is exit status 1
Whole = Annotated[
    int, Parameter(converter=lambda _, tokens: int(tokens[0].value))
]  # Cyclopts itself would round


def _option(f: Any, hint: Any) -> tuple[str, Any, Any]:
    """Turn one field of ``Hyperparameters`` into an option whose value is None unless it was given."""
    hint = next(
        (part for part in get_args(hint) if get_origin(part) is tuple), hint
    )  # of a word or words: words
    hint = {int: Whole, tuple[int, ...]: tuple[Whole, ...]}.get(hint, hint)
    if options := f.metadata.get("options"):
        hint = Literal[tuple(options)]
    allowed = "" if options or hint is bool else f"; {f.metadata['allowed']}"
    default = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    note = Parameter(help=f"{f.metadata['help']}{allowed} [default: {default}]")
    return f.name, Annotated[hint | None, note], field(default=None)


hints = get_type_hints(Hyperparameters)
Options: Any = make_dataclass(
    "Options", [_option(f, hints[f.name]) for f in fields(Hyperparameters)], kw_only=True
)
Options.__module__ = (
    __name__  # cyclopts takes a class of another module for one that it cannot read
)
Overrides = Annotated[
    Options, Parameter(name="*", group="Hyperparameters (they go over the recipe's and the file's)")
]
RecipeName: Any = Literal[Hyperparameters.recipes()]
Recipe = Annotated[
    RecipeName | None, Parameter(help="Hyperparameters to start from; `nnlib recipes` shows them.")
]
Config = Annotated[
    Path | None, Parameter(help="A TOML or JSON file with some of them; it goes over the recipe.")
]
Root = Annotated[
    Path | None,
    Parameter(help="The folder with cifar-10-batches-py [default: NNLIB_DATA_DIR or data/]."),
]
DataName = Literal["auto", "cifar10", "standin"]
Flag = Annotated[bool, Parameter(negative=())]
DryRun = Annotated[
    bool, Parameter(negative=(), help="Only measure what it would take, at these settings.")
]
Model = Annotated[
    Path, Parameter(help="A file that training wrote, such as RUN_DIR/best.npz, or RUN_DIR.")
]


@Parameter(name="*", group="Data")
@dataclass(kw_only=True, frozen=True)
class DataOptions:
    """Which images to load.

    Args:
        data: auto: CIFAR-10, or the stand-in where it cannot be had.
        train_images: Use only so many of the training images [default: all].
    """

    data: DataName = "auto"
    root: Root = None
    train_images: Whole | None = None


AUTO = DataOptions()


def _load(source: DataOptions) -> nnlib.Dataset:
    data = nnlib.load_dataset(source.data, root=source.root)
    if data.note:
        print(data.note, file=sys.stderr)
    return data if source.train_images is None else data.subset(source.train_images)


def hyperparameters(recipe: str | None, config: Path | None, options: Any) -> Hyperparameters:
    """Return the recipe (or the defaults), the file's fields over it, and over both the options that were given."""
    base = Hyperparameters.recipe(recipe) if recipe else Hyperparameters()
    given = (
        {name: value for name, value in asdict(options).items() if value is not None}
        if options
        else {}
    )
    if len(given.get("activation", ())) == 1:
        (given["activation"],) = given["activation"]  # one for all layers
    return base.replace(**((_read_config(config) if config else {}) | given))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return dict(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise HyperparameterError(
            f"config: {path} is no TOML or JSON file of fields and values ({error})."
        ) from None


def _estimate(
    hp: Hyperparameters, data: nnlib.Dataset, runs: int, times: float, threads: int | None
) -> Record:
    """Say what ``runs`` would take, ``times`` a whole training, after twenty steps that are measured and not kept."""
    tracemalloc.start()
    trainer = nnlib.Trainer(hp, data, progress=False, threads=threads)
    model, steps = trainer.model, hp.epochs * trainer.steps_per_epoch
    with trainer.limited_threads():
        seconds = (
            times
            * steps
            * statistics.median(timeit.repeat(trainer.train_step, number=1, repeat=20))
        )
    memory = tracemalloc.get_traced_memory()[1] + sum(
        s.images.nbytes for s in (data.train, data.valid, data.test)
    )
    tracemalloc.stop()
    found = {
        "hyperparameters": hp.to_dict(),
        "layers": model.layer_sizes,
        "steps": steps,
        "runs": runs,
    }
    found |= {
        "parameters": sum(p.size for p in model.parameters.values()),
        "memory_mb": round(memory / 1e6),
    }
    return found | {
        "training_seconds": seconds,
        "estimated_time": str(timedelta(seconds=round(seconds))),
    }


# ---- commands --------------------------------------------------------------------------------------------------------


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
    """Train a network; RUN_DIR gets its history and the weights that are best on validation images.

    Args:
        run_dir: Folder of the run [default: runs/ and the time].
        resume: Go on with the run that RUN_DIR holds.
        quiet: Show no progress.
        init: Begin with the weights of a saved model, or of several, side by side in a wide one.
        threads: BLAS threads at work [default: as many as the products can use; beside busy programs, 1 is faster].
    """
    hp, data = hyperparameters(recipe, config, options), _load(source)
    if dry_run:
        return _estimate(hp, data, runs=1, times=1, threads=threads)
    folder = run_dir or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"
    first = [nnlib.load_model(path) for path in init]
    begin = nnlib.join(first) if len(first) > 1 else first[0] if first else None
    if not quiet:
        print(
            f"training in {folder}; the preprocessing is fitted to the images first",
            file=sys.stderr,
        )
    run = nnlib.train(
        hp, data, run_dir=folder, resume=resume, progress=not quiet, init=begin, threads=threads
    )
    go_on = {"interrupted": f"--run-dir {folder} goes on"} if run.stopped == "interrupted" else {}
    return {
        "run": str(run),
        **(run.best if run.history else {}),
        "best weights": folder / "best.npz",
        **go_on,
    }


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
    loaded, data = nnlib.load_model(model), _load(source)
    result = nnlib.evaluate(loaded, getattr(data, split))
    if (trained_on := loaded.info.get("data", data.source)) != data.source:
        print(f"note: the model was trained on other images: {trained_on}", file=sys.stderr)
    found = {
        "data": data.source,
        "split": split,
        "images": int(result.confusion.sum()),
        "loss": result.loss,
    }
    return found | {
        name: getattr(result, name) for name in ("accuracy", "standard_error", "per_class")
    }


@app.command
def visualize(model: Model, /, *, output: Path = Path("figures", "weights")) -> Record:
    """Draw every layer's weights, freshly initialised and trained: histograms, heat maps, and the first as images.

    Args:
        output: Folder for the pictures.
    """
    from nnlib import plots

    loaded = nnlib.load_model(model)
    both = loaded.initial_parameters(), loaded.parameters
    output.mkdir(parents=True, exist_ok=True)
    figures = {
        "weight_histograms": plots.weight_histograms(*both),
        "weight_heatmaps": plots.weight_heatmaps(*both),
    }
    for name, parameters in zip(("initial", "trained"), both, strict=True):
        filters = plots.filters_of(loaded, parameters["W1"])
        if (
            filters.shape[1] == 3 * 32 * 32
        ):  # a network for other data than CIFAR-10's shape has no such images
            figures[f"first_layer_{name}"] = plots.first_layer_images(filters)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
    return {name: output / f"{name}.png" for name in figures}


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
    """Train with many hyperparameters and rank them by validation; every trial is recorded in DIRECTORY.

    Args:
        vary: A field and its values, once for each: learning_rate=0.01,0.05 or hidden_sizes=[64],[128,64]; for random,
            tpe and halving also a range, logarithmic if above 0: l2=1e-5..1e-2.
        method: How points are chosen.
        n_trials: How many points are tried [default: 20; of a grid all, and in halving the grid's or 27].
        workers: Processes at work at the same time.
        scheduler: Address of a Dask scheduler, tcp://HOST:8786, whose workers train instead.
        directory: Folder of the record; a stopped search goes on there.
        search_seed: Fixes which points are drawn.
        seeds: How many seeds each point is trained with.
    """
    if not vary:
        raise HyperparameterError("there is nothing to search: name fields and values with --vary.")
    base = hyperparameters(recipe, config, options)
    space = checked(dict(map(_parse_vary, vary)), base)
    if len(space) < len(vary):
        raise HyperparameterError(
            "vary: a field stands there twice; name it once, with all of its values."
        )
    data = _load(source)
    if dry_run:  # at the base's settings
        rungs = plan(SearchResults(base, {}, method, space=space, seeds=seeds), n_trials, workers)
        times = sum(n * more for n, _, more in rungs) * seeds / base.epochs / workers
        return _estimate(base, data, rungs[0][0] * seeds, times, threads=None)
    folder = directory or Path("runs") / f"search-{datetime.now():%Y%m%d-%H%M%S}"
    results = nnlib.search(
        space, data, base, method, n_trials, search_seed, workers, scheduler, folder, seeds=seeds
    )
    if results.interrupted and all(trial.status != "complete" for trial in results.trials):
        raise KeyboardInterrupt  # there is nothing to rank
    best = results.best.settings
    ranked = results.to_dataframe().sort_values("valid_accuracy", ascending=False)
    print((results.mean_over_seeds() if seeds > 1 else ranked).head(20).to_string(index=False))
    go_on = {"interrupted": f"--directory {folder} goes on"} if results.interrupted else {}
    return {"search": str(results), "best": best, "every trial": folder / "results.json", **go_on}


def _parse_vary(text: str) -> tuple[str, Any]:
    """Read ``name=value,value``, JSON but for the quotes around words, or a range ``name=low..high``."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise HyperparameterError(
            f"vary: {text!r} is not allowed; a field and its values, as in l2=0,0.001."
        )
    low, dots, high = values.partition("..")
    try:
        parsed = json.loads(f"[{low}, {high}]" if dots else WORD.sub(r'"\g<0>"', f"[{values}]"))
        if dots:
            parsed = Range(
                parsed[0],
                parsed[1],
                log=parsed[0] > 0,
                whole={type(end) for end in parsed} == {int},
            )
    except (ValueError, TypeError) as error:
        raise HyperparameterError(f"vary: {text!r} is not allowed; {error}") from None
    return name.replace("-", "_"), parsed


@app.command
def report(
    *,
    output: Path = Path("report"),
    to: Literal["html", "pdf", "markdown"] = "html",
    notebooks: str | None = None,
    data: DataName = "auto",
    recipe: Recipe = None,
    quick: Flag = False,
    author: str | None = None,
    show_code: Annotated[bool | None, Parameter(negative="--hide-code")] = None,
    notebooks_dir: Path | None = None,
    in_place: Flag = False,
) -> Record:
    """Execute the notebooks and write a report of all of them: OUTPUT/index.html, report.pdf or report.md.

    Args:
        output: Folder for the report and its figures.
        to: pdf is printed from the HTML page, by a Chromium that is at hand.
        notebooks: Only these, by number or name: 01,03.
        data: auto: CIFAR-10, or the stand-in where it cannot be had.
        quick: Short runs, and their numbers.
        author: A name for the title page.
        show_code: Unfold the code, or leave it out.
        notebooks_dir: Where the notebooks are.
        in_place: Write no page but the notebooks' own outputs.
    """
    from nnlib.report.export import build
    from nnlib.report.notebooks import refresh

    chosen = [name.strip() for name in notebooks.split(",")] if notebooks else None
    if in_place:
        refresh(chosen, notebooks_dir)
        return {}
    code = {None: "fold", True: "show", False: "hide"}[show_code]
    return {"report": build(output, chosen, data, quick, author, code, notebooks_dir, recipe, to)}


@app.command
def recipes() -> Record:
    """Show the recipes: named hyperparameters, and where they differ from the defaults."""
    return {
        n: {
            k: v
            for k, v in vars(Hyperparameters.recipe(n)).items()
            if v != getattr(Hyperparameters, k)
        }
        for n in Hyperparameters.recipes()
    }


@app.command
def bench(*parts: str, quick: Flag = False) -> Record:
    """Measure the speed beside that of peers, in a checkout; results go to data/benchmarks. Keep the machine quiet.

    Args:
        parts: Only these, such as speed or memory.
        quick: Fewer rounds, for a try.
    """
    script = CHECKOUT / "benchmarks" / "bench.py"
    if not script.exists():
        raise NNLibError(
            "the benchmark is not in the installed package: run this in a checkout of nnlib."
        )
    return {
        "ok": subprocess.run([sys.executable, script, *parts, *["--quick"] * quick]).returncode == 0
    }


@data_app.command
def fetch(*, root: Root = None) -> Record:
    """Bring CIFAR-10 to disk (170 MB), unless it is there."""
    return {"folder": cifar10.fetch(root)}


@data_app.command
def verify(*, root: Root = None) -> Record:
    """Compare each file with the official one; exit status 1 if any differs."""
    standing = cifar10.verify(root)
    return standing | {"ok": all(state == "official" for state in standing.values())}


@data_app.command
def info(*, source: DataOptions = AUTO) -> Record:
    """Say what the data set is: where it comes from, how many images, which classes."""
    data = _load(source)
    found = {
        "source": data.source,
        "fingerprint": data.fingerprint,
        "classes": ", ".join(data.classes),
    }
    return found | {name: len(getattr(data, name)) for name in ("train", "valid", "test")}


@data_app.command
def path(*, root: Root = None) -> Path:
    """Print the folder that holds, or is to hold, cifar-10-batches-py."""
    return cifar10.data_root(root)


# ---- what is printed, and exit statuses ------------------------------------------------------------------------------


def _show(found: Record, indent: str = "") -> None:
    """Print what a command found as a person would read it."""
    for name, value in found.items():
        nested = value if isinstance(value, dict) else {}
        words = "" if nested else f"{value:.5g}" if isinstance(value, float) else value
        print(f"{indent}{name}: {words}".rstrip())
        _show(nested, indent + "  ")


def run(arguments: Sequence[str]) -> int:
    """Carry out ``arguments`` and return the exit status: 0, 1 for what went wrong, 2 for misuse, 130 for Ctrl-C."""
    flags = {"--debug", "--json"} & set(arguments)
    words = [word for word in arguments if word not in flags]
    try:
        with redirect_stdout(sys.stderr if "--json" in flags else sys.stdout):
            found = (
                app(words, exit_on_error=False, print_error=False, result_action="return_value")
                or {}
            )
        shown = json.dumps(found, indent=2, default=str) if "--json" in flags else found
        _show(shown) if isinstance(shown, dict) else print(shown)
        record = found if isinstance(found, dict) else {}
        return 130 if "interrupted" in record else int(not record.get("ok", True))
    except KeyboardInterrupt as interrupt:
        print("nnlib:", interrupt.args[0] if interrupt.args else "interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        text, ours = " ".join(str(error).split()), isinstance(error, NNLibError | CycloptsError)
        if isinstance(error, OSError) and error.filename:
            text, ours = f"{error.filename}: {error.strerror}; name another place.", True
        print(
            "nnlib:",
            text if ours else f"{type(error).__name__}: {text} (--debug shows where)",
            file=sys.stderr,
        )
        return 2 if isinstance(error, CycloptsError | HyperparameterError) else 1


def main() -> NoReturn:
    """Entry point of the command ``nnlib``."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a pipe on Windows may know no λ
    sys.exit(run(sys.argv[1:]))
