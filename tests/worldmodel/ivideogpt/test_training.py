"""Gradient steps by hand: warm-up, clipping, and the plan of what is trained when."""

from itertools import product
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from tests.worldmodel.ivideogpt.test_model import CONTEXT, make, sequences
from worldmodel.ivideogpt.training import TrainingPlan, gradient_step
from worldmodel.ivideogpt.transformer.transformer import TransformerLoss


def moved(*, done: int, warmup: int, clip_norm: float) -> tuple[float, float]:
    """How far plain gradient descent of rate 0.5 moves a weight with gradient 8, and the norm that is told."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    norm = gradient_step(optimizer, 8 * weight.sum(), done=done, warmup=warmup, clip_norm=clip_norm, name="part")
    return -float(weight.detach()), float(norm)


def test_warmup_and_clipping() -> None:
    assert moved(done=0, warmup=0, clip_norm=100.0) == (4.0, 8.0)
    assert moved(done=0, warmup=4, clip_norm=100.0) == (1.0, 8.0)  # a quarter of the rate
    assert moved(done=1, warmup=4, clip_norm=100.0) == (2.0, 8.0)
    assert moved(done=9, warmup=4, clip_norm=100.0) == (4.0, 8.0)
    step, norm = moved(done=0, warmup=0, clip_norm=2.0)
    assert step == pytest.approx(1.0, rel=1e-4) and norm == 8.0  # the norm before clipping


def test_plan() -> None:
    plan = TrainingPlan(tokenizer_updates=2, tokenizer_every=3)
    assert [update for update in range(8) if plan.trains_tokenizer(update)] == [0, 1, 4, 7]
    assert not TrainingPlan(0, 0).trains_tokenizer(5)
    plan = TrainingPlan(tokenizer_updates=2, tokenizer_every=1, tokenizer_last=3)
    assert [update for update in range(8) if plan.trains_tokenizer(update)] == [0, 1, 2, 3, 4]
    assert [update for update in range(8) if plan.changes_codes(update)] == [0, 1, 2, 3, 4]


def test_codes_change_as_long_as_the_tokenizer_learns() -> None:
    for first, every, last in product(range(4), range(4), (None, *range(5))):
        plan = TrainingPlan(first, every, tokenizer_last=last)
        for update in range(10):
            assert plan.changes_codes(update) or not any(map(plan.trains_tokenizer, range(update, 12))), plan


def test_the_losses_of_the_transformer_are_weighted_by_hand() -> None:
    model, batch = make(), sequences()
    objective = model.objectives["transformer"]
    objective.plan = TrainingPlan(0, 0, reward_weight=2.0, state_weight=3.0)
    numbers = [torch.tensor(value) for value in (0.5, 0.25, 0.125)]
    objective.transformer.losses = Mock(return_value=TransformerLoss(*numbers, torch.ones(1), None))
    assert float(objective(batch)["loss"]) == 0.5 + 2 * 0.25 + 3 * 0.125


def test_tokens_are_read_as_random_ones_in_training_alone() -> None:
    model, batch = make(), sequences()
    objective = model.objectives["transformer"]
    plain = float(objective.eval()(batch)["loss"])
    objective.plan = TrainingPlan(0, 0, token_noise=0.9)
    assert float(objective.eval()(batch)["loss"]) == plain
    assert float(objective.train()(batch)["loss"]) != plain


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_by_any_loop_is_seen_by_the_next_rollout(fused: bool) -> None:
    """A fused optimiser does not count its writes, so that they cannot be seen in the weights."""
    model, batch = make(), sequences()
    model.optimizers["transformer"].defaults["fused"] = fused
    for group in model.optimizers["transformer"].param_groups:
        group["fused"] = fused
    before = model.predict(batch[:, :CONTEXT], batch["action"][:, :2])["reward"]
    model.objectives["transformer"](batch)["loss"].backward()
    model.optimizers["transformer"].step()
    assert not torch.equal(model.predict(batch[:, :CONTEXT], batch["action"][:, :2])["reward"], before)
