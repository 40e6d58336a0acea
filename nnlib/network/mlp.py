"""The multi-layer perceptron, with its forward and backward pass written by hand.

Forward. Each layer takes a (B, fan_in): the inputs x, or what the layer below gives. It computes

    z = a W + b
    a = f(z)            for the next layer; the z of the last layer are the logits

Backward. With δ = dL/dz (B, fan_out), the chain rule gives (Rumelhart et al. 1986)

    dL/dW = aᵀ δ
    dL/db = the sum of δ over the images
    δ     = (δ Wᵀ) ⊙ f'(z)      for the layer below, with the z of that layer

``MLP.forward`` and ``MLP.backward`` are these lines, in this order. ⊙ multiplies entry by entry.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnlib.errors import CheckpointError, HyperparameterError
from nnlib.network.activations import Activation, get_activation
from nnlib.network.blas import Workspace, add_scaled, product
from nnlib.network.initialization import initial_weights
from nnlib.network.inputs import (
    Preprocessing,
    as_images,
    as_inputs,
    as_labels,
    flatten,
    refuse_infinite,
)
from nnlib.network.losses import l2_penalty, softmax, softmax_cross_entropy
from nnlib.types import Array, Arrays

Loss = Callable[[Array, Array], tuple[Any, Array]]  # (logits, labels) -> (value, dL/dlogits)
Masks = Sequence[Array]  # one for the inputs and one for each hidden layer, or none at all
DTYPES = ("float32", "float64")


class MLP:
    """A fully connected network of any depth.

    ``layer_sizes`` are (inputs, hidden ..., classes). ``activation`` is one name for all hidden
    layers, or a list with one for each. ``parameters`` holds the live arrays W1 (fan_in, fan_out),
    b1 (fan_out,), W2, ... The weights are drawn from ``seed``, the biases start at zero.
    ``preprocessing`` turns uint8 images into inputs, ``classes`` names the outputs. ``info`` says
    where the weights come from; checkpoints keep it.

    Several threads may call ``predict``, ``predict_proba`` and ``predict_logits`` of one network at
    the same time. Everything else belongs to one thread.

    Raises HyperparameterError for sizes, names or a dtype (float32, float64) that are not allowed.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str | Sequence[str] = "leaky_relu",
        *,
        initialization: str = "auto",
        seed: int = 0,
        dtype: Any = np.float32,
        preprocessing: Preprocessing | None = None,
        classes: Sequence[str] | None = None,
        initialisation: str | None = None,
    ) -> None:
        self.layer_sizes = _checked_sizes(layer_sizes)
        self.activation = _one_for_each(activation, len(self.layer_sizes) - 2)
        self.functions: list[Activation] = [get_activation(name) for name in self.activation]
        # the last argument is the first one's old spelling
        self.initialization = initialisation or initialization
        self.seed = seed
        self.dtype = _checked_dtype(dtype)
        self.preprocessing = preprocessing
        self.classes = _checked_classes(classes, self.layer_sizes[-1])
        self.info: dict[str, Any] = {}
        self.parameters = self._draw_parameters()
        self._forget()

    def _forget(self) -> None:
        """Start with empty memory: no buffers, and nothing kept from a forward pass."""
        self._workspace = Workspace()
        self._masks: Masks = ()
        # what the last forward pass kept, by layer: 1, 2, ...
        self._inputs: dict[int, Array] = {}  # what W is multiplied by
        self._z: dict[int, Array] = {}  # a W + b
        self._a: dict[int, Array] = {}  # f(z), of hidden layers only
        self._first_delta = np.empty(0)  # dL/dz of layer 1, from the last backward pass

    def __repr__(self) -> str:
        sizes = "-".join(str(size) for size in self.layer_sizes)
        return f"MLP({sizes}, {', '.join(self.activation)}, {self.dtype})"

    @property
    def n_layers(self) -> int:
        """The number of weight matrices."""
        return len(self.layer_sizes) - 1

    def initial_parameters(self) -> Arrays:
        """Return this network's own parameters before the first step, drawn again from its seed.

        Raises CheckpointError if the seed doesn't give them: the network was folded, or its run
        began with other weights (``init=``).
        """
        if self.info.get("folded"):
            raise CheckpointError(
                "initial_parameters: folding changed the first layer; ask the network before it."
            )
        parameters = self._draw_parameters()
        expected = self.info.get("initial", {}).get("sha256")
        if expected and expected != fingerprint(parameters):
            raise CheckpointError(
                f"initial_parameters: seed {self.seed} does not give the weights that the run "
                "began with. It was given others (init=...): ask the network that it was given. "
                "Or this NumPy draws other numbers."
            )
        return parameters

    def _draw_parameters(self) -> Arrays:
        """Draw the first weights of every layer; biases are zero."""
        rng = np.random.default_rng(self.seed)
        parameters = {}
        for layer in range(1, self.n_layers + 1):
            fan_in = self.layer_sizes[layer - 1]
            fan_out = self.layer_sizes[layer]
            name = self.initialization
            if name == "auto":
                name = self._suitable_initialization(layer)
            parameters[f"W{layer}"] = initial_weights(name, fan_in, fan_out, rng, self.dtype)
            parameters[f"b{layer}"] = np.zeros(fan_out, self.dtype)
        return parameters

    def _suitable_initialization(self, layer: int) -> str:
        """Return what "auto" means for ``layer``: what suits the activation that follows it."""
        if layer == self.n_layers:
            return "small_normal"  # small logits: at first, every class is about equally likely
        return self.functions[layer - 1].initialization

    def forward(self, x: Array, masks: Masks = ()) -> Array:
        """Return the logits (B, K) for inputs ``x`` (B, D), and keep what ``backward`` needs.

        With a = x at first, each layer computes

            z = a W + b
            a = f(z)        (hidden layers only: the last z are the logits)

        With dropout, each a is multiplied by a mask before W; ``dropout_masks`` draws ``masks``.
        Raises HyperparameterError if x is empty, not finite, or has another width or dtype.
        """
        a = as_inputs(x, self.layer_sizes[0], self.dtype)
        self._masks = masks
        self._inputs = {}
        self._z = {}
        self._a = {}
        for layer in range(1, self.n_layers + 1):
            W = self.parameters[f"W{layer}"]
            b = self.parameters[f"b{layer}"]
            a = self._dropped(a, layer)
            self._inputs[layer] = a
            z = self._buffer(f"z{layer}", (len(a), len(b)))
            product(a, W, out=z)  # (B, fan_in) @ (fan_in, fan_out)
            z += b
            self._z[layer] = z
            if layer == 1:
                refuse_infinite(a, z)
            if layer < self.n_layers:
                f = self.functions[layer - 1]
                a = f.value(z, out=self._buffer(f"a{layer}", z.shape))
                self._a[layer] = a
        return z.copy()  # the next pass overwrites z

    def backward(self, dlogits: Array, l2: float = 0.0, *, out: Arrays | None = None) -> Arrays:
        """Return the gradient of loss + l2/2 * (sum of squared weights) by every parameter.

        ``dlogits`` (B, K) is the derivative of the loss by the logits of the last ``forward``. With
        δ = dlogits at first, each layer, from the last to the first, computes

            dW = aᵀ δ + l2 W        (a is what the layer took)
            db = the sum of δ over the images
            δ = (δ Wᵀ) ⊙ f'(z)      for the layer below, whose z this is

        The result has the keys and shapes of ``parameters``. ``out`` (optional) are arrays to write
        it into. Raises HyperparameterError if ``dlogits`` doesn't have the shape of the last
        logits.
        """
        self._refuse_other_shape(dlogits)
        if out is None:
            out = {name: np.empty_like(p) for name, p in self.parameters.items()}
        delta = dlogits
        for layer in range(self.n_layers, 0, -1):
            W = self.parameters[f"W{layer}"]
            dW = out[f"W{layer}"]
            db = out[f"b{layer}"]
            a = self._inputs[layer]
            product(a.T, delta, out=dW)  # (fan_in, B) @ (B, fan_out)
            if l2:
                add_scaled(dW, W, l2)
            np.sum(delta, axis=0, out=db)
            if layer > 1:
                delta = self._to_inputs(layer, delta)
                delta = self._through_activation(layer - 1, delta)
        self._first_delta = delta
        return out

    def _dropped(self, a: Array, layer: int) -> Array:
        """Return a, with dropout: a times the mask of ``layer``."""
        if not self._masks:
            return a
        out = self._buffer(f"dropped{layer}", a.shape)
        return np.multiply(a, self._masks[layer - 1], out=out)

    def _to_inputs(self, layer: int, delta: Array) -> Array:
        """Return dL/da of what ``layer`` took, from its δ = dL/dz: δ Wᵀ, times the dropout mask."""
        W = self.parameters[f"W{layer}"]
        da = self._buffer(f"da{layer}", (len(delta), len(W)))
        product(delta, W.T, out=da)  # (B, fan_out) @ (fan_out, fan_in)
        if self._masks:
            da *= self._masks[layer - 1]
        return da

    def _through_activation(self, layer: int, da: Array) -> Array:
        """Return dL/dz of hidden ``layer`` from its dL/da, in the same memory: dL/da ⊙ f'(z)."""
        f = self.functions[layer - 1]
        z = self._z[layer]
        da *= f.derivative(z, self._a[layer], out=self._buffer(f"slope{layer}", z.shape))
        return da

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return memory that every step uses again under this name."""
        return self._workspace.array(name, shape, self.dtype)

    def _refuse_other_shape(self, dlogits: Array) -> None:
        """Raise HyperparameterError if ``dlogits`` can't belong to the last forward pass."""
        if not self._z:
            raise HyperparameterError("dlogits: there are no logits yet; call forward(x) first.")
        shape = self._z[self.n_layers].shape
        if np.shape(dlogits) != shape:
            raise HyperparameterError(
                f"dlogits: their shape is {np.shape(dlogits)}, but the logits of the last "
                f"forward(x) are {shape}."
            )

    def loss_and_gradients(
        self,
        x: Array,
        labels: Array,
        l2: float = 0.0,
        *,
        loss: Loss = softmax_cross_entropy,
        masks: Masks = (),
    ) -> tuple[Any, Arrays]:
        """Return the loss of inputs ``x`` (B, D) with labels (B,), and its gradient.

        The loss is ``loss(logits, labels)``, a function that returns (value, dlogits), plus l2/2
        times the sum of the squared weights. The gradient has the keys and shapes of
        ``parameters``. Raises HyperparameterError if x or labels don't fit.
        """
        x = as_inputs(x, self.layer_sizes[0], self.dtype)
        labels = as_labels(labels, len(x))
        value, dlogits = loss(self.forward(x, masks), labels)
        gradients = self.backward(dlogits, l2)
        return value + l2_penalty(self.parameters, l2), gradients

    def gradient_of(
        self, loss: Callable[[Array], tuple[Any, Array]], x: Array
    ) -> tuple[Any, Arrays]:
        """Return the value and the gradients of any function of the logits.

        ``loss(logits)`` returns (value, dlogits). The gradients have one more entry, "x" (B, D), by
        the inputs: it tells how to change an image to change the value.
        """
        value, dlogits = loss(self.forward(x))
        gradients = self.backward(dlogits)
        gradients["x"] = self._to_inputs(1, self._first_delta).copy()
        return value, gradients

    def activations(self, x: Array) -> list[Array]:
        """Return each hidden layer's activations (B, units) and, last, the logits."""
        logits = self.forward(x)
        hidden = [a.copy() for a in self._a.values()]
        return [*hidden, logits]

    @property
    def pre_activations(self) -> list[Array]:
        """The z of each hidden layer in the last ``forward`` or ``activations``.

        These are live buffers: the next pass overwrites them. Predictions don't touch them.
        """
        return list(self._z.values())[:-1]

    def dropout_masks(
        self, n: int, rng: np.random.Generator, dropout: float = 0, input_dropout: float = 0
    ) -> Masks:
        """Draw masks for ``n`` images: one for the inputs and one for each hidden layer.

        An entry is 0 with the given probability, and else 1/(1 - probability), so that the mean
        stays 1 (Srivastava et al. 2014). If both probabilities are zero, there are no masks. They
        lie in buffers: the next call overwrites them.
        """
        if not dropout and not input_dropout:
            return ()
        masks = []
        for layer in range(1, self.n_layers + 1):
            rate = input_dropout if layer == 1 else dropout
            mask = self._buffer(f"mask{layer}", (n, self.layer_sizes[layer - 1]))
            rng.random(out=mask, dtype=self.dtype)
            np.greater_equal(mask, rate, out=mask, casting="unsafe")  # True is stored as 1
            mask *= 1 / (1 - rate)
            masks.append(mask)
        return masks

    def inputs(self, images: Array, workspace: Workspace | None = None) -> Array:
        """Return the inputs (B, D) for ``images`` (B, ...): uint8 pixels are preprocessed.

        Floats are taken as they are. With a ``workspace`` the inputs may lie in its memory, until
        the next call. Raises HyperparameterError or DataError for images that don't fit.
        """
        images = as_images(images)
        if images.dtype == np.uint8:
            if self.preprocessing is None:
                return flatten(images) * self.dtype.type(1 / 255)
            return self.preprocessing.transform(images, workspace).astype(self.dtype, copy=False)
        if self.preprocessing and images.ndim > 2:
            raise HyperparameterError(
                f"images: {images.dtype} {images.shape}; this network takes uint8 pixels."
            )
        return np.ascontiguousarray(flatten(images), self.dtype)

    def predict_logits(self, images: Array, batch_size: int = 2500) -> Array:
        """Return the logits (N, K) of uint8 images (N, ...) or float inputs (N, D).

        They are computed ``batch_size`` images at a time, to limit the memory.
        """
        images = as_images(images)
        logits = np.empty((len(images), self.layer_sizes[-1]), self.dtype)
        # The twin has the same weights, and buffers of its own: threads can't disturb each other.
        twin = self.with_parameters(self.parameters)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            x = twin.inputs(images[batch], twin._workspace)
            logits[batch] = twin.forward(x)
        return logits

    def predict_proba(self, images: Array) -> Array:
        """Return each class's probability (N, K) for uint8 images (N, ...) or inputs (N, D)."""
        return softmax(self.predict_logits(images))

    def predict(self, images: Array) -> Array:
        """Return the most probable class (N,) int64 of uint8 images (N, ...) or inputs (N, D)."""
        return self.predict_logits(images).argmax(axis=1)

    def astype(self, dtype: Any) -> "MLP":
        """Return a copy of this network whose parameters have another dtype."""
        twin = self.with_parameters({name: p.astype(dtype) for name, p in self.parameters.items()})
        twin.dtype = np.dtype(dtype)
        return twin

    def with_parameters(self, parameters: Arrays) -> "MLP":
        """Return the same network with other ``parameters``; it uses these arrays, not copies."""
        twin = copy.copy(self)
        twin.parameters = parameters
        twin._forget()
        return twin

    def folded(self) -> "MLP":
        """Return an equal network whose first layer takes raw pixels, 0 ... 255.

        The preprocessing is linear, so it can be multiplied into the first layer.
        """
        twin = self.astype(self.dtype)
        if self.preprocessing is None:
            return twin
        W1, b1 = self.preprocessing.fold(self.parameters["W1"], self.parameters["b1"])
        twin.parameters["W1"] = W1.astype(self.dtype)
        twin.parameters["b1"] = b1.astype(self.dtype)
        n_pixels = len(W1)
        twin.layer_sizes = (n_pixels, *self.layer_sizes[1:])
        twin.preprocessing = Preprocessing(
            scale=np.ones(n_pixels, np.float32), offset=np.zeros(n_pixels, np.float32)
        )
        twin.info = {**self.info, "folded": True}
        return twin


