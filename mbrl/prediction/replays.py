"""Episodes of a run's replay that a world model was not trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tensordict import TensorDict, TensorDictBase

from mbrl.data.episodes import INITIAL, with_initial
from mbrl.errors import UserError
from mbrl.replay.replay import record_episode
from mbrl.run import Run
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.paths import CHECKPOINTS, CONFIG, TRAINED_ON, checkpoint_folders
from mbrl.run_folder.plain_json import parse_json
from worldmodel.base import WorldModel

EPISODES = 10  # to measure a model on
STARTS = 24  # that plans are ranked from: the standard error of a rank correlation is then about .06


@dataclass(frozen=True)
class Chosen:
    """Which episodes of a run's replay a world model is measured on.

    Attributes:
        after: episodes to leave out before them. None: those that the model was trained on; for a model that was
            trained on none of this replay, all but the newest.
        episodes: number of episodes; None for EPISODES.
        starts: states that plans are ranked from; None for STARTS.
        train: settings of `mbrl train`, with which the model is trained on the first `after` episodes. None: the model
            is trained already.
    """

    after: int | None = None
    episodes: int | None = None
    starts: int | None = None
    train: Sequence[str] | None = None

    def require_folder(self, data: Path) -> None:
        """UserError if episodes of a replay are asked for, and the data are a folder of recorded episodes."""
        for field in fields(self):
            if getattr(self, field.name) is not None:
                raise UserError(f"--{field.name} needs a run's folder as DATA, whose replay is read: {data} is none")


ALL = Chosen()


@dataclass(frozen=True)
class HeldOut:
    """Episodes that a world model was not trained on.

    Attributes:
        episodes: record episodes.
        run: the run that they are from; None for a folder of episodes.
        first: number of the first one in the run.
    """

    episodes: list[TensorDict]
    run: Run | None = None
    first: int = 0

    def for_model(self, model: WorldModel) -> HeldOut:
        """The same, with the initial frame beside each step for a model that starts from it."""
        if INITIAL not in model.context_keys:
            return self
        return replace(self, episodes=[with_initial(episode) for episode in self.episodes])


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, with a replay to read."""
    return (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir()


def episodes_of(run: Run, numbers: Sequence[int]) -> list[TensorDict]:
    """Record episodes of a run's replay, as recorded folders hold them: with rewards without the success bonus.

    Args:
        run: the run.
        numbers: of the episodes, counted from 0 at its first.
    """
    bonus = float(run.config.env.get("success_bonus", 0.0))
    return [_without_bonus(record_episode(run.replay.online, number), bonus) for number in numbers]


def _without_bonus(records: TensorDictBase, bonus: float) -> TensorDict:
    assert isinstance(records, TensorDict)
    return records.set("reward", records["reward"] - bonus * records["success"]) if bonus else records


def recorded(run: Run) -> int:
    """Number of the episodes in a run's replay.

    Raises:
        UserError: it has dropped its first ones, so that episodes have other numbers than in the run.
    """
    episodes = run.replay.online.episodes
    if not episodes or episodes[0].start:
        raise UserError(
            f"{run.folder}: its replay has dropped its first episodes: record it with a larger replay.capacity"
        )
    return len(episodes)


def earlier_checkpoint(run: Path) -> int:
    """Env steps of the checkpoint before the newest: its world model has not seen the newest episodes.

    Raises:
        UserError: there is none.
    """
    found = list(checkpoint_folders(run / CHECKPOINTS))
    if len(found) < 2:
        raise UserError(
            f"{run} has {len(found)} checkpoint, whose world model was trained on all of its episodes: give another "
            "run as DATA, or train a model on the first episodes of this one (--after N --train SETTING ...)"
        )
    return found[-2]


def held_out_numbers(run: Run, seen: int, chosen: Chosen) -> range:
    """Numbers of the episodes of a run's replay to measure a model on.

    Args:
        run: the run.
        seen: the first of its episodes that the model was trained on; 0 if it was trained on others.
        chosen: which episodes are asked for.

    Raises:
        UserError: there are too few, or the model was trained on one of them.
    """
    total, count = recorded(run), chosen.episodes or EPISODES
    first = chosen.after if chosen.after is not None else (seen or max(0, total - count))
    if first < seen:
        raise UserError(
            f"the model was trained on the first {seen} episodes of {run.folder}: --after must be {seen} or more"
        )
    if first + count > total:
        raise UserError(
            f"{count} episodes after the first {first} need {first + count}, and the replay of {run.folder} holds "
            f"{total}: lower --after or --episodes"
        )
    return range(first, first + count)


def write_trained_on(folder: Path, run: Run, episodes: int) -> None:
    """Note beside a model that it was trained on the first episodes of a run's replay."""
    checksums = [episode.checksum for episode in run.replay.online.episodes[:episodes]]
    write_atomically(folder / TRAINED_ON, json.dumps({"checksums": checksums}) + "\n")


def seen_episodes(folder: Path, run: Run) -> int:
    """How many episodes of a run's replay, from its first on, the model in a folder was trained on; 0 for others.

    Raises:
        UserError: the note beside the model is damaged.
    """
    path = folder / TRAINED_ON
    if not path.is_file():
        return 0
    try:
        checksums = set(parse_json(path.read_text(encoding="utf-8"))["checksums"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove {folder}, and train the model again") from error
    numbers = [number for number, row in enumerate(run.replay.online.episodes, 1) if row.checksum in checksums]
    return max(numbers, default=0)
