"""Who is measured: nnlib, its peers, and the bound that the matrix products set.

Each contestant trains input-hidden-...-10 with ReLU, softmax cross-entropy, momentum 0.9 and L2, on
uint8 images that it turns into standardized float32 inputs batch by batch. It lives in a process of
its own, so that no two libraries' thread pools meet; ``measure`` runs there.
"""

import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import nnlib
from nnlib.network.blas import product
from nnlib.training.batches import Batches

LEARNING_RATE, MOMENTUM, L2 = 0.001, 0.9, 1e-3
AXES = 512  # of thin ZCA that have factors of their own
MEAN, SCALE = 121.0, 64.0  # about CIFAR-10's; the exact ones change no timing


@dataclass(frozen=True)
class Work:
    """What is trained: layer sizes from the input to the classes, images in one step."""

    sizes: tuple[int, ...] = (3072, 1024, 256, 10)
    batch_size: int = 256

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch_size}"

    @property
    def flops(self) -> int:
        """Floating-point operations in the products of one step, without the inputs' gradient."""
        weights = [a * b for a, b in pairwise(self.sizes)]
        return 2 * self.batch_size * (3 * sum(weights) - weights[0])


def training_data(n_inputs: int) -> nnlib.Dataset:
    """CIFAR-10 or the stand-in; random float32 inputs if the network doesn't take 3072 numbers."""
    if n_inputs == 3072:
        return nnlib.load_dataset("auto", download=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, n_inputs), dtype=np.float32)
    return nnlib.Dataset.from_arrays(x, rng.integers(0, 10, len(x)), list("0123456789"))


