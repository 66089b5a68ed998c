"""Learners that imitate first, and keep to what was demonstrated while their critics learn."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.actor_critic import ActorCritic
from policies.base import Policy
from policies.drqv2 import DrQV2
from policies.sac import SAC

ACTION = Bounded(-1, 1, (2,))
ROWS = 32


def drqv2() -> DrQV2:
    spec = Composite(frames=Bounded(0, 255, (3, 16, 16), dtype=torch.uint8))
    sizes = {"encoder_channels": (8, 8), "encoder_strides": (2, 2), "hidden_size": 32, "shift_pad": 0}
    return DrQV2(spec, ACTION, **sizes, learning_rate=1e-3, target_rate=0.1)


def sac() -> SAC:
    return SAC(Composite(state=Unbounded((5,))), ACTION, learning_rate=1e-3)


def actor_critic() -> ActorCritic:
    spec = Composite(state=Unbounded((5,)))
    return ActorCritic(spec, ACTION, observation="state", hidden_size=64, hidden_layers=2, learning_rate=1e-2, warmup=1)


LEARNERS = pytest.mark.parametrize("make", [drqv2, sac])


def batch() -> TensorDict:
    """Rows with an action of their own each; the same ones at every call."""
    random = torch.Generator().manual_seed(0)

    def seen() -> dict[str, torch.Tensor]:
        frames = torch.randint(0, 256, (ROWS, 3, 16, 16), generator=random, dtype=torch.uint8)
        return {"frames": frames, "state": torch.randn(ROWS, 5, generator=random)}

    after = {
        **seen(),
        "reward": torch.ones(ROWS, 1),
        "terminated": torch.zeros(ROWS, 1, dtype=torch.bool),
    }
    return TensorDict(
        **seen(),
        action=0.8 * (2 * torch.rand(ROWS, 2, generator=random) - 1),
        gamma=torch.full((ROWS, 1), 0.5),
        next=TensorDict(after, batch_size=[ROWS]),
        batch_size=[ROWS],
    )


def error(policy: Policy, rows: TensorDict) -> float:
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        done = policy.actor(rows.clone())["action"]
    return float((done - rows["action"]).square().mean())


@pytest.mark.learns
@pytest.mark.parametrize("make", [drqv2, sac, actor_critic])
def test_cloning_learns_actions_and_their_values(make) -> None:
    torch.manual_seed(0)
    policy, rows = make(), batch()
    policy.set_env_steps(2**62)
    before = error(policy, rows)
    for _ in range(200):
        metrics = policy.clone(rows)
    assert error(policy, rows) < 0.1 * before
    assert set(metrics) >= ({"cloning_loss"} if make is actor_critic else {"cloning_loss", "critic_loss", "q"})
    if make is drqv2:  # reward 1, discount 0.5: worth 2 (SAC adds its entropy)
        assert metrics["q"].item() == pytest.approx(2.0, abs=0.2)


def test_the_encoder_learns_from_imitation_and_not_from_values() -> None:
    torch.manual_seed(0)
    policy, rows = drqv2(), batch()
    again = drqv2()
    again.load_state_dict(policy.state_dict())
    rows_of_other_worth = rows.clone()
    rows_of_other_worth["next", "reward"] = 100 * torch.randn(ROWS, 1)
    for learner, shown in ((policy, rows), (again, rows_of_other_worth)):
        before = learner.actor.encoder.layers[0].weight.detach().clone()
        learner.clone(shown)
        assert not torch.equal(learner.actor.encoder.layers[0].weight, before)
    for ours, theirs in zip(policy.actor.parameters(), again.actor.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.learns
@LEARNERS
def test_the_cloning_term_holds_the_actor_to_what_was_demonstrated(make) -> None:
    """From the same clone, updates on the same rows: the more they weigh, the less the actor leaves them."""
    left = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        policy, rows = make(), batch()
        policy.set_env_steps(2**62)
        for _ in range(100):
            policy.clone(rows)
        rows["cloning"] = torch.full((ROWS, 1), weight)
        with torch.no_grad():  # a critic that wants another action
            for parameter in policy.critic.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(50):
            policy.update(rows)
        left.append(error(policy, rows))
    assert left[1] < 0.3 * left[0], left


@LEARNERS
def test_a_weight_of_nothing_changes_nothing(make) -> None:
    learners = []
    for key in (None, "cloning"):
        torch.manual_seed(0)
        policy, rows = make(), batch()
        if key:
            rows[key] = torch.zeros(ROWS, 1)
        policy.update(rows)
        learners.append(policy.state_dict())
    assert all(torch.equal(value, learners[1][name]) for name, value in learners[0].items())
