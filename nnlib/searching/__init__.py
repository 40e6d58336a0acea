"""Trying many hyperparameters and keeping every result."""
