"""The public names of nnlib, and the file that each one comes from."""

from . import data, network, plots, report, searching, training, widgets
from .data.dataset import Dataset, Split, load_dataset
from .errors import (
    CheckpointError,
    DataError,
    HyperparameterError,
    NNLibError,
    TrainingDiverged,
)
from .network.activations import ACTIVATIONS, Activation, register_activation
from .network.gradcheck import check_gradients
from .network.losses import softmax, softmax_cross_entropy
from .network.mirror import mirror_image
from .network.mlp import MLP, join
from .network.saving import load_model, save_model
from .searching.results import SearchResults, load_results
from .searching.search import search
from .searching.spaces import integers, loguniform, uniform
from .training.callbacks import Callback, Diagnostics
from .training.evaluation import Evaluation, evaluate
from .training.history import TrainingRun
from .training.hyperparameters import Hyperparameters
from .training.rates import find_learning_rate
from .training.schedules import make_schedule
from .training.trainer import Trainer, load_run, train
from .widgets.playground import LivePlot

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Activation",
    "Callback",
    "CheckpointError",
    "DataError",
    "Dataset",
    "Diagnostics",
    "Evaluation",
    "HyperparameterError",
    "Hyperparameters",
    "LivePlot",
    "NNLibError",
    "SearchResults",
    "Split",
    "Trainer",
    "TrainingDiverged",
    "TrainingRun",
    "check_gradients",
    "data",
    "evaluate",
    "find_learning_rate",
    "integers",
    "join",
    "load_dataset",
    "load_model",
    "load_results",
    "load_run",
    "loguniform",
    "make_schedule",
    "mirror_image",
    "network",
    "plots",
    "register_activation",
    "report",
    "save_model",
    "search",
    "searching",
    "softmax",
    "softmax_cross_entropy",
    "train",
    "training",
    "uniform",
    "widgets",
]

__version__: str
