"""The command line. The fields of ``Hyperparameters`` are its options: a new field is an option at once."""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter

import nnlib
from nnlib import cifar10
from nnlib.errors import HyperparameterError, NNLibError
from nnlib.hyperparameters import RECIPES, Hyperparameters
from nnlib.spaces import Range

HELP = """A fully connected network for CIFAR-10, written by hand in NumPy.

`nnlib COMMAND --help` explains each command; `--debug` adds the traceback to an error."""

many = Parameter(consume_multiple=True, negative_iterable=())  # --hidden-sizes 64 32
app = App(name="nnlib", help=HELP, version=nnlib.__version__, suppress_keyboard_interrupt=False, default_parameter=many)
data_app = App(name="data", help="Fetch CIFAR-10, check it, or say where it is.")
app.command(data_app)


# ---- options ---------------------------------------------------------------------------------------------------------


def _option(f: Any, hint: Any) -> tuple[str, Any, Any]:
    """Turn one field of ``Hyperparameters`` into an option whose value is None unless it was given."""
    # one word, or one for each layer: words, then
    hint = next((part for part in get_args(hint) if get_origin(part) is tuple), hint)
    if options := f.metadata.get("options"):
        hint = Literal[tuple(options)]
    allowed = "" if options or hint is bool else f"; {f.metadata['allowed']}"
    default = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    note = Parameter(help=f"{f.metadata['help']}{allowed} [default: {default}]")
    return f.name, Annotated[hint | None, note], field(default=None)


hints = get_type_hints(Hyperparameters)
Options: Any = make_dataclass("Options", [_option(f, hints[f.name]) for f in fields(Hyperparameters)], kw_only=True)
Options.__module__ = __name__  # cyclopts takes a class of another module for one that it cannot read
Overrides = Annotated[Options, Parameter(name="*", group="Hyperparameters (they go over the recipe's)")]
RecipeName: Any = Literal[tuple(RECIPES)]
Recipe = Annotated[RecipeName | None, Parameter(help="Hyperparameters to start from.")]
Root = Annotated[Path | None, Parameter(help="The folder that holds cifar-10-batches-py [default: data/].")]
DataName = Literal["auto", "cifar10", "standin"]
Flag = Annotated[bool, Parameter(negative=())]
Model = Annotated[Path, Parameter(help="A file that training wrote, such as RUN_DIR/best.npz.")]


@Parameter(name="*", group="Data")
@dataclass(kw_only=True)
class DataOptions:
    """Which images to load.

    Args:
        data: auto: CIFAR-10, or the stand-in where it cannot be had.
        train_images: Use only so many of the training images.
    """

    data: DataName = "auto"
    root: Root = None
    train_images: int | None = None


Source = DataOptions | None


def _load(source: Source) -> nnlib.Dataset:
    source = source or DataOptions()
    data = nnlib.load_dataset(source.data, root=source.root)
    if data.note:
        print(data.note, file=sys.stderr)
    return data.subset(source.train_images) if source.train_images else data


def hyperparameters(recipe: str | None, options: Any) -> Hyperparameters:
    """Return the recipe (or the defaults) with the options that were given over it."""
    base = Hyperparameters.recipe(recipe) if recipe else Hyperparameters()
    given = {name: value for name, value in asdict(options).items() if value is not None} if options else {}
    if len(given.get("activation", ())) == 1:
        (given["activation"],) = given["activation"]  # one for all layers
    return base.replace(**given)


def _new_folder(kind: str) -> Path:
    return Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"


# ---- commands --------------------------------------------------------------------------------------------------------


