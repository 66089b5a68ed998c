"""Imagined rollouts of a policy, or of given actions, in a world model.

B rollouts, H steps, T real steps, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.collecting.acting import Acting
from mbrl.collecting.evaluation import RecurrentState, evaluation_mode
from mbrl.data.episodes import INITIAL
from mbrl.envs.imagined import ImaginationEnv, Starts
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from worldmodel.base import WorldModel

Act = Callable[[TensorDictBase], TensorDictBase]


def starts_from(replay: Replay, world_model: WorldModel) -> Starts:
    """The function that draws real histories from a replay, with `initial` if the world model needs it."""
    return partial(replay.starts, initial=INITIAL in world_model.context_keys)


def imagination_env(
    world_model: WorldModel,
    env: EnvBase,
    starts: Starts | TensorDictBase,
    rollouts: int,
    horizon: int,
    device: torch.device | None = None,
) -> ImaginationEnv:
    """The imagined environment with the specs of a real one.

    Args:
        world_model: what imagines.
        env: the real environment.
        starts: draws real histories, such as `Replay.starts`; or real steps [B, T] themselves.
        rollouts: B.
        horizon: steps of a rollout.
        device: where the rollouts are; None for that of the world model.
    """
    frames = env.observation_spec.get("frames", None)
    pixels = "pixels" in world_model.observations
    return ImaginationEnv(
        world_model,
        (lambda _, length: last_steps(starts, length)) if isinstance(starts, TensorDictBase) else starts,
        action_spec=env.action_spec,
        batch_size=rollouts,
        horizon=horizon,
        resolution=env.observation_spec["pixels"].shape[-1] if pixels else None,
        frame_stack=1 if frames is None else frames.shape[-3] // 3,
        device=world_model.device if device is None else device,
    )


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    policy: Acting,
    env: EnvBase,
    starts: Starts | TensorDictBase,
    rollouts: int,
    horizon: int,
    actions: Tensor | None = None,
) -> TensorDict:
    """Roll a policy out in a world model.

    Args:
        world_model: what imagines.
        policy: acts on what is imagined.
        env: the real environment, for its specs.
        starts: draws real histories, such as `Replay.starts`; or real steps [B, T] themselves.
        rollouts: B, where `starts` draws.
        horizon: H.
        actions: float32 [B, H, A] in the place of the policy's.

    Returns:
        [B, H] on the CPU with the keys of TorchRL's rollouts; what a policy with memory carries is left out.

    Raises:
        UserError: the horizon, the real steps or the actions do not fit.
    """
    given = starts if isinstance(starts, TensorDictBase) else None
    count = rollouts if given is None else len(given)
    imagined = imagination_env(world_model, env, starts, count, horizon, policy.policy.device)
    wanted = (count, horizon, env.action_spec.shape[-1])
    if actions is not None and tuple(actions.shape) != wanted:
        raise UserError(f"actions must be {[*wanted]} here (rollouts, horizon, action), not {list(actions.shape)}")
    observed: TensorDictBase = imagined.reset()
    act: Act = policy
    memory = RecurrentState(policy.policy.carried, count, imagined.device)
    if actions is not None:
        act, memory = _taking(actions.to(imagined.device)), RecurrentState(None, count, imagined.device)
    elif (recalled := policy.policy.recall(imagined.history_records)) is not None:
        memory.keep(TensorDict(next=recalled, batch_size=imagined.batch_size))
    rollout = torch.stack([*_steps(imagined, observed, act, memory)], 1)
    assert isinstance(rollout, TensorDict)
    return rollout.cpu()


def _taking(actions: Tensor) -> Act:
    """Takes given actions [B, H, A], one step per call."""
    left = iter(actions.unbind(1))
    return lambda observed: observed.set("action", next(left))


def _steps(imagined: ImaginationEnv, observed: TensorDictBase, act: Act, memory: RecurrentState) -> Iterator[Any]:
    """Act to the horizon.

    Args:
        imagined: the environment of B rollouts, after its reset.
        observed: [B], what the reset returned.
        act: adds `action` to an observation, and what is remembered under "next".
        memory: what is remembered at the first step.

    Yields:
        TensorDicts [B] with the keys of a step of TorchRL's rollouts, without what is remembered.
    """
    for _ in range(imagined.horizon):
        acted = act(memory.add_to(observed.copy()))
        memory.keep(acted)
        step = imagined.step(acted.exclude(*memory.keys))
        yield step
        observed = step["next"].exclude("reward")


def last_steps(context: TensorDictBase, length: int) -> TensorDictBase:
    """The last `length` of real steps [B, T]; UserError where there are fewer."""
    if context.ndim != 2 or context.shape[1] < length:
        raise UserError(f"a context must be [B, T] with T of {length} or more, not {list(context.shape)}")
    return context[:, -length:]


def play_imagined(
    imagined: ImaginationEnv,
    policy: Acting,
    memory: RecurrentState,
    seed: int,
    on_step: Callable[[], Any] = lambda: None,
) -> Tensor:
    """The rewards of a policy in imagined episodes, as an evaluation plays real ones.

    Args:
        imagined: the environment of N episodes, of which no step but the newest is kept.
        policy: what acts.
        memory: what it remembers at their start.
        seed: seed of the sampling in the world model.
        on_step: called after each step of all episodes.

    Returns:
        float32 [N, H] in the units of the world model; 0 after the model predicts that an episode ends. Fewer columns
        where all of them end before.
    """
    rewards: list[Tensor] = []
    with evaluation_mode(policy.policy, seed):
        for step in _steps(imagined, imagined.reset(), policy, memory):
            rewards.append(step["next", "reward"])
            on_step()
            if step["next", "terminated"].all():
                break
    return torch.cat(rewards, 1).cpu()
