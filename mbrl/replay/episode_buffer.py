"""Sampling from stored episodes: transitions, segments, start states. B batch, T time, K frame stack.

Stacks of frames and n-step returns are made here, from single records (see `episode_ring`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl.data.episodes import INITIAL, OBSERVATIONS, SNAPSHOT
from mbrl.errors import UserError
from mbrl.replay.episode_ring import EpisodeRing
from mbrl.replay.mirror import CPU, Fields, Placement
from mbrl.run_folder.schema import TensorType
from policies.ranges import FrameStack, Horizon, PositiveShare
from policies.returns import n_step

WEIGHT = "weight"
LOG_PROB = "action_log_prob"


class EpisodeBuffer(EpisodeRing):
    """Whole episodes in a ring of records, to draw steps from; the oldest episodes leave first.

    Args:
        capacity: see `EpisodeRing`.
        frame_stack: K, how many frames make one `frames` observation.
        n_step: rewards summed in a transition. gamma: discount of one agent step.
        reserve: see `EpisodeRing`, as `directory`, `fields`, `latents`, `read_only`, `device` and `run_device`.
        stacks: whether transitions have `frames` where there are pixels.

    Raises:
        UserError: the capacity is below 2, or memory maps or a copy on a GPU are asked for without fields.
    """

    def __init__(
        self,
        capacity: int,
        *,
        frame_stack: FrameStack = 3,
        n_step: Horizon = 3,
        gamma: PositiveShare = 0.99,
        reserve: int = 0,
        directory: Path | None = None,
        fields: Fields | None = None,
        latents: Mapping[str, TensorType] | None = None,
        stacks: bool = True,
        read_only: bool = False,
        device: Placement = "auto",
        run_device: torch.device = CPU,
    ) -> None:
        if capacity < 2:
            raise UserError(f"replay.capacity is {capacity}: it must be 2 or more")
        super().__init__(
            capacity, reserve=reserve, directory=directory, fields=fields, latents=latents, read_only=read_only,
            device=device, run_device=run_device,
        )  # fmt: skip
        self.frame_stack, self.n_step, self.gamma, self.stacks = frame_stack, n_step, gamma, stacks

    def transitions(self, batch_size: int) -> TensorDict:
        """Draw n-step transitions, uniformly over all of them.

        Returns: [B] of `frames` uint8 [3K, R, R] (where there are pixels), other observations, `action`, their
        counterparts under "next" n steps later, ("next", "reward") [1] = Σ γ^i r_i over the m ≤ n steps that lie
        within the episode, ("next", "terminated") [1], and `gamma` [1] = γ^m for the bootstrapped value.
        Where the records hold a `weight` [1], they are drawn in proportion to it instead.
        """
        weighted = self._buffer is not None and WEIGHT in self.records.keys()
        drawn = self._table.draw_transitions(batch_size, partial(self._of_rows, WEIGHT) if weighted else None)
        episode, offset = self._send(*drawn)
        final = self._table.on(self.device).lengths[episode] - 2  # the offset of the episode's last action
        steps = offset[:, None] + torch.arange(self.n_step, device=self.device)
        rows = self._rows(episode[:, None], steps.minimum(final[:, None]))
        returns = n_step(self._gather("reward", rows).squeeze(-1), steps >= final[:, None], self.gamma)
        last = offset + returns.steps.squeeze(-1) - 1
        terminated = self._gather("terminated", self._rows(episode, last))
        done = terminated.clone()
        after = TensorDict(reward=returns.reward, terminated=terminated, done=done, batch_size=[batch_size])
        batch = TensorDict(gamma=returns.gamma, next=after, batch_size=[batch_size])
        batch["action"] = self._gather("action", rows[:, 0])
        for key in self._observation_keys():
            if key == "pixels" and not self.stacks:
                continue
            out = "frames" if key == "pixels" else key
            batch[out], batch["next", out] = (self._observe(key, episode, at) for at in (offset, last + 1))
        return batch

    def sequences(
        self, batch_size: int, length: int, before: int = 0, *, initial: bool = False, newest: float = 1.0,
        past_end: bool = False,
    ) -> TensorDict:  # fmt: skip
        """Draw segments of `length` rows within one episode (`EpisodeTable.draw_segments`): [B, T] of single frames.

        action[t] leads to frame t + 1 and earns ("next", "reward")[t]; the last row's are not to be used. Where an
        episode terminated in fewer rows, the rest are copies of its final one, with ("next", "terminated").
        before: further rows in front of each segment, [B, before + T]; where its episode has none, they are copies of
            the first row. Then there are `is_init` bool [1], whether a row is an episode's first (and no copy), and
            `index` int64 [1], its number in `latents` until the next episode comes.
        initial: whether each row has the first frame of its episode beside it, as `initial`.
        newest: share of the episodes to draw from, the newest ones, in (0, 1].
        past_end: whether segments of every episode that terminated may go on after its end in the same way.
        """
        rows = self.size + 1 if past_end else length
        extended = self._table.ended_before(rows, partial(self._of_rows, "terminated"))
        drawn = self._table.draw_segments(batch_size, length, extended, newest, past_end)
        episode, offset = self._send(*drawn)
        steps = offset[:, None] + torch.arange(-before, length, device=self.device)
        segments = self._segments(episode, steps, numbered=before > 0, first=initial)
        if extended.any():
            (short,), lengths = self._send(extended[drawn[0]]), self._table.on(self.device).lengths
            segments["next", "terminated"] |= (short[:, None] & (steps >= lengths[episode][:, None] - 1))[..., None]
        return segments

    def starts(
        self,
        batch_size: int,
        length: int,
        *,
        together: int = 1,
        last: int | None = None,
        initial: bool = False,
    ) -> TensorDict:
        """Draw histories [B, length] whose last row is a state to branch from, uniformly over steps.

        Every step of an episode but its last record, from which no action was taken, is drawn. Where an episode has no
        row before its first, the history has copies of it, as a frame stack has. `snapshot` [n] where the records do.

        Args:
            batch_size: B.
            length: rows of a history.
            together: states in succession that are of one episode, a divisor of B. Each state is as likely as alone.
            last: the last step of an episode to draw, counted from 0, the first at least; None draws them all.
            initial: as in `sequences`.
        """
        places = self._table.lengths - 1
        weights = places if last is None else places.clamp(max=max(0, last) + 1)
        episode, offset = self._table.draw(weights, batch_size // together)
        if together > 1:
            episode = episode.repeat_interleave(together)
            offset = (torch.rand(len(episode)) * weights[episode]).long()
        episode, offset = self._send(episode, offset)
        steps = offset[:, None] + torch.arange(1 - length, 1, device=self.device)
        drawn = self._segments(episode, steps, (SNAPSHOT,), first=initial)
        drawn["action"].mul_((steps >= 0)[..., None])  # no action led to the first frame
        return drawn

    def _segments(
        self, episode: Tensor, steps: Tensor, further: tuple[str, ...] = (), numbered: bool = False, first: bool = False
    ) -> TensorDict:
        """The rows of episodes [B] at steps [B, T], those before the first and after the last being copies of it."""
        last = self._table.on(self.device).lengths[episode][:, None] - 1
        rows, shape = self._rows(episode[:, None], steps.clamp(min=0).minimum(last)), steps.shape
        names = [*self._observation_keys(), "action", *(key for key in further if key in self.records.keys())]
        batch = TensorDict({key: self._gather(key, rows) for key in names}, batch_size=shape)
        after = {key: self._gather(key, rows) for key in ("reward", "success", "terminated")}
        batch["next"] = TensorDict(after, batch_size=shape)
        if first:
            frames = self._gather("pixels", self._rows(episode, torch.zeros_like(episode)))
            batch[INITIAL] = frames[:, None].expand(*shape, *frames.shape[1:])
        if numbered:
            batch["is_init"], batch["index"] = (steps == 0)[..., None], rows[..., None]
        return batch

    def steps(self, *observations: str) -> TensorDict:
        """Every single step that can be drawn, oldest first.

        Returns: [N] with the observations and their counterparts under "next", `action`, ("next", "reward") [1],
        ("next", "terminated") bool [1], and `index` int64 [N], the number of the step's record among all ever written.
        """
        episodes, offsets = self._table.all_transitions()
        (index,) = self._send(self._table.starts[episodes] + offsets)
        rows, following = index % self.size, (index + 1) % self.size
        after = TensorDict({key: self._gather(key, following) for key in observations}, batch_size=[len(index)])
        after["reward"], after["terminated"] = self._gather("reward", rows), self._gather("terminated", rows)
        now: dict[str, Any] = {key: self._gather(key, rows) for key in (*observations, "action")}
        return TensorDict({**now, "next": after, "index": index}, batch_size=[len(index)])

    def _observation_keys(self) -> list[str]:
        known = {*self.records.keys(), *self.latents.observed}
        return [key for key in OBSERVATIONS if key in known]

    def _observe(self, key: str, episode: Tensor, offset: Tensor) -> Tensor:
        if key != "pixels":
            return self._gather(key, self._rows(episode, offset))
        # the frames before an episode's first are copies of it, as CatFrames has it in the environment
        back = torch.arange(1 - self.frame_stack, 1, device=self.device)
        frames = self._gather(key, self._rows(episode[:, None], (offset[:, None] + back).clamp(min=0)))
        return frames.flatten(1, 2)