@app.command
def train(
    *,
    recipe: Recipe = None,
    run_dir: Path | None = None,
    resume: bool = True,
    quiet: Flag = False,
    threads: int | None = None,
    source: Source = None,
    options: Overrides = None,
) -> None:
    """Train a network; RUN_DIR gets its history and the weights that are best on validation images.

    Args:
        run_dir: Folder of the run [default: runs/ and the time].
        resume: Go on with the run that RUN_DIR holds.
        quiet: Show no progress.
        threads: BLAS threads at work [default: as many as the products can use; beside busy programs, 1 is faster].
    """
    hp, folder = hyperparameters(recipe, options), run_dir or _new_folder("train")
    print(nnlib.train(hp, _load(source), run_dir=folder, resume=resume, progress=not quiet, threads=threads))
    print(f"best weights: {folder / 'best.npz'}")


@app.command
def test(model: Model, /, *, split: Literal["test", "valid", "train"] = "test", source: Source = None) -> None:
    """Print the loss and the accuracy of a saved model on the test images.

    Args:
        split: Which images.
    """
    loaded, data = nnlib.load_model(model), _load(source)
    result = nnlib.evaluate(loaded, getattr(data, split))
    print(f"data: {data.source}, {result.confusion.sum():,} {split} images")
    print(f"loss: {result.loss:.4f}\naccuracy: {result.accuracy:.4f} ± {result.standard_error:.4f}")
    for name, accuracy in result.per_class.items():
        print(f"  {name:<12} {accuracy:.3f}")
    trained_on = loaded.info.get("data", data.source)
    if trained_on != data.source:
        print(f"note: the model was trained on other images: {trained_on}", file=sys.stderr)


@app.command
def visualize(model: Model, /, *, output: Path = Path("figures")) -> None:
    """Draw every layer's weights, freshly initialised and trained: histograms, heat maps, and the first as images.

    Args:
        output: Folder for the pictures.
    """
    from nnlib import plots

    loaded = nnlib.load_model(model)
    before, after = loaded.initial_parameters(), loaded.parameters
    figures = {"weight_histograms": plots.weight_histograms(before, after)}
    figures["weight_heatmaps"] = plots.weight_heatmaps(before, after)
    for name, parameters in {"initial": before, "trained": after}.items():
        filters = loaded.preprocessing.filters(parameters["W1"]) if loaded.preprocessing else parameters["W1"].T
        if filters.shape[1] == 3 * 32 * 32:  # a network for other data than CIFAR-10's shape has no such images
            figures[f"first_layer_{name}"] = plots.first_layer_images(filters)
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
        print(output / f"{name}.png")


@app.command
def search(
    *,
    vary: list[str] | None = None,
    recipe: Recipe = None,
    method: Literal["grid", "random", "tpe", "halving"] = "grid",
    n_trials: int | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    directory: Path | None = None,
    search_seed: int = 0,
    seeds: int = 1,
    source: Source = None,
    options: Overrides = None,
) -> None:
    """Train with many hyperparameters and rank them by validation; every trial is recorded in DIRECTORY.

    Args:
        vary: A field and its values, once for each: learning_rate=0.01,0.05 or hidden_sizes=[64],[128,64]; for random,
            tpe and halving also a range, logarithmic if above 0: l2=1e-5..1e-2.
        method: How points are chosen.
        n_trials: How many points are tried [default for a grid: all].
        workers: Processes at work at the same time.
        scheduler: Address of a Dask scheduler, tcp://HOST:8786, whose workers train instead.
        directory: Folder of the record; a stopped search goes on there.
        search_seed: Fixes which points are drawn.
        seeds: How many seeds each point is trained with.
    """
    if not vary:
        raise HyperparameterError("there is nothing to search: name fields and values with --vary.")
    space, folder = dict(map(_parse_vary, vary)), directory or _new_folder("search")
    base, data = hyperparameters(recipe, options), _load(source)
    results = nnlib.search(
        space, data, base, method, n_trials, search_seed, workers, scheduler, directory=folder, seeds=seeds
    )
    ranked = results.to_dataframe().sort_values("valid_accuracy", ascending=False)
    print(ranked.head(20).to_string(index=False))
    if seeds > 1:
        print(results.mean_over_seeds().head(20).to_string(index=False))
    print(f"{results}\nbest: {_as_options(results.best.settings)}\nevery trial: {folder / 'results.json'}")


