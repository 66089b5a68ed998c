"""Starting from recorded episodes: the simulator is put exactly where the episode was, or the reason is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mbrl.data.episodes import SNAPSHOT, record_fields, to_records
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.play.episodes import FolderSource, Library, ReplaySource, _outwards
from mbrl.play.session import Session
from mbrl.replay.episode_buffer import EpisodeBuffer
from tests.demonstrations import write_episodes
from tests.play.worlds import LENGTH, SIDE, parts, session


def recorded(seed: int, worker: int, first: int, count: int, *, snapshots: bool = False) -> list[TensorDict]:
    env = make_env(seed=seed, worker=worker, resolution=SIDE, episode_length=LENGTH, snapshots=snapshots)
    env.unwrapped.seek(first)  # type: ignore[attr-defined]
    return [to_records(env.rollout(LENGTH)) for _ in range(count)]


def replay(episodes: list[TensorDict], snapshots: bool = False) -> EpisodeBuffer:
    env = make_env(resolution=SIDE, snapshots=snapshots)
    buffer = EpisodeBuffer(1000, fields=record_fields(env.observation_spec, env.action_spec))
    for episode in episodes:
        buffer.extend(episode[None])
    return buffer


def library(source: Any) -> Library:
    def make(**options: Any) -> Any:
        return make_env(resolution=SIDE, episode_length=LENGTH, **options)

    return Library({"source": source}, make)


def check_start(played: Session, records: TensorDict, step: int) -> None:
    """The session stands at the step, with the frames before it as context, and goes on as the episode did."""
    context = played.model.context_length
    shown = [moment.real["pixels"] for moment in played.moments]
    idle = max(0, context - 1 - step)
    assert (shown[len(shown) - 1 - idle] == records["pixels"][step].numpy()).all()
    if not idle:
        assert (np.stack(shown) == records["pixels"][step + 1 - context : step + 1].numpy()).all()
        after = played.step(records["action"][step].tolist())
        assert after.real["state"] == pytest.approx(records["state"][step + 1].numpy(), abs=1e-5)
        assert after.reward == pytest.approx(float(records["reward"][step]), abs=1e-4)


@pytest.mark.parametrize("step", [0, 1, 17, LENGTH - 1])
@pytest.mark.parametrize("snapshots", [False, True])
def test_a_replay_of_several_workers_is_started_from(step: int, snapshots: bool) -> None:
    episodes = [episode for worker in (0, 1) for episode in recorded(5, worker, 3, 3, snapshots=snapshots)]
    source = ReplaySource(replay(episodes, snapshots), 5, 2)
    assert source.lengths == [LENGTH + 1] * 6
    assert (SNAPSHOT in source.read(0).keys()) is snapshots
    played = session()
    for number in (0, 5):
        library(source).start(played, "source", number, step)
        check_start(played, episodes[number], step)


def test_a_folder_is_started_from(tmp_path: Path) -> None:
    episodes = recorded(0, 0, 0, 3)
    write_episodes(tmp_path, episodes)
    source = FolderSource(tmp_path, SIDE)
    played = session()
    library(source).start(played, "source", 2, 20)
    check_start(played, episodes[2], 20)
    steps = [step for step, _ in library(source).pictures("source", 1, 4)]
    assert steps == [0, 13, 27, 40]


def test_a_saved_session_is_started_from(tmp_path: Path) -> None:
    made = parts(tmp_path / "play")
    made.session.reset(7)
    for _ in range(5):
        made.session.step([0.3, -0.2])
    made.recordings.save_episode(made.session.moments)
    library(FolderSource(tmp_path / "play", SIDE)).start(made.session, "source", 0, 4)
    assert made.session.step([0.3, -0.2]).depth == 1


def test_what_cannot_be_reached_is_said(tmp_path: Path) -> None:
    (episode,) = recorded(0, 0, 0, 1)
    elsewhere = episode.clone()
    elsewhere["state"] += 0.5
    write_episodes(tmp_path / "elsewhere", [elsewhere])
    wrong = episode.clone()
    wrong["action"] = -wrong["action"]
    write_episodes(tmp_path / "wrong", [wrong])
    write_episodes(tmp_path / "blind", [episode.exclude("state")])
    played = session()
    before = played.moment
    with pytest.raises(UserError, match="no reset of this task gives its first state"):
        library(FolderSource(tmp_path / "elsewhere", SIDE)).start(played, "source", 0, 3)
    with pytest.raises(UserError, match="its actions lead elsewhere"):
        library(FolderSource(tmp_path / "wrong", SIDE)).start(played, "source", 0, 9)
    with pytest.raises(UserError, match="have no state"):
        FolderSource(tmp_path / "blind", SIDE)
    assert played.moment is before
    after = played.step([0.0, 0.0])  # The simulator is still where the session is.
    assert after.real["state"] == pytest.approx(before.real["state"])


@pytest.mark.parametrize(("episode", "step", "message"), [(3, 0, "no episode 3"), (0, LENGTH, "no step 40")])
def test_what_does_not_exist_is_said(episode: int, step: int, message: str, tmp_path: Path) -> None:
    write_episodes(tmp_path, recorded(0, 0, 0, 1))
    with pytest.raises(UserError, match=message):
        library(FolderSource(tmp_path, SIDE)).start(session(), "source", episode, step)


def test_likely_numbers_come_first() -> None:
    assert list(_outwards(2, 6)) == [2, 3, 1, 4, 0, 5]
    assert list(_outwards(0, 3)) == [0, 1, 2]
    assert torch.tensor(list(_outwards(500, 200))).unique().numel() == 200
