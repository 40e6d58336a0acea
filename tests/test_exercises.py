"""The exercises: right answers pass, typical wrong ones are told their mistake, and the solved notebook runs."""

import re
import shutil

import exercises  # notebooks/exercises.py: pyproject.toml puts its folder on the path
import nbformat
import numpy as np
import pytest

import nnlib
from nnlib.report.notebooks import execute


def relu(z):
    return np.maximum(z, 0)


def softmax(z, axis=1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def one_hot(labels, n=3):
    return np.eye(n)[labels]


@pytest.fixture(scope="module")
def solutions(root):
    """The functions of the solutions by name, and their cells."""
    notebook = nbformat.read(
        root / "notebooks/solutions/08_exercises_solutions.ipynb", as_version=4
    )
    cells = {
        m[1]: c
        for c in notebook.cells
        if (m := re.match(r"def (\w+)\(", c.source)) and c.cell_type == "code"
    }
    functions = {"np": np, "exercises": exercises}
    for name, cell in cells.items():
        exec(compile(cell.source, name, "exec"), functions)
    return {name: functions[name] for name in cells}, cells


def test_there_is_a_solution_of_every_exercise_and_it_is_right(solutions):
    functions, _ = solutions
    assert set(functions) == set(exercises.EXERCISES)
    for name, function in functions.items():
        assert exercises.check(function).ok is True, exercises.check(function)
        assert repr(exercises.check(function)) == f"[OK] {name}: right in every entry."


def forward(a1=lambda z, b: relu(z + b), a2=lambda z, b: relu(z + b), last=lambda z, b: z + b):
    """A forward pass with one part of one's own."""

    def forward(parameters, x):
        first = a1(x @ parameters["W1"], parameters["b1"])
        second = a2(first @ parameters["W2"], parameters["b2"])
        return first, second, last(second @ parameters["W3"], parameters["b3"])

    return forward


def loss(value=None, derivative=None):
    """A loss with a value or a derivative of one's own, given probabilities and labels."""

    def softmax_cross_entropy(logits, labels):
        p, log_p = softmax(logits), logits - logits.max(axis=1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        right = -log_p[np.arange(len(labels)), labels]
        dlogits = (p - one_hot(labels)) / len(labels)
        return value(logits, right) if value else right.mean(), derivative(
            p, labels
        ) if derivative else dlogits

    return softmax_cross_entropy


def layer(dW=lambda a, W, d: a.T @ d, db=lambda a, W, d: d.sum(axis=0), da=lambda a, W, d: d @ W.T):
    """One layer's backward pass with one part of one's own."""

    def layer_backward(a, W, delta):
        return dW(a, W, delta), db(a, W, delta), da(a, W, delta)

    return layer_backward


def back(
    slope=lambda a, layer: a > 0, penalty=lambda W, l2, n: l2 * W, bias=lambda b, l2: 0, scale=1
):
    """A whole backward pass with one part of one's own."""

    def backward(parameters, x, a1, a2, dlogits, l2):
        gradients, delta = {}, dlogits
        for layer, a in ((3, a2), (2, a1), (1, x)):
            W, b = parameters[f"W{layer}"], parameters[f"b{layer}"]
            gradients[f"W{layer}"] = scale * (a.T @ delta + penalty(W, l2, len(x)))
            gradients[f"b{layer}"] = scale * (delta.sum(axis=0) + bias(b, l2))
            delta = delta @ W.T * slope(a, layer)
        return gradients

    return backward


def step(change):
    def sgd_step(W, g, v, learning_rate, momentum):
        return change(W, g, v, learning_rate, momentum)

    return sgd_step


def rate(change):
    def learning_rate_at(step, total, peak, warmup):
        return change(step, total, peak, warmup)

    return learning_rate_at


def slope(change):
    def relu_derivative(a):
        return change(a)

    return relu_derivative


def naive(logits, labels):
    """Softmax as one writes it first; exp overflows."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    return -np.log(p[rows, labels]).mean(), (p - one_hot(labels)) / len(labels)


def of_one_maximum(logits, labels):
    """Softmax with the largest logit of all images, not of each."""
    return naive(logits - logits.max(), labels)


def log_of_softmax(logits, labels):
    """No overflow in softmax, but the logarithm of a probability that is rounded to 0."""
    p, rows = softmax(logits), np.arange(len(labels))
    return -np.log(p[rows, labels]).mean(), (p - one_hot(labels)) / len(labels)


def named(name, function):
    function.__name__ = name
    return function


def columns(p, labels):
    d = p.copy()
    d[:, labels] -= 1
    return d / len(p)


def cosine(x):
    return (1 + np.cos(np.pi * x)) / 2


def warm(step, peak, warmup, after):
    return peak * (step + 1) / warmup if step < warmup else after


WRONG = [
    (forward(a1=lambda z, b: z + b), "a1: the ReLU is missing"),
    (forward(a2=lambda z, b: z + b), "a2: the ReLU is missing"),
    (forward(a1=lambda z, b: relu(z)), "a1: the bias is missing"),
    (forward(last=lambda z, b: z), "logits: the bias is missing"),
    (forward(last=lambda z, b: relu(z + b)), "no ReLU after the last layer"),
    (forward(last=lambda z, b: softmax(z + b)), "no softmax here"),
    (
        loss(value=lambda z, right: right.sum()),
        "B times too large: the mean over the batch is asked for, not the sum",
    ),
    (loss(value=lambda z, right: -right.mean()), "loss: the sign is wrong"),
    (loss(value=lambda z, right: right.sum() / z.size), "not by the number of all logits"),
    (loss(value=lambda z, right: np.exp(-right).mean() * -1), "the logarithm is missing"),
    (
        loss(value=lambda z, right: -np.log(softmax(z)).mean()),
        "take the right class of each image only",
    ),
    (
        loss(
            value=lambda z, right: (
                -np.log(softmax(z, 0)[range(len(z)), [2, 0, 1, 2][: len(z)]]).mean()
            )
        ),
        "axis=1",
    ),
    (loss(derivative=lambda p, y: p - one_hot(y)), "dlogits: it is B times too large"),
    (loss(derivative=lambda p, y: (one_hot(y) - p) / len(p)), "dlogits: the sign is wrong"),
    (loss(derivative=lambda p, y: p / len(p)), "the one-hot labels Y are not subtracted"),
    (loss(derivative=columns), "[:, labels] means whole columns"),
    (named("softmax_cross_entropy", naive), "overflow exp"),
    (named("softmax_cross_entropy", of_one_maximum), "the largest logit of each row"),
    (named("softmax_cross_entropy", log_of_softmax), "or give log(0)"),
    (
        slope(lambda a: a >= 0),
        "after a ReLU no value is negative, so a >= 0 is always true. Ask a > 0",
    ),
    (slope(lambda a: a), "the ReLU's value, not its slope"),
    (layer(dW=lambda a, W, d: d.T @ a), "dW: it is transposed"),
    (
        layer(dW=lambda a, W, d: a.T @ d / len(a)),
        "dW: it is B times too small: it is divided by the batch size once too",
    ),
    (
        layer(dW=lambda a, W, d: a @ d),
        "is a .T forgotten? There are a (4, 7), W (7, 6), delta (4, 6)",
    ),
    (layer(da=lambda a, W, d: d @ W), "Is a .T forgotten?"),
    (layer(db=lambda a, W, d: d.sum(axis=1)), "db: it is summed over the wrong axis"),
    (layer(db=lambda a, W, d: d.sum()), "one number for all units"),
    (layer(db=lambda a, W, d: d.mean(axis=0)), "db: it is B times too small"),
    (layer(db=lambda a, W, d: d), "not summed over the images"),
    (
        layer(db=lambda a, W, d: d.sum(axis=0, keepdims=True)),
        "db has the shape (1, 6) and should have (6,)",
    ),
    (
        back(slope=lambda a, layer: 1),
        "W2: the activation's derivative is missing: da * relu_derivative(a2)",
    ),
    (back(slope=lambda a, layer: a >= 0), "W2: the activation's derivative is missing"),
    (
        back(slope=lambda a, layer: a > 0 if layer == 3 else 1),
        "W1: the activation's derivative is missing",
    ),
    (back(penalty=lambda W, l2, n: 0), "W3: the L2 term, l2 * W, is missing"),
    (back(penalty=lambda W, l2, n: l2 * W / n), "the L2 term is divided by the batch size"),
    (back(penalty=lambda W, l2, n: 2 * l2 * W), "the L2 term is twice too large"),
    (back(bias=lambda b, l2: l2 * b), "b3: biases are not penalized"),
    (
        back(scale=1 / 4),
        "W3: it is B times too small: it is divided by the batch size once too often",
    ),
    (step(lambda W, g, v, lr, m: (W + lr * (m * v + g), m * v + g)), "it goes up the slope"),
    (step(lambda W, g, v, lr, m: (W - lr * g, m * v + g)), "the momentum is missing"),
    (step(lambda W, g, v, lr, m: (W - lr * v, m * v + g)), "along the old velocity"),
    (
        step(lambda W, g, v, lr, m: (W + m * v - lr * g, m * v - lr * g)),
        "the learning rate is inside the velocity",
    ),
    (step(lambda W, g, v, lr, m: (W - lr * (m * v + g), v)), "v: this is the old velocity"),
    (rate(lambda t, n, top, w: top * cosine(t / n)), "begins where the warm-up"),
    (
        rate(lambda t, n, top, w: warm(t, top, w, top * cosine(t / n))),
        "the cosine counts from step 0",
    ),
    (rate(lambda t, n, top, w: top * t / w if t < w else 0), "(step + 1) / warmup"),
    (
        rate(lambda t, n, top, w: warm(t, top, w, top * cosine((t - w) / n))),
        "the cosine has total - warmup steps",
    ),
    (
        rate(lambda t, n, top, w: warm(t, top, w, top - top * cosine((t - w) / (n - w)))),
        "1 + cos, not 1 - cos",
    ),
    (
        rate(lambda t, n, top, w: warm(t, top, w, 2 * top * cosine((t - w) / (n - w)))),
        "it is twice too large",
    ),
]


@pytest.mark.parametrize(
    ("answer", "message"), WRONG, ids=[f"{f.__name__}: {m[:40]}" for f, m in WRONG]
)
def test_a_typical_mistake_is_named(answer, message):
    verdict = exercises.check(answer)
    assert verdict.ok is False
    assert message.lower() in verdict.text.lower(), verdict
    assert repr(verdict).startswith(f"[WRONG] {answer.__name__}: ")


@pytest.mark.parametrize(
    "answer",
    [forward(), loss(), layer(), back(), step(lambda W, g, v, lr, m: moved(W, g, v, lr, m))],
)
def test_the_same_functions_without_a_mistake_are_right(answer):
    assert exercises.check(answer).ok is True, exercises.check(answer)


def moved(W, g, v, lr, m):
    """A step in place, which is as good."""
    v *= m
    v += g
    W -= lr * v
    return W, v


def test_every_message_is_heard_by_somebody():
    """No mistake in the tables is left without a wrong answer above that gets its message."""
    said = "\n".join(exercises.check(answer).text for answer, _ in WRONG)
    for calls in exercises.EXERCISES.values():
        for _, parts in calls():
            for _, mistakes in parts.values():
                for message in mistakes:
                    assert re.sub(r"\d", "", message) in re.sub(r"\d", "", said), message


def test_what_is_not_yet_written_is_no_mistake():
    def relu_derivative(a):
        raise NotImplementedError

    def backward(parameters, x, a1, a2, dlogits, l2):
        return {"W1": relu_derivative(a1)}

    verdict = exercises.check(relu_derivative)
    assert verdict.ok is None and repr(verdict).startswith(
        "[TODO] relu_derivative: not yet written: relu_derivative."
    )
    assert "not yet written: relu_derivative." in repr(exercises.check(backward))


def test_an_answer_of_another_form_is_described():
    def told(answer):
        return exercises.check(named("layer_backward", answer)).text

    assert "it should return dW, db, da" in told(lambda a, W, delta: None)
    assert "it should return dW, db, da" in told(lambda a, W, delta: (a, W))
    assert "it should return dW, db, da" in told(
        lambda a, W, delta: (a.T @ delta, delta.sum(0), delta @ W.T, 1)
    )
    assert "it should return dW, db, da" in told(lambda a, W, delta: {"dW": a.T @ delta})
    assert "dW should be real numbers, not <U3" in told(lambda a, W, delta: ("abc", 1, 2))
    assert "dW[0, 0] is " in told(lambda a, W, delta: (a.T @ delta + 1, delta.sum(0), delta @ W.T))
    assert "TypeError" in told(lambda a, W: None)


def test_an_error_is_told_with_its_line_and_the_shapes():
    def forward(parameters, x):
        return parameters["W1"] @ x

    text = exercises.check(forward).text
    assert (
        text.startswith("ValueError: matmul") and 'in the line: return parameters["W1"] @ x' in text
    )
    assert "x (4, 7), W1 (7, 6)" in text


def test_arguments_that_others_need_stay_as_they_are():
    def softmax_cross_entropy(logits, labels):
        logits -= logits.max(axis=1, keepdims=True)
        return loss()(logits, labels)

    assert "it changes its argument logits" in exercises.check(softmax_cross_entropy).text


def test_a_function_that_is_no_exercise_is_refused():
    def foward(parameters, x):
        return x

    with pytest.raises(
        nnlib.HyperparameterError, match=r"foward: this is not an exercise\. Did you mean 'forward'"
    ):
        exercises.check(foward)


ENV = {"OPENBLAS_NUM_THREADS": "1"}


def printed(page):
    texts = [
        o.get("text") or o.get("data", {}).get("text/plain", "")
        for c in page.notebook.cells
        for o in c.get("outputs", [])
    ]
    return "\n".join(map(str, texts))


def test_solutions_run_and_are_committed_as_they_run(root):
    path = root / "notebooks/solutions/08_exercises_solutions.ipynb"
    page = execute(path, env=ENV)
    assert page.error is None
    assert len(re.findall(r"^\[OK\]", printed(page), re.M)) == len(exercises.EXERCISES)
    committed = nbformat.read(path, as_version=4)
    assert [c.get("outputs") for c in committed.cells] == [
        c.get("outputs") for c in page.notebook.cells
    ]


def test_the_exercises_notebook_is_unsolved_and_runs_when_it_is_solved(root, solutions, tmp_path):
    notebook = nbformat.read(root / "notebooks/08_exercises.ipynb", as_version=4)
    cells = solutions[1]
    for cell in notebook.cells:
        if (
            cell.cell_type == "code"
            and (found := re.match(r"def (\w+)\(", cell.source))
            and found[1] in cells
        ):
            assert (
                "raise NotImplementedError" in cell.source
                and "[TODO]" in cell.outputs[0].data["text/plain"]
            )
            question, answer = cell.source.split('"""'), cells[found[1]].source.split('"""')
            assert question[:2] == answer[:2], "the solution has another signature or docstring"
            cell.source = cells[found[1]].source
    nbformat.write(notebook, tmp_path / "08_exercises.ipynb")
    shutil.copy(root / "notebooks/exercises.py", tmp_path)
    env = ENV | {"NNLIB_FIGURES_DIR": str(tmp_path / "figures")}
    page = execute(tmp_path / "08_exercises.ipynb", {"dataset": "standin", "quick": True}, env)
    assert page.error is None, page.error
    text = printed(page)
    assert "7 of 7 exercises are right" in text and "gradients agree" in text
    assert "[TODO]" not in text and "[WRONG]" not in text
    assert (
        "the losses of yours and nnlib's differ by at most" in text
    )  # and the notebook asserts by how much
