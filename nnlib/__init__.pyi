"""What ``import nnlib`` offers; each name is loaded when it is first used, so that the import itself is fast."""

from .activations import (
    ACTIVATIONS as ACTIVATIONS,
)
from .activations import (
    Activation as Activation,
)
from .activations import (
    register_activation as register_activation,
)
from .callbacks import Callback as Callback
from .callbacks import Diagnostics as Diagnostics
from .checkpoints import load_model as load_model
from .checkpoints import save_model as save_model
from .datasets import Dataset as Dataset
from .datasets import Split as Split
from .datasets import load_dataset as load_dataset
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
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .gradcheck import check_gradients as check_gradients
from .hyperparameters import RECIPES as RECIPES
from .hyperparameters import Hyperparameters as Hyperparameters
from .losses import softmax as softmax
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .model import MLP as MLP
from .model import join as join
from .playground import LivePlot as LivePlot
from .results import SearchResults as SearchResults
from .results import load_results as load_results
from .schedules import make_schedule as make_schedule
from .searching import search as search
from .spaces import choice as choice
from .spaces import integers as integers
from .spaces import loguniform as loguniform
from .spaces import uniform as uniform
from .training import (
    Trainer as Trainer,
)
from .training import (
    TrainingRun as TrainingRun,
)
from .training import (
    find_learning_rate as find_learning_rate,
)
from .training import (
    load_run as load_run,
)
from .training import (
    train as train,
)

__version__: str
