"""nnlib: a fully connected neural network for CIFAR-10 in NumPy, with every gradient derived and coded by hand."""

from typing import Any

from nnlib.activations import ACTIVATIONS, Activation, register_activation
from nnlib.callbacks import Callback, Diagnostics
from nnlib.checkpoints import load_model, save_model
from nnlib.datasets import Dataset, Split, load_dataset
from nnlib.errors import CheckpointError, DataError, HyperparameterError, NNLibError, TrainingDiverged
from nnlib.evaluation import Evaluation, evaluate
from nnlib.gradcheck import check_gradients
from nnlib.hyperparameters import RECIPES, Hyperparameters
from nnlib.losses import softmax, softmax_cross_entropy
from nnlib.model import MLP
from nnlib.results import SearchResults, load_results
from nnlib.schedules import make_schedule
from nnlib.search import search
from nnlib.spaces import choice, integers, loguniform, uniform
from nnlib.training import Trainer, TrainingRun, find_learning_rate, load_run, train

# fmt: off
__all__ = [
    "ACTIVATIONS", "MLP", "RECIPES", "Activation", "Callback", "CheckpointError", "DataError", "Dataset", "Diagnostics",
    "Evaluation", "HyperparameterError", "Hyperparameters", "LivePlot", "NNLibError", "SearchResults", "Split",
    "Trainer", "TrainingDiverged", "TrainingRun", "check_gradients", "choice", "evaluate", "find_learning_rate",
    "integers", "load_dataset", "load_model", "load_results", "load_run", "loguniform", "make_schedule",
    "register_activation", "save_model", "search", "softmax", "softmax_cross_entropy", "train", "uniform",
]
# fmt: on
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "LivePlot":  # Matplotlib and ipywidgets come with it: `import nnlib` stays as fast as `import numpy`
        from nnlib.widgets import LivePlot

        return LivePlot
    raise AttributeError(f"module 'nnlib' has no attribute {name!r}")
