"""The real simulator as a world model: a model without error, to part the error of a model from that of an algorithm.

B rollouts, n numbers of a snapshot, A action, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.envs import EnvBase

from mbrl.data.episodes import SNAPSHOT
from mbrl.envs.gym import require_snapshots
from mbrl.envs.snapshots import SnapshotLayout
from mbrl.errors import UserError
from worldmodel.base import Outcome, WorldModel


class SimulatorModel(WorldModel):
    """Predicts by restoring the simulator to a replayed state and stepping it. There is nothing to learn.

    Its state is the snapshots, float64 [B, n].

    Args:
        observation_spec: `pixels` are predicted where the environment has them, `state` otherwise.
        action_spec: [A].
        env: the environment, which must be one that can be restored. Rewards are those that it gives, a success bonus
            included.

    Raises:
        UserError: the environment cannot be restored, or observations have no snapshots.
    """

    context_length, max_horizon = 1, 100
    context_keys = (SNAPSHOT,)
    reads_reward = True

    def __init__(self, observation_spec: Composite, action_spec: TensorSpec, *, env: EnvBase) -> None:
        super().__init__()
        require_snapshots(env.unwrapped)
        if getattr(env.unwrapped, "tasks", ()):
            raise UserError("the simulator as a world model needs a single task: several have other snapshots each")
        if SNAPSHOT not in observation_spec.keys():
            raise UserError(
                "the simulator as a world model starts from snapshots of replayed states: set env.snapshots=true"
            )
        self._owner = (env,)  # In a tuple: it is no part of this module, and must live, because its end frees OpenGL.
        self._env: Any = env.unwrapped
        self._layout = SnapshotLayout.of(self._env)
        self.observations = ("pixels",) if "pixels" in observation_spec.keys() else ("state",)
        self._env.renders = self._renders = "pixels" in self.observations
        if self._renders:
            self.resolution = observation_spec["pixels"].shape[-1]
        self.state_dim = observation_spec["state"].shape[-1] if "state" in observation_spec.keys() else 0
        self.action_dim = action_spec.shape[-1]
        self.register_buffer("_where", torch.empty(0), persistent=False)  # It follows the policy to its device.

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}

    def start(self, context: TensorDictBase) -> Tensor:
        """As WorldModel.start; the context must hold `snapshot` float64 [B, C, n]."""
        if SNAPSHOT not in context.keys():
            raise UserError(
                "the simulator as a world model starts from snapshots, which these steps do not have: they come from "
                "demonstrations or from files (leave replay.demo_share at 0)"
            )
        snapshots: Tensor = context[SNAPSHOT][:, -1].cpu()
        if snapshots.shape[-1] != self._layout.size:
            found, wanted = snapshots.shape[-1], self._layout.size
            raise UserError(f"snapshots of {found} numbers are of another task: this simulator's have {wanted}")
        return snapshots

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        snapshots, steps = [], []
        for snapshot, move in zip(state, action.cpu().numpy(), strict=True):
            self._env.restore(self._layout.unpack(snapshot))
            observation, reward, _, _, _ = self._env.step(move)
            observed = {key: observation[key] for key in self.observations}
            steps.append({**observed, "reward": np.asarray([reward], np.float32)})
            snapshots.append(self._layout.pack(self._env.snapshot()))
        stacked = {key: torch.from_numpy(np.stack([step[key] for step in steps])) for key in steps[0]}
        return torch.stack(snapshots), TensorDict(stacked, batch_size=[len(steps)]).to(self.device)

    def observe(self, state: Tensor, action: Tensor, observed: TensorDictBase) -> tuple[Tensor, TensorDict]:
        """As WorldModel.observe; what was observed is what the simulator gives."""
        state, prediction = self.step(state, action)
        return state, prediction.select("reward")

    def fork(self, state: Tensor, n: int) -> Tensor:
        return state.repeat_interleave(n, 0)

    def outcome(self, state: Tensor, actions: Tensor, frames: int = 0) -> Outcome:
        """As WorldModel.outcome; each rollout is stepped to its end, and no frame is rendered but these."""
        rewards, shown = torch.zeros(actions.shape[:2]), []
        for row, moves in enumerate(actions.cpu().numpy()):
            self._env.restore(self._layout.unpack(state[row]))
            try:
                for step, move in enumerate(moves):
                    self._env.renders = len(moves) - step <= frames
                    observation, rewards[row, step], _, _, _ = self._env.step(move)
                    if self._env.renders:
                        shown.append(torch.from_numpy(observation["pixels"]))
            finally:
                self._env.renders = self._renders
        pixels = torch.stack(shown).unflatten(0, (-1, frames)).to(self.device) if frames else None
        return Outcome(rewards.to(self.device), pixels)


def simulator_for(env: EnvBase, make_env: Callable[[], EnvBase]) -> SimulatorModel | None:
    """The simulator as a world model; None for an environment whose observations have no snapshots.

    Args:
        env: the environment, for its specs.
        make_env: makes the environment that is restored.
    """
    if SNAPSHOT not in env.observation_spec.keys():
        return None
    return SimulatorModel(env.observation_spec, env.action_spec, env=make_env())
