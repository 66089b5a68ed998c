"""DreamerV3's actor-critic: known answers, what the gradients reach, and TorchRL's losses as the oracle."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.actor_critic import ActorCritic, clipped_gain, continues, discounted_weight

ACTIONS = Bounded(-1.0, 1.0, (2,))
SPECS = Composite(frames=Bounded(0, 255, (9, 16, 16), dtype=torch.uint8), state=Unbounded((3,)))
B, H, D = 4, 5, 6


def small(**changes: object) -> ActorCritic:
    settings: dict[str, object] = {"observation": "features", "feature_size": D, "hidden_size": 16, "bins": 41}
    pixels = {"encoder_channels": (8, 8), "encoder_strides": (2, 2)}
    return ActorCritic(SPECS, ACTIONS, **(settings | pixels | {"warmup": 0, "learning_rate": 1e-3} | changes))


def rollouts(policy: ActorCritic) -> TensorDict:
    """[B, H + 1] rows of features or frames whose actions the policy took itself."""
    shape = [B, H + 1]
    batch = TensorDict(
        features=torch.randn(*shape, D),
        frames=torch.randint(0, 256, (*shape, 9, 16, 16), dtype=torch.uint8),
        next=TensorDict(
            reward=torch.randn(*shape, 1), terminated=torch.zeros(*shape, 1, dtype=torch.bool), batch_size=shape
        ),
        batch_size=shape,
    )
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return policy.actor(batch)


def give_the_critic_an_opinion(policy: ActorCritic) -> None:
    torch.nn.init.normal_(policy.critic[-1].weight, std=0.5)
    policy.slow_critic.load_state_dict(policy.critic.state_dict())


def test_a_fresh_critic_knows_nothing_and_a_fresh_actor_tries_everything() -> None:
    torch.manual_seed(0)
    policy = small()
    batch = rollouts(policy)
    assert (policy.two_hot.decode(policy.critic(batch["features"])) == 0).all()
    assert batch["action"].abs().max() <= 1
    assert policy.actor.distribution(torch.randn(1000, D)).scale.mean().item() == pytest.approx(0.89, abs=0.02)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = policy.actor(batch.clone()), policy.actor(batch.clone())
    assert torch.equal(first["action"], second["action"])


def test_weights_by_hand() -> None:
    alive = torch.tensor([[1.0, 0.5, 1.0, 0.0]])
    assert discounted_weight(alive, 0.5).tolist() == [[1.0, 0.25, 0.125, 0.0]]


def test_a_rollout_weighs_nothing_after_it_terminated() -> None:
    terminated = torch.tensor([[[False], [True], [False]]])
    batch = TensorDict(next=TensorDict(terminated=terminated, batch_size=[1, 3]), batch_size=[1, 3])
    assert continues(batch).tolist() == [[1.0, 1.0, 0.0]]
    batch["continue"] = torch.tensor([[[0.9], [0.8], [0.7]]])
    assert continues(batch).tolist() == [[pytest.approx(0.9), pytest.approx(0.8), pytest.approx(0.7)]]


def test_clipping_by_hand() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped_gain(ratio, advantage, 0.2), torch.tensor([0.5, -0.8, 1.2, -1.5]))
