"""The episode under way: what can be drawn from it, and that it leaves the replay as if it had come whole."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.replay import Replay
from tests.replay.test_replay import FIELDS, GAMMA, as_collected, fill, records

chunks = st.lists(st.integers(1, 4), min_size=1, max_size=4)  # steps that come together, of one episode


def drawn(buffer: EpisodeBuffer, count: int = 64) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return buffer.transitions(count).flatten_keys(".").to_dict()


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in expected)


@settings(max_examples=15, deadline=None)
@given(
    episodes=st.lists(chunks, min_size=1, max_size=8),
    capacity=st.integers(17, 40),
    n_step=st.integers(1, 4),
    reserve=st.integers(0, 9),
)
def test_an_episode_that_grows_is_drawn_from_as_if_it_had_come_whole(episodes, capacity, n_step, reserve):
    options = {"frame_stack": 2, "n_step": n_step, "gamma": GAMMA, "reserve": reserve}
    ours = EpisodeBuffer(capacity, **options)
    for number, parts in enumerate(episodes):
        whole, begin = records(number, sum(parts)), 0
        for steps in parts:
            end = begin + steps
            so_far = whole[: end + 1].clone()
            for key in ("action", "reward", "success", "terminated", "truncated"):
                so_far[key][-1] = 0  # of an action that has not been taken
            ours.grow(so_far[begin:])
            expected = EpisodeBuffer(capacity, **options)
            fill(expected, [sum(earlier) for earlier in episodes[:number]])
            expected.extend(so_far[None])
            assert same(drawn(ours), drawn(expected)) and len(ours) == len(expected)
            assert torch.equal(ours.steps("state")["index"], expected.steps("state")["index"])
            begin = end
        ours.finish(whole)
    assert ours.head == expected.head and torch.equal(ours.state_dict()["episodes"], expected.state_dict()["episodes"])


def test_a_checkpoint_has_the_finished_episodes_alone(tmp_path: Path) -> None:
    kept = [EpisodeBuffer(21, reserve=14, directory=tmp_path / name, fields=FIELDS) for name in ("ours", "expected")]
    for buffer in kept:
        fill(buffer, [6, 6])
    ours, expected = kept
    finished = drawn(expected)
    ours.grow(records(2, 3))
    state = ours.state_dict()
    assert state["head"] == expected.head and torch.equal(state["episodes"], expected.state_dict()["episodes"])
    again = EpisodeBuffer(21, reserve=14, directory=tmp_path / "ours", fields=FIELDS)
    again.load_state_dict(state)
    assert same(drawn(again), finished)
    again.grow(records(5, 3))
    again.finish(records(5, 3))
    once_more = EpisodeBuffer(21, reserve=14, directory=tmp_path / "ours", fields=FIELDS)
    once_more.load_state_dict(again.state_dict())  # holds its records against the checksum of `finish`
    assert (once_more.transitions(300)["state"] >= 500).any()


def test_steps_of_one_worker_can_be_drawn_as_they_come() -> None:
    replay, episode = Replay(100, frame_stack=1, n_step=1, grows=True), as_collected(records(0, 6), 7)
    assert replay.extend(episode[:2]) == [] and len(replay) == 2 and not replay.has_episode
    assert set(replay.starts(50, 1)["state"].flatten().tolist()) == {0.0, 1.0}
    (finished,) = replay.extend(episode[2:])
    assert (finished == records(0, 6)).all() and replay.has_episode and replay.between_episodes
    assert set(replay.transitions(100)["state"].flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


def test_an_episode_that_is_held_back_is_unseen_until_it_is_finished() -> None:
    replay = Replay(100, frame_stack=1, grows=True)
    first, second = as_collected(records(0, 4), 0), as_collected(records(1, 4), 1)
    replay.extend(first, hold_back=False)
    assert replay.unseen == []
    replay.extend(second[:2], hold_back=True)
    replay.extend(second[2:3], hold_back=False)  # what counts is how it began
    assert len(replay) == 4 and replay.unseen == []
    finished = replay.extend(second[3:])
    assert len(replay) == 8 and [id(episode) for episode in replay.unseen] == [id(episode) for episode in finished]
    replay.extend(as_collected(records(2, 4), 2)[:1])
    assert replay.unseen == [] and len(replay) == 9


def test_episodes_of_several_workers_are_unseen_until_they_are_finished() -> None:
    workers = torch.stack([as_collected(records(number, 4), number) for number in range(2)])
    replay = Replay(100, frame_stack=1)
    replay.extend(workers[:, :3])
    assert len(replay) == 0 and replay.unseen == []
    finished = replay.extend(workers[:, 3:])
    assert len(replay) == 8 and [id(episode) for episode in replay.unseen] == [id(episode) for episode in finished]
    with pytest.raises(ValueError, match="one worker"):
        Replay(100, frame_stack=1, grows=True).extend(workers[:, :3])


def test_an_episode_ends_with_what_was_written_of_it() -> None:
    buffer = EpisodeBuffer(40)
    buffer.grow(records(0, 3))
    with pytest.raises(ValueError, match="5 records ends, and 4 were written"):
        buffer.finish(records(0, 4))


def test_there_is_no_episode_where_the_one_under_way_takes_all_room() -> None:
    replay, episode = Replay(12, frame_stack=1, grows=True), as_collected(records(1, 8), 1)
    replay.extend(as_collected(records(0, 8), 0))
    assert replay.has_episode
    replay.extend(episode[:5])
    assert not replay.has_episode, "the first had to leave"
    replay.extend(episode[5:])
    assert replay.has_episode and len(replay) == 8


def test_the_newest_are_that_under_way_and_a_finished_one() -> None:
    replay = Replay(400, frame_stack=1, n_step=1, grows=True)
    for number in range(4):
        replay.extend(as_collected(records(number, 6), number))
    replay.extend(as_collected(records(4, 6), 4)[:3])
    newest = replay.sequences(60, 2, recent=1.0)["state"] // 100
    assert set(newest.flatten().tolist()) == {3.0, 4.0}
    longer = replay.sequences(60, 5, recent=1.0)["state"] // 100
    assert set(longer.flatten().tolist()) == {3.0}, "the other has too few rows as yet"
