"""How a world model is trained while an agent acts: by updates on segments, or by fits to all real steps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from mbrl.agents.schedule import Schedule
from mbrl.data.episodes import INITIAL
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from policies.base import Metrics
from worldmodel.base import WorldModel

REWARD_STEPS = 128  # steps of an update of the rewards alone


class ModelLearner(ABC):
    """Trains a world model at the rate of a schedule.

    Args:
        world_model: the model that is trained.
        schedule: its `model_*` rates and `reward_updates` are used.

    Attributes:
        updates: gradient steps so far.
        fits: fits so far; 0 for a model that is updated on segments.

    Raises:
        UserError: `reward_updates` is above 0, and the model has no separate reward network.
    """

    def __init__(self, world_model: WorldModel, schedule: Schedule) -> None:
        self.world_model, self.schedule = world_model, schedule
        self.updates, self.fits = 0, 0
        if schedule.reward_updates and not world_model.learns_rewards:
            raise UserError(
                f"agent.reward_updates is {schedule.reward_updates}, and this world model has no reward network, which "
                "could learn alone: set agent.reward_updates=0"
            )

    @abstractmethod
    def due(self, steps: int) -> bool:
        """Whether `update` is due, `steps` agent steps after learning has started."""

    @abstractmethod
    def update(self, replay: Replay) -> Metrics:
        """Train once; returns metrics by name, detached 0-d tensors."""

    def learn_rewards(self, replay: Replay) -> Metrics:
        """One update of the model's rewards on steps of the replay, half of them from the newest tenth of episodes."""
        length, initial = self.world_model.context_length + 1, INITIAL in self.world_model.context_keys
        batch = replay.sequences(REWARD_STEPS, length, initial=initial, recent=0.5)
        return self.world_model.update_rewards(batch.to(self.world_model.device))


class SegmentModelLearner(ModelLearner):
    """One gradient step at a time, on segments [B, T] of the replay.

    Raises:
        UserError: imagination would start before the first update of the dynamics.
    """

    def __init__(self, world_model: WorldModel, schedule: Schedule) -> None:
        super().__init__(world_model, schedule)
        needed, first = world_model.first_updates, schedule.model_updates_first
        if needed and first <= needed:
            raise UserError(
                f"agent.model_updates_first is {first}, and the first {needed} updates of this world model do not "
                f"train its dynamics: set it to more than {needed}, or give weights, worldmodel.pretrained=FOLDER"
            )

    def due(self, steps: int) -> bool:
        first, rate = self.schedule.model_updates_first, self.schedule.model_updates_per_step
        return self.updates < first + int(steps * rate)

    def update(self, replay: Replay) -> Metrics:
        self.updates += 1
        sizes, initial = (self.schedule.model_batch_size, self.schedule.segment_length), self.world_model.context_keys
        # At first there are few episodes: the newest tenth would be one of them.
        recent = self.schedule.model_recent if self.updates > self.schedule.model_updates_first else 0.0
        batch = replay.sequences(*sizes, initial=INITIAL in initial, recent=recent)
        return self.world_model.update(batch.to(self.world_model.device))


class FitModelLearner(ModelLearner):
    """Fits to all real steps at regular intervals, each until held-out data improve no more (MBPO).

    Raises:
        UserError: `model_fit_every` is below 1.
    """

    def __init__(self, world_model: WorldModel, schedule: Schedule) -> None:
        super().__init__(world_model, schedule)
        if schedule.model_fit_every < 1:
            every = schedule.model_fit_every
            raise UserError(f"agent.model_fit_every is {every}, and this world model learns by fits: set 1 or more")

    def due(self, steps: int) -> bool:
        return self.fits <= steps // self.schedule.model_fit_every

    def update(self, replay: Replay) -> Metrics:
        first, rate = self.schedule.model_updates_first, self.schedule.model_updates_per_step
        most = round(rate * self.schedule.model_fit_every) if self.fits else first
        steps = replay.steps(*self.world_model.observations)
        metrics = self.world_model.fit(steps.to(self.world_model.device), most)
        self.fits += 1
        self.updates += int(metrics["updates"])
        return {**metrics, "gradient_steps": torch.tensor(float(self.updates))}


def model_learner_for(world_model: WorldModel, schedule: Schedule) -> ModelLearner:
    """Build the learner of a world model: `FitModelLearner` if it learns by `fit`, else `SegmentModelLearner`."""
    return (FitModelLearner if world_model.fits else SegmentModelLearner)(world_model, schedule)
