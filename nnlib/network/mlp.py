"""The multi-layer perceptron: forward and backward pass, written out by hand.

Layer l maps its input a to z = a W + b and on to f(z); the last layer's z are the logits. With δ = dL/dz the chain rule
gives dL/dW = aᵀ δ, dL/db = Σ_rows δ and, one layer further down, δ' = (δ Wᵀ) ⊙ f'(z') (Rumelhart et al. 1986).
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnlib.errors import CheckpointError, HyperparameterError
from nnlib.network.activations import Activation, get_activation
from nnlib.network.blas import Workspace, add_scaled, product, sum_of_squares
from nnlib.network.initialization import initial_weights
from nnlib.network.inputs import Preprocessing, refuse_channels_last
from nnlib.network.losses import l2_penalty, softmax, softmax_cross_entropy
from nnlib.types import Array, Arrays

Loss = Callable[[Array, Array], tuple[Any, Array]]
Masks = Sequence[Array]
DTYPES = ("float32", "float64")


class MLP:
    """A fully connected network of any depth.

    ``layer_sizes`` are (inputs, hidden ..., classes). ``activation`` is a name for all hidden layers or one for each.
    ``parameters`` holds the live arrays W1 (fan_in, fan_out), b1 (fan_out,), W2, ... The weights are drawn from
    ``seed``; biases start at zero. ``preprocessing`` turns uint8 images into inputs; ``classes`` names the outputs.
    Raises HyperparameterError for sizes, names or a dtype (float32, float64) that are not allowed.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str | Sequence[str] = "relu",
        *,
        initialisation: str = "auto",
        seed: int = 0,
        dtype: Any = np.float32,
        preprocessing: Preprocessing | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        sizes = tuple(layer_sizes)
        if len(sizes) < 2 or not all(
            hasattr(s, "__index__") and not isinstance(s, bool) and s > 0 for s in sizes
        ):
            allowed = "whole numbers above 0 for inputs, hidden layers and classes"
            raise HyperparameterError(f"layer_sizes: {layer_sizes!r} is not allowed; {allowed}.")
        self.layer_sizes = tuple(map(int, sizes))
        hidden, n_classes = len(self.layer_sizes) - 2, self.layer_sizes[-1]
        names = self.activation = (
            (activation,) * hidden if isinstance(activation, str) else tuple(activation)
        )
        if len(names) != hidden:
            raise HyperparameterError(
                f"activation: {names} names {len(names)} layers, but {hidden} are hidden."
            )
        self.functions: list[Activation] = [get_activation(name) for name in self.activation]
        self.initialisation, self.seed = initialisation, seed
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in DTYPES:
            raise HyperparameterError(f"dtype: {self.dtype} is not allowed; float32 or float64.")
        self.preprocessing = preprocessing
        self.classes = tuple(map(str, classes if classes is not None else range(n_classes)))
        if len(self.classes) != n_classes:
            raise HyperparameterError(
                f"classes: {len(self.classes)} names for {n_classes} outputs."
            )
        self.info: dict[
            str, Any
        ] = {}  # where the weights come from: kept by checkpoints, used by nobody
        self.parameters: dict[str, Array] = self.initial_parameters()
        self._workspace = Workspace()

    def __repr__(self) -> str:
        return f"MLP({'-'.join(map(str, self.layer_sizes))}, {', '.join(self.activation)}, {self.dtype})"

    @property
    def n_layers(self) -> int:
        """The number of weight matrices."""
        return len(self.layer_sizes) - 1

    def initial_parameters(self) -> dict[str, Array]:
        """Return this network's own parameters as they were before the first step, drawn again from its seed.

        Raises CheckpointError where that cannot be: after folding, or if the run began with other weights (``init=``).
        """
        if self.info.get("folded"):
            raise CheckpointError(
                "initial_parameters: folding changed the first layer; ask the network before it."
            )
        rng = np.random.default_rng(self.seed)
        parameters, suited = {}, [*(f.initialisation for f in self.functions), "small_normal"]
        for layer, (fan_in, fan_out) in enumerate(
            zip(self.layer_sizes, self.layer_sizes[1:], strict=False), 1
        ):
            name = suited[layer - 1] if self.initialisation == "auto" else self.initialisation
            parameters[f"W{layer}"] = initial_weights(name, fan_in, fan_out, rng, self.dtype)
            parameters[f"b{layer}"] = np.zeros(fan_out, self.dtype)
        if self.info.get("initial", {}).get("sha256", "") not in ("", fingerprint(parameters)):
            found = f"seed {self.seed} does not give the weights that the run began with"
            remedy = "ask the network that it was given. Or this NumPy draws other numbers"
            raise CheckpointError(
                f"initial_parameters: {found}. It was given others (init=...): {remedy}."
            )
        return parameters

    def forward(self, x: Array, masks: Masks = ()) -> Array:
        """Return the logits (B, K) of inputs ``x`` (B, D), and keep what the backward pass needs.

        ``masks`` are dropout masks as ``dropout_masks`` draws them. Raises HyperparameterError if x is empty, of
        another width or dtype, or not finite.
        """
        self._refuse_unfit(x)
        self._masks, self._z, self._a = masks, [], []
        self._inputs = [self._masked(x, 0)]  # what each weight matrix is multiplied with
        for layer in range(1, self.n_layers + 1):
            W, b = self.parameters[f"W{layer}"], self.parameters[f"b{layer}"]
            shape = len(x), W.shape[1]
            z = product(
                self._inputs[-1], W, out=self._buffer(f"z{layer}", shape)
            )  # (B, fan_in) @ (fan_in, fan_out)
            # z has NaN or infinity wherever x has them, and is smaller; its squares may overflow for other reasons
            if layer == 1 and not np.isfinite(sum_of_squares(z)) and not np.isfinite(x).all():
                raise HyperparameterError(
                    "x: it holds NaN or infinity; look for a division by zero before it."
                )
            z += b
            self._z.append(z)
            if layer < self.n_layers:
                self._a.append(
                    self.functions[layer - 1].value(z, out=self._buffer(f"a{layer}", shape))
                )
                self._inputs.append(self._masked(self._a[-1], layer))
        return z.copy()

    def backward(
        self, dlogits: Array, l2: float = 0.0, *, out: Arrays | None = None, factor: float = 0.0
    ) -> Arrays:
        """Return the gradients of a loss whose derivative by the last forward pass's logits is ``dlogits`` (B, K).

        They are those of loss + l2/2 * sum of squared weights, with the keys and shapes of ``parameters``. With ``out``
        they are added to ``factor`` times what it holds: with factor 0 it becomes the gradient, and with the momentum μ
        a velocity becomes the next velocity, at no extra cost.
        """
        if out is None:
            out, factor = {name: np.empty_like(p) for name, p in self.parameters.items()}, 0.0
        delta = dlogits
        for layer in range(self.n_layers, 0, -1):
            dW, db = out[f"W{layer}"], out[f"b{layer}"]
            db[:] = (factor * db if factor else 0) + delta.sum(axis=0)
            product(
                self._inputs[layer - 1].T, delta, out=dW, factor=factor
            )  # (fan_in, B) @ (B, fan_out)
            if l2:
                add_scaled(dW, self.parameters[f"W{layer}"], l2)
            if layer > 1:
                delta = self._through_activation(layer - 1, self._to_inputs(layer, delta))
        self._delta = delta
        return out

    def _to_inputs(self, layer: int, delta: Array) -> Array:
        """Return dL/d(inputs of ``layer``) from its dL/dz, before dropout: (B, fan_out) @ (fan_out, fan_in)."""
        W = self.parameters[f"W{layer}"]
        d = product(delta, W.T, out=self._buffer(f"d{layer - 1}", (len(delta), W.shape[0])))
        if self._masks:
            d *= self._masks[layer - 1]
        return d

    def _through_activation(self, layer: int, delta: Array) -> Array:
        """Turn dL/da of a hidden layer into dL/dz, in place."""
        z, a = self._z[layer - 1], self._a[layer - 1]
        delta *= self.functions[layer - 1].derivative(z, a, out=self._buffer(f"f{layer}", z.shape))
        return delta

    def loss_and_gradients(
        self,
        x: Array,
        labels: Array,
        l2: float = 0.0,
        *,
        loss: Loss = softmax_cross_entropy,
        masks: Masks = (),
    ) -> tuple[Any, dict[str, Array]]:
        """Return the loss of inputs ``x`` (B, D) with integer ``labels`` (B,), and its gradient by every parameter.

        The loss is ``loss(logits, labels)``, which returns (value, dlogits), plus l2/2 times the squared weights' sum.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
            found, needed = (
                f"{labels.dtype} of shape {labels.shape}",
                f"whole numbers of shape ({len(x)},)",
            )
            raise HyperparameterError(f"labels: {found}, but {needed} are needed.")
        value, dlogits = loss(self.forward(x, masks), labels)
        return value + l2_penalty(self.parameters, l2), self.backward(dlogits, l2)

    def gradient_of(
        self, loss: Callable[[Array], tuple[Any, Array]], x: Array
    ) -> tuple[Any, dict[str, Array]]:
        """Return value and gradients of any function of the logits, ``loss(logits) -> (value, dlogits)``.

        The gradient by the inputs, (B, D), stands under "x": it says how to change an image to change the value.
        """
        value, dlogits = loss(self.forward(x))
        gradients = self.backward(dlogits)
        gradients["x"] = self._to_inputs(1, self._delta).copy()
        return value, gradients

    def activations(self, x: Array) -> list[Array]:
        """Return each hidden layer's activations (B, units) and, last, the logits, for inputs ``x`` (B, D)."""
        logits = self.forward(x)
        return [*(a.copy() for a in self._a), logits]

    @property
    def pre_activations(self) -> list[Array]:
        """The z of each hidden layer in the last forward pass: live buffers that the next one overwrites."""
        return self._z[:-1]

    def dropout_masks(
        self, n: int, rng: np.random.Generator, dropout: float = 0, input_dropout: float = 0
    ) -> Masks:
        """Draw masks for ``n`` images: 0 with the probability given, else 1/(1 - probability) (Srivastava et al. 2014).

        One mask for the inputs and one for each hidden layer; no masks at all where both probabilities are zero.
        """
        if not dropout and not input_dropout:
            return ()
        masks = [
            self._buffer(f"mask{layer}", (n, width))
            for layer, width in enumerate(self.layer_sizes[:-1])
        ]
        for mask, rate in zip(masks, [input_dropout] + [dropout] * (len(masks) - 1), strict=True):
            rng.random(out=mask, dtype=self.dtype)
            np.greater_equal(mask, rate, out=mask, casting="unsafe")
            mask *= 1 / (1 - rate)
        return masks

    def inputs(self, images: Array, workspace: Workspace | None = None) -> Array:
        """Return the inputs (B, D) for ``images``: uint8 pixels are preprocessed, floats taken as they are.

        With a ``workspace`` they may lie in it, until the next call.
        """
        if images.dtype.kind != "f" and images.dtype != np.uint8:
            raise HyperparameterError(
                f"images: {images.dtype} is not allowed; uint8 pixels, or floats as inputs."
            )
        refuse_channels_last(images)
        if images.dtype != np.uint8:
            if self.preprocessing and images.ndim > 2:
                raise HyperparameterError(
                    f"images: {images.dtype} {images.shape}; this network takes uint8 pixels."
                )
            return np.ascontiguousarray(images.reshape(len(images), -1), self.dtype)
        if self.preprocessing is None:
            return images.reshape(len(images), -1) * self.dtype.type(1 / 255)
        return self.preprocessing.transform(images, workspace).astype(self.dtype, copy=False)

    def predict_logits(self, images: Array, batch_size: int = 2500) -> Array:
        """Return the logits (N, K) of uint8 images (N, ...) or float inputs (N, D), a batch at a time."""
        starts = range(0, len(images), batch_size)
        batches = [
            self.forward(self.inputs(images[s : s + batch_size], self._workspace)) for s in starts
        ]
        return (
            np.concatenate(batches) if batches else np.empty((0, self.layer_sizes[-1]), self.dtype)
        )

    def predict_proba(self, images: Array) -> Array:
        """Return the probability of each class (N, K) for uint8 images (N, ...) or float inputs (N, D)."""
        return softmax(self.predict_logits(images))

    def predict(self, images: Array) -> Array:
        """Return the most probable class (N,) int64 of uint8 images (N, ...) or float inputs (N, D)."""
        return self.predict_logits(images).argmax(axis=1)

    def astype(self, dtype: Any) -> "MLP":
        """Return a copy of this network whose parameters are of another dtype."""
        twin = self.with_parameters({name: p.astype(dtype) for name, p in self.parameters.items()})
        twin.dtype = np.dtype(dtype)
        return twin

    def with_parameters(self, parameters: dict[str, Array]) -> "MLP":
        """Return the same network with other ``parameters``, which are live there: no copies are made."""
        twin = copy.copy(self)
        twin.parameters, twin._workspace = parameters, Workspace()
        return twin

    def folded(self) -> "MLP":
        """Return an equal network whose first layer takes raw pixels, 0 ... 255: preprocessing is multiplied in."""
        twin = self.astype(self.dtype)
        if self.preprocessing is None:
            return twin
        n_pixels = len(self.preprocessing.scale)
        W1, b1 = self.preprocessing.fold(self.parameters["W1"], self.parameters["b1"])
        twin.parameters |= {"W1": W1.astype(self.dtype), "b1": b1.astype(self.dtype)}
        twin.layer_sizes = (n_pixels, *self.layer_sizes[1:])
        twin.info = self.info | {"folded": True}
        twin.preprocessing = Preprocessing(
            np.ones(n_pixels, np.float32), np.zeros(n_pixels, np.float32)
        )
        return twin

    def _masked(self, a: Array, layer: int) -> Array:
        return (
            np.multiply(a, self._masks[layer], out=self._buffer(f"m{layer}", a.shape))
            if self._masks
            else a
        )

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Array:
        return self._workspace.array(name, shape, self.dtype)

    def _refuse_unfit(self, x: Array) -> None:
        width = self.layer_sizes[0]
        if x.ndim != 2 or x.shape[1] != width or not len(x):
            needed = f"but (B, {width}) with B of at least 1 is needed; images go through model.inputs(images) first"
            raise HyperparameterError(f"x: its shape is {x.shape}, {needed}.")
        if x.dtype != self.dtype and self.dtype.kind == "f":
            remedy = "use x.astype(model.dtype), or model.inputs(images) for uint8 images, or MLP(..., dtype=...)"
            raise HyperparameterError(
                f"x: it is {x.dtype}, but the network is {self.dtype}; {remedy}."
            )


