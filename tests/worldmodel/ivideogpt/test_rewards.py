"""The reward network: what it learns, and that its rewards are those of everything that is imagined and observed."""

from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from tests.worldmodel.ivideogpt.test_model import ACTION, CONTEXT, SEGMENT, SIDE, make, sequences, tokenizer
from worldmodel.base import WorldModel
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.reward_model import SeparateRewardModel
from worldmodel.ivideogpt.rewards import RewardNetwork, TwoHotRewards
from worldmodel.ivideogpt.training import Optimizers

STEPS = SEGMENT - CONTEXT
NETWORK = partial(RewardNetwork, channels=[8, 8], width=16)


def with_network(**options: object) -> IVideoGPT:
    """A model whose reward network has random weights in its last layer too."""
    model = make(reward_network=NETWORK, **options)
    assert model.reward_network is not None
    torch.nn.init.normal_(model.reward_network.head[-1].weight, std=0.3)
    return model.eval()


def read(model: IVideoGPT, last: Tensor, pixels: Tensor, actions: Tensor) -> Tensor:
    """Rewards [B, H, 1] that the network reads off pixels [B, H] after the last frames [B]."""
    assert model.reward_network is not None
    return model.reward_network(torch.cat([last.unsqueeze(1), pixels], 1), actions).detach()


def test_it_begins_at_zero() -> None:
    frames = torch.randint(0, 256, (2, 4, 3, SIDE, SIDE), dtype=torch.uint8)
    rewards = NETWORK(tokenizer(), ACTION)(frames, torch.randn(2, 3, ACTION))
    torch.testing.assert_close(rewards, torch.zeros(2, 3, 1), atol=1e-4, rtol=0)


def test_it_learns_the_mean_of_rewards_that_frames_and_actions_do_not_tell() -> None:
    """Half of the rewards are 2 and half 20: 11, where a squared error in symlog settles at 6.9."""
    torch.manual_seed(0)
    network, rewards = NETWORK(tokenizer(), None), torch.tensor([2.0, 20.0]).repeat(8).view(1, 16, 1)
    frames = torch.full((1, 17, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        network.loss(network.logits(frames, None), rewards).backward()
        optimizer.step()
    torch.testing.assert_close(network(frames, None), torch.full((1, 16, 1), 11.0), rtol=0.05, atol=0)


def test_every_part_warms_up_when_the_weights_of_the_model_are_pretrained(tmp_path: Path) -> None:
    make(tokenizer_updates=7).save_pretrained(tmp_path)
    options = {"tokenizer_updates": 7, "every": 1, "lr": 1e-3, "pretrained": str(tmp_path)}
    model, batch = make(reward_network=NETWORK, **options), sequences()
    for expected in (0.5e-3, 1e-3, 1e-3):
        model.update(batch)
        assert [optimizer.param_groups[0]["lr"] for optimizer in model.optimizers.values()] == [expected] * 3


@pytest.mark.slow  # 3 s; what it learns from is recorded in the tests of initial frames
def test_it_learns_in_the_updates_of_the_model_what_an_action_earns() -> None:
    torch.manual_seed(0)
    wide = partial(NETWORK, width=64)
    model, batch = make(reward_network=wide, tokenizer_updates=1000, lr=1e-2), sequences(6)
    errors = [float(model.update(batch)["read_reward_error"]) for _ in range(50)]
    assert errors[-1] < 0.4, "rewards are 3 a, a uniform in [-1, 1]: a constant is 1.5 off"


def test_it_reads_actions_only_where_it_is_asked_to() -> None:
    torch.manual_seed(0)
    frames, actions = torch.randint(0, 256, (2, 2, 3, SIDE, SIDE), dtype=torch.uint8), torch.randn(2, 1, ACTION)
    for reads in (True, False):
        network = NETWORK(tokenizer(), ACTION, actions=reads)
        torch.nn.init.normal_(network.head[-1].weight)
        assert torch.equal(network(frames, actions), network(frames, -actions)) != reads


def test_its_updates_alone_change_nothing_else() -> None:
    model, batch = make(reward_network=NETWORK, tokenizer_updates=1000, lr=1e-2), sequences(6)[:, : CONTEXT + 1]
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    assert model.learns_rewards and "read_reward_error" in model.update_rewards(batch)
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"reward_network"}


def test_rewards_learned_apart_are_those_of_the_action_between_two_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    network = partial(NETWORK, actions=True)
    model, batch = SeparateRewardModel(SIDE, ACTION, network=network, optimizer=torch.optim.AdamW), sequences(2)
    for name in ("logits", "loss"):
        monkeypatch.setattr(model.network, name, Mock(wraps=getattr(model.network, name)))
    model.update(batch)
    pixels, action = model.network.logits.call_args.args
    assert torch.equal(pixels, batch["pixels"]) and torch.equal(action, batch["action"][:, :-1])
    assert torch.equal(model.network.loss.call_args.args[1], batch["next", "reward"][:, :-1])


def test_frames_are_shifted_while_it_learns_alone_and_both_of_a_step_alike() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (1, 3, 3, SIDE, SIDE), dtype=torch.uint8)
    network, seen = NETWORK(tokenizer(), None, shift_pad=1), []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(((inputs[0] + 0.5) * 255).round()))
    network.logits(frames, None)
    before, after = frames[0, :-1].float(), frames[0, 1:].float()
    assert torch.equal(seen.pop(), torch.cat([before, after], 1))
    inside = slice(1, SIDE - 1)
    for _ in range(20):
        network.logits(frames, None, learning=True)
        for step, pair in enumerate(seen.pop()):
            shifts = [
                (i, j)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if torch.equal(
                    pair[:, inside, inside],
                    torch.cat([before[step], after[step]]).roll((-i, -j), (1, 2))[:, inside, inside],
                )
            ]
            assert len(shifts) == 1


