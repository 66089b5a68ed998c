"""Table of the episodes in a ring of records, and uniform sampling of transitions and segments from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.errors import UserError
from mbrl.run_folder.schema import SchemaError

OfRows = Callable[[Tensor, Tensor], Tensor]  # (episodes [K], rows in them [K]) -> one value each, [K]


class Episode(NamedTuple):
    """Where an episode lies.

    Attributes:
        start: number of its first record among all ever written. length: its records.
        first: first row to learn from; rows before it are history for frame stacks. 0 for real episodes.
        checksum: CRC-32 of its records where they are kept in files; else 0.
    """

    start: int
    length: int
    first: int
    checksum: int


class EpisodeTable:
    """The episodes that can be drawn from, oldest first.

    Attributes:
        rows: int64 [N, 4], an `Episode` a row.
        has_unfinished: whether the last episode is unfinished.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.has_unfinished = False
        self.rows = torch.empty(0, len(Episode._fields), dtype=torch.int64) if rows is None else rows
        self._copied: tuple[Tensor, EpisodeTable] | None = None  # of which rows, and the copy
        self._counted: tuple[Tensor, Tensor, Tensor] | None = None  # of which rows, and what `counts` returns

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def episodes(self) -> list[Episode]:
        return [Episode(*row) for row in self.rows.tolist()]

    def on(self, device: torch.device) -> EpisodeTable:
        """This table on a device, where it is copied to once for each change of its rows."""
        if device.type == "cpu":
            return self
        if self._copied is None or self._copied[0] is not self.rows:
            self._copied = self.rows, EpisodeTable(self.rows.to(device))
        return self._copied[1]

    @property
    def starts(self) -> Tensor:
        """Number of the first record of each episode [N], among all ever written."""
        return self.rows[:, 0]

    @property
    def lengths(self) -> Tensor:
        """Records of each episode [N]."""
        return self.rows[:, 1]

    @property
    def firsts(self) -> Tensor:
        """The first row to learn from in each episode [N]."""
        return self.rows[:, 2]

    def counts(self) -> tuple[Tensor, Tensor]:
        """Transitions of each episode [N] and their cumulative sum [N], computed once for each change of the rows."""
        if self._counted is None or self._counted[0] is not self.rows:
            transitions = self.lengths - 1 - self.firsts
            self._counted = self.rows, transitions, transitions.cumsum(0)
        return self._counted[1:]

    def all_transitions(self) -> tuple[Tensor, Tensor]:
        """The episode and the row in it of each transition [N], oldest first."""
        counts, bounds = self.counts()
        episodes = torch.arange(len(counts)).repeat_interleave(counts)
        before = (bounds - counts)[episodes]
        return episodes, torch.arange(len(episodes)) - before + self.firsts[episodes]

    def append(self, starts: Tensor, lengths: Tensor, first: int, checksums: Tensor) -> None:
        """Add episodes."""
        new = torch.stack([starts, lengths, torch.full_like(starts, first), checksums], 1)
        self.rows = torch.cat([self.rows, new])

    def grow(self, start: int, length: int) -> None:
        """Add the unfinished episode, or change its length."""
        self.rows = torch.cat([self.finished, torch.tensor([[start, length, 0, 0]])])
        self.has_unfinished = True

    def finish(self, checksum: Tensor) -> None:
        """Finish the unfinished episode; its checksum is int64 [1]."""
        self.rows = torch.cat([self.rows[:-1], torch.cat([self.rows[-1, :3], checksum])[None]])
        self.has_unfinished = False

    @property
    def finished(self) -> Tensor:
        """Rows of all finished episodes, [N, 4]."""
        return self.rows[: len(self.rows) - self.has_unfinished]

    def drop_before(self, record: int) -> None:
        """Drop the episodes that start before the record of this number."""
        self.rows = self.rows[self.starts >= record]

    def draw(self, weights: Tensor, count: int, needed: int = 2, bounds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw episodes and positions in them, uniformly over all positions.

        Args:
            weights: number of positions that can be drawn in each episode, int64 [N].
            count: B, draws.
            needed: records that an episode with a place has, for the error.
            bounds: cumulative sum of the weights [N] where it is known.

        Returns:
            Episodes int64 [B], and places in them int64 [B], counted from 0.

        Raises:
            UserError: no episode has a place.
        """
        bounds = weights.cumsum(0) if bounds is None else bounds
        if not len(bounds) or bounds[-1] == 0:
            raise UserError(f"replay: no episode has {needed} records or more to draw from; collect more first")
        place = torch.randint(int(bounds[-1]), (count,))
        episode = torch.searchsorted(bounds, place, right=True)
        return episode, place - bounds[episode] + weights[episode]

    def draw_transitions(self, count: int, weight_of: OfRows | None) -> tuple[Tensor, Tensor]:
        """Draw transitions: episodes int64 [B] and rows in them int64 [B].

        Args:
            count: B, draws.
            weight_of: weights by which they are drawn; None draws uniformly.
        """
        if weight_of is None:
            weights, bounds = self.counts()
            episode, offset = self.draw(weights, count, bounds=bounds)
            return episode, offset + self.firsts[episode]
        episodes, offsets = self.all_transitions()
        weights = weight_of(episodes, offsets)
        if not len(weights) or not weights.sum() > 0:
            raise UserError("replay: no transition has a weight above 0 to be drawn by")
        drawn = torch.multinomial(weights, count, replacement=True)
        return episodes[drawn], offsets[drawn]

    def ended_before(self, length: int, terminated: OfRows) -> Tensor:
        """Which episodes [N] have fewer than `length` rows because they terminated.

        Args:
            length: rows.
            terminated: whether the episode terminated in a row.
        """
        found, short = torch.zeros(len(self), dtype=torch.bool), (self.lengths < length).nonzero()[:, 0]
        if len(short):
            found[short] = terminated(short, (self.lengths[short] - 2).clamp(min=0))
        return found

    def of_newest(self, weights: Tensor, share: float) -> Tensor:
        """Weights [N], set to 0 in place for all episodes but the unfinished one and the newest `share` of the others.

        Where there is a finished episode, one stays: the few steps of a new one would be drawn again and again.
        """
        finished = len(weights) - self.has_unfinished
        weights[: finished - max(1, round(share * finished))] = 0
        return weights

    def draw_segments(
        self, count: int, length: int, extended: Tensor, newest: float = 1.0, past_end: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw segments, about uniformly over the rows that they hold.

        Uniform draws over segments would hold an episode's first row once and a row of its middle T times. So segments
        that would begin up to T / 2 rows before the first row, or end as far beyond the last, are moved inside: a row
        is then drawn between half and one and a half times as often as one of the middle.

        Args:
            count: B, draws.
            length: T, rows of a segment.
            extended: bool [N], episodes with fewer rows from which a segment is drawn all the same, from their first.
            newest: share of the episodes to draw from, the newest ones.
            past_end: whether a segment of an extended episode may begin in any of its transitions, so that each of them
                has every place of a segment.

        Returns:
            Episodes int64 [B], and the row in them where each segment begins, int64 [B].

        Raises:
            UserError: no other episode has T rows.
        """
        last, beyond = self.lengths - length, length // 2
        weights = torch.where((last >= 0) | extended, last + 1 + 2 * beyond, 0)
        if past_end:
            last = torch.where(extended, self.lengths - 2, last)
            weights = torch.where(extended, last + 1 + beyond, weights)
        episode, place = self.draw(self.of_newest(weights, newest), count, needed=length)
        return episode, (place - beyond).clamp(min=0).minimum(last[episode].clamp(min=0))


def check_table(table: Tensor, head: int, size: int) -> None:
    """SchemaError where a saved table [N] of episodes refers to records that a ring of this size cannot hold."""
    starts, lengths, firsts, _ = table.unbind(1)
    whole = (lengths >= 1) & (lengths <= size) & (firsts >= 0) & (firsts < lengths)
    whole &= (starts >= max(0, head - size)) & (starts <= head)
    ends = starts + lengths.clamp(max=size)
    # rollouts that were cut short end before the next begins
    if not bool((whole & (ends <= head)).all()) or bool((starts[1:] < ends[:-1]).any()):
        raise SchemaError(f"the replay's table of episodes refers to records outside of its {head}")
