"""DrQ-v2 learns to steer a square onto another from pixels, within a minute on one core."""

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.envs.toy import make_env
from policies.drqv2 import DrQV2

pytestmark = pytest.mark.learns

EPISODE, RANDOM_EPISODES, EPISODES, UPDATES_PER_EPISODE, BATCH = 20, 20, 50, 20, 64


def play(env: EnvBase, policy: DrQV2 | None, kind: ExplorationType = ExplorationType.RANDOM) -> TensorDictBase:
    """One episode [T] of one-step transitions; random actions where there is no policy."""
    with torch.no_grad(), set_exploration_type(kind):
        return env.rollout(EPISODE, policy.actor if policy else None)


def mean_return(env: EnvBase, policy: DrQV2 | None) -> float:
    """Of the same ten episodes each time, without noise."""
    env.seek(0)
    returns = [play(env, policy, ExplorationType.DETERMINISTIC)["next", "reward"].sum() for _ in range(10)]
    return float(torch.stack(returns).mean())


def train(env: EnvBase, policy: DrQV2) -> None:
    replay = [play(env, None) for _ in range(RANDOM_EPISODES)]
    for episode in range(EPISODES):
        policy.set_env_steps(episode * EPISODE)
        replay.append(play(env, policy))
        stored = torch.cat(replay).select(
            "frames", "action", ("next", "frames"), ("next", "reward"), ("next", "terminated")
        )
        for _ in range(UPDATES_PER_EPISODE):
            batch: TensorDict = stored[torch.randint(len(stored), (BATCH,))]
            policy.update(batch.set("gamma", torch.full((BATCH, 1), 0.9)))


@pytest.mark.slow  # 13 s
def test_learns_the_toy() -> None:
    torch.manual_seed(0)
    settings = {"resolution": 16, "episode_length": EPISODE}
    env, test_env = make_env(seed=0, **settings), make_env(seed=1, **settings)
    policy = DrQV2(
        env.observation_spec,
        env.action_spec,
        encoder_channels=(16, 32),
        encoder_strides=(2, 2),
        hidden_size=64,
        critic_layer_norm=True,
        learning_rate=2e-3,
        std_env_steps=300,
        shift_pad=1,
    )
    before = mean_return(test_env, None)
    train(env, policy)
    after = mean_return(test_env, policy)
    # The return is ten times the distance gained: 3 to 4 where the agent arrives, about 0 where it wanders.
    assert after > before + 2.0, (before, after)