def test_the_updates_of_a_model_shift_the_frames() -> None:
    batch = sequences(6)[:, : CONTEXT + 1]
    for pad, different in ((0, False), (2, True)):
        torch.manual_seed(0)
        network = partial(NETWORK, shift_pad=pad)
        model = make(reward_network=network, tokenizer_updates=1000)
        seen: list[Tensor] = []
        assert isinstance(model.reward_network, RewardNetwork)
        model.reward_network.encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.update_rewards(batch)
        model.update_rewards(batch)
        assert torch.equal(*seen) != different


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 1, 2 * STEPS + 1])
def test_everything_that_is_imagined_has_its_rewards(steps: int) -> None:
    model, batch = with_network(horizon=3 * STEPS), sequences(2)
    context, actions = batch[:, :CONTEXT], torch.randn(2, steps, ACTION)
    torch.manual_seed(1)
    found = model.predict(context, actions)
    expected = read(model, context["pixels"][:, -1], found["pixels"], actions)
    torch.testing.assert_close(found["reward"], expected, rtol=1e-3, atol=1e-3)
    torch.manual_seed(1)
    stepped = WorldModel.predict(model, context, actions)
    torch.testing.assert_close(found["reward"], stepped["reward"], rtol=0.02, atol=0.02)  # pixels differ by a rounding
    torch.manual_seed(1)
    planned = model.outcome(model.start(context), actions).reward
    torch.testing.assert_close(planned, found["reward"].squeeze(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("forks", [1, 3])
def test_what_is_observed_has_its_rewards(forks: int) -> None:
    model, batch = with_network(), sequences(2)
    rows, rewards = batch.repeat_interleave(forks, 0), []
    state = model.fork(model.start(batch[:, :CONTEXT]), forks)
    for step in range(CONTEXT, SEGMENT):
        state, prediction = model.observe(state, rows["action"][:, step - 1], rows[:, step])
        rewards.append(prediction["reward"])
    led = rows["action"][:, CONTEXT - 1 : -1]
    expected = read(model, rows["pixels"][:, CONTEXT - 1], rows["pixels"][:, CONTEXT:], led)
    torch.testing.assert_close(torch.stack(rewards, 1), expected, rtol=1e-3, atol=1e-3)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"reward_network\.channels=\[8, 6\]"):
        RewardNetwork(tokenizer(), ACTION, channels=[8, 6])
    with pytest.raises(ValueError, match="must halve 5 times"):
        RewardNetwork(tokenizer(), ACTION, channels=[8] * 5)
    with pytest.raises(ValueError, match=r"optimizers\.reward_network"):
        Optimizers(torch.optim.Adam, torch.optim.Adam).make(*[torch.nn.Linear(1, 1) for _ in range(3)])
    with pytest.raises(ValueError, match="reward_network makes a TwoHotRewards: it must make a RewardNetwork"):
        make(reward_network=lambda *_, **__: TwoHotRewards())
