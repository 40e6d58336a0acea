"""What all tests share. Imported before NumPy, so that the number of BLAS threads can still be said here."""

import os

# the workers share the cores: one BLAS thread each, or they trip over each other
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
    """The folder that holds cifar-10-batches-py: NNLIB_DATA_DIR, or a working copy from beside the checkout."""
    if folder := os.environ.get("NNLIB_DATA_DIR"):
        return Path(folder)
    script = ROOT.parent / "shared" / "cifar10" / "unpack.py"
    if not script.exists():
        pytest.skip(
            "the real images are not here: NNLIB_DATA_DIR names no folder with cifar-10-batches-py"
        )
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp().parent / "cifar10"  # one for all workers
    with FileLock(f"{folder}.lock"):
        subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Close what a test left open in pyplot, if anything loaded pyplot."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
