"""Hyperparameters: what is allowed, what is refused and in which words, and the way to JSON and
back."""

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib import HyperparameterError, Hyperparameters
from nnlib.network.saving import read_arrays, write_arrays
from nnlib.training.hyperparameters import INSTEAD, OTHER_NAMES


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("hidden_sizes", (0,), "whole numbers from 1 to 65536"),
        ("hidden_sizes", (-3, 10), "whole numbers from 1"),
        ("hidden_sizes", "128", "such as (1024, 256)"),
        ("hidden_sizes", ("128",), "whole numbers"),
        ("hidden_sizes", (128.0,), "whole numbers"),
        ("hidden_sizes", (True,), "whole numbers"),
        ("hidden_sizes", None, "whole numbers"),
        ("activation", "leakyrelu", "Did you mean 'leaky_relu'?"),
        ("activation", ("relu", "tan"), "Did you mean 'tanh'?"),
        ("activation", ("relu",), "one name for each of the 2 hidden layers"),
        ("activation", 7, "Known: elu, gelu"),
        ("initialization", "he_norml", "Did you mean 'he_normal'?"),
        ("preprocessing", "whitening", "Did you mean 'whiten'?"),
        ("schedule", "cosinus", "Did you mean 'cosine'?"),
        ("select_by", "valid", "valid_accuracy, valid_loss"),
        ("learning_rate", -0.1, "a number from 0 to 1000"),
        ("learning_rate", float("nan"), "a number from 0 to 1000"),
        ("learning_rate", float("inf"), "a number from 0 to 1000"),
        ("learning_rate", "0.1", "a number"),
        ("learning_rate", None, "a number"),
        ("learning_rate", True, "a number"),
        ("momentum", 1, "a number from 0 to less than 1"),
        ("dropout", 1.0, "less than 1"),
        ("ema", 1.0, "less than 1"),
        ("label_smoothing", 1.1, "a number from 0 to 1"),
        ("decay_rate", 1.01, "a number from 0 to 1"),
        ("batch_size", 0, "a whole number from 1"),
        ("batch_size", 2.5, "a whole number"),
        ("batch_size", False, "a whole number"),
        ("epochs", 0, "a whole number from 1"),
        ("seed", -1, "a whole number from 0"),
        ("seed", 2**63, "a whole number from 0"),
        ("shift", 17, "a whole number from 0 to 16"),
        ("flip", "yes", "True or False"),
        ("flip", 2, "True or False"),
    ],
)
def test_what_is_refused_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(HyperparameterError) as raised:
        Hyperparameters(**{field: value})
    named = value[1] if field == "activation" and value == ("relu", "tan") else value
    assert str(raised.value).startswith(f"{field}: {named!r} is not ") and allowed in str(
        raised.value
    )
    with pytest.raises(ValueError):  # you may also catch what Python would raise
        Hyperparameters().replace(**{field: value})


def from_dict(**values):
    return Hyperparameters.from_dict(values)


MAKERS = (Hyperparameters, Hyperparameters().replace, from_dict)


def test_fields_that_need_another_are_refused_without_it():
    with pytest.raises(HyperparameterError, match=r"^nesterov: True .* a momentum above 0"):
        Hyperparameters(nesterov=True, momentum=0)
    assert Hyperparameters(nesterov=True).momentum == 0.9
    with pytest.raises(HyperparameterError, match=r"^l1_cut: 2\.0 .* units of l1"):
        Hyperparameters(l1_cut=2)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name, words",
    [
        ("lr", "Did you mean 'learning_rate'"),
        ("weight_decay", "Did you mean 'l2'"),
        ("hidden", "Did you mean 'hidden_sizes'"),
        ("hidden_layer_sizes", "Did you mean 'hidden_sizes'"),
        ("n_epochs", "Did you mean 'epochs'"),
        ("optimizer", "stochastic gradient descent only: set momentum, nesterov"),
        ("batch_norm", "no batch normalization: set preprocessing='whiten'"),
        ("qqq", "no such hyperparameter. Known: activation"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(make, name, words):
    with pytest.raises(HyperparameterError) as raised:
        make(**{name: 1})
    text = str(raised.value)
    assert text.startswith(f"{name}: there is no such hyperparameter. ") and words in text
    assert "Known: activation, batch_size" in text


def test_every_answer_names_fields_that_exist():
    fields = {field.name for field in dataclasses.fields(Hyperparameters)}
    assert set(OTHER_NAMES.values()) <= fields
    assert not fields & {*OTHER_NAMES, *INSTEAD}


def test_help_and_completion_see_the_fields():
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    assert list(inspect.signature(Hyperparameters).parameters) == names


def test_an_unknown_field_is_refused_with_the_nearest():
    for make in MAKERS:
        with pytest.raises(
            HyperparameterError,
            match=r"^learnin_rate: there is no .* Did you mean 'learning_rate'\? Known: activation",
        ):
            make(learnin_rate=0.1)
    with pytest.raises(
        HyperparameterError, match=r"^recipe: 'clasic' is not known\. Did you mean 'classic'\?"
    ):
        Hyperparameters.recipe("clasic")


def test_values_are_made_plain():
    hp = Hyperparameters(
        hidden_sizes=[np.int64(8), 4],
        activation=["relu", "tanh"],
        learning_rate=1,
        momentum=np.float64(0.5),
        batch_size=np.int32(3),
        flip=np.True_,
    )
    assert hp.hidden_sizes == (8, 4) and hp.activation == ("relu", "tanh")
    plain = hp.learning_rate, hp.momentum, hp.batch_size, hp.flip
    assert [type(v) for v in plain] == [float, float, int, bool] and plain == (1.0, 0.5, 3, True)
    assert Hyperparameters(hidden_sizes=32).hidden_sizes == (32,)
    assert Hyperparameters(hidden_sizes=()).hidden_sizes == ()  # a linear classifier


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 99), max_size=3),
    st.sampled_from(["relu", "leaky_relu(0.2)", "gelu"]),
    st.floats(0, 1000),
    st.floats(0, 0.99),
    st.integers(0, 2**63 - 1),
    st.booleans(),
)
def test_through_json_and_back(sizes, activation, rate, momentum, seed, flip):
    hp = Hyperparameters(
        hidden_sizes=tuple(sizes),
        activation=(activation,) * len(sizes),
        learning_rate=rate,
        momentum=momentum,
        seed=seed,
        flip=flip,
    )
    assert Hyperparameters.from_dict(json.loads(json.dumps(hp.to_dict()))) == hp
    assert hash(hp) == hash(hp.replace()) and hp.replace(seed=hp.seed) == hp