def _as_options(settings: dict[str, Any]) -> str:
    """Write settings as one would type them."""
    values = {name: value if isinstance(value, tuple | list) else [value] for name, value in settings.items()}
    return " ".join(f"--{name.replace('_', '-')} {' '.join(map(str, value))}" for name, value in values.items())


def _parse_vary(text: str) -> tuple[str, Any]:
    """Read ``name=value,value``, JSON where it is JSON and words otherwise, or a range ``name=low..high``."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise HyperparameterError(f"vary: {text!r} is not allowed; a field and its values, as in l2=0,0.001.")
    low, dots, high = values.partition("..")
    try:
        parsed = _range(json.loads(low), json.loads(high)) if dots else json.loads(f"[{values}]")
    except json.JSONDecodeError:
        parsed = [value.strip() for value in values.split(",")]
    return name.replace("-", "_"), parsed


def _range(low: float, high: float) -> Range:
    return Range(low, high, log=low > 0, whole=isinstance(low, int) and isinstance(high, int))


@app.command
def report(
    *,
    output: Path = Path("report"),
    notebooks: str | None = None,
    data: DataName = "auto",
    quick: Flag = False,
    author: str | None = None,
    hide_code: Flag = False,
    show_code: Flag = False,
    notebooks_dir: Path | None = None,
    in_place: Flag = False,
) -> None:
    """Execute the notebooks and write one HTML page with all of them, OUTPUT/index.html.

    Args:
        output: Folder for the page and its figures.
        notebooks: Only these, by number or name: 01,03.
        data: auto: CIFAR-10, or the stand-in where it cannot be had.
        quick: Short runs, and their numbers.
        author: A name for the title page.
        hide_code: Leave the code out.
        show_code: Unfold the code.
        notebooks_dir: Where the notebooks are.
        in_place: Write no page but the notebooks' own outputs.
    """
    from nnlib.notebooks import refresh
    from nnlib.report import build

    chosen = [name.strip() for name in notebooks.split(",")] if notebooks else None
    if in_place:
        return refresh(chosen, notebooks_dir)
    code = "hide" if hide_code else "show" if show_code else "fold"
    build(output, chosen, data, quick, author, code, notebooks_dir)


@data_app.command
def fetch(*, root: Root = None) -> None:
    """Bring CIFAR-10 to disk (170 MB), unless it is there."""
    print(cifar10.fetch(root))


@data_app.command
def verify(*, root: Root = None) -> int:
    """Compare each file with the official one; exit status 1 if any differs."""
    standing = cifar10.verify(root)
    for name, state in standing.items():
        print(f"{name:<14} {state}")
    return int(any(state != "official" for state in standing.values()))


@data_app.command
def info(*, source: Source = None) -> None:
    """Say what the data set is: where it comes from, how many images, which classes."""
    data = _load(source)
    print(f"source: {data.source}\nfingerprint: {data.fingerprint}\nclasses: {', '.join(data.classes)}")
    print(f"train: {len(data.train):,} images\nvalid: {len(data.valid):,} images\ntest: {len(data.test):,} images")


@data_app.command
def path(*, root: Root = None) -> None:
    """Print the folder that holds, or is to hold, cifar-10-batches-py."""
    print(cifar10.data_root(root))


# ---- exit statuses ---------------------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Carry out ``arguments`` and return the exit status: 0, 1 for what went wrong, 2 for misuse, 130 for Ctrl-C."""
    debug = "--debug" in arguments
    try:
        words = [word for word in arguments if word != "--debug"]
        return int(app(words, exit_on_error=False, print_error=False, result_action="return_value") or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, ours = " ".join(str(error).split()), isinstance(error, NNLibError | CycloptsError)
        print("nnlib:", text if ours else f"{type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 2 if isinstance(error, CycloptsError | HyperparameterError) else 1


def main() -> NoReturn:
    """Entry point of the command ``nnlib``."""
    sys.exit(run(sys.argv[1:]))
