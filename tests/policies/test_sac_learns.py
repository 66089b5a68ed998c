"""SAC learns to steer a square onto another from its state, within a minute on one core."""

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.envs.toy import make_env
from policies.sac import SAC

pytestmark = pytest.mark.learns

EPISODE, RANDOM_EPISODES, EPISODES, UPDATES_PER_EPISODE, BATCH = 20, 20, 24, 20, 64


def play(env: EnvBase, policy: SAC | None, kind: ExplorationType = ExplorationType.RANDOM) -> TensorDictBase:
    """One episode [T] of one-step transitions; random actions where there is no policy."""
    with torch.no_grad(), set_exploration_type(kind):
        return env.rollout(EPISODE, policy.actor if policy else None)


def mean_return(env: EnvBase, policy: SAC | None) -> float:
    """Of the same ten episodes each time, without noise."""
    env.seek(0)
    returns = [play(env, policy, ExplorationType.DETERMINISTIC)["next", "reward"].sum() for _ in range(10)]
    return float(torch.stack(returns).mean())


def train(env: EnvBase, policy: SAC) -> None:
    replay = [play(env, None) for _ in range(RANDOM_EPISODES)]
    for _ in range(EPISODES):
        replay.append(play(env, policy))
        stored = torch.cat(replay).select(
            "state", "action", ("next", "state"), ("next", "reward"), ("next", "terminated")
        )
        for _ in range(UPDATES_PER_EPISODE):
            batch: TensorDict = stored[torch.randint(len(stored), (BATCH,))]
            policy.update(batch.set("gamma", torch.full((BATCH, 1), 0.9)))


def test_learns_the_toy() -> None:
    torch.manual_seed(0)
    settings = {"pixels": False, "episode_length": EPISODE}
    env, test_env = make_env(seed=0, **settings), make_env(seed=1, **settings)
    policy = SAC(env.observation_spec, env.action_spec, learning_rate=1e-3, temperature=0.1)
    floor = max(mean_return(test_env, None), mean_return(test_env, policy))
    train(env, policy)
    after = mean_return(test_env, policy)
    # The return is ten times the distance gained: 3 to 4 where the agent arrives, about 0 where it wanders.
    assert after > floor + 2.0, (floor, after)