def test_missing_fields_have_their_defaults():
    assert Hyperparameters.from_dict({}) == Hyperparameters()
    assert Hyperparameters.from_dict({"l2": 0.5}) == Hyperparameters(l2=0.5)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hyperparameters().l2 = 1.0


def test_every_field_explains_itself():
    for field in dataclasses.fields(Hyperparameters):
        assert field.metadata["help"] and field.metadata["allowed"], field.name


def test_recipes():
    hp = Hyperparameters.recipe("classic")
    assert (hp.hidden_sizes, hp.activation, hp.initialization) == (
        (1024, 256),
        "leaky_relu",
        "lecun_normal",
    )
    assert (hp.batch_size, hp.epochs, hp.momentum, hp.l2, hp.decoupled_l2) == (
        256,
        200,
        0,
        0.001,
        False,
    )
    assert (hp.learning_rate, hp.schedule, hp.decay_rate, hp.decay_every) == (
        0.05,
        "step",
        0.95,
        375,
    )
    assert hp.min_learning_rate == 0.001
    quick = Hyperparameters.recipe("quick")
    assert Hyperparameters.recipe("quick", seed=5) == quick.replace(seed=5) != quick


def test_recipes_are_listed_in_order_and_each_can_be_made():
    names = Hyperparameters.recipes()
    assert names[0] == "classic" and {"quick", "fast", "sparse", "best"} < set(names)
    made = [Hyperparameters.recipe(name) for name in names]
    assert len(set(made)) == len(names)


def test_momentum_is_part_of_every_saved_setting():
    # files written when the default was 0 mean what they meant: they hold every field
    assert Hyperparameters().momentum == 0.9
    names = {field.name for field in dataclasses.fields(Hyperparameters)}
    assert set(Hyperparameters(momentum=0).to_dict()) == names
    saved = sorted((Path(__file__).parents[2] / "data" / "runs").rglob("hyperparameters.json"))
    assert saved or not (Path(__file__).parents[2] / "data" / "runs").exists()
    for path in saved:
        values = json.loads(path.read_text())
        assert Hyperparameters.from_dict(values).momentum == values["momentum"], path


def test_the_old_spelling_is_read_as_ours():
    old = {"initialisation": "he", "preprocessing": "standardise"}
    for hp in (
        nnlib.Hyperparameters(**old),
        nnlib.Hyperparameters.from_dict(old),
        nnlib.Hyperparameters(preprocessing="scale").replace(**old),
    ):
        assert hp.initialization == "he" and hp.preprocessing == "standardize"
    assert set(old) & set(nnlib.Hyperparameters(**old).to_dict()) == {"preprocessing"}
    assert nnlib.MLP((4, 3, 2), initialisation="he").initialization == "he"


def test_a_model_saved_with_the_old_spelling_loads(tmp_path):
    model = nnlib.MLP((4, 3, 2), initialization="he_uniform", seed=5)
    arrays, meta = read_arrays(nnlib.save_model(model, tmp_path / "new.npz"))
    meta["initialisation"] = meta.pop("initialization")
    again = nnlib.load_model(write_arrays(tmp_path / "old.npz", arrays, meta))
    assert again.initialization == "he_uniform"
    np.testing.assert_array_equal(again.initial_parameters()["W1"], model.parameters["W1"])
