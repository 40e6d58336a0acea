"""The learning rate at chosen steps, worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnlib
from nnlib.training.schedules import SCHEDULES, make_schedule


def test_classic_recipe():
    # 0.05 × 0.95 every 375 steps: 0.05 0.95ⁿ falls below 0.001 at n = 77, because
    # ln 50 / -ln 0.95 = 76.3.
    rate = make_schedule(
        "step", 0.05, 35_200, decay_rate=0.95, decay_every=375, min_learning_rate=0.001
    )
    assert [rate(0), rate(374), rate(375), rate(750)] == pytest.approx(
        [0.05, 0.05, 0.0475, 0.045125], rel=1e-15
    )
    assert (
        rate(77 * 375 - 1) == pytest.approx(0.05 * 0.95**76, rel=1e-15)
        and rate(77 * 375 - 1) > 0.001
    )
    assert rate(77 * 375) == rate(35_199) == 0.001


def test_exponential_is_step_decay_without_stairs():
    stairs, smooth = (
        make_schedule(n, 0.3, 1000, decay_rate=0.5, decay_every=10) for n in ("step", "exponential")
    )
    assert [smooth(s) for s in (0, 10, 50)] == pytest.approx(
        [stairs(s) for s in (0, 10, 50)], rel=1e-15
    )
    assert smooth(5) == pytest.approx(0.3 * 0.5**0.5, rel=1e-15) and stairs(5) == 0.3
    floored = make_schedule(
        "exponential", 0.3, 1000, decay_rate=0.5, decay_every=10, min_learning_rate=0.1
    )
    assert floored(15) == pytest.approx(0.3 * 0.5**1.5, rel=1e-15) and floored(16) == 0.1


def test_cosine():
    # Half-way the cosine is 0, at a third it is cos 60° = ½: floor + (rate - floor) ¾.
    rate = make_schedule("cosine", 0.8, 300, min_learning_rate=0.2)
    assert [rate(0), rate(100), rate(150), rate(300)] == pytest.approx(
        [0.8, 0.65, 0.5, 0.2], rel=1e-14
    )
    assert rate(10_000) == pytest.approx(0.2, rel=1e-14)


def test_one_cycle():
    # Up from rate/25 in 30 steps, half-way at (1 + 25)/50 of it; then a cosine over the other 70.
    rate = make_schedule("one_cycle", 0.5, 100, min_learning_rate=0.1)
    assert [rate(0), rate(15), rate(30)] == pytest.approx([0.02, 0.26, 0.5], rel=1e-14)
    assert [rate(65), rate(100)] == pytest.approx([0.3, 0.1], rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_stands_in_front_of_any(name):
    plain = make_schedule(name, 0.4, 90, decay_every=7, min_learning_rate=0.01)
    warm = make_schedule(name, 0.4, 100, decay_every=7, min_learning_rate=0.01, warmup_steps=10)
    assert [warm(0), warm(4), warm(9)] == pytest.approx([0.04, 0.2, 0.4], rel=1e-15)
    assert [warm(s) for s in range(10, 100)] == [plain(s) for s in range(90)]


@settings(deadline=None)
@given(
    st.sampled_from(SCHEDULES),
    st.floats(1e-3, 1),
    st.floats(0, 1e-3),
    st.integers(1, 300),
    st.integers(0, 400),
)
def test_between_floor_and_full_rate_and_a_function_of_the_step_alone(
    name, rate, floor, total, warmup
):
    schedule = make_schedule(
        name, rate, total, decay_every=5, min_learning_rate=floor, warmup_steps=warmup
    )
    there = [schedule(s) for s in range(total + 50)]
    back = [schedule(s) for s in reversed(range(total + 50))]
    assert there == back[::-1]  # nothing is remembered from call to call
    lowest = min(there[warmup:], default=rate)
    assert lowest >= (min(floor, rate / 25) if name == "one_cycle" else floor) * (1 - 1e-15)
    assert max(there) <= rate * (1 + 1e-15)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        nnlib.HyperparameterError,
        match=r"^schedule: 'cosin' is not known\. Did you mean 'cosine'\?",
    ):
        make_schedule("cosin", 0.1, 10)