# What the constructor accepts.


def _checked_sizes(layer_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes as integers; at least inputs and classes."""
    sizes = tuple(layer_sizes)
    if len(sizes) < 2 or not all(_is_size(size) for size in sizes):
        raise HyperparameterError(
            f"layer_sizes: {layer_sizes!r} is not allowed; whole numbers above 0 for inputs, "
            "hidden layers and classes."
        )
    return tuple(int(size) for size in sizes)


def _is_size(value: Any) -> bool:
    """Return whether ``value`` is a whole number above 0. NumPy's integers count, bools don't."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and value > 0


def _one_for_each(activation: str | Sequence[str], n_hidden: int) -> tuple[str, ...]:
    """Return the names of the hidden layers' activations."""
    if isinstance(activation, str):
        return (activation,) * n_hidden
    names = tuple(activation)
    if len(names) != n_hidden:
        raise HyperparameterError(
            f"activation: {names} names {len(names)} layers, but {n_hidden} are hidden."
        )
    return names


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    """Return ``dtype`` as NumPy's object for it."""
    dtype = np.dtype(dtype)
    if dtype.name not in DTYPES:
        raise HyperparameterError(f"dtype: {dtype} is not allowed; float32 or float64.")
    return dtype


def _checked_classes(classes: Sequence[str] | None, n_classes: int) -> tuple[str, ...]:
    """Return the names of the outputs: "0", "1", ... if none are given."""
    if classes is None:
        classes = [str(number) for number in range(n_classes)]
    names = tuple(str(name) for name in classes)
    if len(names) != n_classes:
        raise HyperparameterError(f"classes: {len(names)} names for {n_classes} outputs.")
    return names


def checked_model(model: Any) -> MLP:
    """Return ``model`` if it is an MLP. Otherwise raise HyperparameterError with a hint."""
    if not isinstance(model, MLP):
        raise HyperparameterError(
            f"model: {type(model).__name__} is no MLP; run.model is one, and load_model(path)."
        )
    return model


# Networks as wholes.


def join(models: Sequence[MLP]) -> MLP:
    """Return one wide network whose logits are the mean of the logits of ``models``.

    The models stand side by side in it: their hidden layers are concatenated. W1 holds their
    columns, each W between hidden layers is block-diagonal, and the last W holds their rows,
    divided by the number of models. Raises HyperparameterError unless there are two or more, with
    at least one hidden layer, that agree in depth, inputs, preprocessing, activations, classes and
    dtype.
    """
    from scipy.linalg import block_diag  # imported here, so that `import nnlib` stays fast

    _refuse_unlike(models)
    first = models[0]
    n = len(models)
    hidden_sizes = [
        sum(model.layer_sizes[layer] for model in models) for layer in range(1, first.n_layers)
    ]
    whole = MLP(
        (first.layer_sizes[0], *hidden_sizes, first.layer_sizes[-1]),
        first.activation,
        preprocessing=first.preprocessing,
        classes=first.classes,
        dtype=first.dtype,
    )
    for layer in range(1, first.n_layers + 1):
        Ws = [model.parameters[f"W{layer}"] for model in models]
        bs = [model.parameters[f"b{layer}"] for model in models]
        if layer == first.n_layers:
            W = np.vstack(Ws) / n
            b = sum(bs) / first.dtype.type(n)
        elif layer == 1:
            W = np.hstack(Ws)
            b = np.concatenate(bs)
        else:
            W = block_diag(*Ws)
            b = np.concatenate(bs)
        whole.parameters[f"W{layer}"] = W
        whole.parameters[f"b{layer}"] = b
    whole.info = {
        **first.info,
        "joined": [model.info for model in models],
        "initial": {"sha256": "joined"},  # no seed gives these weights
    }
    return whole


def _refuse_unlike(models: Sequence[MLP]) -> None:
    """Raise HyperparameterError unless ``models`` can be joined."""
    interfaces = [_interface(checked_model(model)) for model in models]
    differ = []
    if interfaces:
        first = interfaces[0]
        differ = [name for name in first if any(other[name] != first[name] for other in interfaces)]
    if len(models) < 2 or models[0].n_layers < 2 or differ:
        raise HyperparameterError(
            "models: two or more are needed, with hidden layers, that differ in weights and widths "
            f"alone; these {len(models)} also differ in: {', '.join(differ) or 'nothing'}."
        )


def _interface(model: MLP) -> dict[str, Any]:
    """Return what networks must have in common to be joined."""
    preprocessing: tuple[bytes, ...] = ()
    if model.preprocessing is not None:
        preprocessing = tuple(array.tobytes() for array in model.preprocessing.arrays.values())
    return {
        "n_layers": model.n_layers,
        "activation": model.activation,
        "classes": model.classes,
        "dtype": model.dtype,
        "inputs": model.layer_sizes[0],
        "preprocessing": preprocessing,
    }


def fingerprint(parameters: Arrays) -> str:
    """Return a hash of all parameters as float32. Equal networks have equal ones, in any dtype."""
    digest = hashlib.sha256()
    for name, p in parameters.items():
        digest.update(f"{name} {p.shape}".encode())
        digest.update(p.astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def useful_threads(model: MLP, batch_size: int) -> int:
    """Return how many BLAS threads a training step can use: one for each 32 million products.

    We count the multiplications of the forward pass. If there are fewer, a second thread gains up
    to a third on a quiet machine, and next to busy programs it costs most of the speed, because the
    threads wait for each other. Notebook 07_performance measures both.
    """
    arrays = list(model.parameters.values())
    if model.preprocessing is not None:
        arrays += model.preprocessing.arrays.values()
    entries = sum(array.size for array in arrays if array.ndim == 2)
    return max(batch_size * entries // 32_000_000, 1)
