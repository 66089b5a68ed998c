"""Imagined rollouts of a policy, or of given actions, in a world model.

B rollouts, H steps, T real steps, A action.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.collecting.acting import Acting
from mbrl.envs.gym import with_recurrent_state
from mbrl.envs.imagined import ImaginationEnv, Starts
from mbrl.errors import UserError
from worldmodel.base import WorldModel


class Replayed(TensorDictModuleBase):
    """Takes given actions [B, H, A], one step a call."""

    def __init__(self, actions: Tensor) -> None:
        super().__init__()
        self.in_keys: list[str] = []
        self.out_keys = ["action"]
        self._left = iter(actions.unbind(1))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", next(self._left))


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
    frames = env.observation_spec.get("frames", None)
    pixels = "pixels" in world_model.observations
    imagined = ImaginationEnv(
        world_model,
        starts if given is None else lambda _, length: last_steps(given, length),
        action_spec=env.action_spec,
        batch_size=count,
        horizon=horizon,
        resolution=env.observation_spec["pixels"].shape[-1] if pixels else None,
        frame_stack=1 if frames is None else frames.shape[-3] // 3,
        device=policy.policy.device,
    )
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
    rollout = with_recurrent_state(imagined, of_all).rollout(horizon, policy, break_when_any_done=False)
    memory = (*carried.keys(), "is_init")
    return rollout.exclude(*memory, *(("next", key) for key in memory)).cpu()


def last_steps(context: TensorDictBase, length: int) -> TensorDictBase:
    """The last `length` of real steps [B, T]; UserError where there are fewer."""
    if context.ndim != 2 or context.shape[1] < length:
        raise UserError(f"a context must be [B, T] with T of {length} or more, not {list(context.shape)}")
    return context[:, -length:]
