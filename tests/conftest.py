"""What all tests share. Imported before NumPy, so that the number of BLAS threads can still be said here."""

import os

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # the workers share the cores: one BLAS thread each, or they trip over each other
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

os.environ["MPLBACKEND"] = "agg"  # no test opens a window
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # jupyter_core warns until this is chosen

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Close what a test left open in pyplot, if anything loaded pyplot."""
    yield
    import sys

    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
