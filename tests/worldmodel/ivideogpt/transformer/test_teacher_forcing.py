"""Rollouts through the cache against teacher forcing from the whole prefix: each variant, forked and anchored anew."""

from functools import partial
from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.modules.functional import symexp

from tests.worldmodel.ivideogpt.test_model import ACTION, CONTEXT, SEGMENT, make, sequences, specs
from worldmodel.ivideogpt.model import IVideoGPT
from worldmodel.ivideogpt.segments import Conditioning
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

FORKS = 3
Step = tuple[Tensor, Tensor, Tensor | None, Tensor]  # tokens, reward, robot's state, pixels


def build(robot: bool, goal: bool, acts: bool, every_token: bool, parallel: bool) -> IVideoGPT:
    """Weights far from zero, and a horizon across two new anchors."""
    sizes = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "proprioception": 3 * robot}
    sizes |= {"condition_tokens": every_token, "parallel": parallel}
    small = partial(VideoTransformer, **sizes)
    space = specs()
    space["observation_spec"]["state"] = Unbounded((5,))
    conditioning = Conditioning(actions=acts, goal=goal)
    horizon = 2 * (SEGMENT - CONTEXT) + 1
    model = make(specs=space, parts={"transformer": small}, horizon=horizon, conditioning=conditioning)
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, mean=0.7 * (parameter.dim() == 1), std=0.6)
    if robot:
        for norm in (model.transformer.proprioception.states, model.transformer.proprioception.changes):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 1.0)
    for parameter in model.tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def forced(model: IVideoGPT, pixels: Tensor, robot: Tensor | None, actions: Tensor) -> list[Step]:
    """One anchor's steps, every code from a forward pass over the whole prefix."""
    layout, transformer, frames = model.layout, model.transformer, pixels.float() / 255
    codes, _ = model.tokenizer.encode_context(frames)
    features = model.tokenizer.context_features_for_decoder(codes, frames)
    dynamics, before, steps = codes.new_zeros(len(pixels), 0, layout.dynamics_tokens), [], []
    for step in range(actions.shape[1]):
        before.append(robot)
        states = None if robot is None else torch.stack(before, 1)
        dynamics = torch.cat([dynamics, dynamics.new_zeros(len(pixels), 1, layout.dynamics_tokens)], 1)

        def hidden(dynamics: Tensor = dynamics, taken: Tensor = actions[:, : step + 1], states=states) -> Tensor:
            return transformer.hidden(layout.join(codes, dynamics), taken, states)

        for place in range(layout.dynamics_tokens):
            at = layout.prefix + step * layout.stride + place + (transformer.queries is not None)
            logits = transformer.llm.lm_head(hidden()[:, at])
            dynamics[:, step, place] = logits[:, layout.context_codes : layout.separator].argmax(-1)
        end = transformer.frame_states(hidden()[:, layout.prefix :])[:, -1]
        if robot is not None:
            robot = transformer.proprioception.next(end, robot)
        shown = model.tokenizer.decode_dynamics(dynamics[:, -1:], features)[:, 0]
        shown = shown.clamp(0, 1).mul(255).round().to(torch.uint8)
        steps.append((dynamics[:, -1] + layout.context_codes, symexp(transformer.reward_linear(end)), robot, shown))
    return steps


def forced_rollout(model: IVideoGPT, context: TensorDict, actions: Tensor) -> list[Step]:
    pixels, robot = model.rollouts.reader.context(context)
    goals, steps = pixels.shape[1] - context.shape[1], []
    for part in actions.split(SEGMENT - CONTEXT, 1):
        steps += forced(model, pixels, robot, part)
        robot, newest = steps[-1][2], torch.stack([shown for *_, shown in steps[-part.shape[1] :]], 1)
        newest = torch.cat([pixels[:, goals:], newest], 1)[:, -context.shape[1] :]
        pixels = torch.cat([pixels[:, :goals], newest], 1)
    return steps


def cached_rollout(model: IVideoGPT, context: TensorDict, actions: Tensor, fork_at: int) -> list[Step]:
    """Actions [B * FORKS, H], alike within a row's forks until it is forked."""
    state, steps = model.start(context), []
    for step, action in enumerate(actions.unbind(1)):
        if step == fork_at:
            state = model.fork(state, FORKS)
        action = action if step >= fork_at else action[::FORKS]
        state, frame = model.rollouts.advance(state, action)
        state, _, pixels = model.rollouts.decode_frames(state, [frame], action.unsqueeze(1))
        found = (frame.tokens, frame.reward, frame.robot, pixels[:, 0])
        copies = 1 if step >= fork_at else FORKS
        steps.append(tuple(None if part is None else part.repeat_interleave(copies, 0) for part in found))
    return steps


BOTH = (False, True)


VARIANTS = [(robot, robot, True, True, parallel) for robot, parallel in product(BOTH, repeat=2)]
VARIANTS += [(False, True, True, False, False), (True, False, False, False, False), (True, False, False, False, True)]
ALL = [*product(BOTH, BOTH, BOTH, (False,), (False,)), (False, False, True, False, True)]
VARIANTS += [pytest.param(*each, marks=pytest.mark.slow) for each in ALL if each not in VARIANTS]  # 7 s together


@pytest.mark.parametrize(("robot", "goal", "acts", "every_token", "parallel"), VARIANTS)
@torch.no_grad()
def test_cached_rollouts_are_those_of_teacher_forcing(
    robot: bool, goal: bool, acts: bool, every_token: bool, parallel: bool
) -> None:
    torch.manual_seed(1)
    model, batch = build(robot, goal, acts, every_token, parallel), sequences(2)
    batch["state"], batch["goal"] = torch.randn(2, SEGMENT, 5), batch["pixels"][:, -1:].expand_as(batch["pixels"])
    context = batch[:, : CONTEXT - goal]
    for fork_at in (0, 3):
        actions = torch.randn(2 * FORKS, model.max_horizon, ACTION)
        actions[:, :fork_at] = actions[::FORKS, :fork_at].repeat_interleave(FORKS, 0)
        expected = forced_rollout(model, context.repeat_interleave(FORKS, 0), actions)
        for ours, theirs in zip(cached_rollout(model, context, actions, fork_at), expected, strict=True):
            assert torch.equal(ours[0], theirs[0])
            torch.testing.assert_close(ours[1], theirs[1], atol=1e-3, rtol=1e-3)
            assert (ours[2] is None) == (theirs[2] is None) == (not robot)
            if ours[2] is not None:
                torch.testing.assert_close(ours[2], theirs[2], atol=1e-3, rtol=1e-3)
            assert (ours[3].int() - theirs[3].int()).abs().max() <= 1  # rounding of another batch shape
