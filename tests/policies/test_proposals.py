"""A frozen clone beside an actor: the critics choose, for acting and for targets; and what comes before it learns."""

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.drqv2 import DrQV2
from policies.sac import SAC
from policies.value_base import ValuePolicy
from tests.policies.test_cloning import actor_critic, batch, drqv2, sac

LEARNERS = pytest.mark.parametrize("make", [drqv2, sac])


class Sum(nn.Module):
    """Critics whose values can be worked out by hand: 3 and 2 times (the sum of the actions + 1), times `sign`."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        value = self.sign * action.sum(dim=-1, keepdim=True) + 1.0
        return torch.stack((3.0 * value, 2.0 * value))


def always(policy: ValuePolicy, actor: nn.Module, action: float) -> None:
    """Let an actor take one action in every state, without noise."""
    last = actor.head[-1] if isinstance(policy, DrQV2) else actor.network[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(float(torch.atanh(torch.tensor(action))))
        if isinstance(policy, SAC):
            last.bias[2:] = -20.0  # the smallest standard deviation


def with_clone(policy: ValuePolicy, own: float, cloned: float, sign: int = 1) -> ValuePolicy:
    """Let the policy propose one action, and its clone another; with the sign 1 the critics prefer the larger one."""
    always(policy, policy.actor, cloned)
    policy.keep_clone()
    policy.end_cloning()
    always(policy, policy.actor, own)
    policy.target_critic = Sum(sign)
    return policy


def acts(policy: ValuePolicy) -> Tensor:
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return policy.acting(batch())["action"]


@LEARNERS
@pytest.mark.parametrize(("sign", "best"), [(1, 0.5), (-1, -0.25)])
def test_the_better_of_both_acts(make, sign: int, best: float) -> None:
    """The critics prefer large actions or, with the other sign, small ones, whoever proposes them."""
    for own, cloned in ((0.5, -0.25), (-0.25, 0.5)):
        torch.testing.assert_close(acts(with_clone(make(), own, cloned, sign)), torch.full((32, 2), best))


@LEARNERS
def test_without_a_clone_the_actor_acts(make) -> None:
    policy = make()
    assert policy.acting is policy.actor and not any("frozen" in name for name in policy.state_dict())


def test_targets_by_hand() -> None:
    rows = batch()[:2]
    rows["next", "reward"], rows["next", "terminated"] = torch.full((2, 1), 5.0), torch.tensor([[False], [True]])
    # The lower critic says 2 (0.25 + 0.25 + 1) = 3 of the actor's action and 2 (0.5 + 0.5 + 1) = 4 of the clone's;
    # the discount is 0.5.
    for own, cloned in ((0.25, 0.5), (0.5, 0.25)):
        policy = with_clone(drqv2(), own, cloned)
        policy.std_clip = 0.0
        with torch.no_grad():
            target = policy.target(policy.actor.encode(rows["next"]), rows)
        torch.testing.assert_close(target, torch.tensor([[5.0 + 0.5 * 4.0], [5.0]]))


def test_targets_of_sac_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch()[:2]
    rows["next", "reward"], rows["next", "terminated"] = torch.full((2, 1), 5.0), torch.tensor([[False], [True]])
    for log_prob, worth in ((0.5, 4.0), (-3.0, 6.0)):  # 2 (0.5 + 0.5 + 1), or 3 + 3 for the entropy at temperature 1
        policy = with_clone(sac(), 0.25, 0.5)
        drawn = (torch.full((2, 2), 0.25), torch.full((2, 1), log_prob))
        monkeypatch.setattr(policy.actor, "sample", lambda features, drawn=drawn: drawn)
        torch.testing.assert_close(policy.target(rows), torch.tensor([[5.0 + 0.5 * worth], [5.0]]))


@LEARNERS
def test_a_clone_that_is_an_anchor_proposes_nothing(make) -> None:
    policy = make()
    always(policy, policy.actor, -0.25)
    policy.keep_clone(proposes=False, anchors=True)
    policy.end_cloning()
    always(policy, policy.actor, 0.5)
    torch.testing.assert_close(acts(policy), torch.full((32, 2), 0.5))
    torch.testing.assert_close(policy.cloned_action(batch()), torch.full((32, 2), -0.25))


@LEARNERS
def test_calibration_moves_the_critics_alone(make) -> None:
    torch.manual_seed(0)
    policy, rows = make(), batch()
    policy.clone(rows)
    policy.keep_clone()
    policy.end_cloning()
    before = copy.deepcopy(policy.state_dict())
    metrics = policy.calibrate(rows)
    moved = {name.split(".")[0] for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"critic", "target_critic"}
    assert set(metrics) == {"critic_loss", "q", "target_q"}


@LEARNERS
def test_updates_leave_the_clone_as_it_was(make) -> None:
    torch.manual_seed(0)
    policy, rows = make(), batch()
    policy.keep_clone()
    policy.clone(rows)
    policy.end_cloning()
    cloned = acts(policy)
    for _ in range(3):
        policy.update(rows)
    policy.actor = policy.frozen
    torch.testing.assert_close(acts(policy), cloned, rtol=0, atol=0)


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
    torch.manual_seed(0)
    policy, again, rows = make(), make(), batch()
    for each in (policy, again):
        each.keep_clone()
    policy.clone(rows)
    policy.end_cloning()
    again.load_state_dict(policy.state_dict())
    for each in (policy, again):
        torch.manual_seed(1)
        each.update(rows)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())


def test_the_clone_explores_as_the_actor_does() -> None:
    policy = with_clone(drqv2(), -0.25, 0.5)
    policy.set_env_steps(0)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(policy.acting(batch())["action"], torch.full((32, 2), 0.5))
        with policy.limited_noise(0.0):
            torch.testing.assert_close(policy.acting(batch())["action"], torch.full((32, 2), 0.5))
        single: TensorDict = policy.acting(batch()[0])
    assert single["action"].shape == (2,)
