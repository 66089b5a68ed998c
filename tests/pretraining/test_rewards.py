"""The phase in which a reward network learns to see: the weights it leaves, its resumption, and data without state."""

import pytest
import torch
from safetensors.torch import load_file

from mbrl.data.episodes import write_entries
from tests.pretraining.test_pretrain import pretrain, rows
from worldmodel.ivideogpt.rewards import Frames, RewardNetwork

SIZES = {"channels": [8, 8], "width": 16}
STEPS = ["tokenizer.steps=3", "transformer.steps=0", "reward_network.batch_size=4", "checkpoint_every=2"] + [
    f"reward_network.model.network.{name}={value}".replace(" ", "") for name, value in SIZES.items()
]


@pytest.mark.process
def test_a_reward_network_starts_from_the_weights_of_its_phase_and_the_phase_resumes_to_the_bit(data, tmp_path):
    whole = pretrain(data, tmp_path / "whole", *STEPS, "reward_network.steps=6")
    weights = load_file(whole / "reward_network" / "model.safetensors")
    network = RewardNetwork(Frames(32), 4, pretrained=str(whole), **SIZES)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items()) and weights
    logged = {key for row in rows(whole) for key in row if "reward_network" in key}
    assert {"reward_network/loss", "reward_network/state_error", "validation/reward_network/loss"} <= logged

    again = load_file(pretrain(data, whole, *STEPS, "reward_network.steps=6") / "reward_network" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items()), "a finished phase is not run again"


@pytest.mark.process
def test_data_without_state_are_refused_before_anything_is_trained(data, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for episode in data.glob("*.safetensors"):
        entries = {name: value for name, value in load_file(episode).items() if name != "state"}
        write_entries(films / episode.name, entries)
    with pytest.raises(ValueError, match=r"^set reward_network\.steps=0: its targets are `state`"):
        pretrain(films, tmp_path / "model", *STEPS, "reward_network.steps=6")
    assert not (tmp_path / "model").exists(), "a mistake must not take the folder"
