"""iVideoGPT's variants: action-free, goal-conditioned, with the robot's state, and beyond the trained segment."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Unbounded

from tests.worldmodel.ivideogpt.test_model import (
    ACTION,
    CONTEXT,
    SEGMENT,
    SIDE,
    assert_same_pixels,
    make,
    sequences,
    specs,
    tokenizer,
)
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.segments import Conditioning
from worldmodel.ivideogpt.tokenizer.settings import AutoencoderSizes
from worldmodel.ivideogpt.transformer.proprioception import Proprioception
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

ROBOT = 3
GOAL = Conditioning(goal=True)


def with_robot(**options: Any) -> IVideoGPT:
    """A model that reads the first three of five numbers."""
    small = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64, proprioception=ROBOT)
    space = specs()
    space["observation_spec"]["state"] = Unbounded((5,))
    return make(**{"specs": space, **options}, parts={"transformer": small})


def moving(rows: int = 16) -> TensorDict:
    """Batches whose state drifts by the action, ten times as far in its last number."""
    batch = sequences(rows)
    start = torch.randn(rows, 1, 5)
    step = torch.cat([batch["action"], batch["action"][..., :1] * 10, torch.zeros(rows, SEGMENT, 2)], -1)
    batch["state"] = start + torch.cat([torch.zeros(rows, 1, 5), step.cumsum(1)[:, :-1]], 1)
    return batch


def imagine(model: IVideoGPT, context: TensorDict, actions: Tensor) -> list[TensorDict]:
    state, frames = model.start(context), []
    for action in actions.unbind(1):
        state, prediction = model.step(state, action)
        frames.append(prediction)
    return frames


def test_action_free_model_needs_no_actions() -> None:
    model, batch = make(conditioning=Conditioning(actions=False)), sequences()
    del batch["action"]
    assert "code_loss" in model.update(batch)
    state, prediction = model.step(model.start(batch[:, :CONTEXT]), None)
    assert prediction.keys() == {"pixels", "reward"} and state.frame == 1
    assert model.predict(batch[:, :CONTEXT], torch.zeros(4, 3, 0))["pixels"].shape == (4, 3, 3, SIDE, SIDE)


def test_data_without_rewards_train_no_reward_head() -> None:
    model, batch = make(), sequences()
    del batch["next"]
    metrics = model.update(batch)
    assert "code_loss" in metrics and "reward_loss" not in metrics
    with pytest.raises(ValueError, match="conditioned on actions of width 2: the data hold none"):
        model.update(batch.exclude("action"))


def test_the_goal_stands_before_the_context() -> None:
    """Of two context places one is the goal's: one real frame is enough, and the goal changes what is imagined."""
    model, batch = make(conditioning=GOAL), sequences()
    assert model.context_length == 1 and model.max_horizon == SEGMENT - CONTEXT
    assert "code_loss" in model.update(batch)  # the segment's last frame is its goal, and not predicted
    segment = model.objectives["transformer"].reader(batch)
    assert torch.equal(segment.pixels[:, 0], batch["pixels"][:, -1])
    assert torch.equal(segment.pixels[:, 1:], batch["pixels"][:, :-1])
    assert torch.equal(segment.actions, batch["action"][:, :-2])
    assert torch.equal(segment.rewards, batch["next", "reward"][:, :-2])
    batch["goal"] = torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8).unsqueeze(1).expand(-1, SEGMENT, -1, -1, -1)
    context = batch[:, :1]
    assert torch.equal(model.start(context).recent[:, 0], context["goal"][:, 0])
    assert torch.equal(model.objectives["transformer"].reader(batch).pixels[:, 0], batch["goal"][:, 0])
    with pytest.raises(ValueError, match="sequences of 2 frames: this model trains on 3 to 6"):
        model.update(batch[:, :2])
    other = context.clone().set("goal", torch.full_like(context["goal"], 200))
    codes = [model.start(start).codes for start in (context, other)]
    assert not torch.equal(codes[0][:, 0], codes[1][:, 0]) and torch.equal(codes[0][:, 1], codes[1][:, 1])
    with pytest.raises(ValueError, match="conditioned on a goal"):
        model.start(context.exclude("goal"))


def test_goal_needs_a_place() -> None:
    def single() -> Any:
        return type(made := tokenizer())(**{**made.settings, "context_length": 1})

    with pytest.raises(ValueError, match="the goal takes one place"):
        make(conditioning=GOAL, parts={"tokenizer": single})


@pytest.mark.slow  # 5 s; the test below has it by hand
def test_robot_state_is_learned_and_carried_along() -> None:
    model = with_robot(lr=5e-3)
    for _ in range(150):
        metrics = model.update(moving())
    assert float(metrics["state_loss"]) < 0.1  # 1 without learning: changes are counted in their own deviation
    batch = moving()
    frames = imagine(model, batch[:, :CONTEXT], batch["action"][:, CONTEXT - 1 : -1])
    states = torch.stack([frame["state"] for frame in frames], 1)
    error = (states - batch["state"][:, CONTEXT:, :ROBOT]).abs().mean((0, 1))
    still = (batch["state"][:, CONTEXT:, :ROBOT] - batch["state"][:, CONTEXT - 1 : CONTEXT, :ROBOT]).abs().mean((0, 1))
    assert (error < 0.4 * still).all()


