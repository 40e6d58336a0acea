"""Trying many hyperparameters and keeping every result."""

from nnlib.searching.results import SearchResults, Trial, describe, load_results
from nnlib.searching.search import plan, search
from nnlib.searching.spaces import Range, checked, integers, loguniform, uniform

__all__ = [
    "Range",
    "SearchResults",
    "Trial",
    "checked",
    "describe",
    "integers",
    "load_results",
    "loguniform",
    "plan",
    "search",
    "uniform",
]
