"""Agent: a policy, its world model, imagination and planner, and the schedule of their updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.agents.cloning import Cloning
from mbrl.agents.embedding import EmbeddingPolicy
from mbrl.agents.imagination import Imagination
from mbrl.agents.learners import Learner, TransitionLearner, learner_for
from mbrl.agents.model_error import ModelError
from mbrl.agents.model_learners import model_learner_for
from mbrl.agents.planning import PlanningPolicy
from mbrl.agents.schedule import Schedule
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from mbrl.run_folder.schema import Maybe, Schema, schema_of
from policies.base import Metrics, Policy
from worldmodel.base import WorldModel

KEPT_APART = 16  # values of a metric that are kept before they are replaced by their sum
END_OF_SCHEDULES = 2**62  # env steps after which every schedule has reached its final value


class Agent:
    """Alternates world-model updates, imagination and policy updates.

    Args:
        policy: acts and learns.
        world_model: predicts; None for a model-free agent. It is trained where the policy learns from imagination or
            reads embeddings, or a planner acts.
        imagination: rolls the policy out in the world model; needed where `schedule.real_ratio` is below 1.
        planner: acts in place of the policy, by planning in the world model. The policy is its prior.
        model_error: measures the world model on new episodes; None does not.
        schedule: when each part learns.
        observer: computes the embeddings that the policy reads, and acts with it. None: the policy reads observations.
        learner: how the policy is updated; None chooses by `policy.learns_from`.
        cloning: how demonstrations are imitated; None does not.

    Raises:
        UserError: the parts do not fit together.
    """

    def __init__(
        self,
        policy: Policy,
        world_model: WorldModel | None = None,
        imagination: Imagination | None = None,
        planner: PlanningPolicy | None = None,
        model_error: ModelError | None = None,
        observer: EmbeddingPolicy | None = None,
        *,
        schedule: Schedule,
        learner: Learner | None = None,
        cloning: Cloning | None = None,
    ) -> None:
        if planner is not None and world_model is None:
            raise UserError("agent.planner needs an agent.world_model to plan in")
        self.policy, self.world_model, self.imagination, self.planner = policy, world_model, imagination, planner
        self.schedule, self.cloning, self.model_error = schedule, cloning or Cloning(), model_error
        self.observer = observer
        valued = planner is not None and planner.actor.imagination.critics is not None
        if valued and not (schedule.updates_per_step or self.cloning.updates):
            raise UserError("agent.planning.terminal_value needs trained critics: set agent.updates_per_step=0.5")
        self.learner = learner or learner_for(policy, imagination, schedule)
        if self.cloning.updates and not self.learner.imitates:
            prior = "+policy@agent.policy=drqv2_cpu agent.planning.proposals=8"
            instead = f", or give the planner a prior that does, {prior}" if planner is not None else ""
            raise UserError(f"{type(policy).__name__} imitates no demonstrations: set agent.cloning.updates=0{instead}")
        transitions = isinstance(self.learner, TransitionLearner)
        if transitions and schedule.real == 0 and self.cloning.weight_at(0) > 0 and not self.cloning.anchor:
            raise UserError(
                "agent.cloning.weight imitates demonstrations in real batches, and agent.real_ratio=0 has none: set "
                "agent.cloning.weight=0, agent.cloning.anchor=true, or a higher agent.real_ratio"
            )
        if observer is not None and self.cloning.updates:
            raise UserError("a policy that reads embeddings imitates no demonstrations: set agent.cloning.updates=0")
        if planner is not None and self.cloning.updates and not planner.uses_prior:
            raise UserError("agent.cloning trains a prior that is not used: set agent.planning.proposals above 0")
        trained = world_model is not None and (schedule.imagines or planner is not None or observer is not None)
        self.model_learner = model_learner_for(world_model, schedule) if world_model is not None and trained else None
        self.updates, self.imaginations, self._cloning_weight = 0, 0, 0.0

    @property
    def acting_policy(self) -> Policy:
        """The policy that collects data and is evaluated: the planner, else the embedding policy, else the policy."""
        return self.planner or self.observer or self.policy

    @property
    def imagined(self) -> tuple[WorldModel, int] | None:
        """The world model and the horizon of its rollouts; None where nothing is imagined."""
        rollouts = self.planner or self.imagination
        return None if self.world_model is None or rollouts is None else (self.world_model, rollouts.horizon)

    @property
    def goal(self) -> Tensor | None:
        """The goal frame uint8 [3, R, R] of the planner; None where plans are scored by rewards."""
        return None if self.planner is None else self.planner.actor.imagination.goal

    @property
    def counts(self) -> dict[str, int]:
        """Updates of each part so far."""
        model = self.model_learner
        trained = {"world_model": model.updates, "fits": model.fits} if model else {"world_model": 0, "fits": 0}
        return {"policy": self.updates, "imagination": self.imaginations, **trained}

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the policy so far, those of imitation and of its critics alone included."""
        return self.updates + self.learner.imitations + self.learner.calibrations

    @property
    def random_steps(self) -> int:
        """Agent steps with random actions at the start; 0 if a cloned policy acts from the first step."""
        return 0 if self.cloning.updates and self.planner is None else self.schedule.learning_starts

    @property
    def cloning_left(self) -> int:
        """Gradient steps on demonstrations that are still due before the first env step."""
        return max(0, self.cloning.updates - self.learner.imitations)

    def clone(self, replay: Replay, most: int, on_update: Callable[[], Any] = lambda: None) -> Metrics:
        """Take gradient steps on demonstrations.

        Args:
            replay: holds the demonstrations.
            most: maximum number of steps; fewer are taken if `cloning_left` is smaller.
            on_update: called after each gradient step, for a progress bar.

        Returns:
            Metrics as PART/NAME, means over this call.
        """
        self.set_env_steps(0)
        means = MetricMeans()
        for _ in range(min(most, self.cloning_left)):
            means.add("policy", self.learner.imitate(replay, 1.0))
            on_update()
            if self.cloning_left == 0:
                self.policy.end_cloning()
        return means.values()

    def holds_back(self, env_steps: int) -> bool:
        """Whether `evaluate_world_model` is to be given an episode that begins after this number of env steps.

        Nothing may learn from it before.
        """
        measured = self.model_error
        return measured is not None and measured.due(env_steps + measured.episode_env_steps)

    def evaluate_world_model(self, episodes: list[TensorDictBase], env_steps: int) -> Metrics:
        """Measure the world model on an episode that nothing has learned from yet.

        Args:
            episodes: such record episodes that have just ended.
            env_steps: env steps so far.

        Returns:
            Metrics as model_error/NAME; {} where none is due, or the model has not learned yet.
        """
        measured, learner = self.model_error, self.model_learner
        if measured is None or learner is None or not episodes or not measured.due(env_steps):
            return {}
        measured.last = env_steps
        if learner.updates == 0 and learner.world_model.optimizers:
            return {}
        return {f"model_error/{name}": value for name, value in measured(episodes[-1]).items()}

    def update(
        self, replay: Replay, agent_steps: int, env_steps: int, on_update: Callable[[], Any] = lambda: None
    ) -> Metrics:
        """Do all updates that are due.

        Args:
            replay: the real steps.
            agent_steps: agent steps so far.
            env_steps: env steps so far, for schedules.
            on_update: called after each gradient step, for a progress bar.

        Returns:
            Metrics as PART/NAME, means over this call.
        """
        self.set_env_steps(env_steps)
        steps = agent_steps - self.schedule.learning_starts
        if steps < 0 or not replay.has_episode:
            return {}
        means = MetricMeans()
        while self.learner.calibrations < self.cloning.calibrations():
            means.add("calibration", self.learner.calibrate(replay))
            on_update()
        while self.model_learner is not None and self.model_learner.due(steps):
            means.add("world_model", self.model_learner.update(replay))
            on_update()
        if self.observer is not None:
            self.observer.store_embeddings(replay)
        if self.planner is not None and self.imagination is None:
            self._update_rewards(replay, means, on_update)
        while self.imagination is not None and self.imaginations < self.schedule.imaginations(steps):
            self._update_rewards(replay, means, on_update)
            means.add("imagination", self._imagine(env_steps))
        due = int(steps * self.schedule.updates_per_step) - self.updates
        for metrics in self.learner.updates(replay, self._cloning_weight, due):
            self.updates += 1
            means.add("policy", metrics)
            on_update()
        return means.values()

    def _update_rewards(self, replay: Replay, means: MetricMeans, on_update: Callable[[], Any]) -> None:
        for _ in range(self.schedule.reward_updates):
            means.add("world_model", self.learn_rewards(replay))
            on_update()

    def learn_rewards(self, replay: Replay) -> Metrics:
        """One update of the world model's rewards alone: on embeddings, where the policy reads these."""
        learner = self.observer or self.model_learner
        assert learner is not None, "an agent that imagines trains a world model"
        return learner.learn_rewards(replay)

    def _imagine(self, env_steps: int) -> Metrics:
        assert self.imagination is not None
        self.imaginations += 1
        return self.imagination.run(env_steps)

    def set_env_steps(self, env_steps: int) -> None:
        """Move all schedules to this number of env steps."""
        self._cloning_weight = self.cloning.weight_at(env_steps)
        # Full exploration noise would drown out the cloned behaviour, so start at the final noise level.
        self.policy.set_env_steps(END_OF_SCHEDULES if self.cloning.updates else env_steps)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers of the policy and of the world model, as `policy.NAME` and `world_model.NAME`."""
        parts = {"policy": self.policy, "world_model": self.world_model}
        return {f"{n}.{k}": o for n, part in parts.items() if part for k, o in part.optimizers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The counts of updates. Weights, optimisers and imagined rollouts are other parts of a checkpoint."""
        state: dict[str, Any] = {
            "counts": self.counts, "cloned": self.learner.imitations, "calibrated": self.learner.calibrations
        }  # fmt: skip
        if self.observer is not None:
            state["noted"] = self.observer.noted
        if self.model_error is not None and self.model_error.last is not None:
            state["assessed"] = self.model_error.last
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counts = state["counts"]
        self.updates, self.imaginations = counts["policy"], counts["imagination"]
        self.learner.imitations, self.learner.calibrations = state["cloned"], state["calibrated"]
        if self.observer is not None:
            self.observer.noted = dict(state["noted"])
        if self.model_error is not None:
            self.model_error.last = state.get("assessed")
        if self.model_learner is not None:
            self.model_learner.updates, self.model_learner.fits = counts["world_model"], counts["fits"]

    def schema(self) -> Schema:
        schema = schema_of(self.state_dict())
        return schema if self.model_error is None else {**schema, "assessed": Maybe(int)}


class MetricMeans:
    """Means of metrics, which stay on their device until they are asked for.

    At most KEPT_APART values of a metric are kept. Many small live tensors fragment the memory of the allocator:
    without this limit the process grew by 2 GB in 1000 updates of iVideoGPT.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}  # by name: the sum of the older values, then the newest values
        self._counts: Counter[str] = Counter()

    def add(self, group: str, metrics: Metrics) -> None:
        """Add metrics as GROUP/NAME."""
        for key, value in metrics.items():
            name = f"{group}/{key}"
            self._counts[name] += 1
            values = self._values.setdefault(name, [])
            values.append(value.float())
            if len(values) == KEPT_APART:
                self._values[name] = [torch.stack(values).sum()]

    def values(self) -> Metrics:
        """The means by name, float32 0-d."""
        return {name: torch.stack(values).sum() / self._counts[name] for name, values in self._values.items()}
