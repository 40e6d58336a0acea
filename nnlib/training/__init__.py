"""Stochastic gradient descent, and everything around its loop."""
