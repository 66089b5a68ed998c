"""Branch real states, roll the policy out in the imagination env, and keep what it saw for the policy to learn from."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.envs.imagined import ImaginationEnv
from mbrl.replay import EpisodeBuffer, Replay
from policies.base import Policy
from worldmodel.base import WorldModel


class Imagination:
    """Short imagined rollouts, kept as episodes whose first rows are the real history they branched from.

    Args:
        rollouts: rollouts side by side, B. horizon: steps of each, H.
        retain: how many calls of `run` are kept; older rollouts, of older policies and models, leave.
        divide_pixels_twice: bring back the published loop's defect 1: imagined pixels reach the policy divided by
            255 twice, so that it is almost blind to them.
        Other arguments: see ImaginationEnv and EpisodeBuffer.
    """

    def __init__(
        self,
        world_model: WorldModel,
        policy: Policy,
        replay: Replay,
        *,
        action_spec: TensorSpec,
        resolution: int,
        rollouts: int,
        horizon: int,
        retain: int,
        divide_pixels_twice: bool = False,
    ) -> None:
        real = replay.online
        self.policy, self.horizon = policy, horizon
        self.divide_pixels_twice = divide_pixels_twice
        self.env = ImaginationEnv(
            world_model,
            replay.starts,
            action_spec=action_spec,
            batch_size=rollouts,
            horizon=horizon,
            resolution=resolution,
            frame_stack=real.frame_stack,
            device=policy.device,
        )
        rows = self.env.history + horizon
        self.buffer = EpisodeBuffer(
            retain * rollouts * rows, frame_stack=real.frame_stack, n_step=real.n_step, gamma=real.gamma
        )

    @torch.no_grad()
    def run(self) -> dict[str, torch.Tensor]:
        """Imagine B rollouts of H steps from fresh real starts with the policy's exploration, and keep them."""
        with set_exploration_type(ExplorationType.RANDOM):
            rollout = self.env.rollout(self.horizon, self.policy.actor, break_when_any_done=False)
        self.buffer.extend(imagined_records(self.env.history_records, rollout).cpu(), first=self.env.history - 1)
        reward = rollout["next", "reward"]
        return {"imagined_reward": reward.mean(), "imagined_reward_last": reward[:, -1].mean()}

    def transitions(self, batch_size: int) -> TensorDict:
        """Imagined n-step transitions, as EpisodeBuffer.transitions gives them."""
        batch = self.buffer.transitions(batch_size)
        if self.divide_pixels_twice:
            for part in (batch, batch["next"]):
                part["frames"] = part["frames"].float() / 255
        return batch

    def __len__(self) -> int:
        return len(self.buffer)

    def state_dict(self) -> dict[str, Any]:
        return self.buffer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)


def imagined_records(history: TensorDict, rollout: TensorDict) -> TensorDict:
    """History [B, h] and the rollout [B, H] branched from its last row, as record episodes [B, h + H].

    Row h - 1 is the real state with the first imagined action; the last row holds the final frame only.
    """
    (batch, length), horizon = history.batch_size, rollout.batch_size[1]

    def after(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.cat([before[:, :-1], values, torch.zeros_like(values[:, :1])], 1)

    none = torch.zeros(batch, length, 1, device=rollout.device)
    return TensorDict(
        pixels=torch.cat([history["pixels"], rollout["next", "pixels"]], 1),
        action=after(rollout["action"], history["action"]),
        reward=after(rollout["next", "reward"], none),
        terminated=after(rollout["next", "terminated"], none.bool()),
        truncated=after(rollout["next", "truncated"], none.bool()),
        batch_size=[batch, length + horizon],
    )
