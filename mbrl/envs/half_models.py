"""World models that are half learned: frames or rewards come from the simulator, to see which half's error costs.

B rollouts, A action.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from worldmodel.base import WorldModel


class Halves(NamedTuple):
    """State of the rollouts in both models."""

    learned: Any
    simulated: Any


class HalfModel(WorldModel):
    """A learned model and the simulator, taken through the same actions side by side.

    Args:
        observation_spec: as both models read it.
        action_spec: [A].
        learned: makes the learned model when called with the specs. It predicts frames and rewards.
        simulator: makes the simulator as a world model when called with the specs.

    Attributes:
        needs_reader: whether the learned model must read rewards from given frames.

    Raises:
        ValueError: it must, and cannot.
    """

    needs_reader = False

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
        if self.needs_reader and not self.learned.reads_reward:
            raise ValueError(
                "the learned model reads no rewards from given frames: give it a reward_network, or set "
                "transformer.parallel=false"
            )
        self.simulator = simulator(observation_spec=observation_spec, action_spec=action_spec)
        self.context_length = max(self.learned.context_length, self.simulator.context_length)
        self.max_horizon = min(self.learned.max_horizon, self.simulator.max_horizon)
        self.context_keys = (*self.learned.context_keys, *self.simulator.context_keys)
        self.observations, self.resolution = self.learned.observations, self.learned.resolution
        self.action_dim, self.measures = self.learned.action_dim, self.learned.measures
        self.trained_horizon, self.temperature = self.learned.trained_horizon, self.learned.temperature

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.learned.optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Train the learned model, both of its halves."""
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

    def measure_all(self) -> None:
        self.learned.measure_all()
        self.measures = self.learned.measures

    @abstractmethod
    def step(self, state: Halves, action: Tensor) -> tuple[Halves, TensorDictBase]: ...

    def fork(self, state: Halves, n: int) -> Halves:
        return Halves(self.learned.fork(state.learned, n), self.simulator.fork(state.simulated, n))


class SimulatedFrames(HalfModel):
    """The simulator's frames, and the rewards that the learned model reads from them.

    This is the fair ceiling: a perfect model also reveals rewards that no real step has seen yet.
    """

    needs_reader = True

    def step(self, state: Halves, action: Tensor) -> tuple[Halves, TensorDictBase]:
        simulated, prediction = self.simulator.step(state.simulated, action)
        learned, read = self.learned.observe(state.learned, action, prediction)
        return Halves(learned, simulated), prediction.update(read)


class SimulatedRewards(HalfModel):
    """The learned model's frames, and the simulator's rewards of the same actions."""

    def step(self, state: Halves, action: Tensor) -> tuple[Halves, TensorDictBase]:
        simulated, outcome = self.simulator.step(state.simulated, action)
        learned, prediction = self.learned.step(state.learned, action)
        return Halves(learned, simulated), prediction.set("reward", outcome["reward"])
