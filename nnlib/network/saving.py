"""Models and training states on disk: NumPy's npz without pickle, written atomically.

A file holds arrays and one JSON text, ``meta``, that says what they are. Each array in it has a
CRC-32, so that a flipped bit is found. Anything odd is refused. The sizes that a file declares are
checked before memory is taken.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnlib.errors import CheckpointError, one_of, our_spelling
from nnlib.files import write_atomically
from nnlib.network.inputs import Preprocessing
from nnlib.network.mlp import MLP, checked_model
from nnlib.types import Array, Arrays

VERSION = 1
STORAGE = ("float32", "float64", "float16")

# What zipfile and NumPy raise for damaged files.
DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    KeyError,
    OSError,
    MemoryError,
    RuntimeError,
)

# The settings that the constructor of MLP needs to build a network of the same kind.
SETTINGS = ("layer_sizes", "activation", "initialization", "seed", "dtype")

PREFIX = "preprocessing."  # of the names of the preprocessing's arrays in a file


def write_arrays(
    path: str | Path, arrays: Mapping[str, Array], meta: Mapping[str, Any], pack: bool = False
) -> Path:
    """Write ``arrays`` and ``meta`` (anything JSON can hold) to one file, atomically.

    ``pack`` compresses it.
    """
    text = np.array(json.dumps({"version": VERSION, **meta}))

    def write(file: IO[bytes]) -> None:
        save = np.savez_compressed if pack else np.savez
        # the type hints of NumPy want the keywords to be named one by one
        save(file, meta=text, **arrays)  # type: ignore[arg-type]

    return write_atomically(path, write)


def read_arrays(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Return (arrays, meta) as ``write_arrays`` wrote them.

    Raises CheckpointError for a file that it didn't write.
    """
    path = Path(path)
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read_member(archive, member)
        meta = json.loads(str(arrays.pop("meta")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no such file; nnlib train writes RUN_DIR/best.npz; shipped models "
            "are in a checkout's data/models only."
        ) from None
    except DAMAGED as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or a damaged one ({error}); use another copy."
        ) from None
    version = meta.get("version") if isinstance(meta, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}, but this nnlib reads {VERSION}; update nnlib."
        )
    return arrays, meta


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """Return one array. Raises ValueError or BadZipFile if its size or its CRC is wrong."""
    # a small file must not fill the memory: weights never shrink this much
    if member.file_size > 50 * member.compress_size + 1_000_000:
        raise ValueError(
            f"{member.filename} would unpack to {member.file_size} bytes, more than weights ever do"
        )
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # reading to the end also compares the CRC
            raise ValueError(f"{member.filename} is longer than it declares")
    return array


def preprocessing_arrays(preprocessing: Preprocessing | None) -> Arrays:
    """Return the arrays of ``preprocessing`` under the names that files use."""
    if preprocessing is None:
        return {}
    return {PREFIX + name: array for name, array in preprocessing.arrays.items()}


def preprocessing_from(arrays: Mapping[str, Array]) -> Preprocessing | None:
    """Return the preprocessing whose ``preprocessing_arrays`` are among ``arrays``, if any."""
    parts = {}
    for name, array in arrays.items():
        if name.startswith(PREFIX):
            parts[name.removeprefix(PREFIX)] = array.astype(np.float32)
    if not parts:
        return None
    return Preprocessing(**parts)


def save_model(
    model: MLP, path: str | Path, *, storage: str | None = None, fold: bool = False
) -> Path:
    """Write all that predictions need to ``path``: parameters, preprocessing, names and settings.

    ``fold`` multiplies the preprocessing into the first layer, which then takes raw pixels
    (``model.folded()``). ``storage`` is the dtype of the weights in the file; None keeps the
    model's own. "float16" makes the file less than half as large, but rounds every weight to about
    three digits. To see what that costs, compare ``evaluate(load_model(path), split)`` with
    ``evaluate(model, split)``.

    Raises HyperparameterError for any other storage, and CheckpointError if the file can't be
    written.
    """
    checked_model(model)
    if fold:
        model = model.folded()
    storage = one_of(STORAGE, "storage", storage or model.dtype.name)
    arrays = {**model.parameters, **preprocessing_arrays(model.preprocessing)}
    stored = {name: array.astype(storage) for name, array in arrays.items()}
    meta = {
        "kind": "model",
        "dtype": model.dtype.name,
        "layer_sizes": model.layer_sizes,
        "activation": model.activation,
        "initialization": model.initialization,
        "seed": model.seed,
        "classes": model.classes,
        "info": model.info,
    }
    return write_arrays(path, stored, meta, pack=storage == "float16")


def load_model(path: str | Path) -> MLP:
    """Return the model that ``save_model`` wrote to ``path``, ready to predict from uint8 images.

    ``path`` may also be the folder of a run: then it is the run's best model. Raises
    CheckpointError if the file is missing, damaged, of another version, or not a model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.npz"
    arrays, meta = read_arrays(path)
    try:
        meta = {our_spelling(name): value for name, value in meta.items()}
        settings = {name: meta[name] for name in SETTINGS}
        _refuse_other_sizes(settings["layer_sizes"], arrays)
        model = MLP(**settings, classes=meta["classes"], preprocessing=preprocessing_from(arrays))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no model that can be built here ({error}); a run's is best.npz."
        ) from None
    model.info = meta.get("info", {})
    copy_arrays(model.parameters, arrays, path)
    return model


def _refuse_other_sizes(layer_sizes: Any, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError if the weights belong to other layers, before memory is taken for them."""
    n_layers = sum(name.startswith("W") for name in arrays)
    weights = [arrays[f"W{layer}"] for layer in range(1, n_layers + 1)]
    found = [weights[0].shape[0]]
    for W in weights:
        found.append(W.shape[1])
    if list(layer_sizes) != found:
        raise ValueError(
            f"layer_sizes are {list(layer_sizes)}, but its weights are those of {found}"
        )


def copy_arrays(
    targets: Mapping[str, Array], arrays: Mapping[str, Array], path: str | Path, group: str = ""
) -> None:
    """Copy into each of ``targets`` the array that is called ``group`` + the target's name.

    Raises CheckpointError if an array is missing, or has another shape or no float dtype.
    """
    for name, target in targets.items():
        needed = f"{path}: {group}{name} should be floats of the shape {target.shape}"
        array = arrays.get(group + name)
        if array is None:
            raise CheckpointError(f"{needed}, found nothing.")
        if array.shape != target.shape or array.dtype.name not in STORAGE:
            raise CheckpointError(f"{needed}, found {array.dtype} {array.shape}.")
        target[...] = array
