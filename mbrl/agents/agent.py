"""An agent: a policy, what it imagines with, and when each of them learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.agents.cloning import Cloning
from mbrl.agents.imagination import Imagination
from mbrl.agents.planning import PlanningPolicy
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from mbrl.run_folder.schema import Schema, schema_of
from policies.base import Policy
from worldmodel.base import WorldModel

Metrics = dict[str, Tensor]
LATE = 2**62  # env steps by which every schedule is over


class Agent:
    """Alternates world-model updates, imagination and policy updates, at rates counted per agent step.

    Args:
        policy: acts and learns. world_model: predicts; None is model-free.
        imagination: rolls the policy out in the world model; needed where real_ratio < 1.
        planner: what acts instead of the policy, by planning in the world model; the policy is its prior then.
        batch_size: transitions of a policy update; or rollouts, where the policy learns from those.
        updates_per_step: policy updates per agent step.
        learning_starts: agent steps with random actions before anything learns.
        real_ratio: share of a batch that is real; 1 is exactly the model-free agent (nothing else is trained or drawn).
        model_batch_size, segment_length: segments [B, T] of a world-model update.
        model_updates_first: world-model updates before the first imagination.
        model_updates_per_step: world-model updates per agent step from then on.
        model_fit_every: agent steps between two fits of a world model that is fitted to all real steps; each takes at
            most the updates that are due by the two arguments above.
        imagine_every: agent steps between two calls of imagination.
        cloning: how demonstrations are imitated; None: not.
    """

    def __init__(
        self,
        policy: Policy,
        world_model: WorldModel | None = None,
        imagination: Imagination | None = None,
        planner: PlanningPolicy | None = None,
        *,
        batch_size: int,
        updates_per_step: float,
        learning_starts: int,
        real_ratio: float = 1.0,
        model_batch_size: int = 16,
        segment_length: int = 12,
        model_updates_first: int = 0,
        model_updates_per_step: float = 0.0,
        model_fit_every: int = 0,
        imagine_every: int = 100,
        cloning: Cloning | None = None,
    ) -> None:
        if planner is not None and world_model is None:
            raise UserError("agent.planner needs an agent.world_model to plan in")
        real = real_share(batch_size, real_ratio, policy, imagination)
        self.policy, self.world_model, self.imagination, self.planner = policy, world_model, imagination, planner
        self.batch_size, self.real = batch_size, real
        self.updates_per_step, self.learning_starts = updates_per_step, learning_starts
        self.model_batch_size, self.segment_length = model_batch_size, segment_length
        self.model_updates_first, self.model_updates_per_step = model_updates_first, model_updates_per_step
        self.model_fit_every, self.imagine_every = model_fit_every, imagine_every
        self.cloning = cloning or Cloning()
        self.cloned, self._cloning_weight = 0, 0.0
        if planner is not None and self.cloning.updates and not planner.actor.proposals:
            raise UserError("agent.cloning teaches a prior that is never asked: give agent.planning.proposals above 0")
        self.counts = {"policy": 0, "world_model": 0, "imagination": 0, "fits": 0}
        if world_model is not None and world_model.fits and self.learns_model and model_fit_every < 1:
            raise UserError(f"agent.model_fit_every is {model_fit_every}: this world model is fitted, give 1 or more")

    @property
    def acting(self) -> Policy:
        """What collects and is evaluated."""
        return self.planner or self.policy

    @property
    def imagined(self) -> tuple[WorldModel, int] | None:
        """The world model and how many steps are imagined in it; None where nothing is imagined."""
        rollouts = self.planner or self.imagination
        return None if self.world_model is None or rollouts is None else (self.world_model, rollouts.horizon)

    @property
    def goal(self) -> Tensor | None:
        """The frame uint8 [3, R, R] that is planned towards; None where rewards lead."""
        return None if self.planner is None else self.planner.actor.imagination.goal

    @property
    def gradient_steps(self) -> int:
        """Policy updates so far, those of cloning among them."""
        return self.counts["policy"] + self.cloned

    @property
    def random_steps(self) -> int:
        """Agent steps at the start whose actions are random: none where there is a clone to act."""
        return 0 if self.cloning.updates and self.planner is None else self.learning_starts

    @property
    def learns_model(self) -> bool:
        return self.imagines or self.planner is not None

    @property
    def imagines(self) -> bool:
        """Whether the policy learns from imagined transitions."""
        return self.real < self.batch_size

    def clone(self, replay: Replay, most: int, on_update: Callable[[], Any] = lambda: None) -> Metrics:
        """Do up to `most` of the cloning updates that are left, on demonstrations alone; means over this call."""
        self.set_env_steps(0)
        sums = MetricMeans()
        for _ in range(min(most, self.cloning.updates - self.cloned)):
            sums.add("policy", self._imitate(replay, 1.0))
            on_update()
        return sums.means()

    def update(
        self, replay: Replay, agent_steps: int, env_steps: int, on_update: Callable[[], Any] = lambda: None
    ) -> Metrics:
        """Do all updates that are due after `agent_steps` steps in all; returns means over this call.

        `on_update` is called after each gradient step, for a progress bar.
        """
        self.set_env_steps(env_steps)
        learned = agent_steps - self.learning_starts
        if learned < 0 or len(replay.online) == 0:
            return {}
        sums = MetricMeans()
        if self.learns_model:
            for metrics in self._learn_model(replay, learned):
                sums.add("world_model", metrics)
                on_update()
        if self.imagines:
            while self.counts["imagination"] <= learned // self.imagine_every:
                sums.add("imagination", self._imagine(env_steps))
        while self.counts["policy"] < int(learned * self.updates_per_step):
            sums.add("policy", self._update_policy(replay))
            on_update()
        return sums.means()

    def set_env_steps(self, env_steps: int) -> None:
        """Move what follows a schedule to so many env steps."""
        self._cloning_weight = self.cloning.weight_at(env_steps)
        # around what a clone does, the exploration of a beginner would bury it: it begins where the schedule ends
        self.policy.set_env_steps(LATE if self.cloning.updates else env_steps)

    def _learn_model(self, replay: Replay, learned: int) -> Iterator[Metrics]:
        """The updates, or fits, of the world model that are due."""
        assert self.world_model is not None
        if self.world_model.fits:
            while self.counts["fits"] <= learned // self.model_fit_every:
                yield self._fit_world_model(replay)
            return
        while self.counts["world_model"] < self.model_updates_first + int(learned * self.model_updates_per_step):
            yield self._update_world_model(replay)

    def _fit_world_model(self, replay: Replay) -> Metrics:
        assert self.world_model is not None
        later = round(self.model_updates_per_step * self.model_fit_every)
        most = later if self.counts["fits"] else self.model_updates_first
        steps = replay.steps(*self.world_model.observations)
        metrics = self.world_model.fit(steps.to(self.policy.device), most)
        self.counts["fits"] += 1
        self.counts["world_model"] += int(metrics["updates"])
        return {**metrics, "gradient_steps": torch.tensor(float(self.counts["world_model"]))}

    def _update_world_model(self, replay: Replay) -> Metrics:
        assert self.world_model is not None
        self.counts["world_model"] += 1
        batch = replay.sequences(self.model_batch_size, self.segment_length)
        return self.world_model.update(batch.to(self.acting.device))

    def _imagine(self, env_steps: int) -> Metrics:
        assert self.imagination is not None
        self.counts["imagination"] += 1
        return self.imagination.run(env_steps)

    def _update_policy(self, replay: Replay) -> Metrics:
        self.counts["policy"] += 1
        batch = self._batch(replay)
        demonstrated = batch.pop("demonstrated", None)
        if self._cloning_weight > 0 and demonstrated is not None:
            batch["cloning"] = self._cloning_weight * demonstrated
        metrics = self.policy.update(batch.to(self.policy.device))
        if self._cloning_weight > 0 and self.policy.learns_from == "rollouts":
            metrics |= self._imitate(replay, self._cloning_weight)  # a step of its own: no rollout was demonstrated
        return metrics

    def _imitate(self, replay: Replay, weight: float) -> Metrics:
        assert replay.demos is not None
        self.cloned += 1
        return self.policy.clone(replay.demos.transitions(self.batch_size).to(self.policy.device), weight)

    def _batch(self, replay: Replay) -> TensorDictBase:
        if not self.imagines:
            return replay.transitions(self.batch_size)
        assert self.imagination is not None
        if self.policy.learns_from == "rollouts":
            return self.imagination.rollouts(self.batch_size)
        if len(self.imagination) == 0:  # every rollout was cut at its first step
            return replay.transitions(self.batch_size)
        imagined = self.imagination.transitions(self.batch_size - self.real)
        if self.real == 0:
            return imagined
        real = replay.transitions(self.real)
        if "demonstrated" in real.keys():
            imagined["demonstrated"] = torch.zeros(len(imagined), 1, dtype=torch.bool)
        return torch.cat([real.select(*imagined.keys(True, True)), imagined])

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of the policy and of the world model, as `policy.NAME` and `world_model.NAME`."""
        learners = {"policy": self.policy, "world_model": self.world_model}
        return {f"{n}.{k}": o for n, learner in learners.items() if learner for k, o in learner.optimizers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The updates done so far. Weights, optimisers and imagined rollouts are parts of a checkpoint of their own."""
        return {"counts": dict(self.counts), "cloned": self.cloned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.cloned = dict(state["counts"]), state["cloned"]

    def schema(self) -> Schema:
        return schema_of(self.state_dict())


def real_share(batch_size: int, real_ratio: float, policy: Policy, imagination: Imagination | None) -> int:
    """Real transitions of a batch; ValueError where the ratio cannot be kept."""
    real = round(batch_size * real_ratio)
    if not 0 <= real_ratio <= 1 or (real_ratio < 1 and real == batch_size) or (real_ratio > 0 and real == 0):
        raise UserError(
            f"agent.real_ratio {real_ratio} of batch_size {batch_size} leaves {real} real transitions: "
            "give a ratio in [0, 1] that leaves each part at least one"
        )
    if policy.learns_from == "rollouts" and real_ratio != 0:
        raise UserError(
            f"agent.real_ratio is {real_ratio}, but this policy learns from imagined rollouts alone: leave it at 0 "
            "(its model-free control is another agent, see its yaml)"
        )
    if real_ratio < 1 and imagination is None:
        raise UserError(f"agent.real_ratio {real_ratio} needs a world model and imagination; use 1 without them")
    return real


class MetricMeans:
    """Running means of metrics without moving anything off the device."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, group: str, metrics: Metrics) -> None:
        for key, value in metrics.items():
            self._values.setdefault(f"{group}/{key}", []).append(value)

    def means(self) -> Metrics:
        return {key: torch.stack([v.float() for v in values]).mean() for key, values in self._values.items()}
