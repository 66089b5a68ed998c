"""Intervals: known answers, and how often they contain the truth in simulated studies of few runs."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mbrl.results.aggregate_metrics import interquartile_mean, probability_of_improvement
from mbrl.results.intervals import (
    Estimate,
    Floats,
    Scores,
    estimate_improvement,
    estimate_ratio,
    estimate_share,
    estimate_success,
    least_chance,
    mean_interval,
    spearman_interval,
)

STUDIES = 1000
X = np.arange(STUDIES)
RUNS = 3


def simulated(tasks: int, *, joint: bool = False, varied: int = 3) -> Floats:
    """Success [runs, tasks, studies] around 0.5, far from 0 and 1, the same for all runs of tasks beyond `varied`.

    Tasks of one run have the same success.
    """
    drawn = np.random.default_rng(0).normal(0.5, 0.04, (RUNS, 1 if joint else tasks, STUDIES))
    drawn[:, varied:] = 0.5
    return np.repeat(drawn, tasks if joint else 1, axis=1)


def coverage(low: Floats, high: Floats, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


def pooled_mean(scores: Floats) -> Floats:
    return np.asarray(scores.mean(axis=(-3, -2)))


def test_the_mean_of_three_runs_has_the_t_interval() -> None:
    mean, low, high = mean_interval(np.array([0.4, 0.5, 0.6]))
    margin = 4.302653 * 0.1 / 3**0.5  # t(0.975, 2 degrees of freedom) and the standard error
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - margin, 0.5 + margin))
    assert mean_interval(np.array([0.2, 0.5, 0.8])) == pytest.approx((0.5, 0.0, 1.0)), "a rate is in [0, 1]"
    assert np.isnan(mean_interval(np.array([0.5]))[1:]).all()


def test_the_mean_of_few_runs_is_covered_as_often_as_it_says() -> None:
    _, low, high = mean_interval(simulated(1)[:, 0])
    assert 0.92 < coverage(low, high, 0.5) < 0.99


@pytest.mark.parametrize("function", [interquartile_mean, pooled_mean])
@pytest.mark.parametrize(("tasks", "joint", "varied"), [(1, False, 1), (3, False, 3), (3, False, 1), (3, True, 3)])
def test_means_over_tasks_are_covered_as_often_as_they_say(
    function: Callable[[Floats], Floats], tasks: int, joint: bool, varied: int
) -> None:
    mean = estimate_success(function, X, Scores(simulated(tasks, joint=joint, varied=varied), joint))
    assert 0.92 < coverage(mean.low, mean.high, 0.5) < 0.99


def test_an_interval_has_few_degrees_of_freedom_where_one_task_makes_the_spread() -> None:
    alone = simulated(1)
    beside = np.concatenate([alone, np.full_like(alone, 0.5), np.full_like(alone, 0.5)], axis=1)
    one, three = (estimate_success(pooled_mean, X, Scores(values, False)) for values in (alone, beside))
    np.testing.assert_allclose(3 * (three.high - three.low), one.high - one.low, rtol=0.06)  # of 2000 samples


def test_a_quantity_that_many_samples_lack_has_no_interval() -> None:
    def steps(scores: Floats) -> Floats:
        """1 / mean; inf where the mean is below each of two bounds."""
        mean = pooled_mean(scores)
        return np.where(mean < np.array([0.5, 0.001]), np.inf, 1 / mean)

    slow, fast = (Scores(np.array(runs)[:, None, None], False) for runs in ([0.3, 0.5, 0.9], [0.7, 0.8, 0.9]))
    for pair, low in (((fast, slow), 0.8 / (1.7 / 3)), ((slow, fast), 1.7 / 3 / 0.8)):
        found = estimate_ratio(steps, np.arange(2), *pair)
        assert found.value == pytest.approx([low] * 2)
        assert np.isnan([found.low[0], found.high[0]]).all() and np.isfinite([found.low[1], found.high[1]]).all()


def test_the_ratio_has_welchs_interval() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(1.0, 0.2, (4, 1, 50)), generator.normal(2.0, 0.8, (6, 1, 50))
    ratio = estimate_ratio(
        lambda scores: np.exp(pooled_mean(scores)), np.arange(50), Scores(one, False), Scores(other, False)
    )
    exact = ttest_ind(other[:, 0], one[:, 0], equal_var=False).confidence_interval()
    np.testing.assert_allclose(np.log(ratio.value), other.mean(axis=(0, 1)) - one.mean(axis=(0, 1)))
    np.testing.assert_allclose(np.log(ratio.high / ratio.low), exact.high - exact.low, rtol=0.06)  # of 2000 samples
    np.testing.assert_allclose(ratio.high / ratio.value, ratio.value / ratio.low)


def share(*values: float, tasks: int = 1, joint: bool = False) -> Estimate:
    scores = Scores(np.repeat(np.array(values)[:, None], tasks, axis=1), joint)
    return estimate_share(lambda scores: scores.mean(axis=(0, 1), keepdims=True)[0], np.zeros(1), scores)


def test_a_share_of_runs_has_wilsons_interval() -> None:
    z2 = 1.959964**2
    everyone = share(1.0, 1.0, 1.0)
    assert (everyone.low[0], everyone.high[0]) == pytest.approx((3 / (3 + z2), 1.0), abs=1e-4)
    half = share(1.0, 0.0, 1.0, 0.0)
    margin = (z2 / (4 * (4 + z2))) ** 0.5  # Wilson's formula at a share of 0.5 of 4 runs
    assert (half.low[0], half.high[0]) == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-4)
    assert share(1.0, 1.0, 1.0, tasks=3).low[0] == pytest.approx(9 / (9 + z2), abs=1e-4)
    assert share(1.0, 1.0, 1.0, tasks=3, joint=True).low[0] == everyone.low[0], "three runs, whatever they learned"


def improvement(one: Floats, other: Floats, *, joint: bool = False) -> Estimate:
    return estimate_improvement(probability_of_improvement, np.zeros(1), Scores(one, joint), Scores(other, joint))


def test_three_runs_that_all_beat_three_others_leave_doubt() -> None:
    one, other = np.full((3, 1), 0.9), np.full((3, 1), 0.1)
    better, worse = improvement(one, other), improvement(other, one)
    assert better.value[0] == better.high[0] == 1.0
    assert 0.4 < better.low[0] < 0.5, "an exact test of 3 against 3 runs has p = 0.1"
    assert (worse.low[0], worse.high[0]) == pytest.approx((0.0, 1 - better.low[0]))
    three_tasks = [np.repeat(scores, 3, axis=1) for scores in (one, other)]
    assert 0.6 < improvement(*three_tasks).low[0] < 0.8
    assert improvement(*three_tasks, joint=True).low[0] == better.low[0]


def test_agents_with_equal_scores_are_not_told_apart() -> None:
    scores = np.random.default_rng(0).uniform(size=(3, 2))
    equal = improvement(scores, scores)
    assert equal.low[0] < equal.value[0] == 0.5 < equal.high[0]


@pytest.mark.parametrize(
    ("shift", "truth"), [(0.0, 0.5), (1.812388, 0.9)]
)  # of normals whose difference has sd 2 ** 0.5
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("runs", [3, 5])
def test_the_probability_of_improvement_is_covered_as_often_as_it_says(
    shift: float, truth: float, tasks: int, runs: int
) -> None:
    one, other = np.random.default_rng(0).normal(size=(2, runs, tasks, STUDIES))
    won = (one[:, None] + shift > other).mean(axis=(0, 1, 2))
    values, study = np.unique(won, return_inverse=True)
    found = estimate_improvement(lambda *_: values, values, Scores(one, False), Scores(other, False))
    assert coverage(found.low[study], found.high[study], truth) > 0.93


def test_a_single_run_has_no_interval() -> None:
    one, several = Scores(np.full((1, 2, 4), 0.5), False), Scores(np.full((2, 2, 4), 0.5), False)
    x = np.zeros(4)
    for estimate in (
        estimate_success(pooled_mean, x, one),
        estimate_share(pooled_mean, x, one),
        estimate_ratio(pooled_mean, x, one, several),
        estimate_ratio(pooled_mean, x, several, one),
        estimate_improvement(lambda a, b: pooled_mean(a), x, one, several),
        estimate_improvement(lambda a, b: pooled_mean(a), x, several, one),
    ):
        assert np.isfinite(estimate.value).all()
        assert np.isnan(estimate.low).all() and np.isnan(estimate.high).all()


def test_rank_correlations_of_few_pairs_have_wide_intervals() -> None:
    """Their ends, worked out by hand; four pairs in one order happen by chance, five hardly."""
    assert all(math.isnan(end) for end in spearman_interval(1.0, 3))
    low, high = spearman_interval(1.0, 4)
    assert (low, high) == (pytest.approx(math.tanh(math.atanh(0.9) - 1.95996 * math.sqrt(1.405)), abs=1e-4), 1.0)
    assert low < 0 < spearman_interval(1.0, 5)[0]
    assert spearman_interval(-0.5, 10) == pytest.approx([-end for end in reversed(spearman_interval(0.5, 10))])


def test_intervals_of_rank_correlations_hold() -> None:
    generator, count = np.random.default_rng(0), 8
    for correlation in (0.0, 0.8):
        true = 6 / math.pi * math.asin(correlation / 2)  # of two normal variables
        one, noise = generator.standard_normal((2, 400, count))
        other = correlation * one + math.sqrt(1 - correlation**2) * noise
        ranks = [values.argsort(1).argsort(1) for values in (one, other)]
        found = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum(1) / (count * (count**2 - 1))
        ends = [spearman_interval(value, count) for value in found]
        assert np.mean([low <= true <= high for low, high in ends]) >= 0.93


def test_the_least_chance_of_an_order_is_that_of_all_permutations() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        one, other = generator.integers(0, 3, size=(2, 6)).astype(float)
        sums = np.array([(one * order).sum() for order in itertools.permutations(other)])
        expected = min((sums == end).mean() for end in (sums.min(), sums.max()))
        assert least_chance(one.tolist(), other.tolist()) == pytest.approx(expected)
