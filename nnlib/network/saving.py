"""Models and training states on disk: NumPy's npz without pickle, written atomically, refused when anything is odd.

A file holds arrays and one JSON text, ``meta``, with what they are. Every member of an npz has a CRC-32, so that a
flipped bit is found; declared sizes are compared with the file's before memory is taken.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnlib.errors import CheckpointError, one_of
from nnlib.files import write_atomically
from nnlib.network.inputs import Preprocessing
from nnlib.network.mlp import MLP, checked_model
from nnlib.types import Array

VERSION = 1
STORAGE = ("float32", "float64", "float16")


def write_arrays(
    path: str | Path, arrays: Mapping[str, Array], meta: Mapping[str, Any], pack: bool = False
) -> Path:
    """Write ``arrays`` and ``meta`` (anything JSON can hold) to one file, atomically; ``pack`` compresses it."""
    text = np.array(json.dumps({"version": VERSION, **meta}))
    save = np.savez_compressed if pack else np.savez
    # numpy's stub wants the keywords to be named one by one
    return write_atomically(path, lambda file: save(file, meta=text, **arrays))  # type: ignore[arg-type]


def read_arrays(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return (arrays, meta) as ``write_arrays`` wrote them. Raises CheckpointError for a file it did not write."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                m.filename.removesuffix(".npy"): _read_member(archive, m)
                for m in archive.infolist()
            }
        meta = json.loads(str(arrays.pop("meta")))
    except FileNotFoundError:
        place = "nnlib train writes RUN_DIR/best.npz; shipped models are in a checkout's data/models only"
        raise CheckpointError(f"{path}: there is no such file; {place}.") from None
    except (
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        KeyError,
        OSError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint, or a damaged one ({error}); use another copy."
        ) from None
    found = meta.get("version") if isinstance(meta, dict) else None
    if found != VERSION:
        raise CheckpointError(
            f"{path}: format version {found!r}, but this nnlib reads {VERSION}; update nnlib."
        )
    return arrays, meta


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """Return one array; ValueError or BadZipFile if it has another size than its header declares, or another CRC."""
    if (
        member.file_size > 50 * member.compress_size + 1_000_000
    ):  # a small file must not fill the memory
        raise ValueError(
            f"{member.filename} would unpack to {member.file_size} bytes, more than weights ever do"
        )
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # which compares the CRC, too
            raise ValueError(f"{member.filename} is longer than it declares")
    return array


def preprocessing_arrays(preprocessing: Preprocessing | None) -> dict[str, Array]:
    """Return the arrays of ``preprocessing`` under the names that files use."""
    return (
        {f"preprocessing.{name}": a for name, a in preprocessing.arrays.items()}
        if preprocessing
        else {}
    )


def preprocessing_from(arrays: Mapping[str, Array]) -> Preprocessing | None:
    """Return the preprocessing that ``preprocessing_arrays`` turned into ``arrays``."""
    start = "preprocessing."
    parts = {
        name.removeprefix(start): a.astype(np.float32)
        for name, a in arrays.items()
        if name.startswith(start)
    }
    return Preprocessing(**parts) if parts else None


def save_model(
    model: MLP, path: str | Path, *, storage: str | None = None, fold: bool = False
) -> Path:
    """Write everything that a prediction needs to ``path``: parameters, activations, preprocessing, class names.

    ``fold`` multiplies the preprocessing into the first layer, which then takes raw pixels (``model.folded()``).
    ``storage`` "float16" halves the file, and packs it, at the price of rounding every weight to about three digits;
    None keeps the model's own dtype. What it costs: compare ``evaluate(load_model(path), split)`` with
    ``evaluate(model, split)``. Raises HyperparameterError for another storage, CheckpointError if the file cannot be
    written.
    """
    model = checked_model(model).folded() if fold else checked_model(model)
    storage = one_of(STORAGE, "storage", storage or model.dtype.name)
    arrays = {**model.parameters, **preprocessing_arrays(model.preprocessing)}
    names = ("layer_sizes", "activation", "initialisation", "seed", "classes", "info")
    meta = {
        "kind": "model",
        "dtype": model.dtype.name,
        **{name: getattr(model, name) for name in names},
    }
    return write_arrays(
        path, {name: a.astype(storage) for name, a in arrays.items()}, meta, storage == "float16"
    )


def load_model(path: str | Path) -> MLP:
    """Return the model that ``save_model`` wrote to ``path``, ready to predict from uint8 images.

    The folder of a run stands for the best model in it. Raises CheckpointError for a file that is missing, damaged, of
    another version or not a model.
    """
    path = Path(path) / "best.npz" if Path(path).is_dir() else path
    arrays, meta = read_arrays(path)
    try:
        settings = {
            name: meta[name]
            for name in ("layer_sizes", "activation", "initialisation", "seed", "dtype")
        }
        _refuse_other_sizes(settings["layer_sizes"], arrays)
        model = MLP(**settings, classes=meta["classes"], preprocessing=preprocessing_from(arrays))
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no model that can be built here ({error}); a run's is best.npz."
        ) from None
    model.info = meta.get("info", {})
    copy_arrays(model.parameters, arrays, path)
    return model


def _refuse_other_sizes(sizes: Any, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError where weights lie in ``arrays`` for other layers than ``sizes``, before memory is taken."""
    weights = [
        arrays[f"W{layer}"] for layer in range(1, sum(name[0] == "W" for name in arrays) + 1)
    ]
    found = [weights[0].shape[0], *(W.shape[1] for W in weights)]
    if list(sizes) != found:
        raise ValueError(f"layer_sizes are {list(sizes)}, but its weights are those of {found}")


def copy_arrays(
    targets: Mapping[str, Array], arrays: Mapping[str, Array], path: str | Path, group: str = ""
) -> None:
    """Copy ``arrays``, named ``group`` and a target's name, into ``targets``.

    Raises CheckpointError if a name, shape or dtype does not fit.
    """
    for name, target in targets.items():
        array = arrays.get(group + name)
        if array is None or array.shape != target.shape or array.dtype.name not in STORAGE:
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise CheckpointError(
                f"{path}: {group}{name} should be floats of the shape {target.shape}, found {found}."
            )
        target[...] = array
