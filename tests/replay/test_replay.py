"""Invariants of the replay: every draw is checked against the plain list of what was ever written."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.episode_table import EpisodeTable
from mbrl.replay.replay import TRAJECTORY, Replay
from mbrl.run_folder.schema import TensorType

GAMMA = 0.9


def records(episode: int, steps: int, terminated: bool = False) -> TensorDict:
    """A record episode whose every value tells where it comes from: 100 * episode + step (+ 0.5 for rewards)."""
    at = torch.arange(steps + 1)
    final = at == steps
    value = (100.0 * episode + at)[:, None]
    pixels = torch.stack([torch.full_like(at, episode), at, at], 1).to(torch.uint8)[..., None, None]
    return TensorDict(
        pixels=pixels.expand(-1, -1, 2, 2).clone(),
        state=value.clone(),
        action=torch.where(final[:, None], 0.0, value),
        reward=torch.where(final[:, None], 0.0, value + 0.5),
        success=torch.zeros(steps + 1, 1, dtype=torch.bool),
        terminated=((at == steps - 1) & terminated)[:, None],
        truncated=((at == steps - 1) & (not terminated))[:, None],
        batch_size=[steps + 1],
    )


FIELDS = {key: TensorType(value.dtype, tuple(value.shape[1:])) for key, value in records(0, 1).items()}


def fill(buffer: EpisodeBuffer, lengths: list[int], terminated: bool = False) -> None:
    for episode, steps in enumerate(lengths):
        buffer.extend(records(episode, steps, terminated)[None])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    capacity=st.integers(10, 40),
    n_step=st.integers(1, 4),
    stack=st.integers(1, 4),
    reserve=st.integers(0, 15),
    terminated=st.booleans(),
)
def test_transitions_are_what_happened(lengths, capacity, n_step, stack, reserve, terminated):
    buffer = EpisodeBuffer(capacity, frame_stack=stack, n_step=n_step, gamma=GAMMA, reserve=reserve)
    fill(buffer, lengths, terminated)
    batch = buffer.transitions(64)
    for row in batch:
        episode, step = divmod(int(row["state"]), 100)
        steps = lengths[episode]
        m = min(n_step, steps - step)
        assert step < steps, "the final observation has no action"
        assert row["action"] == row["state"]
        assert row["next", "state"] == row["state"] + m
        expected = sum(GAMMA**k * (100 * episode + step + k + 0.5) for k in range(m))
        assert row["next", "reward"].item() == pytest.approx(expected, rel=1e-5)
        assert row["gamma"].item() == pytest.approx(GAMMA**m)
        assert bool(row["next", "terminated"]) == (terminated and step + m == steps)
        for key, at in ((("frames",), step), (("next", "frames"), step + m)):
            frames = row[key][:, 0, 0].reshape(stack, 3)
            assert (frames[:, 0] == episode).all(), "a stack crosses an episode's border"
            assert frames[:, 1].tolist() == [max(0, at - k) for k in reversed(range(stack))]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    capacity=st.integers(10, 40),
    length=st.integers(1, 6),
)
def test_sequences_lie_within_one_episode(lengths, capacity, length):
    buffer = EpisodeBuffer(capacity)
    fill(buffer, lengths)
    kept = [e for e in buffer.episodes if e.length >= length]
    if not kept:
        with pytest.raises(ValueError, match="collect more"):
            buffer.sequences(4, length)
        return
    batch = buffer.sequences(64, length)
    first = batch["state"][:, :1]
    assert torch.equal(batch["state"], first + torch.arange(length)[:, None].float())
    assert (batch["pixels"][:, :, 0] == batch["pixels"][:, :1, 0]).all()
    earned = batch["next", "reward"]
    inner = earned[:, :-1]
    assert torch.equal(inner, batch["action"][:, :-1] + 0.5), "a reward belongs to the action of its own row"


def test_sequences_hold_the_ends_of_an_episode_nearly_as_often_as_its_middle():
    torch.manual_seed(0)
    buffer = EpisodeBuffer(200)
    fill(buffer, [99])
    counts = torch.bincount(buffer.sequences(40_000, 12)["state"].long().flatten(), minlength=100).float()
    often = counts / counts[30:70].mean()
    assert often[0] == pytest.approx(7 / 12, abs=0.05) and often[99] == pytest.approx(7 / 12, abs=0.05)
    assert often.min() > 0.5 and often.max() < 1.6


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), capacity=st.integers(10, 40))
def test_oldest_episodes_leave_first_and_whole(lengths, capacity):
    buffer = EpisodeBuffer(capacity)
    fill(buffer, lengths)
    kept, room = [], capacity
    for episode in reversed(range(len(lengths))):
        room -= lengths[episode] + 1
        if room < 0:
            break
        kept.append(episode)
    seen = set((buffer.transitions(400)["state"] // 100).int().flatten().tolist())
    assert seen <= set(kept)
    assert len(buffer) == sum(lengths[e] for e in kept)


def test_draws_are_uniform_over_transitions():
    buffer = EpisodeBuffer(100)
    fill(buffer, [1, 8, 3])
    torch.manual_seed(0)
    counts = torch.unique(buffer.transitions(24_000)["state"], return_counts=True)[1]
    assert len(counts) == 12
    assert (counts - 2000).abs().max() < 5 * 2000**0.5


def test_history_rows_are_not_learned_from():
    buffer = EpisodeBuffer(100)
    buffer.extend(torch.stack([records(0, 8), records(1, 8)]), first=2)
    steps = buffer.transitions(200)["state"].flatten() % 100
    assert steps.min() == 2 and steps.max() == 7


def as_collected(episode: TensorDict, trajectory: int) -> TensorDict:
    """The steps [L] of a record episode as a TorchRL collector hands them over."""
    now, after = episode[:-1], episode[1:]
    done = now["terminated"] | now["truncated"]
    after = TensorDict(
        pixels=after["pixels"], state=after["state"], reward=now["reward"], success=now["success"],
        terminated=now["terminated"], truncated=now["truncated"], done=done, batch_size=now.batch_size,
    )  # fmt: skip
    out = now.select("pixels", "state", "action")
    out["next"] = after
    out[TRAJECTORY] = torch.full(now.batch_size, trajectory)
    return out


def test_chunks_of_several_workers_become_whole_episodes():
    replay = Replay(100, frame_stack=1)
    a, b = as_collected(records(0, 6), 7), as_collected(records(1, 6), 9)
    assert replay.extend(torch.stack([a[:3], b[:3]])) == []
    assert len(replay) == 0 and not replay.between_episodes
    finished = replay.extend(torch.stack([a[3:], b[3:]]))
    assert (torch.stack(finished)["state"] == torch.stack([records(0, 6), records(1, 6)])["state"]).all()
    assert len(replay) == 12 and replay.between_episodes
    whole = replay.sequences(50, 7)["state"]
    assert torch.equal(whole, whole[:, :1] + torch.arange(7.0)[:, None])


def test_demonstrations_stay_and_fill_their_share():
    replay = Replay(20, demo_share=0.25)
    replay.add_demos([records(90, 5)])
    for episode in range(10):
        replay.extend(as_collected(records(episode, 6), episode))
    from_demos = replay.transitions(100)["state"] >= 9000
    assert int(from_demos.sum()) == 25


@pytest.mark.parametrize("together", [1, 4])
def test_a_small_share_of_a_small_batch_is_right_on_average(together: int):
    replay, rows, drawn = Replay(20, demo_share=0.03), TensorDict(row=torch.arange(16), batch_size=[16]), []
    replay.add_demos([records(90, 5)])

    def draw(buffer: EpisodeBuffer, count: int) -> TensorDict:
        drawn.append(count * (buffer is replay.demos))
        return rows[:count]

    for _ in range(2000):
        assert len(replay._mixed(16, draw, together)) == 16
    assert sum(drawn) / 2000 == pytest.approx(0.03 * 16, abs=0.05)
    assert set(drawn) == {0, together}


def test_goes_on_from_its_memory_maps(tmp_path: Path):
    """What a checkpoint refers to is still there after further writing and a reopening, even around the ring's end."""
    buffer = EpisodeBuffer(21, reserve=14, directory=tmp_path, fields=FIELDS)
    fill(buffer, [6, 6, 6])
    state = buffer.state_dict()
    torch.manual_seed(1)
    expected = buffer.transitions(50)
    for episode in (7, 8):  # written after the checkpoint, then lost with the process
        buffer.extend(records(episode, 6)[None])
    again = EpisodeBuffer(21, reserve=14, directory=tmp_path, fields=FIELDS)
    again.load_state_dict(state)
    torch.manual_seed(1)
    assert (again.transitions(50) == expected).all()
    again.extend(records(3, 6)[None])
    assert set((again.transitions(300)["state"] // 100).int().flatten().tolist()) == {1, 2, 3}


def test_in_memory_records_travel_with_the_checkpoint():
    buffer = EpisodeBuffer(40)
    fill(buffer, [6, 6])
    again = EpisodeBuffer(40)
    again.load_state_dict(buffer.state_dict())
    fill(buffer, [3])
    assert len(again) == 12
    assert again.transitions(50)["state"].max() <= 105


def test_bad_data_never_enters():
    buffer = EpisodeBuffer(40)
    bad = records(0, 5)
    bad["reward"][2] = float("nan")
    with pytest.raises(FloatingPointError, match="reward"):
        buffer.extend(bad[None])
    with pytest.raises(ValueError, match="collect more"):
        buffer.sequences(1, 2)
    with pytest.raises(ValueError, match="do not fit"):
        buffer.extend(records(0, 50)[None])


def test_rollouts_branch_from_every_step_from_which_an_action_was_taken() -> None:
    replay = Replay(200, frame_stack=3, n_step=1, gamma=GAMMA)
    for number in range(8):
        replay.online.extend(records(number, 4)[None])
    drawn = replay.starts(2000, 3)
    counts = torch.bincount((drawn["state"][:, -1, 0]).long(), minlength=800)
    assert set(counts.nonzero().flatten().tolist()) == {100 * number + step for number in range(8) for step in range(4)}
    assert counts[counts > 0].min() > 30, "uniform over steps"
    offset = drawn["state"][..., 0] - drawn["state"][:, -1:, 0]
    step = drawn["state"][:, -1, 0] % 100
    expected = torch.maximum(torch.tensor([-2.0, -1.0, 0.0]), -step[:, None])
    assert torch.equal(offset, expected), "copies of the first row stand before it"
    copies = torch.tensor([-2.0, -1.0, 0.0]) < -step[:, None]
    assert torch.equal(drawn["action"], drawn["state"] * ~copies[..., None]), "no action led to the first row"
    runs = replay.starts(400, 3, together=4)["state"][:, -1, 0]
    of_one = (runs // 100).view(100, 4)
    assert (of_one == of_one[:, :1]).all() and len(of_one[:, 0].unique()) == 8 and len(runs.unique()) == 32
    for together, last, steps in ((1, 2, {0, 1, 2}), (4, 1, {0, 1}), (1, 9, {0, 1, 2, 3}), (1, -4, {0})):
        early = replay.starts(400, 3, together=together, last=last)["state"][:, -1, 0] % 100
        assert set(early.tolist()) == steps


def test_segments_of_the_newest_tenth_and_their_first_frames() -> None:
    replay = Replay(400, frame_stack=1, n_step=1, gamma=GAMMA)
    for number in range(20):
        episode = records(number, 4)
        episode["pixels"] = episode["state"][:, :, None, None].expand(-1, 3, 2, 2).to(torch.uint8)
        replay.online.extend(episode[None])
    drawn = replay.sequences(100, 3, recent=0.5, initial=True)
    episodes = drawn["state"][:, 0, 0] // 100
    assert set(episodes[:50].tolist()) == {18.0, 19.0} and len(episodes[50:].unique()) > 10
    first = (100 * episodes).to(torch.uint8)
    assert (drawn["initial"] == first[:, None, None, None, None]).all()


def test_snapshots_are_drawn_with_the_rows_that_they_are_of() -> None:
    replay = Replay(200, n_step=1, gamma=GAMMA)
    episode = records(3, 6)
    episode["snapshot"] = episode["state"].double().expand(-1, 5).clone()
    replay.online.extend(episode[None])
    drawn = replay.starts(20, 2)
    assert torch.equal(drawn["snapshot"][..., 0], drawn["state"][..., 0].double())
    assert "snapshot" not in replay.sequences(4, 2).keys() and "snapshot" not in replay.transitions(4).keys()


def test_transitions_are_counted_once_for_each_change_of_the_table() -> None:
    table, known = EpisodeTable(), torch.zeros(2, dtype=torch.int64)
    table.append(torch.tensor([0, 5]), torch.tensor([5, 4]), 1, known)
    assert [counted.tolist() for counted in table.counts()] == [[3, 2], [3, 5]]
    assert table.counts()[1] is table.counts()[1]
    for length in (3, 4):
        table.grow(9, length)
        assert [counted.tolist() for counted in table.counts()] == [[3, 2, length - 1], [3, 5, 4 + length]]
    table.finish(known[:1])
    table.drop_before(5)
    assert [counted.tolist() for counted in table.counts()] == [[2, 3], [2, 5]]
