"""Imagined rollouts of the policy, branched from real states and kept for the policy to learn from."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import torch
from tensordict import TensorDict
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.uncertainty import Factors, PerEstimate, UncertaintyRules
from mbrl.data.episodes import INITIAL, OBSERVATIONS, record_fields
from mbrl.envs.imagined import ImaginationEnv, check_horizon
from mbrl.errors import UserError
from mbrl.replay.episode_buffer import LOG_PROB, WEIGHT
from mbrl.replay.replay import Replay
from mbrl.replay.rollout_buffer import RolloutBuffer
from mbrl.run_folder.schema import Maybe, TensorType
from policies.base import Policy
from policies.ranges import Count, PositiveCount, Std
from policies.ranges import Horizon as Steps
from worldmodel.base import WorldModel

TOGETHER = 8  # start states drawn from one episode at most: they share the encoding of its initial frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HorizonSchedule:
    """A schedule of the rollout length: `first` to `last` steps, linear between two numbers of env steps (MBPO)."""

    first: int
    last: int
    from_env_steps: int
    to_env_steps: int

    @classmethod
    def of(cls, horizon: int | Mapping[str, int]) -> HorizonSchedule:
        """From a constant length, or from the four fields by name."""
        if not isinstance(horizon, Mapping):
            return cls(horizon, horizon, 0, 1)
        names = [field.name for field in fields(cls)]
        if sorted(horizon) != sorted(names):
            raise UserError(f"agent.imagination.horizon has {', '.join(horizon)}: give a number, or {', '.join(names)}")
        return cls(**horizon)

    def __post_init__(self) -> None:
        if not 0 <= self.from_env_steps < self.to_env_steps:
            raise UserError(
                f"agent.imagination.horizon: from_env_steps ({self.from_env_steps}) must lie in 0 up to "
                f"to_env_steps ({self.to_env_steps})"
            )

    def at(self, env_steps: int) -> int:
        """The rollout length after this number of env steps."""
        share = (env_steps - self.from_env_steps) / (self.to_env_steps - self.from_env_steps)
        return self.first + int(min(max(share, 0.0), 1.0) * (self.last - self.first))


class Imagination:
    """Short imagined rollouts, kept as episodes whose first rows are the real history that they branch from.

    Args:
        world_model: predicts the rollouts.
        policy: acts in them, exploring.
        replay: real states to branch from; its frame stack, n-step return and discount are used here too.
        action_spec: actions [A] of the environment.
        resolution: side R of the frames; None for a world model that predicts none.
        rollouts: B, rollouts in one call of `run`.
        horizon: H, steps of each rollout; or the fields of a `HorizonSchedule`.
        retain: size of the rollout buffer, in calls of `run` at the current horizon. When the horizon grows, shorter
            rollouts of more calls fit. The oldest rollouts are dropped first.
        n_step: rewards summed in an imagined transition; None takes the replay's.
        noise: maximum standard deviation of the exploration noise in imagined actions; None explores as the collector.
        episode_steps: length of an episode in agent steps. Start states are drawn so that a rollout ends within it,
            unless the rollout is longer than an episode. None: no limit.
        cut_above: see `UncertaintyRules`; None truncates no rollout.
        weigh_by: see `UncertaintyRules`; None gives all transitions the same weight.
        optimism: see `UncertaintyRules`; None adds no bonus to rewards.
        divide_pixels_twice: reproduces defect 1 of the published loop: imagined pixels reach the policy divided by 255
            twice, so that it hardly sees them.

    Raises:
        UserError: settings do not fit together.
    """

    def __init__(
        self,
        world_model: WorldModel,
        policy: Policy,
        replay: Replay,
        *,
        action_spec: TensorSpec,
        resolution: int | None = None,
        rollouts: PositiveCount,
        horizon: Steps | Mapping[str, Count],
        retain: PositiveCount,
        n_step: Steps | None = None,
        noise: Std | None = None,
        episode_steps: int | None = None,
        cut_above: PerEstimate = None,
        weigh_by: PerEstimate = None,
        optimism: Factors = None,
        divide_pixels_twice: bool = False,
    ) -> None:
        self._warned, self.noise, self._episode_steps = False, noise, episode_steps
        self.uncertainty = UncertaintyRules.of(cut_above, weigh_by, optimism)
        self.uncertainty.require(world_model)
        if policy.learns_from == "rollouts" and (
            self.uncertainty.estimates or divide_pixels_twice or n_step is not None
        ):
            raise UserError(
                "agent.imagination: n_step, cut_above, weigh_by, optimism and divide_pixels_twice change single "
                "transitions, but this policy learns from whole rollouts: leave them out"
            )
        if noise is not None and type(policy).limited_noise is Policy.limited_noise:
            raise UserError(
                f"agent.imagination.noise limits exploration noise that {type(policy).__name__} does not have: "
                "set agent.imagination.noise=null"
            )
        real = replay.online
        self.policy, self.retain, self.schedule = policy, retain, HorizonSchedule.of(horizon)
        self._starts = starts_of(world_model, replay, rollouts)
        for steps in (self.schedule.first, self.schedule.last):
            check_horizon(world_model, steps)
        self.divide_pixels_twice = divide_pixels_twice
        self.env = ImaginationEnv(
            world_model,
            self._starts,
            action_spec=action_spec,
            batch_size=rollouts,
            horizon=self.schedule.at(0),
            resolution=resolution,
            frame_stack=real.frame_stack,
            device=policy.device,
        )
        self.buffer = RolloutBuffer(
            self._records(max(self.schedule.first, self.schedule.last)),
            frame_stack=real.frame_stack,
            n_step=real.n_step if n_step is None else n_step,
            gamma=real.gamma,
            fields=self._fields(action_spec),
            device=real.placement,
            run_device=policy.device,
        )

    @property
    def horizon(self) -> int:
        """Steps of a rollout at present."""
        return self.env.horizon

    def _fields(self, action_spec: TensorSpec) -> dict[str, TensorType | Maybe]:
        """The fields of a record of an imagined rollout."""
        fields: dict[str, TensorType | Maybe] = dict(record_fields(self.env.observation_spec[0], action_spec))
        del fields["success"]
        number = TensorType(torch.float32, (1,))
        if self.policy.learns_from == "rollouts":
            fields[LOG_PROB] = Maybe(number)
        if self.uncertainty.weigh_by:
            fields[WEIGHT] = number
        return fields

    def _records(self, horizon: int) -> int:
        return self.retain * self.env.batch_size[0] * (self.env.history + horizon)

    @torch.no_grad()
    def run(self, env_steps: int = 0) -> dict[str, torch.Tensor]:
        """Imagine B rollouts of H steps from newly drawn real states, with exploration, and keep them.

        Args:
            env_steps: env steps so far, for the schedule of the horizon.

        Returns:
            Metrics by name: detached 0-d tensors.
        """
        self.env.horizon = self.schedule.at(env_steps)
        if self._episode_steps is not None:
            self.env.starts = partial(self._starts, last=self._episode_steps - self.horizon)
        self.buffer.capacity = self._records(self.horizon)
        with set_exploration_type(ExplorationType.RANDOM), self.policy.limited_noise(self.noise):
            rollout = self.env.rollout(self.horizon, self.policy.acting, break_when_any_done=False)
        reward = rollout["next", "reward"]
        metrics = {"imagined_reward": reward.mean(), "imagined_reward_last": reward[:, -1].mean()}
        estimates, steps = self.env.estimates(), None
        if self.uncertainty.optimism:
            rollout["next", "reward"] = reward + self.uncertainty.bonus(estimates)[..., None]
        records = imagined_records(self.env.history_records, rollout)
        metrics |= {name: values.mean() for name, values in estimates.items()}
        if self.policy.learns_from == "rollouts" and LOG_PROB in rollout.keys():
            records[LOG_PROB] = _after_history(rollout[LOG_PROB], self.env.history)
        if self.uncertainty.cut_above:
            steps = self.uncertainty.steps(estimates)
            metrics["kept"] = steps.float().mean() / self.horizon
            if not self._warned and not steps.any():
                self._warned = True
                _log.warning("imagination: every rollout was cut at its first step; raise agent.imagination.cut_above")
        if self.env.world_model.predicts_termination:
            ended = rollout["next", "terminated"].squeeze(-1)
            metrics["terminated"] = ended[:, -1].float().mean()
            if self.policy.learns_from != "rollouts":  # those policies read `terminated` themselves
                steps = ended_after(ended) if steps is None else steps.minimum(ended_after(ended))
        if self.uncertainty.weigh_by:
            weights = self.uncertainty.weights(estimates, self.buffer.n_step, steps)[..., None]
            records[WEIGHT] = _after_history(weights, self.env.history)
        lengths = None if steps is None else (steps + self.env.history).cpu()
        self.buffer.extend(records, first=self.env.history - 1, lengths=lengths)
        return metrics

    def transitions(self, batch_size: int) -> TensorDict:
        """Imagined n-step transitions, as from `EpisodeBuffer.transitions`."""
        batch = self.buffer.transitions(batch_size)
        if self.divide_pixels_twice:
            for part in (batch, batch["next"]):
                part["frames"] = part["frames"].float() / 255
        return batch

    def rollouts(self, batch_size: int) -> TensorDict:
        """Whole imagined rollouts [B, H + 1], as from `RolloutBuffer.rollouts`; row 0 is the real state."""
        return self.buffer.rollouts(batch_size)

    def __len__(self) -> int:
        return len(self.buffer)


def starts_of(world_model: WorldModel, replay: Replay, rollouts: int) -> Callable[..., TensorDict]:
    """The function that draws start states; for a model that encodes initial frames, several from one episode."""
    if INITIAL not in world_model.context_keys:
        return replay.starts
    return partial(replay.starts, initial=True, together=math.gcd(rollouts, TOGETHER))


def ended_after(ended: torch.Tensor) -> torch.Tensor:
    """Steps of each rollout up to and with the first that terminated it, int64 [B]; all where none did.

    Args:
        ended: bool [B, H], whether a rollout has terminated by the end of each step.
    """
    return (~ended).sum(1).add(1).clamp(max=ended.shape[1])


def _after_history(values: torch.Tensor, history: int) -> torch.Tensor:
    """Values [B, H, 1] of imagined steps as a field of records [B, history + H, 1], 0 in all other rows."""
    before = values.new_zeros(len(values), history - 1, 1)
    return torch.cat([before, values, values.new_zeros(len(values), 1, 1)], 1)


def imagined_records(history: TensorDict, rollout: TensorDict) -> TensorDict:
    """The history [B, h] and the rollout [B, H] that branches from its last row, as record episodes [B, h + H].

    Row h - 1 is the real state with the first imagined action. The last row holds the final frame only.
    """
    (batch, length), horizon = history.batch_size, rollout.batch_size[1]

    def extend(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.cat([before[:, :-1], values, torch.zeros_like(values[:, :1])], 1)

    observations = [key for key in OBSERVATIONS if ("next", key) in rollout.keys(True)]
    zeros = torch.zeros(batch, length, 1, device=rollout.device)
    return TensorDict(
        **{key: torch.cat([history[key], rollout["next", key]], 1) for key in observations},
        action=extend(rollout["action"], history["action"]),
        reward=extend(rollout["next", "reward"], zeros),
        terminated=extend(rollout["next", "terminated"], zeros.bool()),
        truncated=extend(rollout["next", "truncated"], zeros.bool()),
        batch_size=[batch, length + horizon],
    )
