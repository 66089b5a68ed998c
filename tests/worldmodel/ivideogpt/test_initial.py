"""The initial frame as the context: what the model trains on and starts from, tokens, rewards read off them."""

from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensordict import TensorDict

from tests.worldmodel.ivideogpt.test_model import CONTEXT, SEGMENT, SIDE, make, sequences
from worldmodel.base import WorldModel
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.rewards import RewardNetwork, TokenRewardNetwork
from worldmodel.ivideogpt.segments import HISTORY, Conditioning
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

INITIAL, PLAIN, GOAL = Conditioning(initial=True), Conditioning(), Conditioning(goal=True)
PARALLEL = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64, parallel=True)
REWARDS = partial(TokenRewardNetwork, width=16)
FRAME_REWARDS = partial(RewardNetwork, channels=(4, 4, 4), width=16)


def with_initial(parts: dict[str, Any] | None = None, **options: Any) -> IVideoGPT:
    return make(conditioning=INITIAL, reward_network=REWARDS, parts=parts or {"transformer": PARALLEL}, **options)


def steps(rows: int = 4, length: int = SEGMENT) -> TensorDict:
    batch = sequences(rows, length)
    first = torch.randint(0, 256, (rows, 1, 3, SIDE, SIDE), dtype=torch.uint8)
    return batch.set("initial", first.expand(-1, length, -1, -1, -1))


def test_all_frames_but_the_first_are_future_frames() -> None:
    model, batch = with_initial(), steps()
    assert model.context_length == HISTORY and model.max_horizon == SEGMENT - HISTORY
    segment = model.objectives["transformer"].reader(batch)
    assert torch.equal(segment.pixels[:, :2], batch["initial"][:, :2])
    assert torch.equal(segment.pixels[:, 2:], batch["pixels"][:, 1:])
    assert torch.equal(segment.actions, batch["action"][:, :-1])
    assert torch.equal(segment.rewards, batch["next", "reward"][:, :-1])
    assert "read_reward_error" in model.update(batch)


def test_a_frame_has_the_same_tokens_wherever_a_segment_begins() -> None:
    model, batch = with_initial().eval(), steps(2)
    latents = model.embedded().latents(batch["pixels"], batch["initial"][:, 0])
    state = model.start(batch[:, 2 : 2 + HISTORY])
    found = model.tokenizer.dynamics_quantize.vectors(model.layout.codes(state.tokens))
    torch.testing.assert_close(found, latents[:, 1 + HISTORY])
    whole = model.codes(batch)["dynamics"][0]
    torch.testing.assert_close(model.tokenizer.dynamics_quantize.vectors(whole), latents)
    assert model.reconstruct(batch).shape == batch["pixels"].shape


def test_a_start_equals_teacher_forcing() -> None:
    """The first imagined frame has the logits of the whole segment in one pass."""
    model, batch = with_initial().eval(), steps(3)
    segment = model.objectives["transformer"].reader(batch[:, : HISTORY + 1])
    with torch.no_grad():
        logits, _ = model.transformer(model.tokenizer.tokens(segment.frames), segment.actions)
    codes = slice(model.layout.context_codes, model.layout.separator)
    expected = logits[:, -model.layout.dynamics_tokens :, codes].argmax(-1) + model.layout.context_codes
    state, frame = model.rollouts.advance(model.start(batch[:, :HISTORY]), batch["action"][:, HISTORY - 1])
    assert torch.equal(frame.tokens, expected) and state.frame == 1


def test_states_of_one_episode_share_its_context() -> None:
    model, batch = with_initial().eval(), steps(6)
    shared = batch["initial"][:3].repeat_interleave(2, 0)
    batch["initial"] = shared
    together = model.start(batch[:, :HISTORY])
    assert together.cache.forks == 2 and len(together.codes) == 3
    alone = [model.start(batch[row : row + 1, :HISTORY]) for row in range(6)]
    actions = batch["action"][:, HISTORY - 1]
    _, frame = model.rollouts.advance(together, actions)
    each = [model.rollouts.advance(state, actions[row : row + 1])[1] for row, state in enumerate(alone)]
    assert torch.equal(frame.tokens, torch.cat([one.tokens for one in each]))
    torch.testing.assert_close(frame.reward, torch.cat([one.reward for one in each]), rtol=1e-4, atol=1e-4)


