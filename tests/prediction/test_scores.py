"""Scores and their summary on a world model with known answers: each frame is its predecessor plus one."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.prediction.held_out import Segments, draw_segments
from mbrl.prediction.scores import MetricModels, RolloutPlan, other_actions, score
from mbrl.prediction.summary import Row, summarise
from tests.fakes import CountingWorldModel
from worldmodel.base import WorldModel

SIDE, CONTEXT, HORIZON = 16, 2, 3


class Steering(CountingWorldModel):
    """Brightness moves by 10 times the action's first entry; a reward is the action's second. One bit of luck."""

    resolution, action_dim = SIDE, 2

    def __init__(self, luck: int = 0) -> None:
        super().__init__()
        self.luck, self.rows = luck, []

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        self.rows.append(len(action))
        move = (10 * action[:, 0]).round() + self.luck * torch.randint(2, (len(action),))
        pixels = (state + move[:, None, None, None]).clamp(0, 255).to(torch.uint8)
        return pixels, TensorDict(pixels=pixels, reward=action[:, 1:2], batch_size=[len(action)])

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return {"context": (torch.tensor([[0, 1]]).expand(len(batch), 2), 4)}

    def reconstruct(self, context: TensorDictBase) -> Tensor:
        return context["pixels"] + 51


def episodes(number: int = 4, steps: int = 12) -> list[TensorDict]:
    """Brightness moves by 10 times the action's first entry, which is +1 or -1; rewards are the second entry."""
    made = []
    for index in range(number):
        generator = torch.Generator().manual_seed(index)
        move = torch.randint(0, 2, (steps + 1,), generator=generator) * 2.0 - 1
        action = torch.stack([move, torch.arange(steps + 1.0)], 1)
        value = 100 + torch.cat([torch.zeros(1), 10 * action[:-1, 0]]).cumsum(0)
        flags = torch.zeros(steps + 1, 1, dtype=torch.bool)
        made.append(
            TensorDict(
                pixels=value.to(torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone(),
                action=action,
                reward=action[:, 1:],
                success=action[:, 1:] >= 8,
                terminated=flags,
                truncated=flags.clone(),
                batch_size=[steps + 1],
            )
        )
    return made


def segments(count: int = 100) -> Segments:
    return draw_segments(episodes(), context=CONTEXT, horizon=HORIZON, count=count, seed=0)


def measured(model: WorldModel, drawn: Segments, metrics: MetricModels | None = None, **plan: Any) -> dict[str, Row]:
    metrics = metrics or MetricModels(threshold=7.5)
    options = {"samples": 1, "batch_size": 8, "seed": 0} | plan
    rows, left_out = summarise(score(model, drawn, metrics, RolloutPlan(**options)), metrics)
    assert left_out.keys() >= {"lpips", "fvd", "gripper"}
    return {row.name: row for row in rows}


def test_a_perfect_model_has_no_error_and_heeds_its_actions() -> None:
    rows = measured(Steering(), segments())
    assert rows["mse"].value == 0 and rows["mse"].curve == [0.0] * HORIZON
    assert rows["psnr"].value == pytest.approx(80.0, abs=1e-3)
    assert rows["ssim"].value == pytest.approx(1.0, abs=1e-3)  # float32 variances of flat frames
    assert rows["reward_error"].curve == [0.0] * HORIZON
    assert rows["success_precision"].value == rows["success_recall"].value == 1.0
    assert rows["success_hallucinated"].value == 0.0 and rows["success_threshold"].value == 7.5
    # standing still misses by 10 grey levels at the first step, where the walk is one of +-10
    assert rows["mse_zero"].curve is not None and rows["mse_zero"].curve[0] == pytest.approx((10 / 255) ** 2, rel=1e-5)
    assert rows["mse_zero"].value == pytest.approx(rows["mse_still"].value)
    assert rows["mse_shuffled"].value > 0
    assert rows["mse_gap_zero"].value == pytest.approx(rows["mse_zero"].value)
    assert rows["psnr_gap_zero"].value == pytest.approx(80.0 - rows["psnr_zero"].value, abs=1e-3)
    assert (rows["context_codes_used"].value, rows["context_codes_perplexity"].value) == (0.5, pytest.approx(2.0))


def test_published_counts_take_the_reconstructed_context_in() -> None:
    rows = measured(Steering(), segments())
    assert rows["mse_with_context"].value == pytest.approx(CONTEXT * 0.04 / (CONTEXT + HORIZON), rel=1e-4)


def test_the_best_of_samples_is_better_than_their_mean() -> None:
    drawn = segments(6)
    rows = measured(Steering(luck=1), drawn, samples=5)
    scores = score(Steering(luck=1), drawn, MetricModels(), RolloutPlan(5, 8, 0))
    assert scores["mse"].shape == (6, 5, HORIZON)
    assert rows["mse_best"].value == pytest.approx(float(scores["mse"].mean(-1).amin(1).mean()))
    assert rows["mse_best"].value < rows["mse"].value == pytest.approx(float(scores["mse"].mean()))
    assert rows["psnr_best"].value > rows["psnr"].value


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 4), (3, 7), (5, 2)])
def test_no_more_rollouts_side_by_side_than_asked_for(samples: int, batch_size: int) -> None:
    model, done, plan = Steering(), [], RolloutPlan(samples, batch_size, 0)
    scores = score(model, segments(9), MetricModels(), plan, done.append)
    assert max(model.rows) <= batch_size
    assert sum(model.rows) // HORIZON == sum(done) == plan.rollouts(9) == 9 * (samples + 2)
    assert scores["mse"].shape == (9, samples, HORIZON) and scores["reward"].eq(scores["real_reward"][:, None]).all()


