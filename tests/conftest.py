"""What all tests share. Imported before NumPy, so it can still set the number of BLAS threads."""

import os

# The workers share the cores: one BLAS thread each, or they slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

os.environ["MPLBACKEND"] = "agg"  # no test opens a window
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # jupyter_core warns until this is chosen

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with cifar-10-batches-py: NNLIB_DATA_DIR, or a copy beside the checkout."""
    named = os.environ.get("NNLIB_DATA_DIR")
    if named:
        return Path(named)
    script = ROOT.parent / "shared" / "cifar10" / "unpack.py"
    if not script.exists():
        pytest.skip(
            "no real images here: set NNLIB_DATA_DIR to the folder with cifar-10-batches-py"
        )
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp().parent / "cifar10"  # one for all workers
    with FileLock(f"{folder}.lock"):
        subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Close the figures that a test left open, if pyplot was loaded at all."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot:
        pyplot.close("all")
