"""nnlib: a neural network for CIFAR-10 in NumPy. Every gradient is derived and coded by hand.

Where to start reading, and in which order:

 1. ``network/activations.py``        f(z) and its derivative, side by side
 2. ``network/losses.py``             softmax and cross-entropy, where backpropagation starts
 3. ``network/mlp.py``                the network: forward and backward
 4. ``network/gradcheck.py``          compares every derivative with a numerical one
 5. ``data/dataset.py``               the images: training, validation and test
 6. ``data/preprocessing.py``         from pixels to inputs; mirrored and shifted images
 7. ``training/hyperparameters.py``   all settings of a run, with their limits
 8. ``training/sgd.py``               one update of the weights
 9. ``training/trainer.py``           the training loop
10. ``searching/search.py``           many runs, to find good settings
"""

import lazy_loader

# The names stand in __init__.pyi, where editors and mypy find them too. Each one is loaded when you
# first use it, so `import nnlib` itself takes next to no time.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
