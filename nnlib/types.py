"""The types that every room uses."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]  # arrays by name, such as the parameters of a network
