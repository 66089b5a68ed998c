"""The imagined environment: any world model as a TorchRL environment with the keys of the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from mbrl.data.episodes import INITIAL
from mbrl.errors import UserError
from worldmodel.base import WorldModel

Starts = Callable[[int, int], TensorDictBase]


class ImaginationEnv(EnvBase):
    """Imagined rollouts of a world model, each branched from a real state.

    A reset draws real histories with `starts`; the last row of each is the state to branch from. The state of the model
    (its KV cache) is kept inside the environment, because a rollout would otherwise stack it at every step. An episode
    ends by `truncated` at the horizon, and before it by `terminated` where the model predicts that. All rollouts are
    stepped to the horizon; after a termination `terminated` stays true and the reward is 0.

    Args:
        world_model: predicts the steps.
        starts: called with B and a length; returns real histories [B, length] with `action` and the observations of the
            model (`pixels`, `state`, `task`). `Replay.starts` is one.
        action_spec: that of the real environment.
        batch_size: B, rollouts in parallel.
        horizon: steps of a rollout. The attribute may be changed before a reset.
        resolution: R of the frames; None for a world model without pixels.
        frame_stack: K, the number of last images that make up `frames`. The first ones come from the real history.
        device: where the rollouts are.

    Attributes:
        history: length of the histories that are drawn, the largest that the model and the frame stack need.

    Raises:
        UserError: the horizon is longer than the model can predict, or the model predicts no rewards, or it needs a
            goal.
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: Starts,
        *,
        action_spec: TensorSpec,
        batch_size: int,
        horizon: int,
        resolution: int | None = None,
        frame_stack: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        check_horizon(world_model, horizon)
        if world_model.goal_conditioned or not world_model.predicts_reward:
            reason = "needs a goal, which no replay holds" if world_model.goal_conditioned else "predicts no rewards"
            raise UserError(f"this world model {reason}: an agent cannot learn from what it imagines")
        super().__init__(device=device, batch_size=[batch_size])
        self.world_model, self.starts = world_model, starts
        self.horizon, self.frame_stack = horizon, frame_stack
        self.has_pixels = "pixels" in world_model.observations
        self.history = max(world_model.context_length, frame_stack if self.has_pixels else 1)
        self._state: Any = None
        self._observed: dict[str, Tensor] = {}  # the newest frames [B, K, 3, R, R], and other observations
        self._steps = 0
        self._ended: Tensor | None = None  # bool [B, 1], which rollouts have terminated; None: the model predicts none
        self._estimates: dict[str, list[Tensor]] = {name: [] for name in world_model.uncertainty_keys}
        self._make_specs(action_spec, resolution)

    def _make_specs(self, action_spec: TensorSpec, resolution: int | None) -> None:
        shape, device = self.batch_size, self.device

        def image(channels: int) -> Bounded:
            sides = (resolution, resolution)
            return Bounded(0, 255, (*shape, channels, *sides), dtype=torch.uint8, device=device)

        entries: dict[str, TensorSpec] = {}
        if self.has_pixels:
            entries |= {"pixels": image(3), "frames": image(3 * self.frame_stack)}
        if "state" in self.world_model.observations:
            entries["state"] = Unbounded((*shape, self.world_model.state_dim), dtype=torch.float32, device=device)
        if "embedding" in self.world_model.observations:
            width = self.world_model.embedding_size
            entries["embedding"] = Unbounded((*shape, width), dtype=torch.float32, device=device)
        if "task" in self.world_model.observations:
            entries["task"] = Unbounded((*shape, self.world_model.tasks), dtype=torch.float32, device=device)
        self.observation_spec = Composite(entries, shape=shape, device=device)
        self.action_spec = action_spec.to(device).expand(*shape, *action_spec.shape)
        self.reward_spec = Unbounded((*shape, 1), dtype=torch.float32, device=device)
        flag = Binary(shape=(*shape, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=shape, device=device
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        if tensordict is not None and "_reset" in tensordict and not tensordict["_reset"].all():
            raise RuntimeError("imagined rollouts cannot be reset in part")
        history = self.starts(self.batch_size[0], self.history).to(self.device)
        if INITIAL in self.world_model.context_keys and INITIAL not in history.keys():
            raise UserError("this world model needs the first frame of the episode: add `initial` [B, T, 3, R, R]")
        self.history_records = history
        self._state = self.world_model.start(history[:, -self.world_model.context_length :])
        self._observed = {key: history[key][:, -1] for key in self.world_model.observations}
        if self.has_pixels:
            self._observed["pixels"] = history["pixels"][:, -self.frame_stack :]
        self._steps, self._ended = 0, None
        for values in self._estimates.values():
            values.clear()
        return self._observation()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self._state, prediction = self.world_model.step(self._state, tensordict["action"])
        for key, observed in self._observed.items():
            predicted = prediction[key]
            self._observed[key] = torch.cat([observed[:, 1:], predicted[:, None]], 1) if key == "pixels" else predicted
        self._steps += 1
        for name, values in self._estimates.items():
            values.append(prediction[name])
        reward = prediction["reward"]
        if self.world_model.predicts_termination:
            ended = prediction["terminated"]
            if self._ended is not None:
                reward, ended = reward.masked_fill(self._ended, 0.0), ended | self._ended
            self._ended = ended
        out = self._observation()
        out["reward"] = reward
        return out

    def any_done(self, tensordict: TensorDictBase) -> bool:
        """As `EnvBase.any_done`, but False before the horizon, without a read of flags that would wait for the GPU."""
        return self._steps >= self.horizon and super().any_done(tensordict)

    def estimates(self) -> dict[str, Tensor]:
        """Uncertainty estimates of the rollout since the last reset, by name, float32 [B, H]."""
        return {name: torch.cat(values, 1) for name, values in self._estimates.items() if values}

    def _observation(self) -> TensorDict:
        truncated = torch.full((*self.batch_size, 1), self._steps >= self.horizon, device=self.device)
        observed = dict(self._observed)
        if self.has_pixels:
            observed |= {"pixels": self._observed["pixels"][:, -1], "frames": self._observed["pixels"].flatten(1, 2)}
        terminated = torch.zeros_like(truncated) if self._ended is None else self._ended.clone()
        observed |= {"truncated": truncated, "terminated": terminated, "done": truncated | terminated}
        return TensorDict(observed, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        """Seed torch's global generator, the only source of randomness here."""
        if seed is not None:
            torch.manual_seed(seed)


def check_horizon(world_model: WorldModel, horizon: int) -> None:
    """Check the length of rollouts.

    Raises:
        UserError: the world model cannot predict this number of steps.
    """
    if not 1 <= horizon <= world_model.max_horizon:
        raise UserError(
            f"imagination horizon {horizon}: this world model can predict 1 to {world_model.max_horizon} steps "
            "(to predict more, train it with a larger agent.segment_length)"
        )
