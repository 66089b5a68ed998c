"""Learners: update a policy on transitions (real and imagined), imagined rollouts, or segments of real steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDictBase

from mbrl.agents.cuda_graphs import CapturedUpdates
from mbrl.agents.imagination import Imagination
from mbrl.agents.schedule import Schedule
from mbrl.data.frames import stacked
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from policies.base import Metrics, Policy, held_losses, require_finite
from policies.value_base import ValuePolicy


class Learner(ABC):
    """Draws batches for a policy and updates it.

    Args:
        policy: the policy that learns.
        batch_size: rows of a batch; demonstrated transitions in a step of imitation.

    Attributes:
        imitations: gradient steps on demonstrations alone so far.
        calibrations: gradient steps of the critics alone so far.
    """

    def __init__(self, policy: Policy, batch_size: int) -> None:
        self.policy, self.batch_size, self.imitations, self.calibrations = policy, batch_size, 0, 0

    @abstractmethod
    def update(self, replay: Replay, cloning_weight: float) -> Metrics:
        """One update of the policy.

        Args:
            replay: the real steps.
            cloning_weight: weight of imitation in this update; 0 leaves it out.

        Returns:
            Metrics by name: detached 0-d tensors.
        """

    def updates(self, replay: Replay, cloning_weight: float, count: int) -> Iterator[Metrics]:
        """`count` updates in a row, between which the replay does not change; yields the metrics of each."""
        for _ in range(count):
            yield self.update(replay, cloning_weight)

    def imitate(self, replay: Replay, weight: float) -> Metrics:
        """One gradient step on demonstrations alone, its loss times `weight`; arguments as in `update`."""
        assert replay.demos is not None
        self.imitations += 1
        return self.policy.clone(replay.demos.transitions(self.batch_size).to(self.policy.device), weight)

    def calibrate(self, replay: Replay) -> Metrics:
        """One gradient step of the policy's critics alone, on real transitions."""
        assert isinstance(self.policy, ValuePolicy)
        self.calibrations += 1
        return self.policy.calibrate(replay.transitions(self.batch_size).to(self.policy.device))

    @property
    def imitates(self) -> bool:
        """Whether the policy can imitate demonstrations."""
        return type(self.policy).clone is not Policy.clone


class TransitionLearner(Learner):
    """Updates a policy on batches of real and imagined transitions (MBPO).

    Args:
        policy: as in `Learner`.
        imagination: where imagined transitions are drawn from. It is needed where the ratio is below 1.
        schedule: its `batch_size` and `real_ratio` are used.

    Raises:
        UserError: there is no imagination to draw from.
    """

    def __init__(self, policy: Policy, imagination: Imagination | None, schedule: Schedule) -> None:
        super().__init__(policy, schedule.batch_size)
        if schedule.imagines and imagination is None:
            raise UserError(
                f"agent.real_ratio {schedule.real_ratio} needs a world model and imagination; use 1 without them"
            )
        self.real, self.imagination = schedule.real, imagination if schedule.imagines else None
        self._captured = CapturedUpdates(policy) if policy.cuda_graphs else None

    def update(self, replay: Replay, cloning_weight: float) -> Metrics:
        return next(self.updates(replay, cloning_weight, 1))

    def updates(self, replay: Replay, cloning_weight: float, count: int) -> Iterator[Metrics]:
        return one_ahead(lambda: self._batch(replay, cloning_weight), self._captured or self.policy.update, count)

    def _batch(self, replay: Replay, cloning_weight: float) -> TensorDictBase:
        batch = self._transitions(replay).to(self.policy.device)
        demonstrated = batch.pop("demonstrated", None)
        if cloning_weight > 0 and demonstrated is not None:
            if isinstance(self.policy, ValuePolicy) and self.policy.frozen is not None:
                batch["imitated"] = torch.where(demonstrated, batch["action"], self.policy.cloned_action(batch))
                demonstrated = torch.ones_like(demonstrated)
            batch["cloning"] = cloning_weight * demonstrated
        return batch

    def _transitions(self, replay: Replay) -> TensorDictBase:
        if self.imagination is None or len(self.imagination) == 0:  # empty: every rollout was cut at its first step
            return replay.transitions(self.batch_size)
        device = self.policy.device
        imagined = self.imagination.transitions(self.batch_size - self.real).to(device)
        if replay.demos is not None:
            imagined["demonstrated"] = torch.zeros(len(imagined), 1, dtype=torch.bool, device=device)
        if self.real == 0:
            return imagined
        real = replay.transitions(self.real)
        real = real.select(*imagined.keys(True, True)).to(device)
        for part in (real, imagined):
            part["imagined"] = torch.full((len(part), 1), part is imagined, device=device)
        return torch.cat([real, imagined])


