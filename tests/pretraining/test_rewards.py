"""The phase of the reward network: the weights it leaves, its resumption, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mbrl.data.episodes import write_entries
from tests.pretraining.conftest import SIDE
from tests.pretraining.test_pretrain import pretrain, rows
from worldmodel.ivideogpt.rewards import Frames, RewardNetwork

SIZES = {"channels": [8, 8], "width": 16}
STEPS = [
    "tokenizer.steps=3",
    "transformer.steps=0",
    "reward_network.steps=6",
    "reward_network.batch_size=4",
    "checkpoint_every=2",
] + [f"reward_network.model.network.{name}={value}".replace(" ", "") for name, value in SIZES.items()]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    return pretrain(data, tmp_path_factory.mktemp("rewards") / "whole", *STEPS)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "reward_network" / "model.safetensors")


@pytest.mark.process
def test_a_reward_network_starts_from_the_trained_weights_of_its_phase(whole, data, tmp_path):
    network = RewardNetwork(Frames(SIDE), 4, pretrained=str(whole), **SIZES).state_dict()
    assert weights(whole) and all(torch.equal(network[name], value) for name, value in weights(whole).items())
    untrained = weights(pretrain(data, tmp_path / "untrained", *STEPS, "reward_network.learning_rate=0"))
    assert not any(torch.equal(untrained[name], value) for name, value in weights(whole).items() if value.ndim > 1)
    logged = {key for row in rows(whole) for key in row if "reward_network" in key}
    assert {"reward_network/loss", "reward_network/state_error", "validation/reward_network/loss"} <= logged


@pytest.mark.process
def test_the_phase_resumes_to_the_bit(whole, data, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    *_, last = sorted((cut / "checkpoints" / "reward_network").iterdir())
    shutil.rmtree(last)
    (cut / "reward_network" / "model.safetensors").unlink()
    pretrain(data, cut, *STEPS)
    assert all(torch.equal(weights(cut)[name], value) for name, value in weights(whole).items())
    assert rows(cut) == rows(whole)


@pytest.mark.process
def test_one_step_for_each_process_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 4)
    with pytest.raises(ValueError, match=r"^reward_network\.batch_size \(4\) .* 4 processes, 2 steps or more"):
        pretrain(data, tmp_path / "model", *STEPS)


@pytest.mark.process
def test_data_without_state_are_refused_before_anything_is_trained(data, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for episode in data.glob("*.safetensors"):
        entries = {name: value for name, value in load_file(episode).items() if name != "state"}
        write_entries(films / episode.name, entries)
    with pytest.raises(ValueError, match=r"^set reward_network\.steps=0: its targets are `state`"):
        pretrain(films, tmp_path / "model", *STEPS)
    assert not (tmp_path / "model").exists(), "a mistake must not take the folder"