def test_rewards_are_those_of_the_tokens_before_and_after_without_dropout() -> None:
    model, batch = with_initial(), steps(2)
    network = model.reward_network
    assert isinstance(network, TokenRewardNetwork)
    torch.nn.init.normal_(network.head[-1].weight, std=0.3)
    view, actions = model.embedded(), batch["action"][:, HISTORY - 1 : -1]
    rollout = WorldModel.predict(view, batch[:, :HISTORY], actions)
    width = model.tokenizer.latent_size
    now, before = rollout["embedding"][..., :width], rollout["embedding"][..., width:]
    torch.testing.assert_close(before[:, 1:], now[:, :-1])
    torch.testing.assert_close(before[:, 0], view.start(batch[:, :HISTORY]).latents)
    torch.testing.assert_close(rollout["reward"], network.eval()(before, now, actions), rtol=1e-4, atol=1e-4)
    planned = view.outcome(view.start(batch[:, :HISTORY]), actions).reward
    torch.testing.assert_close(planned, rollout["reward"].squeeze(-1), rtol=1e-4, atol=1e-4)


def recorded(model: IVideoGPT, batch: TensorDict, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What the reward network reads in an update, and the rewards and terminations that it learns."""
    network = model.reward_network
    for name in ("logits", "loss"):
        monkeypatch.setattr(network, name, Mock(wraps=getattr(network, name)))
    batch["next", "terminated"] = torch.rand(batch["next", "reward"].shape) < 0.5
    model.objectives["reward_network"](batch)
    return (*network.logits.call_args.args, *network.loss.call_args.args[1:])


@pytest.mark.parametrize(("conditioning", "first", "last"), [(INITIAL, 0, -1), (PLAIN, CONTEXT - 1, -1), (GOAL, 0, -2)])
def test_rewards_of_frames_are_learned_from_the_frames_before_and_after(
    conditioning: Conditioning, first: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an initial frame nor a goal, the last of the batch here, is the frame before the first step."""
    model, batch = make(conditioning=conditioning, reward_network=FRAME_REWARDS), steps(2)
    pixels, action, reward, ended = recorded(model, batch, monkeypatch)
    assert torch.equal(pixels, batch["pixels"][:, first : SEGMENT + last + 1])
    assert torch.equal(action, batch["action"][:, first:last])
    assert torch.equal(reward, batch["next", "reward"][:, first:last])
    assert torch.equal(ended, batch["next", "terminated"][:, first:last])


def test_rewards_of_tokens_are_learned_from_the_tokens_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the first step of a batch: the frame before it has no tokens of its own."""
    model, batch = with_initial(), steps(2)
    latents = model.eval().embedded().latents(batch["pixels"], batch["initial"][:, 0])
    before, after, action, reward, ended = recorded(model, batch, monkeypatch)
    assert torch.equal(before, latents[:, 1:-1]) and torch.equal(after, latents[:, 2:])
    assert torch.equal(action, batch["action"][:, 1:-1])
    assert torch.equal(reward, batch["next", "reward"][:, 1:-1])
    assert torch.equal(ended, batch["next", "terminated"][:, 1:-1])


@pytest.mark.slow  # 4 s; which tokens they read is known by hand
def test_the_token_rewards_are_learned() -> None:
    torch.manual_seed(0)
    network = partial(TokenRewardNetwork, width=64, dropout=0.0)
    model, batch = make(conditioning=INITIAL, reward_network=network, tokenizer_updates=1000, lr=1e-2), steps(6)
    errors = [float(model.update(batch)["read_reward_error"]) for _ in range(50)]
    assert errors[-1] < 0.4, "rewards are 3 a, a uniform in [-1, 1]: a constant is 1.5 off"


def test_what_does_not_fit_is_named() -> None:
    model, batch = with_initial(), steps()
    with pytest.raises(ValueError, match="give it as `initial`"):
        model.update(batch.exclude("initial"))
    with pytest.raises(ValueError, match="give it as `initial`"):
        model.start(batch[:, :HISTORY].exclude("initial"))
    with pytest.raises(ValueError, match="set one of them"):
        Conditioning(goal=True, initial=True)
    with pytest.raises(ValueError, match="or horizon=3"):
        with_initial(horizon=4)
    with pytest.raises(ValueError, match=r"conditioning\.initial=true"):
        make().embedded()
    with pytest.raises(ValueError, match=r"set agent\.world_model\.conditioning\.initial=true, or choose .*=frames"):
        make(reward_network=REWARDS)
    with pytest.raises(ValueError, match=r"choose .*reward_network=tokens, or .*reward_network=null"):
        make(conditioning=INITIAL, reward_network=FRAME_REWARDS).embedded()
