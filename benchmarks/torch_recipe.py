"""The recipe ``sparse`` written plainly in PyTorch, to be timed beside nnlib.

``python benchmarks/torch_recipe.py`` trains it until the validation accuracy is 0.70, and prints
each epoch.
"""

import argparse
import math
import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import nnlib

HP = nnlib.Hyperparameters.recipe("sparse")
TARGET = 0.70


class ZCA:
    """x + (x A) g A' with x = (pixels - mean) * common: the first axes A have their own factors."""

    def __init__(self, images: torch.Tensor) -> None:
        sample = images[:20_000]
        both = torch.cat([sample, sample.flip(3)])  # images and mirror images together
        pixels = both.flatten(1).float() / 255
        self.mean = pixels.mean(dim=0)
        pixels -= self.mean
        covariance = pixels.T @ pixels / len(pixels)
        variances, axes = torch.linalg.eigh(covariance)  # rising
        self.axes = axes[:, -HP.components :].contiguous()
        floor = HP.whitening_floor * variances.mean() + 1e-8
        own = 1 / torch.sqrt(variances[-HP.components :].clamp(min=0) + floor)
        self.common = 1 / torch.sqrt(variances[: -HP.components].mean() + floor)
        self.gains = own / self.common - 1

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.flatten(1).float() / 255 - self.mean) * self.common
        return x + (x @ self.axes * self.gains) @ self.axes.T


def augment(images: torch.Tensor) -> torch.Tensor:
    """Move each image by up to three pixels, repeating its edges, and mirror half of the images."""
    n, channels, height, width = images.shape
    down = torch.randint(-HP.shift, HP.shift + 1, (n, 1))
    right = torch.randint(-HP.shift, HP.shift + 1, (n, 1))
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n).view(n, 1, 1, 1)
    channel = torch.arange(channels).view(1, channels, 1, 1)
    return images[image, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]


def network(n_classes: int) -> nn.Sequential:
    """Return 3072-1024-256-10 with ReLU, initialized as nnlib does it."""
    layers: list[nn.Module] = []
    fan_in = 3072
    for units in HP.hidden_sizes:
        linear = nn.Linear(fan_in, units)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        layers.append(nn.ReLU())
        fan_in = units
    last = nn.Linear(fan_in, n_classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    layers.append(last)
    return nn.Sequential(*layers)


class TorchRecipe:
    """Data, network and optimizer, ready for ``step``."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(HP.seed)
        started = time.perf_counter()
        data = nnlib.load_dataset("auto", download=False)
        self.images = torch.tensor(data.train.images)
        self.labels = torch.tensor(data.train.labels)
        self.zca = ZCA(self.images)
        self.valid_x = self.zca(torch.tensor(data.valid.images))
        self.valid_labels = torch.tensor(data.valid.labels)
        self.model = network(len(data.classes))
        weights = [p for p in self.model.parameters() if p.ndim == 2]
        biases = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [
            {"params": weights, "weight_decay": HP.l2},
            {"params": biases, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=HP.learning_rate, momentum=HP.momentum, nesterov=True
        )
        self.steps_per_epoch = math.ceil(len(self.labels) / HP.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.share_of_rate)
        self.loss = nn.CrossEntropyLoss(label_smoothing=HP.label_smoothing)
        self.prepare_seconds = time.perf_counter() - started

    def share_of_rate(self, step: int) -> float:
        """Return the share of the highest learning rate: a warm-up, then half a cosine."""
        if step < HP.warmup_steps:
            return (step + 1) / HP.warmup_steps
        total = HP.epochs * self.steps_per_epoch - HP.warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - HP.warmup_steps) / total))

    def step(self, chosen: torch.Tensor) -> None:
        """Do one update on the images ``chosen``."""
        x = self.zca(augment(self.images[chosen]))
        self.optimizer.zero_grad()
        self.loss(self.model(x), self.labels[chosen]).backward()
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            W1 = self.model[0].weight
            W1.copy_(functional.softshrink(W1, HP.l1 * rate / (1 - HP.momentum)))
            W1.masked_fill_(W1.abs() < HP.l1_cut * HP.l1, 0)

    def batches(self) -> Any:
        """Return the batches of one epoch: all images, in a new order."""
        return torch.randperm(len(self.labels)).split(HP.batch_size)

    @torch.no_grad()
    def valid_accuracy(self) -> float:
        """Return the share of validation images that are classified right."""
        answers = self.model(self.valid_x).argmax(dim=1)
        return (answers == self.valid_labels).float().mean().item()


def epoch_seconds(threads: int, steps: int) -> dict[str, float]:
    """Return the seconds of preparation, and of one epoch by the median of some steps."""
    recipe = TorchRecipe(threads)
    times = []
    for chosen in recipe.batches()[:steps]:
        started = time.perf_counter()
        recipe.step(chosen)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    recipe.valid_accuracy()
    validation = time.perf_counter() - started
    epoch = statistics.median(times) * recipe.steps_per_epoch + validation
    return {"prepare_seconds": recipe.prepare_seconds, "epoch_seconds": epoch}


def train(threads: int, target: float = TARGET) -> dict[str, float]:
    """Train until the validation accuracy is ``target``.

    Return the seconds, preparation included, the epochs and the accuracy.
    """
    started = time.perf_counter()
    recipe = TorchRecipe(threads)
    for epoch in range(1, HP.epochs + 1):
        for chosen in recipe.batches():
            recipe.step(chosen)
        accuracy = recipe.valid_accuracy()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}: validation accuracy {accuracy:.4f}, {seconds:.0f} s", flush=True)
        if accuracy >= target:
            break
    return {"seconds": seconds, "epochs": epoch, "valid_accuracy": accuracy}


def main() -> None:
    """Train it whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--target", type=float, default=TARGET)
    options = parser.parse_args()
    print(train(options.threads, options.target))


if __name__ == "__main__":
    main()
