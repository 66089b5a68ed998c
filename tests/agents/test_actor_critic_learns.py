"""The actor-critic learns to steer the toy from imagined rollouts alone, where the world model makes no error."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.agent import Agent
from mbrl.agents.imagination import Imagination
from mbrl.agents.schedule import Schedule
from mbrl.data.episodes import to_records
from mbrl.envs import toy
from mbrl.replay.replay import Replay
from policies.actor_critic import ActorCritic
from worldmodel.base import WorldModel

RESOLUTION, EPISODE, RANDOM_EPISODES = 16, 20, 100


class ExactToy(WorldModel):
    """The toy's own rules on [B] states, with its pictures."""

    context_length, max_horizon, state_dim, action_dim, resolution = 1, EPISODE, 4, 2, RESOLUTION

    def __init__(self, *observations: str) -> None:
        super().__init__()
        self.observations = observations

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {}

    def start(self, context: TensorDictBase) -> Tensor:
        return context["state"][:, -1]

    def step(self, state: Any, action: Tensor) -> tuple[Tensor, TensorDict]:
        agent, goal = state.chunk(2, -1)
        moved = (agent + toy.STRIDE * action).clamp(0.0, 1.0)
        gained = (goal - agent).norm(dim=-1, keepdim=True) - (goal - moved).norm(dim=-1, keepdim=True)
        after = torch.cat([moved, goal], -1)
        reward = toy.REWARD_SCALE * gained
        return after, TensorDict(state=after, pixels=picture(after), reward=reward, batch_size=[len(state)])

    def fork(self, state: Tensor, n: int) -> Tensor:
        return state.repeat_interleave(n, 0)


def picture(state: Tensor) -> Tensor:
    """States [B, 4] -> uint8 [B, 3, R, R]."""
    side = RESOLUTION // 8
    corner = (state * (RESOLUTION - side)).int()[..., None]  # [B, 4, 1]
    line = torch.arange(RESOLUTION)
    within = (line >= corner) & (line < corner + side)  # [B, 4, R]
    agent_x, agent_y, goal_x, goal_y = within.unbind(1)
    pixels = colour(toy._BACKGROUND)
    for x, y, on_top in ((goal_x, goal_y, toy._GOAL), (agent_x, agent_y, toy._AGENT)):
        pixels = torch.where((y[:, :, None] & x[:, None, :])[:, None], colour(on_top), pixels)
    return pixels


def colour(channels: tuple[int, ...]) -> Tensor:
    return torch.tensor(channels, dtype=torch.uint8)[:, None, None]


def environment(seed: int) -> EnvBase:
    return toy.make_env(seed=seed, resolution=RESOLUTION, episode_length=EPISODE)


def random_replay() -> Replay:
    env, replay = environment(0), Replay(RANDOM_EPISODES * (EPISODE + 1), frame_stack=3)
    for _ in range(RANDOM_EPISODES):
        replay.online.extend(to_records(env.rollout(EPISODE))[None])
    return replay


def mean_return(policy: ActorCritic | None) -> float:
    env = environment(1)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollouts = [env.rollout(EPISODE, policy.actor if policy else None) for _ in range(20)]
    return float(torch.stack([rollout["next", "reward"].sum() for rollout in rollouts]).mean())


def test_the_model_is_exact() -> None:
    rollout = environment(3).rollout(EPISODE)
    state, predicted = ExactToy("pixels", "state").step(rollout["state"], rollout["action"])
    torch.testing.assert_close(state, rollout["next", "state"])
    torch.testing.assert_close(predicted["reward"], rollout["next", "reward"], atol=1e-4, rtol=0)
    differing = (predicted["pixels"] != rollout["next", "pixels"]).flatten(1).any(1)
    assert differing.float().mean() < 0.1  # where a square's place is rounded from 64 bits


@pytest.mark.learns
@pytest.mark.parametrize(
    ("observation", "known", "updates", "gain"),
    [
        ("state", ("state",), 120, 2.5),
        pytest.param("frames", ("pixels", "state"), 500, 1.2, marks=pytest.mark.slow),  # 10 s
    ],
)
def test_learns_the_toy_in_imagination(observation: str, known: tuple[str, ...], updates: int, gain: float) -> None:
    torch.manual_seed(0)
    env, replay, model = environment(0), random_replay(), ExactToy(*known)
    policy = ActorCritic(
        env.observation_spec,
        env.action_spec,
        observation=observation,
        encoder_channels=(16, 32),
        encoder_strides=(2, 2),
        hidden_size=128,
        hidden_layers=2,
        gamma=0.9,
        learning_rate=5e-4,
        warmup=20,
    )
    sizes = {"resolution": RESOLUTION, "rollouts": 64, "horizon": 10, "retain": 1}
    imagination = Imagination(model, policy, replay, action_spec=env.action_spec, **sizes)
    schedule = Schedule(32, updates_per_step=1, learning_starts=0, real_ratio=0, imagine_every=8)
    agent = Agent(policy, model, imagination, schedule=schedule)
    random, before = mean_return(None), mean_return(policy)
    for step in range(updates):
        agent.update(replay, step, step)
    after = mean_return(policy)
    # The return is ten times the distance gained: 3 to 4 where the agent always arrives, below 0 where it wanders.
    assert after > max(random, before) + gain, (random, before, after)
