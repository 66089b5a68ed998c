"""A frozen clone of an actor, critics that learn alone, and what imitation leaves to the updates after it."""

import copy

import pytest
import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.value_base import ValuePolicy
from tests.policies.test_cloning import actor_critic, batch, drqv2, sac

LEARNERS = pytest.mark.parametrize("make", [drqv2, sac])


def with_clone(make) -> ValuePolicy:
    torch.manual_seed(0)
    policy: ValuePolicy = make()
    policy.keep_clone()
    policy.clone(batch())
    policy.end_cloning()
    return policy


def action(policy: ValuePolicy) -> Tensor:
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return policy.actor(batch())["action"]


@LEARNERS
def test_without_a_clone_there_are_no_weights_of_one(make) -> None:
    assert not any("frozen" in name for name in make().state_dict())


@LEARNERS
def test_updates_leave_the_clone_as_it_was(make) -> None:
    policy = with_clone(make)
    before = action(policy)
    for _ in range(3):
        policy.update(batch())
    assert not torch.equal(action(policy), before)
    torch.testing.assert_close(policy.cloned_action(batch()), before, rtol=0, atol=0)


@LEARNERS
def test_the_clones_action_has_no_noise_while_the_actor_explores(make) -> None:
    policy = with_clone(make)
    policy.set_env_steps(0)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(policy.actor(batch())["action"], action(policy))
        torch.testing.assert_close(policy.cloned_action(batch()), action(policy), rtol=0, atol=0)


@LEARNERS
def test_calibration_moves_the_critics_alone(make) -> None:
    policy = with_clone(make)
    before = copy.deepcopy(policy.state_dict())
    metrics = policy.calibrate(batch())
    moved = {name.split(".")[0] for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"critic", "target_critic"}
    assert set(metrics) == {"critic_loss", "q", "target_q"}


@pytest.mark.parametrize("make", [drqv2, sac, actor_critic])
def test_moments_are_forgotten_when_imitation_ends(make) -> None:
    torch.manual_seed(0)
    policy, rows = make(), batch()
    policy.clone(rows)
    assert policy.optimizers["actor"].state
    policy.end_cloning()
    assert not any(optimizer.state for optimizer in policy.optimizers.values())
    assert all(group.get("step", 0) == 0 for o in policy.optimizers.values() for group in o.param_groups)


@LEARNERS
def test_a_policy_with_a_clone_resumes_to_the_bit(make) -> None:
    policy, again, rows = with_clone(make), make(), batch()
    again.keep_clone()
    again.load_state_dict(policy.state_dict())
    for each in (policy, again):
        torch.manual_seed(1)
        each.update(rows)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())
