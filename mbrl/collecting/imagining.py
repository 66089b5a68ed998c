"""Imagined rollouts of a policy, or of given actions, in a world model.

B rollouts, H steps, T real steps, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.collecting.acting import Acting
from mbrl.collecting.evaluation import RecurrentState, evaluation_mode
from mbrl.data.episodes import INITIAL
from mbrl.envs.gym import with_recurrent_state
from mbrl.envs.imagined import ImaginationEnv, Starts
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from policies.base import Policy
from worldmodel.base import WorldModel


class Replayed(TensorDictModuleBase):
    """Takes given actions [B, H, A], one step per call."""

    def __init__(self, actions: Tensor) -> None:
        super().__init__()
        self.in_keys: list[str] = []
        self.out_keys = ["action"]
        self._left = iter(actions.unbind(1))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", next(self._left))


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
    if actions is not None and tuple(actions.shape) != (count, horizon, env.action_spec.shape[-1]):
        wanted = [count, horizon, env.action_spec.shape[-1]]
        raise UserError(f"actions must be {wanted} here (rollouts, horizon, action), not {list(actions.shape)}")
    if actions is not None:
        acting: TensorDictModuleBase = Replayed(actions.to(imagined.device))
        rollout = imagined.rollout(horizon, acting, break_when_any_done=False)
        return rollout.cpu()
    carried = policy.policy.carried
    if carried is None:
        return imagined.rollout(horizon, policy, break_when_any_done=False).cpu()
    of_all = carried.expand(*imagined.batch_size, *carried.shape).to(imagined.device)
    remembering = with_recurrent_state(imagined, of_all)
    # That of TransformedEnv would reset all rollouts as soon as one has terminated.
    remembering.any_done = imagined.any_done
    start = remembering.reset()
    memory = policy.policy.recall(imagined.history_records)
    if memory is not None:
        start.update(memory).set("is_init", torch.zeros_like(start["is_init"]))
    rollout = remembering.rollout(horizon, policy, break_when_any_done=False, auto_reset=False, tensordict=start)
    left_out = (*carried.keys(), "is_init")
    return rollout.exclude(*left_out, *(("next", key) for key in left_out)).cpu()


def last_steps(context: TensorDictBase, length: int) -> TensorDictBase:
    """The last `length` of real steps [B, T]; UserError where there are fewer."""
    if context.ndim != 2 or context.shape[1] < length:
        raise UserError(f"a context must be [B, T] with T of {length} or more, not {list(context.shape)}")
    return context[:, -length:]


def play_imagined(
    imagined: ImaginationEnv,
    policy: Policy,
    memory: RecurrentState,
    seed: int,
    on_step: Callable[[], Any] = lambda: None,
) -> Tensor:
    """The rewards of a policy in imagined episodes, as an evaluation plays real ones.

    Args:
        imagined: the environment of N episodes, of which no step but the newest is kept.
        policy: what acts, without exploration.
        memory: what it remembers at their start.
        seed: seed of the sampling in the world model.
        on_step: called after each step of all episodes.

    Returns:
        float32 [N, H] in the units of the world model; 0 after the model predicts that an episode ends.
    """
    rewards: list[Tensor] = []
    with evaluation_mode(policy, seed):
        observed: TensorDictBase = imagined.reset()
        over = torch.zeros(*imagined.batch_size, 1, dtype=torch.bool, device=imagined.device)
        while len(rewards) < imagined.horizon and not over.all():
            acted = policy.acting(memory.add_to(observed.copy().to(policy.device)))
            memory.keep(acted)
            observed = imagined.step(observed.set("action", acted["action"].to(imagined.device)))["next"]
            rewards.append(observed["reward"].masked_fill(over, 0.0))
            over = over | observed["terminated"]
            observed = observed.exclude("reward")
            on_step()
    return torch.cat(rewards, 1).cpu()
