"""Latents in the replay: what lies beside each record, drawn with segments, written back, saved."""

import torch
from tensordict import TensorDict

from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.replay import TRAJECTORY, Replay
from mbrl.run_folder.schema import TensorType, require
from tests.replay.test_replay import FIELDS, records

UNKNOWN = TensorDict(deter=torch.full((2,), -1.0), stoch=torch.zeros(3, dtype=torch.uint8), batch_size=[])


def latents(values: torch.Tensor) -> TensorDict:
    """Latents [N] that tell where they come from, as `records` does."""
    return TensorDict(
        deter=values.reshape(-1, 1).expand(-1, 2).clone(),
        stoch=(values % 100).reshape(-1, 1).expand(-1, 3).to(torch.uint8),
        batch_size=[values.numel()],
    )


def with_latents(episode: int, steps: int) -> TensorDict:
    rows = records(episode, steps)
    return rows.set("latent", latents(rows["state"]))


def test_segments_come_with_the_row_before_and_its_latent():
    buffer = EpisodeBuffer(22, reserve=7)
    for number in range(5):  # the ring turns
        buffer.extend(with_latents(number, 6)[None])
    batch = buffer.sequences(200, 3, before=1)
    assert batch.batch_size == (200, 4)
    episode, step = batch["state"].long() // 100, batch["state"].long() % 100
    assert (episode == episode[:, :1]).all() and set(episode.flatten().tolist()) == {2, 3, 4}
    begins = step[:, 1, 0] == 0
    assert begins.any() and not begins.all()
    assert torch.equal(batch["is_init"][:, 1, 0], begins), "an episode's first row says so"
    assert torch.equal(batch["is_init"][:, 0, 0], step[:, 1, 0] == 1), "its copy in front does not"
    assert not batch["is_init"][:, 2:].any()
    assert (step[:, 1:].diff(dim=1) == 1).all()
    assert (step[~begins, 1] == step[~begins, 0] + 1).all() and (step[begins, 0] == 0).all()
    recalled = buffer.latents.read(batch["index"].flatten(), UNKNOWN)
    assert torch.equal(recalled["deter"][:, :1], batch["state"].reshape(-1, 1))


def test_without_rows_before_a_segment_is_what_it_was():
    buffer = EpisodeBuffer(30)
    buffer.extend(with_latents(1, 6)[None])
    assert set(buffer.sequences(2, 3).keys()) == {"pixels", "state", "action", "next"}
    assert "latent" not in buffer.records.keys(), "latents never reach the memory maps"


def test_what_is_written_back_is_recalled_and_nothing_else_changes():
    replay = Replay(40)
    replay.online.extend(with_latents(1, 6)[None])
    index = replay.sequences(1, 3, before=1)["index"][0, 1:, 0]
    replay.write_latents(index, latents(torch.tensor([7.0, 8.0, 9.0])))
    assert replay.read_latents(index, UNKNOWN)["deter"][:, 0].tolist() == [7.0, 8.0, 9.0]
    others = torch.tensor([row for row in range(7) if row not in index.tolist()])
    assert torch.equal(replay.read_latents(others, UNKNOWN)["deter"][:, 0], 100.0 + others)


def test_of_latents_of_one_record_the_last_is_written():
    buffer = EpisodeBuffer(40)
    buffer.latents.write(torch.tensor([3, 5, 3, 5, 3]), latents(torch.arange(1.0, 6.0)))
    assert buffer.latents.read(torch.tensor([3, 4, 5]), UNKNOWN)["deter"][:, 0].tolist() == [5.0, 0.0, 4.0]


def test_demonstrations_have_latents_of_their_own():
    torch.manual_seed(0)
    replay = Replay(40, demo_share=0.5)
    replay.online.extend(with_latents(1, 6)[None])
    replay.add_demos([records(9, 6)])
    batch = replay.sequences(8, 3, before=1)
    index, of_demos = batch["index"].flatten(), batch["state"].flatten() >= 900
    assert torch.equal(index < 0, of_demos) and 0 < of_demos.sum() < len(index)
    recalled = replay.read_latents(index, UNKNOWN)
    assert (recalled["deter"][of_demos] == -1).all(), "nobody has followed them yet"
    replay.write_latents(index, latents(batch["state"]))
    assert torch.equal(replay.read_latents(index, UNKNOWN)["deter"][:, :1], batch["state"].reshape(-1, 1))


def test_checkpoints_hold_them(tmp_path):
    types = {key: TensorType.of(value) for key, value in UNKNOWN.items()}
    ours, again = (Replay(40, directory=tmp_path, fields=FIELDS, latents=types) for _ in range(2))
    ours.online.extend(with_latents(1, 6)[None])
    state = ours.state_dict()
    state["latents"] = {key: value.clone() for key, value in state["latents"].items()}  # as on disk
    ours.write_latents(torch.tensor([2]), latents(torch.tensor([50.0])))
    require(state, again.schema(), "replay")
    again.load_state_dict(state)
    assert again.read_latents(torch.tensor([2]), UNKNOWN)["deter"][0, 0] == 102.0, "as they were when it was saved"
    larger = Replay(80, directory=tmp_path, fields=FIELDS, latents=types)
    larger.load_state_dict(state)
    rows = torch.tensor([2, 39, 79])
    assert larger.read_latents(rows, UNKNOWN)["deter"][:, 0].tolist() == [102.0, 0.0, 0.0]


def test_checkpoints_are_read_without_the_demonstrations_that_have_some(tmp_path):
    types = {key: TensorType.of(value) for key, value in UNKNOWN.items()}
    ours, again = (Replay(40, directory=tmp_path, fields=FIELDS, latents=types) for _ in range(2))
    ours.online.extend(with_latents(1, 6)[None])
    ours.add_demos([with_latents(9, 6)])
    state = ours.state_dict()
    assert state["demo_latents"]
    require(state, again.schema(), "replay")
    again.load_state_dict(state)
    assert again.demos is None and again.read_latents(torch.tensor([2]), UNKNOWN)["deter"][0, 0] == 102.0


def test_an_actors_latent_stands_with_the_observation_that_it_was_made_of():
    """The collector has it under "next" of the step that began there."""
    replay, steps = Replay(40), 5
    rollout = TensorDict(
        state=torch.arange(steps)[:, None].float(),
        action=torch.zeros(steps, 2),
        collector={"traj_ids": torch.zeros(steps, dtype=torch.int64)},
        next=TensorDict(
            state=torch.arange(1, steps + 1)[:, None].float(),
            latent=latents(torch.arange(steps).float()),
            **{key: torch.zeros(steps, 1, dtype=torch.bool) for key in ("success", "terminated", "truncated")},
            reward=torch.zeros(steps, 1),
            done=(torch.arange(steps) == steps - 1)[:, None],
            batch_size=[steps],
        ),
        batch_size=[steps],
    )
    assert rollout[TRAJECTORY].tolist() == [0] * steps
    replay.extend(rollout)
    recalled = replay.read_latents(torch.arange(steps), UNKNOWN)["deter"][:, 0]
    assert torch.equal(recalled, replay.online.records["state"][:steps, 0])