def test_robot_state_by_hand() -> None:
    robot = Proprioception(2, 4)
    states = torch.tensor([[0.0, 10.0], [2.0, 10.0], [4.0, 13.0]])
    robot.watch(states[:-1], states[1:])  # changes (2, 0) and (2, 3): mean (2, 1.5)
    torch.testing.assert_close(robot.next(torch.zeros(1, 4), states[:1]), torch.tensor([[2.0, 11.5]]))
    assert torch.equal(robot.embed(states), torch.zeros(3, 4))  # a new layer reads nothing


def test_bad_states() -> None:
    model = with_robot()
    with pytest.raises(ValueError, match="reads 3 numbers of `state`"):
        model.update(sequences())
    with pytest.raises(ValueError, match=r"proprioception=3, but the environment's `state` has 0"):
        with_robot(specs=specs())


def test_beyond_the_trained_segment_the_newest_frames_become_the_context() -> None:
    long = make(horizon=3 * (SEGMENT - CONTEXT) + 1)
    batch, steps = sequences(), 3 * (SEGMENT - CONTEXT) + 1
    actions = torch.randn(4, steps, ACTION)
    frames = torch.stack([frame["pixels"] for frame in imagine(long, batch[:, :CONTEXT], actions)], 1)
    assert frames.shape[1] == steps == long.max_horizon
    assert_same_pixels(long.predict(batch[:, :CONTEXT], actions)["pixels"], frames)
    short, done = make(), SEGMENT - CONTEXT
    context = batch[:, :CONTEXT]
    for start in range(0, steps, done):
        part = torch.stack([f["pixels"] for f in imagine(short, context, actions[:, start : start + done])], 1)
        assert torch.equal(part, frames[:, start : start + done])
        context = TensorDict(pixels=part[:, -CONTEXT:], batch_size=part[:, -CONTEXT:].shape[:2])
    state = long.start(batch[:, :CONTEXT])
    for action in actions.unbind(1):
        state, _ = long.step(state, action)
    with pytest.raises(ValueError, match="reached max_horizon=13"):
        long.step(state, actions[:, 0])


def test_forks_go_on_beyond_the_trained_segment() -> None:
    model, forks = make(horizon=7), 2
    context, actions = sequences(2)[:, :CONTEXT], torch.randn(2 * forks, 7, ACTION)
    actions[:, :3] = actions[::forks, :3].repeat_interleave(forks, 0)
    state = model.start(context)
    for step in range(3):
        state, _ = model.step(state, actions[::forks, step])
    state = model.fork(state, forks)
    for step in range(3, 7):
        state, prediction = model.step(state, actions[:, step])
    assert state.cache.forks == 1 and state.anchor == SEGMENT - CONTEXT  # each row has a context of its own now
    repeated = TensorDict(pixels=context["pixels"].repeat_interleave(forks, 0), batch_size=[2 * forks, CONTEXT])
    alone = imagine(model, repeated, actions)[-1]
    assert (prediction["pixels"].int() - alone["pixels"].int()).abs().max() <= 1  # rounding of another batch shape


@pytest.mark.parametrize(("side", "widths", "patch"), [(24, (8, 8), 3), (48, (8, 8, 16), 2), (256, (8, 8, 8, 8, 8), 4)])
def test_any_size_that_the_blocks_allow(side: int, widths: tuple[int, ...], patch: int) -> None:
    def sized() -> Any:
        made = tokenizer()
        nets = replace(made.settings["autoencoder"], block_out_channels=widths, stem_patch=1)
        cross = replace(made.settings["cross_attention"], max_resolution=16)
        sizes = {"resolution": side, "patch": patch, "autoencoder": nets, "cross_attention": cross}
        return type(made)(**{**made.settings, **sizes})

    model = make(specs=specs(side), parts={"tokenizer": sized})
    batch = TensorDict(
        pixels=torch.randint(0, 256, (2, SEGMENT, 3, side, side), dtype=torch.uint8),
        action=torch.randn(2, SEGMENT, ACTION),
        batch_size=[2, SEGMENT],
    )
    assert "code_loss" in model.update(batch)
    assert imagine(model, batch[:, :CONTEXT], torch.zeros(2, 1, ACTION))[0]["pixels"].shape == (2, 3, side, side)
    with pytest.raises(ValueError, match="does not divide into"):
        type(model.tokenizer)(resolution=side + 1, patch=patch, autoencoder=AutoencoderSizes(widths, norm_groups=4))


def test_a_goal_is_encoded_and_not_reconstructed() -> None:
    model, batch = make(conditioning=GOAL), sequences()
    batch["goal"] = batch["pixels"][:, -1:].expand_as(batch["pixels"])
    assert model.reconstruct(batch[:, :1]).shape == (4, 1, 3, SIDE, SIDE)
    codes = model.codes(batch)
    assert codes["context"][0].shape[:2] == (4, 2) and codes["dynamics"][0].shape[:2] == (4, SEGMENT - 1)
