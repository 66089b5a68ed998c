"""The copy of the replay on a GPU, on a pretended one: the same batches, and what is copied for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from mbrl.errors import UserError
from mbrl.replay.episode_buffer import WEIGHT, EpisodeBuffer
from mbrl.replay.latents import Latents
from mbrl.replay.replay import Replay
from mbrl.replay.rollout_buffer import RolloutBuffer
from mbrl.run_folder.schema import Maybe, TensorType
from policies.drqv2 import DrQV2
from tests.parts_on_a_device import ACTIONS, FRAMES, NETWORKS, episodes
from tests.pretended_device import GPU, Counts, devices, pretended_device
from tests.replay.test_latents import UNKNOWN, with_latents
from tests.replay.test_replay import FIELDS, fill

LENGTHS, CAPACITY, BATCH = [5, 9, 4, 8, 6], 33, 7  # records: the ring of 40 turns within the last episode
DRAWS = {
    "transitions": lambda buffer: buffer.transitions(BATCH),
    "sequences": lambda buffer: buffer.sequences(BATCH, 3, before=2),
    "segments beyond short episodes": lambda buffer: buffer.sequences(BATCH, 8, initial=True),
    "starts": lambda buffer: buffer.starts(BATCH, 4),
    "starts of one episode": lambda buffer: buffer.starts(6, 4, together=3, initial=True),
    "rollouts": lambda buffer: buffer.rollouts(3),
    "steps": lambda buffer: buffer.steps("pixels", "state"),
}


@pytest.fixture(autouse=True)
def a_gpu_with_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)


def make(run_device: torch.device = GPU, **options: Any) -> RolloutBuffer:
    return RolloutBuffer(CAPACITY, reserve=7, frame_stack=2, fields=FIELDS, run_device=run_device, **options)


def drawn(buffer: RolloutBuffer, name: str) -> TensorDict:
    """A batch, from the same random numbers each time."""
    torch.manual_seed(3)
    return DRAWS[name](buffer)


def values(batch: TensorDict) -> dict[str, list[Any]]:
    return {str(key): value.cpu().tolist() for key, value in batch.items(True, True)}


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_batch_is_drawn_on_either_device(name: str) -> None:
    here = make(torch.device("cpu"))
    fill(here, LENGTHS, terminated=True)
    expected = values(drawn(here, name))
    with pretended_device() as counts:
        there = make()
        fill(there, LENGTHS, terminated=True)
        drawn(there, name)  # copies the table of episodes
        waited, pageable = counts.synchronisations, counts.pageable_bytes
        batch = drawn(there, name)
        assert (counts.synchronisations, counts.pageable_bytes) == (waited, pageable)
        assert devices(value for _, value in batch.items(True, True)) == {"cuda"}
        assert values(batch) == expected


@pytest.mark.parametrize("directory", [None, "maps"])
def test_a_resumed_buffer_draws_the_same_batches(directory: str | None, tmp_path: Path) -> None:
    where = {} if directory is None else {"directory": tmp_path / directory}
    with pretended_device():
        ours, again = make(**where), make(**where)
        fill(ours, LENGTHS)
        again.load_state_dict(ours.state_dict())
        assert values(drawn(again, "transitions")) == values(drawn(ours, "transitions"))
        for buffer in (ours, again):
            fill(buffer, [3])
        assert values(drawn(again, "transitions")) == values(drawn(ours, "transitions"))


@pytest.mark.parametrize(
    ("placement", "run_device", "free", "expected"),
    [
        ("auto", GPU, 2**30, "cuda"),
        ("auto", GPU, 2000, "cpu"),
        ("cuda", GPU, 2000, "cuda"),
        ("cpu", GPU, 2**30, "cpu"),
        ("auto", torch.device("cpu"), 2**30, "cpu"),
        ("cpu", torch.device("cpu"), 2**30, "cpu"),
    ],
)
def test_where_batches_are_drawn(
    placement: str, run_device: torch.device, free: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: free)
    with pretended_device():  # a copy takes 40 × 27 bytes
        buffer = make(run_device, device=placement)
        fill(buffer, LENGTHS)
        assert devices(value for _, value in buffer.transitions(2).items(True, True)) == {expected}


def test_a_copy_that_cannot_be_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"replay\.device=cuda needs a run on a GPU.* set replay\.device=auto$"):
        make(torch.device("cpu"), device="cuda")
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"^replay\.device=cuda: a copy of 40 records needs .* are free on cuda"):
        make(device="cuda")


def test_a_batch_costs_the_gpu_its_indices_or_its_records_from_pinned_memory() -> None:
    batch_size, records = 8, episodes()
    fields = {key: TensorType(value.dtype, tuple(value.shape[2:])) for key, value in records.items()}
    frames = 2 * batch_size * 3 * records["pixels"][0, 0].nbytes
    copied: dict[str, Counts] = {}
    for placement in ("cuda", "cpu"):
        with pretended_device() as counts:
            replay = Replay(records.numel(), fields=fields, device=placement, run_device=GPU)
            replay.online.extend(records)
            policy = DrQV2(FRAMES, ACTIONS, feature_size=8, **NETWORKS).to(GPU)
            replay.transitions(batch_size)
            before = counts.bytes_to_gpu, counts.pageable_bytes
            policy.update(replay.transitions(batch_size).to(GPU))
        copied[placement] = Counts(
            bytes_to_gpu=counts.bytes_to_gpu - before[0], pageable_bytes=counts.pageable_bytes - before[1]
        )
    assert (copied["cuda"].bytes_to_gpu, copied["cuda"].pageable_bytes) == (2 * 8 * batch_size, 0)
    assert frames < copied["cpu"].bytes_to_gpu < 1.1 * frames
    assert copied["cpu"].pageable_bytes <= 10 * batch_size, "rewards, discounts and ends of the n steps"


def test_records_of_the_gpu_are_not_copied_to_it_and_draws_by_weight_do_not_wait() -> None:
    fields = {**FIELDS, WEIGHT: Maybe(TensorType(torch.float32, (1,)))}
    made = TensorDict(
        {key: torch.zeros(2, 6, *kind.shape, dtype=kind.dtype) for key, kind in FIELDS.items()}, batch_size=[2, 6]
    )
    made["state"] = torch.arange(12.0).reshape(2, 6, 1)
    made[WEIGHT] = (made["state"] == 8).float()
    with pretended_device() as counts:
        buffer, there = EpisodeBuffer(12, fields=fields, run_device=GPU), made.to(GPU)
        before = counts.bytes_to_gpu
        buffer.extend(there)
        assert counts.bytes_to_gpu == before
        buffer.transitions(4)
        waited = counts.synchronisations
        assert set(buffer.transitions(4)["state"].cpu().flatten().tolist()) == {8.0}
        assert counts.synchronisations == waited + 1, "the look at the result alone"


def test_demonstrations_are_drawn_where_the_replay_is(monkeypatch: pytest.MonkeyPatch) -> None:
    records = with_latents(9, 6).exclude("latent")
    for free, expected in ((2**30, {"cuda"}), (2000, {"cpu"})):
        monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device, free=free: free)
        with pretended_device():
            replay = Replay(CAPACITY, demo_share=0.5, reserve=7, fields=FIELDS, run_device=GPU)
            fill(replay.online, LENGTHS)
            replay.add_demos([records])
            batch = replay.transitions(8)
            assert devices(value for _, value in batch.items(True, True)) == expected
            assert batch["demonstrated"].sum() == 4


def test_latents_of_a_gpu_are_saved_and_come_back() -> None:
    types = {key: TensorType.of(value) for key, value in UNKNOWN.items()}
    with pretended_device() as counts:
        ours, again = make(latents=types), make(latents=types)
        ours.extend(with_latents(1, 6)[None])
        index = ours.sequences(2, 3, before=1)["index"].flatten()
        waited = counts.synchronisations
        found = ours.latents.read(index, UNKNOWN)
        ours.latents.write(index, found)
        assert counts.synchronisations == waited and devices(found.values()) == {"cuda"}
        state = ours.state_dict()
        assert devices(state["latents"].values()) == {"cpu"}
        again.load_state_dict(state)
        assert torch.equal(again.latents.read(index, UNKNOWN)["deter"].cpu(), found["deter"].cpu())


def test_of_a_record_that_is_named_twice_the_last_latent_is_noted() -> None:
    kept = Latents(4)
    kept.write(torch.tensor([2, 0, 2, 1, 2]), TensorDict(x=torch.arange(5.0), batch_size=[5]))
    assert kept.read(torch.arange(3), TensorDict(x=torch.tensor(-1.0)))["x"].tolist() == [1.0, 3.0, 4.0]
