"""Segments of episodes: positions are drawn uniformly, and each row belongs to the frame that it leads to."""

import pytest
import torch
from tensordict import TensorDict

from mbrl.prediction.held_out import draw_segments, has_gripper
from tests.fakes import episode


def test_every_place_is_drawn_once() -> None:
    episodes = [episode(0, steps=5), episode(1, steps=2), episode(2, steps=4)]  # 6, 3 and 5 frames
    segments = draw_segments(episodes, context=2, horizon=2, count=100, seed=0)
    first = segments.records["pixels"][:, 0, 0, 0, 0].tolist()
    assert sorted(zip(segments.episode.tolist(), first, strict=True)) == [
        (0, 0), (0, 1), (0, 2), (2, 20), (2, 21),
    ]  # fmt: skip
    assert len(segments) == 5 and len(segments[:2]) == 2


def test_rows_belong_to_the_frames_they_lead_to() -> None:
    segments = draw_segments([episode(0, steps=8)], context=3, horizon=4, count=1, seed=1)
    start = int(segments.records["pixels"][0, 0, 0, 0, 0])
    assert segments.before()["pixels"].shape == (1, 3, 3, 8, 8) and segments.after("pixels").shape == (1, 4, 3, 8, 8)
    assert segments.before()["goal"].eq(start + 6).all()  # the last frame, for models that are given a goal
    frames = segments.after("pixels")[0, :, 0, 0, 0].tolist()
    assert frames == [start + 3 + step for step in range(4)]
    # reward 1000 + t was earned by the action at frame t, which leads to frame t + 1
    assert segments.leading("reward")[0, :, 0].tolist() == [1000.0 + frame - 1 for frame in frames]


def test_the_seed_decides() -> None:
    episodes = [episode(number, steps=20) for number in range(3)]
    first, second, other = (draw_segments(episodes, context=2, horizon=3, count=6, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.records["pixels"], second.records["pixels"])
    assert not torch.equal(first.records["pixels"], other.records["pixels"])


def test_entries_that_some_episodes_lack_are_left_out() -> None:
    short = episode(0)
    with_state = episode(1)
    with_state["state"] = torch.zeros(len(with_state), 39)
    segments = draw_segments([short, with_state], context=2, horizon=2, count=30, seed=0)
    assert "state" not in segments and "reward" in segments
    assert has_gripper([with_state]) and not has_gripper([short, with_state])
    narrow = TensorDict(state=torch.zeros(3, 4), batch_size=[3])
    assert not has_gripper([narrow])


def test_episodes_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs 12 frames and the longest episode has 7: .* at most 5"):
        draw_segments([episode(0, steps=6), episode(1, steps=4)], context=2, horizon=10, count=1, seed=0)
