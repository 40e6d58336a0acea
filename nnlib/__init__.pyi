"""What ``import nnlib`` offers; each name is loaded when it is first used, so that the import itself is fast."""

from .data.dataset import Dataset as Dataset
from .data.dataset import Split as Split
from .data.dataset import load_dataset as load_dataset
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    DataError as DataError,
)
from .errors import (
    HyperparameterError as HyperparameterError,
)
from .errors import (
    NNLibError as NNLibError,
)
from .errors import (
    TrainingDiverged as TrainingDiverged,
)
from .network.activations import (
    ACTIVATIONS as ACTIVATIONS,
)
from .network.activations import (
    Activation as Activation,
)
from .network.activations import (
    register_activation as register_activation,
)
from .network.gradcheck import check_gradients as check_gradients
from .network.losses import softmax as softmax
from .network.losses import softmax_cross_entropy as softmax_cross_entropy
from .network.mlp import MLP as MLP
from .network.mlp import join as join
from .network.saving import load_model as load_model
from .network.saving import save_model as save_model
from .searching.results import SearchResults as SearchResults
from .searching.results import load_results as load_results
from .searching.search import search as search
from .searching.spaces import choice as choice
from .searching.spaces import integers as integers
from .searching.spaces import loguniform as loguniform
from .searching.spaces import uniform as uniform
from .training.callbacks import Callback as Callback
from .training.callbacks import Diagnostics as Diagnostics
from .training.evaluation import Evaluation as Evaluation
from .training.evaluation import evaluate as evaluate
from .training.history import TrainingRun as TrainingRun
from .training.hyperparameters import Hyperparameters as Hyperparameters
from .training.rates import find_learning_rate as find_learning_rate
from .training.schedules import make_schedule as make_schedule
from .training.trainer import (
    Trainer as Trainer,
)
from .training.trainer import (
    load_run as load_run,
)
from .training.trainer import (
    train as train,
)
from .widgets.playground import LivePlot as LivePlot

__version__: str