def checked_model(model: Any) -> MLP:
    """Return ``model`` if it is one; otherwise raise HyperparameterError, which says where one is."""
    if not isinstance(model, MLP):
        raise HyperparameterError(
            f"model: {type(model).__name__} is no MLP; run.model is one, and load_model(path)."
        )
    return model


def join(models: Sequence[MLP]) -> MLP:
    """Return one wide network whose logits are the mean of those of ``models``, which stand side by side in it.

    Their hidden layers are concatenated: W1 holds their columns, each W between hidden layers is block-diagonal, and
    the last one holds their rows, divided by their number. Raises HyperparameterError unless they are two or more and
    agree in depth (one hidden layer at least), inputs, preprocessing, activations, classes and dtype.
    """
    from scipy.linalg import block_diag  # imported here: `import nnlib` stays fast

    interfaces = [_interface(checked_model(m)) for m in models]
    differ = [
        name
        for name in _interface(models[0])
        if any(i[name] != interfaces[0][name] for i in interfaces)
    ]
    first, n = models[0], len(models)
    if n < 2 or first.n_layers < 2 or differ:
        needed = (
            "two or more are needed, with hidden layers, that differ in weights and widths alone"
        )
        raise HyperparameterError(
            f"models: {needed}; these {n} also differ in: {', '.join(differ) or 'nothing'}."
        )
    widths = (sum(sizes) for sizes in zip(*(m.layer_sizes[1:-1] for m in models), strict=True))
    options: dict[str, Any] = {
        "preprocessing": first.preprocessing,
        "classes": first.classes,
        "dtype": first.dtype,
    }
    whole = MLP((first.layer_sizes[0], *widths, first.layer_sizes[-1]), first.activation, **options)
    for layer in range(1, first.n_layers + 1):
        W, b = ([m.parameters[f"{kind}{layer}"] for m in models] for kind in "Wb")
        last = layer == first.n_layers
        whole.parameters[f"b{layer}"] = sum(b) / first.dtype.type(n) if last else np.concatenate(b)
        whole.parameters[f"W{layer}"] = (
            np.vstack(W) / n if last else np.hstack(W) if layer == 1 else block_diag(*W)
        )
    whole.info = first.info | {"joined": [m.info for m in models], "initial": {"sha256": "joined"}}
    return whole


def _interface(model: MLP) -> dict[str, Any]:
    """Return what networks must have in common to stand side by side in one."""
    p = model.preprocessing
    common = {name: getattr(model, name) for name in ("n_layers", "activation", "classes", "dtype")}
    content = tuple(a.tobytes() for a in p.arrays.values()) if p else ()
    return common | {"inputs": model.layer_sizes[0], "preprocessing": content}


def fingerprint(parameters: dict[str, Array]) -> str:
    """Return a hash of all parameters as float32: equal for equal networks, in either dtype."""
    digest = hashlib.sha256()
    for name, p in parameters.items():
        digest.update(f"{name} {p.shape}".encode() + p.astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def useful_threads(model: MLP, batch_size: int) -> int:
    """Return how many BLAS threads a step's products can use: one for each 32 million multiplications going forward.

    With less to do, a second one gains up to a third on a quiet machine, and beside busy programs costs most of the
    speed: they wait for each other. 07_performance measures both.
    """
    arrays = [
        *model.parameters.values(),
        *(model.preprocessing.arrays.values() if model.preprocessing else ()),
    ]
    return max(batch_size * sum(a.size for a in arrays if a.ndim == 2) // 32_000_000, 1)
