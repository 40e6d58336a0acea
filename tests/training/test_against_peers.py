"""The same numbers in float64 from PyTorch's automatic differentiation and from scikit-learn, if
they are installed.

Tolerance: 1e-10 of the largest entry of each array, and of each entry that is not tiny beside it.
"""

import math
from functools import partial

import numpy as np
import pytest

from nnlib.network.losses import softmax_cross_entropy
from nnlib.network.mlp import MLP
from nnlib.training.schedules import SCHEDULES, make_schedule
from nnlib.training.sgd import SGD

ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "leaky_relu(0.2)",
    "elu",
    "gelu",
    "silu",
    "softplus",
    "sigmoid",
    "tanh",
)


def agree(found, expected, rtol: float = 1e-10) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=rtol, atol=rtol * 1e-2 * np.abs(expected).max()
    )


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def torch_activation(torch, name):
    f = torch.nn.functional
    return {
        "identity": lambda z: z,
        "relu": torch.relu,
        "leaky_relu": f.leaky_relu,
        "leaky_relu(0.2)": partial(f.leaky_relu, negative_slope=0.2),
        "elu": f.elu,
        "gelu": f.gelu,
        "silu": f.silu,
        "softplus": partial(f.softplus, threshold=1e9),  # PyTorch's own threshold of 20 costs 2e-9
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[name]


def live(torch, model):
    """Copies of the model's parameters as tensors that take gradients."""
    return {name: torch.tensor(p, requires_grad=True) for name, p in model.parameters.items()}


def torch_forward(torch, model, parameters, x, masks=()):
    a = torch.as_tensor(x)
    for layer in range(1, model.n_layers + 1):
        if masks:
            a = a * torch.as_tensor(masks[layer - 1])
        z = a @ parameters[f"W{layer}"] + parameters[f"b{layer}"]
        a = torch_activation(torch, model.activation[layer - 1])(z) if layer < model.n_layers else z
    return a


def penalty(parameters, l2):
    return sum(0.5 * l2 * (p**2).sum() for name, p in parameters.items() if name[0] == "W")


@pytest.mark.parametrize("depth", range(1, 6))
def test_random_networks_against_autograd(torch, depth):
    seen = set()
    for seed in range(50):
        rng = np.random.default_rng([depth, seed])
        sizes = (*map(int, rng.integers(1, 12, depth)), int(rng.integers(2, 12)))
        names = tuple(rng.choice(ACTIVATIONS, depth - 1))
        model = MLP(sizes, names, seed=seed, dtype=np.float64)
        for name, p in model.parameters.items():
            if name[0] == "b":
                p[:] = rng.standard_normal(p.shape)
        n = int(rng.integers(1, 9))
        x, labels = 2 * rng.standard_normal((n, sizes[0])), rng.integers(0, sizes[-1], n)
        l2, smoothing, dropout = (
            rng.choice([0, 0.01, 1]),
            rng.choice([0, 0.1, 1]),
            rng.choice([0, 0.3]),
        )
        masks = model.dropout_masks(n, rng, dropout, dropout / 2)
        loss, gradients = model.loss_and_gradients(
            x,
            labels,
            l2,
            loss=partial(softmax_cross_entropy, label_smoothing=smoothing),
            masks=masks,
        )
        parameters = live(torch, model)
        logits = torch_forward(torch, model, parameters, x, masks)
        cross_entropy = torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels), label_smoothing=smoothing
        )
        expected = cross_entropy + penalty(parameters, l2)
        expected.backward()
        agree(model.forward(x, masks), logits.detach())
        assert loss == pytest.approx(expected.item(), rel=1e-10)
        for name, p in parameters.items():
            agree(gradients[name], p.grad)
        seen |= set(names)
    assert depth == 1 or seen == set(ACTIVATIONS)


def test_gradient_by_the_inputs_against_autograd(torch):
    for name in ACTIVATIONS:
        model = MLP((6, 5, 4, 3), name, initialization="he", seed=1, dtype=np.float64)
        x = np.random.default_rng(0).standard_normal((7, 6))
        _, gradients = model.gradient_of(lambda z: ((z**3).sum(), 3 * z**2), x)
        tensor = torch.tensor(x, requires_grad=True)
        (torch_forward(torch, model, live(torch, model), tensor) ** 3).sum().backward()
        agree(gradients["x"], tensor.grad)


def test_class_weights_against_cross_entropy(torch):
    rng = np.random.default_rng(0)
    logits, labels, weights = (
        3 * rng.standard_normal((20, 5)),
        rng.integers(0, 5, 20),
        rng.uniform(0.1, 4, 5),
    )
    loss, dlogits = softmax_cross_entropy(logits, labels, class_weights=weights)
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        z, torch.tensor(labels), weight=torch.tensor(weights)
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    agree(dlogits, z.grad)


OPTIMISERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "clipped": {"clip_norm": 0.7},
    "clipped momentum": {"clip_norm": 0.7, "momentum": 0.9},
    "clipped nesterov": {"clip_norm": 0.7, "momentum": 0.9, "nesterov": True},
    "decoupled": {"momentum": 0.9, "decoupled_l2": 0.05},
    "averaged": {"momentum": 0.9, "ema": 0.7},
}
STEPS, TOP = 20, 6  # of one_cycle: 30 % of the steps


