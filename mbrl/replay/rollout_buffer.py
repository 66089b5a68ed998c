"""Imagined rollouts, kept as episodes whose first rows are real history. B rollouts, T rows, K frame stack."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from mbrl.errors import UserError
from mbrl.replay.episode_buffer import LOG_PROB, EpisodeBuffer


class RolloutBuffer(EpisodeBuffer):
    """An episode buffer from which whole rollouts can be drawn too."""

    def rollouts(self, batch_size: int) -> TensorDict:
        """Draw different episodes whole, of the newest one's length: [B, T] rows from their first to learn from.

        B is `batch_size`, or all there are. `frames` [3K, R, R] where there are pixels, the rows before the first being
        the history of their stacks; other observations, `action`, `action_log_prob` where it was recorded,
        ("next", "reward") and ("next", "terminated"). In the last row, action, reward and terminated are undefined.
        """
        if not len(self._table):
            raise UserError("replay: there is no rollout to draw; imagine one first")
        _, length, first, _ = self._table.episodes[-1]
        alike = ((self._table.lengths == length) & (self._table.firsts == first)).nonzero().flatten()
        drawn = alike[torch.randperm(len(alike))[:batch_size]]
        shape = (len(drawn), length - first)
        offset = torch.arange(first, length).expand(shape).flatten()
        episode, offset = self._send(drawn[:, None].expand(shape).flatten(), offset)
        rows = self._rows(episode, offset)
        known = [key for key in ("action", LOG_PROB) if key in self.records.keys()]
        flat: dict[str, Any] = {key: self._gather(key, rows) for key in known}
        for key in self._observation_keys():
            flat["frames" if key == "pixels" else key] = self._observe(key, episode, offset)
        after = {key: self._gather(key, rows) for key in ("reward", "terminated")}
        flat["next"] = TensorDict(after, batch_size=[len(rows)])
        return TensorDict(flat, batch_size=[len(rows)]).reshape(shape)