def batches(n: int, batch_size: int, steps: int) -> list[Any]:
    """``steps`` index arrays that go through the images in random order, again and again."""
    epochs = -(-steps * batch_size // (n - n % batch_size))
    order = [
        np.random.default_rng(epoch).permutation(n)[: n - n % batch_size] for epoch in range(epochs)
    ]
    return list(np.concatenate(order).reshape(-1, batch_size)[:steps])


def epoch_seconds(hp: nnlib.Hyperparameters, data: nnlib.Dataset) -> float:
    """Return the time of an epoch's steps, from the median of forty."""
    trainer = nnlib.Trainer(hp, data, progress=False)
    with trainer.limited_threads():
        steps = timeit.repeat(trainer.train_step, number=1, repeat=40)
    return statistics.median(steps) * trainer.steps_per_epoch


def augmentation_share(work: Work, steps: int) -> float:
    """Return the share of an epoch that flips and shifts take.

    Steps with and without them take turns in one process.
    """
    trainer = Nnlib(work).trainer
    augmented = Batches(trainer.data.train, trainer.model, trainer.hp.replace(flip=True, shift=2))
    seconds: dict[Batches, list[float]] = {trainer.batches: [], augmented: []}
    for _ in range(steps):
        for batches, times in seconds.items():
            trainer.batches = batches
            times.append(timeit.timeit(trainer.train_step, number=1))
    without, with_them = map(statistics.median, seconds.values())
    return 1 - without / with_them


class Nnlib:
    """The trainer that everybody uses."""

    def __init__(self, work: Work) -> None:
        hp = {"activation": "relu", "momentum": MOMENTUM, "l2": L2, "learning_rate": LEARNING_RATE}
        hp |= {"hidden_sizes": work.sizes[1:-1], "batch_size": work.batch_size, "epochs": 1000}
        self.trainer = nnlib.Trainer(
            nnlib.Hyperparameters(**hp), training_data(work.sizes[0]), progress=False
        )

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.trainer.train_step()


class PyTorch:
    """Eager PyTorch, as its tutorials write it."""

    def __init__(self, work: Work) -> None:
        import torch

        data, self.batch_size = training_data(work.sizes[0]).train, work.batch_size
        self.images, self.labels = (
            torch.from_numpy(np.array(data.images)),
            torch.from_numpy(np.array(data.labels)),
        )
        layers: list[Any] = [torch.nn.Flatten()]
        for fan_in, fan_out in pairwise(work.sizes):
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
        self.model = torch.nn.Sequential(*layers[:-1])
        options = {"lr": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": L2}
        self.optimizer = torch.optim.SGD(self.model.parameters(), **options)
        self.loss = torch.nn.CrossEntropyLoss()

    def steps(self, n: int) -> None:
        for chosen in batches(len(self.labels), self.batch_size, n):
            x = self.images[chosen]
            if not x.is_floating_point():
                x = x.float().sub_(MEAN).div_(SCALE)
            self.optimizer.zero_grad()
            self.loss(self.model(x), self.labels[chosen]).backward()
            self.optimizer.step()


class ScikitLearn:
    """MLPClassifier; its inputs are made floats beforehand, for it takes no other."""

    def __init__(self, work: Work) -> None:
        from sklearn.neural_network import MLPClassifier

        data, self.batch_size = training_data(work.sizes[0]).train, work.batch_size
        self.x = np.asarray(data.images.reshape(len(data), -1), np.float32)
        self.x -= MEAN
        self.x /= SCALE
        self.labels = np.array(data.labels)
        options = {"momentum": MOMENTUM, "nesterovs_momentum": False, "alpha": L2 * work.batch_size}
        options |= {
            "batch_size": work.batch_size,
            "learning_rate_init": LEARNING_RATE,
            "solver": "sgd",
        }
        self.model = MLPClassifier(work.sizes[1:-1], **options)

    def steps(self, n: int) -> None:
        rows = slice(n * self.batch_size)
        self.model.partial_fit(self.x[rows], self.labels[rows], classes=np.arange(10))


class PlainNumPy:
    """The formulas written down as they stand, with a new array for each; two hidden layers."""

    dtype: Any = np.float32

    def __init__(self, work: Work) -> None:
        data, self.batch_size = training_data(work.sizes[0]).train, work.batch_size
        self.images, self.labels = data.images.reshape(len(data), -1), data.labels
        parameters = nnlib.MLP(work.sizes, seed=0).parameters
        self.p = {name: p.astype(self.dtype) for name, p in parameters.items()}
        self.v = {name: np.zeros_like(p) for name, p in self.p.items()}

    def steps(self, n: int) -> None:
        for chosen in batches(len(self.labels), self.batch_size, n):
            x = (self.images[chosen].astype(self.dtype) - self.dtype(MEAN)) / self.dtype(SCALE)
            self.step(x, self.labels[chosen])

    def step(self, x: Any, labels: Any) -> None:
        p = self.p
        a1 = np.maximum(x @ p["W1"] + p["b1"], 0)
        a2 = np.maximum(a1 @ p["W2"] + p["b2"], 0)
        d3 = nnlib.softmax_cross_entropy(a2 @ p["W3"] + p["b3"], labels)[1]
        d2 = (d3 @ p["W3"].T) * (a2 > 0)
        d1 = (d2 @ p["W2"].T) * (a1 > 0)
        for layer, (a, d) in enumerate(((x, d1), (a1, d2), (a2, d3)), 1):
            gradients = {f"W{layer}": a.T @ d + L2 * p[f"W{layer}"], f"b{layer}": d.sum(axis=0)}
            for name, g in gradients.items():
                self.v[name] = MOMENTUM * self.v[name] + g
                p[name] = p[name] - LEARNING_RATE * self.v[name]


class PlainNumPy64(PlainNumPy):
    """The same in float64, NumPy's own default."""

    dtype = np.float64


class InPlaceNumPy(PlainNumPy):
    """The same formulas in float32, but every large array is allocated once."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        B, (D, H1, H2, _) = work.batch_size, work.sizes
        shapes = {
            "u": (B, D),
            "x": (B, D),
            "a1": (B, H1),
            "a2": (B, H2),
            "d1": (B, H1),
            "d2": (B, H2),
        }
        self.a = {
            name: np.empty(shape, self.images.dtype if name == "u" else np.float32)
            for name, shape in shapes.items()
        }
        self.g = {name: np.empty_like(p) for name, p in self.p.items()}

    def steps(self, n: int) -> None:
        u, x = self.a["u"], self.a["x"]
        for chosen in batches(len(self.labels), self.batch_size, n):
            np.take(self.images, chosen, axis=0, out=u, mode="clip")
            np.subtract(u, np.float32(MEAN), out=x)
            x /= np.float32(SCALE)
            self.step(x, self.labels[chosen])

    def step(self, x: Any, labels: Any) -> None:
        p, a = self.p, self.a
        for layer, (inputs, out) in enumerate(((x, a["a1"]), (a["a1"], a["a2"])), 1):
            np.matmul(inputs, p[f"W{layer}"], out=out)
            out += p[f"b{layer}"]
            np.maximum(out, 0, out=out)
        d3 = nnlib.softmax_cross_entropy(a["a2"] @ p["W3"] + p["b3"], labels)[1]
        for delta, W, d, activation in (
            (d3, p["W3"], a["d2"], a["a2"]),
            (a["d2"], p["W2"], a["d1"], a["a1"]),
        ):
            np.matmul(delta, W.T, out=d)
            d *= activation > 0
        for layer, (inputs, d) in enumerate(((x, a["d1"]), (a["a1"], a["d2"]), (a["a2"], d3)), 1):
            np.matmul(inputs.T, d, out=self.g[f"W{layer}"])
            np.sum(d, axis=0, out=self.g[f"b{layer}"])
        for name, g in self.g.items():
            v = self.v[name]
            v *= MOMENTUM
            v += g
            np.multiply(p[name], L2 if name[0] == "W" else 0, out=g)
            v += g
            np.multiply(v, LEARNING_RATE, out=g)
            p[name] -= g


class ProductsAlone:
    """The bound: the products of a step, on arrays of the same shapes, with nothing around them."""

    momentum = MOMENTUM

    def __init__(self, work: Work) -> None:
        rng, sizes, B = np.random.default_rng(0), work.sizes, work.batch_size
        self.weights = [rng.standard_normal(shape, dtype=np.float32) for shape in pairwise(sizes)]
        self.velocity = [np.zeros_like(W) for W in self.weights]
        self.a = [rng.standard_normal((B, n), dtype=np.float32) for n in sizes]
        self.d = [np.full((B, n), 1e-3, np.float32) for n in sizes]

    def steps(self, n: int) -> None:
        layers = list(enumerate(self.weights))
        for _ in range(n):
            for i, W in layers:
                product(self.a[i], W, out=self.a[i + 1])
            for i, W in reversed(layers):
                product(self.a[i].T, self.d[i + 1], out=self.velocity[i], factor=self.momentum)
                if i:
                    product(self.d[i + 1], W.T, out=self.d[i])


class SparseNnlib(Nnlib):
    """The trainer with everything that the recipes ``sparse`` and ``best`` ask for."""

    def __init__(self, work: Work) -> None:
        hp = nnlib.Hyperparameters.recipe(
            "best",
            hidden_sizes=work.sizes[1:-1],
            batch_size=work.batch_size,
            components=AXES,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_steps=0,
            epochs=1000,
        )
        self.trainer = nnlib.Trainer(hp, training_data(work.sizes[0]), progress=False)


class SparseProducts(ProductsAlone):
    """The bound of the same: thin whitening, forward and backward, and nothing else.

    Nesterov's momentum needs the gradient itself, so the backward products don't add to a velocity.
    """

    momentum = 0.0
    whitening = True

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        rng = np.random.default_rng(1)
        self.axes = rng.standard_normal((work.sizes[0], AXES), dtype=np.float32)
        self.along = np.zeros((work.batch_size, AXES), np.float32)

    def steps(self, n: int) -> None:
        for _ in range(n):
            if self.whitening:
                x = self.a[0]
                product(x, self.axes, out=self.along)
                self.along *= 1e-9  # x stays finite, however many steps are taken
                product(self.along, self.axes.T, out=x, factor=1.0)
            super().steps(1)


class SparseProductsWhitened(SparseProducts):
    """The same bound without the products of whitening."""

    whitening = False


CONTESTANTS: dict[str, Callable[[Work], Any]] = {
    "nnlib": Nnlib,
    "PyTorch eager": PyTorch,
    "scikit-learn": ScikitLearn,
    "NumPy, float64": PlainNumPy64,
    "NumPy, float32": PlainNumPy,
    "NumPy, in place": InPlaceNumPy,
    "products alone": ProductsAlone,
}
SPARSE: dict[str, Callable[[Work], Any]] = {
    "nnlib, sparse": SparseNnlib,
    "its products": SparseProducts,
    "its products but whitening": SparseProductsWhitened,
}
_made: dict[tuple[str, Work], Any] = {}


def measure(name: str, work: Work, threads: int, steps: int, seconds: float = 0.0) -> float:
    """Return the seconds of one step, from ``steps`` steps or those that fit into ``seconds``.

    Whichever is more. A contestant is made at its first call in a process.
    """
    key = (name, work)
    if key not in _made:
        _made.clear()
        _made[key] = (CONTESTANTS | SPARSE)[name](work)
    with _limited(name, threads):
        _made[key].steps(2)  # whoever has slept is slow at first
        n, started = 0, time.perf_counter()
        while n < steps or time.perf_counter() - started < seconds:
            _made[key].steps(steps)
            n += steps
        return (time.perf_counter() - started) / n


def _limited(name: str, threads: int) -> Any:
    if name == "PyTorch eager":
        import torch

        torch.set_num_threads(threads)
    return threadpool_limits(limits=threads, user_api="blas")
