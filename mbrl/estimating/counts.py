"""How often a run does each of its parts, counted from its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbrl.agents.agent import Agent


@dataclass(frozen=True)
class Lengths:
    """The settings that determine how long a run takes.

    Args:
        env_steps: env steps of the run.
        repeat: env steps of an agent step.
        per_episode: agent steps of an episode.
        per_batch: agent steps between two calls of the agent's update.
        workers: environments that step side by side.
        eval_every: env steps between two evaluations.
        checkpoint_every: env steps between two checkpoints.
    """

    env_steps: int
    repeat: int
    per_episode: int
    per_batch: int
    workers: int
    eval_every: int
    checkpoint_every: int

    @property
    def agent_steps(self) -> int:
        """Agent steps that are collected, in whole batches."""
        per_batch = self.per_batch * self.repeat
        return -(-self.env_steps // per_batch) * self.per_batch

    def evaluations(self) -> int:
        """Evaluations in the training loop."""
        return self._crossed(self.eval_every, self.per_batch)

    def checkpoints(self) -> int:
        """Checkpoints; with one worker they are written at the end of an episode."""
        return self._crossed(self.checkpoint_every, self.per_episode if self.workers == 1 else self.per_batch)

    def _crossed(self, every: int, agent_steps: int) -> int:
        """How often a multiple of `every` env steps is passed where it is looked for, and once at the end."""
        step, end = agent_steps * self.repeat, self.agent_steps * self.repeat
        passed = sum(at // every > (at - step) // every for at in range(step, end, step))
        return passed + 1


@dataclass(frozen=True)
class Counts:
    """How often each part of a run is done.

    Attributes:
        agent_steps: agent steps collected.
        imitations: gradient steps on demonstrations before the first env step.
        model_updates: number of an update of the world model -> how many take as long as it; see
            `WorldModel.kinds_of_updates`. For a model that is fitted, the most that its fits may take.
        fits: fits of a world model that is fitted.
        imaginations: calls of imagination.
        reward_updates: updates of the world model's rewards alone.
        policy_updates: updates of the policy, and of its critics alone.
        imitating: how many of them are made while imitation still has a weight.
        assessments: comparisons of the world model with new episodes.
        evaluations: evaluations.
        checkpoints: checkpoints.
    """

    agent_steps: int
    imitations: int
    model_updates: dict[int, int]
    fits: int
    imaginations: int
    reward_updates: int
    policy_updates: int
    imitating: int
    assessments: int
    evaluations: int
    checkpoints: int

    @classmethod
    def of(cls, agent: Agent, lengths: Lengths) -> Counts:
        """Count for an agent that has not begun, as `Agent.update` does.

        Args:
            agent: its schedule and which parts it has decide.
            lengths: of the run.
        """
        schedule, env_steps = agent.schedule, lengths.agent_steps * lengths.repeat
        steps = lengths.agent_steps - schedule.learning_starts
        learns = steps >= 0 and lengths.agent_steps >= lengths.per_episode
        imaginations = schedule.imaginations(steps) if learns and agent.imagination is not None else 0
        plans = learns and agent.planner is not None and agent.imagination is None
        rounds = steps // lengths.per_batch + 1 if plans else imaginations
        first_acts = agent.cloning.updates > 0 and agent.acting_policy is agent.policy
        policy_updates = int(steps * schedule.updates_per_step) + agent.cloning.calibrations() if learns else 0
        ends = agent.cloning.env_steps // lengths.repeat - schedule.learning_starts  # agent steps of learning
        imitating = int(ends * schedule.updates_per_step) if agent.cloning.weight_at(0) > 0 else 0
        measured = agent.model_error if agent.model_learner is not None else None
        return cls(
            agent_steps=lengths.agent_steps,
            imitations=agent.cloning.updates,
            imaginations=imaginations,
            reward_updates=rounds * schedule.reward_updates,
            policy_updates=policy_updates,
            imitating=min(max(imitating, 0), policy_updates),
            assessments=env_steps // measured.every if measured is not None and learns else 0,
            evaluations=lengths.evaluations() + first_acts,
            checkpoints=lengths.checkpoints(),
            **cls._of_model(agent, steps if learns else None),
        )

    @staticmethod
    def _of_model(agent: Agent, steps: int | None) -> dict[str, Any]:
        learner, schedule = agent.model_learner, agent.schedule
        if learner is None or steps is None:
            return {"model_updates": {}, "fits": 0}
        first, rate = schedule.model_updates_first, schedule.model_updates_per_step
        if not learner.world_model.fits:
            return {"model_updates": learner.world_model.kinds_of_updates(first + int(steps * rate)), "fits": 0}
        fits = steps // schedule.model_fit_every + 1
        return {"model_updates": {0: first + (fits - 1) * round(rate * schedule.model_fit_every)}, "fits": fits}