def torch_schedule(torch, optimizer, name, warmup):
    """The schedule of the test below, built from PyTorch's own parts."""
    s = torch.optim.lr_scheduler
    cosine = partial(s.CosineAnnealingLR, optimizer, eta_min=0.01)
    parts, milestones = {
        "constant": lambda: ([s.ConstantLR(optimizer, factor=1)], []),
        "step": lambda: ([s.StepLR(optimizer, step_size=3, gamma=0.7)], []),
        "exponential": lambda: ([s.ExponentialLR(optimizer, gamma=0.7 ** (1 / 3))], []),
        "cosine": lambda: ([cosine(T_max=STEPS)], []),
        "one_cycle": lambda: (
            [s.LinearLR(optimizer, 1 / 25, 1, TOP), cosine(T_max=STEPS - TOP)],
            [TOP],
        ),
    }[name]()
    if warmup:
        parts.insert(0, s.LinearLR(optimizer, 1 / warmup, 1, warmup - 1))
        milestones = [warmup, *(m + warmup for m in milestones)]
    return s.SequentialLR(optimizer, parts, milestones) if milestones else parts[0]


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # from inside SequentialLR
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_against_torch(torch, name, warmup):
    floor = 0.0 if name in ("step", "exponential") else 0.01  # PyTorch's decays have no floor
    ours = make_schedule(
        name,
        0.1,
        STEPS + warmup,
        decay_rate=0.7,
        decay_every=3,
        min_learning_rate=floor,
        warmup_steps=warmup,
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch_schedule(torch, optimizer, name, warmup)
    for step in range(STEPS + warmup):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-10), step
        optimizer.step()
        theirs.step()


def torch_step(
    torch, optimizer, parameters, rate, clip_norm=math.inf, decoupled_l2=0.0, **_
) -> bool:
    """One step of ``optimizer`` with what PyTorch's SGD has not built in; tells whether the
    gradient was cut."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.no_grad():
        norm = torch.cat([p.grad.flatten() for p in parameters.values()]).norm()
        for name, p in parameters.items():
            p.grad *= min(clip_norm / norm, 1)
            if name[0] == "W":
                p *= 1 - rate * decoupled_l2
        optimizer.step()
    return bool(norm > clip_norm)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_twenty_steps_of_every_optimizer_and_schedule_against_torch(torch, optimizer, schedule):
    options = OPTIMISERS[optimizer]
    l2 = 0.0 if "decoupled_l2" in options else 0.05
    rng = np.random.default_rng(0)
    x, labels = 2 * rng.standard_normal((12, 6)), rng.integers(0, 3, 12)
    model = MLP((6, 5, 3), "tanh", initialization="xavier", seed=2, dtype=np.float64)
    rate = make_schedule(
        schedule, 0.1, STEPS, decay_rate=0.7, decay_every=3, min_learning_rate=0.01, warmup_steps=2
    )
    parameters = live(torch, model)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    ours, cut = SGD(model.parameters, **options), []
    theirs = torch.optim.SGD(
        parameters.values(),
        lr=0.1,
        momentum=options.get("momentum", 0),
        nesterov=options.get("nesterov", False),
    )
    for step in range(STEPS):
        _, dlogits = softmax_cross_entropy(model.forward(x), labels)
        model.backward(dlogits, l2, out=ours.gradients)
        ours.step(rate(step))
        theirs.zero_grad()
        logits = torch_forward(torch, model, parameters, x)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) + penalty(
            parameters, l2
        )
        loss.backward()
        cut.append(torch_step(torch, theirs, parameters, rate(step), **options))
        for name, p in parameters.items():
            average[name].lerp_(
                p.detach(), 1 - min(options.get("ema", 0), (step + 1) / (step + 11))
            )
    for name, p in parameters.items():
        agree(model.parameters[name], p.detach())
        if "ema" in options:
            agree(ours.average[name], average[name])
    assert any(cut) == ("clip_norm" in options) and not all(cut)


@pytest.mark.filterwarnings("ignore:.*Stochastic Optimizer:UserWarning")  # it is stopped on purpose
@pytest.mark.parametrize(
    "activation, theirs", [("identity",) * 2, ("sigmoid", "logistic"), ("tanh",) * 2, ("relu",) * 2]
)
@pytest.mark.parametrize("momentum, nesterov", [(0, False), (0.9, False), (0.9, True)])
def test_epochs_of_minibatches_against_scikit_learn(activation, theirs, momentum, nesterov):
    neural_network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(1)
    x, labels, batch, l2 = rng.standard_normal((30, 6)), np.arange(30) % 4, 10, 0.02
    model = MLP((6, 8, 5, 4), activation, initialization="xavier", seed=5, dtype=np.float64)
    peer = neural_network.MLPClassifier(
        (8, 5),
        activation=theirs,
        solver="sgd",
        alpha=l2 * batch,  # it divides its penalty by the batch size
        batch_size=batch,
        learning_rate_init=0.05,
        momentum=momentum,
        nesterovs_momentum=nesterov,
        shuffle=False,
        warm_start=True,
        max_iter=1,
        n_iter_no_change=1000,
    ).fit(x, labels)
    for layer in range(3):  # the same start
        peer.coefs_[layer][:], peer.intercepts_[layer][:] = model.parameters[f"W{layer + 1}"], 0
    peer.set_params(max_iter=7).fit(x, labels)
    sgd, losses = SGD(model.parameters, momentum=momentum, nesterov=nesterov), []
    for _ in range(7):
        for rows in np.split(np.arange(30), 3):
            loss, gradients = model.loss_and_gradients(x[rows], labels[rows], l2)
            losses.append(loss)
            for name, g in gradients.items():
                sgd.gradients[name][:] = g
            sgd.step(0.05)
    for layer in range(3):
        agree(model.parameters[f"W{layer + 1}"], peer.coefs_[layer])
        agree(model.parameters[f"b{layer + 1}"], peer.intercepts_[layer])
    agree(np.mean(np.reshape(losses, (7, 3)), axis=1), peer.loss_curve_[-7:])
    agree(model.predict_proba(x), peer.predict_proba(x))
