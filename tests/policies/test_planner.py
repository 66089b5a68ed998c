"""Planning against scores whose best actions are known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policies.planner import CEM, MPPI, SamplingPlanner

HORIZON, ACTION = 3, 2
NUMBERS = {"horizon": HORIZON, "candidates": 64, "elites": 8, "iterations": 8}
TARGET = torch.linspace(-0.8, 0.8, 2 * HORIZON * ACTION).view(2, HORIZON, ACTION)  # of two decisions
NONE = torch.zeros(2, HORIZON, ACTION)


class Bowl:
    """Minus the squared distance to the target; keeps what it was asked."""

    def __init__(self, target: Tensor = TARGET) -> None:
        self.target, self.asked = target, []

    def __call__(self, actions: Tensor) -> Tensor:
        self.asked.append(actions)
        return -(actions - self.target[:, None]).square().sum((2, 3))


def plan(planner: SamplingPlanner, bowl: Bowl, previous: Tensor = NONE, proposals: Tensor | None = None) -> Any:
    torch.manual_seed(0)
    return planner(bowl, previous, proposals)


@pytest.mark.parametrize("planner", [CEM(**NUMBERS), MPPI(**NUMBERS, temperature=2.0)], ids=["cem", "mppi"])
def test_finds_the_best_actions_of_each_decision(planner: SamplingPlanner) -> None:
    bowl = Bowl()
    found = plan(planner, bowl)
    assert (found.mean - TARGET).abs().max() < 0.15
    assert [actions.shape for actions in bowl.asked] == [(2, 64, HORIZON, ACTION)] * 8
    again = plan(planner, Bowl())
    assert torch.equal(again.mean, found.mean) and torch.equal(again.std, found.std), "the same random numbers"


def test_actions_stay_within_their_bounds() -> None:
    bowl = Bowl(torch.full_like(TARGET, 3.0))
    found = plan(CEM(**NUMBERS), bowl)
    assert all(actions.abs().max() <= 1 for actions in bowl.asked)
    assert found.mean.min() > 0.9 and found.mean.max() <= 1


def test_a_warm_start_is_nearer_after_the_same_search() -> None:
    few = {**NUMBERS, "iterations": 1, "std": 0.3}
    cold, warm = (plan(CEM(**few), Bowl(), previous).mean for previous in (NONE, TARGET))
    assert (warm - TARGET).abs().mean() < 0.5 * (cold - TARGET).abs().mean()
    ignored = plan(CEM(**few, warm_start=False), Bowl(), TARGET).mean
    assert torch.equal(ignored, cold)


def test_elites_of_cem_count_alike() -> None:
    bowl = Bowl()
    found = plan(CEM(**{**NUMBERS, "iterations": 1, "elites": 4}), bowl)
    best = bowl(bowl.asked[0]).argsort(1, descending=True)[:, :4]
    elites = torch.stack([actions[index] for actions, index in zip(bowl.asked[0], best, strict=True)])
    torch.testing.assert_close(found.mean, elites.mean(1))
    torch.testing.assert_close(found.std, elites.std(1, correction=0).clamp(0.05, 1.0))


def test_elites_of_mppi_count_by_their_scores() -> None:
    scores = torch.tensor([[0.0, -1.0]])
    weights = MPPI(**NUMBERS, temperature=torch.log(torch.tensor(3.0)).item()).weights(scores)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(MPPI(**NUMBERS, temperature=0.0).weights(scores), torch.tensor([[0.5, 0.5]]))


def test_a_drawn_elite_is_acted_on_as_often_as_it_weighs() -> None:
    decisions = 2000
    candidates = torch.tensor([0.5, -0.5, 0.0]).view(1, 3, 1, 1).expand(decisions, -1, 1, 1)  # the last is no elite

    def worth(actions: Tensor) -> Tensor:
        return actions.sum((2, 3)) - 10.0 * (actions == 0.0).sum((2, 3))

    planner = MPPI(
        horizon=1, candidates=3, elites=2, iterations=1, temperature=torch.log(torch.tensor(3.0)).item(), draws=True
    )
    torch.manual_seed(0)
    found = planner(worth, torch.zeros(decisions, 1, 1), candidates)
    assert set(found.action.flatten().tolist()) == {0.5, -0.5}
    assert float((found.action == 0.5).float().mean()) == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(found.mean, torch.full((decisions, 1, 1), 0.25))


def test_without_drawing_the_mean_is_acted_on() -> None:
    found = plan(MPPI(**NUMBERS), Bowl())
    assert torch.equal(found.action, found.mean[:, 0])


def test_momentum_keeps_a_share_of_the_old() -> None:
    one = {**NUMBERS, "iterations": 1, "elites": 1, "std": 0.8}
    previous = torch.full_like(NONE, 0.4)
    best = plan(CEM(**one), Bowl(), previous)
    assert (best.std == 0.05).all(), "one elite has no spread: the floor"
    kept = plan(CEM(**one, momentum=0.25), Bowl(), previous)
    torch.testing.assert_close(kept.mean, 0.75 * best.mean + 0.25 * previous)
    torch.testing.assert_close(kept.std, torch.full_like(NONE, 0.2))


def test_the_first_draw_has_the_largest_spread() -> None:
    found = plan(CEM(**{**NUMBERS, "elites": 64, "std": 0.3, "min_std": 0.3}), Bowl())
    assert torch.equal(found.std, torch.full_like(NONE, 0.3))


def test_proposals_take_part_in_each_iteration() -> None:
    bowl = Bowl()
    found = plan(CEM(**{**NUMBERS, "elites": 1}), bowl, proposals=TARGET[:, None])
    assert torch.equal(found.mean, TARGET), "nothing drawn is better"
    assert [actions.shape[1] for actions in bowl.asked] == [64] * 8, "they are among the candidates"


def test_scores_that_are_no_numbers() -> None:
    with pytest.raises(FloatingPointError, match="score is not finite"):
        CEM(**NUMBERS)(lambda actions: actions.sum((2, 3)) * torch.nan, NONE)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"elites": 65}, r"elites \(65\) must be 1 to candidates \(64\)"),
        ({"elites": 0}, "elites"),
        ({"horizon": 0}, "horizon"),
        ({"iterations": 0}, "iterations"),
        ({"min_std": 2.0}, "min_std"),
        ({"min_std": 0.0}, "min_std"),
        ({"momentum": 1.0}, "momentum"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_impossible_numbers(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPPI(**{**NUMBERS, **numbers})
