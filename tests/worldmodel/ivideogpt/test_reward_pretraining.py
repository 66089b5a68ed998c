"""A pretrained reward network: it learns the state that frames show, and an agent's network starts from it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from tests.worldmodel.ivideogpt.test_model import make
from worldmodel.ivideogpt.reward_pretraining import StatePretraining
from worldmodel.ivideogpt.rewards import Frames, RewardNetwork

SIDE, ACTION = 16, 2
NETWORK = partial(RewardNetwork, channels=[8, 8], width=16, shift_pad=0)


def pretraining() -> StatePretraining:
    torch.manual_seed(0)
    return StatePretraining(SIDE, 3, network=NETWORK, optimizer=partial(torch.optim.AdamW, lr=1e-2))


def squares(rows: int) -> TensorDict:
    """Steps [B, 2] that show a white square; the state is its row, its column in another unit, and a constant."""
    places = torch.randint(0, SIDE - 4, (rows, 2, 2))
    line = torch.arange(SIDE)
    inside = (line >= places[..., None]) & (line < places[..., None] + 4)  # [B, 2, 2, R]
    square = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
    pixels = (255 * square).to(torch.uint8).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    state = torch.cat([places * torch.tensor([1.0, 0.01]), torch.full((rows, 2, 1), 7.0)], -1)
    return TensorDict(pixels=pixels.contiguous(), state=state, batch_size=[rows, 2])


@pytest.mark.learns
def test_it_learns_the_state_after_the_step_whatever_its_units() -> None:
    model = pretraining()
    objective, optimizer = model.objectives["reward_network"], model.optimizers["reward_network"]
    for _ in range(200):
        optimizer.zero_grad()
        objective(squares(64))["loss"].backward()
        optimizer.step()
    error = float(objective.eval()(squares(256))["state_error"])
    assert error < 0.2, "a constant is .57 off: .86 for each of two uniform numbers, and 0 for the third"


def test_an_agents_network_starts_from_what_was_saved(tmp_path: Path) -> None:
    """Its frames' part is equal, what reads actions and rewards is new."""
    model = pretraining()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "reward_network" / "model.safetensors")
    started = NETWORK(Frames(SIDE), ACTION, pretrained=str(tmp_path))
    own = started.state_dict()
    assert {name for name, value in own.items() if name in saved and torch.equal(value, saved[name])} == saved.keys()
    assert own.keys() - saved.keys() == {name for name in own if name.startswith(("action_linear", "head", "two_hot"))}
    frames = squares(4)["pixels"]
    assert torch.equal(started.read_frames(frames), model.objective.network.read_frames(frames))
    rewards = started(frames, torch.zeros(4, 1, ACTION))
    torch.testing.assert_close(rewards, torch.zeros(4, 1, 1), atol=1e-4, rtol=0)


def test_weights_of_other_sizes_are_refused_in_one_line(tmp_path: Path) -> None:
    pretraining().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"frames_linear\.weight \[16, 128\] instead of \[8, 128\]"):
        RewardNetwork(Frames(SIDE), None, channels=[8, 8], width=8, pretrained=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        NETWORK(Frames(SIDE), None, pretrained=str(tmp_path / "nowhere"))
    make().save_pretrained(tmp_path / "video")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in .*video"):
        NETWORK(Frames(SIDE), None, pretrained=str(tmp_path / "video"))
