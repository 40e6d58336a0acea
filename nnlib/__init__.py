"""nnlib: a fully connected neural network for CIFAR-10 in NumPy, with every gradient derived and coded by hand."""

import lazy_loader

# The names are in __init__.pyi. Each is loaded when it is first used: `import nnlib` costs next to nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
