"""Ablation world models in which either the frames or the rewards come from the simulator.

B rollouts, T time, n numbers of a snapshot, R resolution, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.envs import EnvBase

from mbrl.envs.simulator_model import SimulatorModel
from worldmodel.base import Outcome, WorldModel
from worldmodel.reward_base import RewardModel


class Seen(NamedTuple):
    """State of the rollouts: the snapshots, float64 [B, n], and the newest frames, uint8 [B, 3, R, R]."""

    snapshots: Tensor
    pixels: Tensor


class LearnedRewards(SimulatorModel):
    """Simulated frames, and rewards that a learned network predicts from them.

    A fairer upper bound than `SimulatorModel`, which gives true rewards even in states that the agent never visited.

    Args:
        observation_spec: has `pixels`.
        action_spec: [A].
        env: as in SimulatorModel.
        rewards: makes the `RewardModel` when called with (R, A).

    Raises:
        UserError: as SimulatorModel.
        ValueError: there are no pixels to predict rewards from.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        env: EnvBase,
        rewards: Callable[..., RewardModel],
    ) -> None:
        super().__init__(observation_spec, action_spec, env=env)
        if "pixels" not in self.observations:
            raise ValueError("rewards are predicted from pixels, and this environment has none: set env.pixels=true")
        self.rewards = rewards(self.resolution, self.action_dim)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"reward_network": self.rewards.optimizer}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step of the reward model, on the transitions between the frames of a batch [B, T]."""
        return self.rewards.update(batch)

    def start(self, context: TensorDictBase) -> Seen:  # type: ignore[override]
        """As SimulatorModel.start; the context must also hold `pixels`."""
        return Seen(super().start(context), context["pixels"][:, -1])

    def step(self, state: Seen, action: Tensor) -> tuple[Seen, TensorDict]:  # type: ignore[override]
        snapshots, prediction = super().step(state.snapshots, action)
        return self._read(state, action, snapshots, prediction)

    def observe(  # type: ignore[override]
        self, state: Seen, action: Tensor, observed: TensorDictBase
    ) -> tuple[Seen, TensorDict]:
        """As WorldModel.observe, from `pixels`."""
        snapshots, _ = super().step(state.snapshots, action)
        state, prediction = self._read(state, action, snapshots, observed.select("pixels"))
        return state, prediction.select("reward")

    def _read(self, before: Seen, action: Tensor, snapshots: Tensor, shown: TensorDictBase) -> tuple[Seen, TensorDict]:
        """The state after a step that shows `pixels`, and these with the reward predicted from them."""
        pixels = shown["pixels"]
        reward = self.rewards(before.pixels, pixels, action)
        return Seen(snapshots, pixels), TensorDict(pixels=pixels, reward=reward, batch_size=[len(action)])

    def fork(self, state: Seen, n: int) -> Seen:  # type: ignore[override]
        return Seen(*(part.repeat_interleave(n, 0) for part in state))

    def outcome(self, state: Any, actions: Tensor, frames: int = 0) -> Outcome:
        """As WorldModel.outcome; every frame is rendered, because its reward is predicted from it."""
        return WorldModel.outcome(self, state, actions, frames)


class Halves(NamedTuple):
    """State of the rollouts in both models."""

    learned: Any
    simulated: Any


class LearnedFrames(WorldModel):
    """Frames of a learned model, and the simulator's rewards for the same actions.

    Args:
        observation_spec: as both models read it.
        action_spec: [A].
        learned: makes the learned model when called with the specs. It predicts frames; its rewards are not read.
        simulator: makes the simulator as a world model when called with the specs but those of images.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        learned: Callable[..., WorldModel],
        simulator: Callable[..., WorldModel],
    ) -> None:
        super().__init__()
        self.learned = learned(observation_spec=observation_spec, action_spec=action_spec)
        # Of the simulator only rewards are read: without images among its observations it renders nothing.
        unseen = Composite({key: spec for key, spec in observation_spec.items() if key not in ("pixels", "frames")})
        self.simulator = simulator(observation_spec=unseen, action_spec=action_spec)
        self.context_length = max(self.learned.context_length, self.simulator.context_length)
        self.max_horizon = min(self.learned.max_horizon, self.simulator.max_horizon)
        self.context_keys = (*self.learned.context_keys, *self.simulator.context_keys)
        self.first_updates = self.learned.first_updates
        self.observations, self.resolution = self.learned.observations, self.learned.resolution
        self.action_dim = self.learned.action_dim
        self.trained_horizon, self.temperature = self.learned.trained_horizon, self.learned.temperature

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.learned.optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Train the learned model."""
        return self.learned.update(batch)

    def kinds_of_updates(self, updates: int) -> dict[int, int]:
        return self.learned.kinds_of_updates(updates)

    def skip_to(self, update: int) -> None:
        self.learned.skip_to(update)

    def start(self, context: TensorDictBase) -> Halves:
        """As WorldModel.start; the context must hold `snapshot`."""
        return Halves(self.learned.start(context[:, -self.learned.context_length :]), self.simulator.start(context))

    def set_temperature(self, value: float) -> None:
        self.learned.set_temperature(value)
        self.temperature = value

    def step(self, state: Halves, action: Tensor) -> tuple[Halves, TensorDictBase]:
        simulated, outcome = self.simulator.step(state.simulated, action)
        learned, prediction = self.learned.step(state.learned, action)
        return Halves(learned, simulated), prediction.set("reward", outcome["reward"])

    def fork(self, state: Halves, n: int) -> Halves:
        return Halves(self.learned.fork(state.learned, n), self.simulator.fork(state.simulated, n))
