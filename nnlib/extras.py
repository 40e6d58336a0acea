"""Optional packages: which extra of nnlib brings them, and what to install when one is missing."""

from importlib.util import find_spec

from nnlib.errors import NNLibError

# The same as in pyproject.toml, which has the versions. A test compares the two.
EXTRAS = {
    "notebooks": ("ipywidgets", "jupyterlab", "pandas", "seaborn"),
    "search": ("loky", "optuna", "pandas"),
    "report": ("jinja2", "latex2mathml", "nbclient", "nbconvert", "nbformat"),
}


class MissingPackage(NNLibError, ImportError):
    """A package is missing that ``pip install .`` leaves out. The message says how to get it."""


def need(extra: str, *packages: str) -> None:
    """Raise MissingPackage unless all ``packages``, which belong to ``extra``, are installed.

    Call it just before importing them. It loads nothing itself.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"This part of nnlib needs packages that are missing here: {', '.join(missing)}. "
            f"Install the extra {extra!r}: pip install {' '.join(EXTRAS[extra])}"
        )