class RolloutLearner(Learner):
    """Updates a policy on whole imagined rollouts and, if `policy.replay_rows` > 0, on as many segments of real steps.

    Imitation takes a gradient step of its own after each update, because no imagined rollout is demonstrated.

    Args:
        policy: as in `Learner`.
        imagination: where rollouts are drawn from.
        schedule: its `batch_size` is used; its `real_ratio` must be 0.

    Raises:
        UserError: the real ratio is not 0, or there is no imagination.
    """

    def __init__(self, policy: Policy, imagination: Imagination | None, schedule: Schedule) -> None:
        super().__init__(policy, schedule.batch_size)
        if schedule.real_ratio != 0:
            raise UserError(
                f"agent.real_ratio is {schedule.real_ratio}, but this policy learns from imagined rollouts alone: "
                "set agent.real_ratio=0 (for a model-free baseline use another agent, such as agent=drqv2)"
            )
        if imagination is None:
            raise UserError("this policy learns from imagined rollouts: give agent.world_model and agent.imagination")
        self.imagination = imagination

    def update(self, replay: Replay, cloning_weight: float) -> Metrics:
        metrics = self.policy.update(self._batch(replay).to(self.policy.device))
        if cloning_weight > 0:
            metrics |= self.imitate(replay, cloning_weight)
        return metrics

    def _batch(self, replay: Replay) -> TensorDictBase:
        rollouts = self.imagination.rollouts(self.batch_size)
        if not self.policy.replay_rows:
            return rollouts
        history = self.policy.segment_history
        drawn = replay.sequences(len(rollouts), self.policy.replay_rows, before=history)
        real = drawn[:, history:]
        if "pixels" in drawn.keys():
            real["frames"] = stacked(drawn["pixels"], history + 1)
        rollouts.batch_size = rollouts.batch_size[:1]
        return rollouts.set("real", real)


class SegmentLearner(Learner):
    """Updates a policy on segments of real steps, along which it trains a model of its own.

    Args:
        policy: as in `Learner`.
        imagination: None: the policy imagines by itself.
        schedule: its `batch_size` and `segment_length` are those of an update, and its real ratio must be 0.

    Raises:
        UserError: the real ratio is not 0, or the segments are too short for the policy.
    """

    def __init__(self, policy: Policy, imagination: Imagination | None, schedule: Schedule) -> None:
        super().__init__(policy, schedule.batch_size)
        require_latent_imagination(schedule)
        if schedule.segment_length < policy.segment_rows:
            raise UserError(
                f"agent.segment_length ({schedule.segment_length}) is too short for plans of {policy.segment_rows - 1} "
                f"steps, which the model must have learned: set agent.segment_length={policy.segment_rows} or more, or "
                "a smaller agent.policy.planner.horizon"
            )
        self.segment_length = schedule.segment_length
        self._captured = CapturedUpdates(policy) if policy.cuda_graphs else None

    def update(self, replay: Replay, cloning_weight: float) -> Metrics:
        return next(self.updates(replay, cloning_weight, 1))

    def updates(self, replay: Replay, cloning_weight: float, count: int) -> Iterator[Metrics]:
        return one_ahead(lambda: self._batch(replay), self._captured or self.policy.update, count)

    def _batch(self, replay: Replay) -> TensorDictBase:
        sizes, before = (self.batch_size, self.segment_length), self.policy.segment_history
        return replay.sequences(*sizes, before=before, past_end=True).to(self.policy.device)


def require_latent_imagination(schedule: Schedule) -> None:
    """UserError where batches would have real transitions, which a policy in latent states does not learn from."""
    if schedule.real_ratio != 0:
        raise UserError(
            f"agent.real_ratio is {schedule.real_ratio}, but this policy learns in latent states that its model "
            "predicts: set agent.real_ratio=0 (for a model-free baseline use another agent, such as agent=sac)"
        )


def one_ahead(
    draw: Callable[[], TensorDictBase], update: Callable[[TensorDictBase], Metrics], count: int
) -> Iterator[Metrics]:
    """Run `count` updates; prefetch the next batch while the GPU computes the current update.

    Random numbers are drawn in the same order as without prefetching, and no batch is left over at the end. So
    prefetching does not change the results, also not those of a resumed run.

    Args:
        draw: draws a batch, and sends it to the device of the policy.
        update: takes an update on a batch.
        count: updates.

    Yields:
        The metrics of each update, whose losses are finite.

    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    batch = draw() if count > 0 else None
    for left in reversed(range(count)):
        assert batch is not None
        with held_losses() as losses:
            metrics = update(batch)
        batch = draw() if left else None
        require_finite(losses)  # waits for the GPU
        yield metrics


def learner_for(policy: Policy, imagination: Imagination | None, schedule: Schedule) -> Learner:
    """Build the learner that draws the batches named by `policy.learns_from`."""
    kinds: dict[str, type[TransitionLearner] | type[RolloutLearner] | type[SegmentLearner]] = {
        "transitions": TransitionLearner,
        "rollouts": RolloutLearner,
        "segments": SegmentLearner,
    }
    return kinds[policy.learns_from](policy, imagination, schedule)