def test_the_same_seed_gives_the_same_scores_and_leaves_torchs_generator() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        score(Steering(luck=1), segments(4), MetricModels(), RolloutPlan(2, 4, s)) for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["mse"], second["mse"]) and not torch.equal(first["mse"], other["mse"])


def test_a_success_bonus_of_the_model_is_added_to_the_datas_rewards() -> None:
    rows = measured(Steering(), segments(), MetricModels(threshold=12.0, success_bonus=10.0))
    drawn = segments().leading("success").float()
    assert rows["reward_error"].value == pytest.approx(10 * float(drawn.mean()))
    assert rows["success_recall_real"].value == 1.0 and rows["success_recall"].value == 0.0  # its rewards lack it


def test_nobody_keeps_their_own_actions() -> None:
    actions = torch.arange(20.0).reshape(5, 2, 2)
    others = other_actions(actions, seed=3)
    assert not others["zero"].any()
    assert sorted(others["shuffled"][:, 0, 0].tolist()) == actions[:, 0, 0].tolist()
    assert (others["shuffled"] != actions).all()
    assert "shuffled" not in other_actions(actions[:1], seed=3)


class Mute(Steering):
    """Without rewards, actions and codes."""

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        assert action.shape[-1] == 0
        return state, TensorDict(pixels=state, batch_size=[len(state)])

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return {}


def test_what_cannot_be_measured_is_named_and_not_zero() -> None:
    drawn = segments(4)
    scores = score(Mute(), drawn, MetricModels(), RolloutPlan(1, 4, 0, uses_actions=False))
    rows, left_out = summarise(scores, MetricModels())
    assert left_out.keys() == {"lpips", "fvd", "controllability", "reward error", "success", "gripper", "codes"}
    assert {row.name.split("_")[0] for row in rows} == {"mse", "psnr", "ssim"}
    without = Segments(drawn.records.exclude("reward", "success"), drawn.episode, CONTEXT)
    _, left_out = summarise(score(Steering(), without[:1], MetricModels(), RolloutPlan(1, 4, 0)), MetricModels())
    assert left_out.keys() == {"lpips", "fvd", "controllability, shuffled", "reward error", "success", "gripper"}


def test_no_success_without_a_threshold() -> None:
    rows, left_out = summarise(score(Steering(), segments(4), MetricModels(), RolloutPlan(1, 4, 0)), MetricModels())
    assert "data with steps of success and steps without" in left_out["success"]
    assert not [row for row in rows if row.name.startswith("success")]


def test_a_model_that_does_not_reconstruct_has_no_scores_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Steering, "reconstruct")
    drawn = draw_segments(episodes(), context=CONTEXT, horizon=HORIZON, count=4, seed=0)
    scores = score(Steering(), drawn, MetricModels(), RolloutPlan(2, 8, 0, uses_actions=True))
    names = {row.name for row in summarise(scores, MetricModels())[0]}
    assert "mse" in names and "mse_best" in names
    assert not {name for name in names if "_with_context" in name}
