"""A trained policy as a function: it acts on TensorDicts, as TorchRL calls it, or on observations alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.errors import UserError
from policies.base import Policy


class Acting(TensorDictModuleBase):
    """Calls a policy without gradients, in eval mode and without exploration.

    *B is any batch shape, also none; A the width of an action.

    Args:
        policy: what acts.
        observation_spec: of the environment that the policy was built for.

    Attributes:
        policy: the `Policy` itself, with its weights.
        observations: the keys that an observation needs.
        explore: whether actions are drawn with the policy's exploration; False at first.
    """

    def __init__(self, policy: Policy, observation_spec: Composite) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.in_keys, self.out_keys = list(policy.actor.in_keys), list(policy.actor.out_keys)
        known = {key: spec for key, spec in observation_spec.items() if key in self.in_keys}
        self._dimensions = {key: spec.ndim for key, spec in known.items()}
        self.observations = tuple(known)
        self.explore = False
        self._memory: TensorDictBase | None = None

    def reset(self) -> None:
        """Forget the episode so far. Call it before each episode that is played with observations alone."""
        self._memory = None

    @torch.no_grad()
    def recall(self, history: TensorDictBase) -> None:
        """Set the recurrent state to that at the last of steps [T] of an episode; without `Policy.recall`, to zeros."""
        memory = self.policy.recall(history.unsqueeze(0))
        self._memory = None if memory is None else memory.squeeze(0).cpu()

    @torch.no_grad()
    def forward(self, observed: TensorDictBase | Mapping[str, Any]) -> Any:
        """Choose an action.

        Args:
            observed: a TensorDict [*B] with `in_keys`, such as `make_env()` gives; or a mapping with `observations`,
                arrays or tensors: `frames` uint8 [*B, 3K, R, R], the K newest frames, the newest last; `state`
                float32 [*B, S]; `task` float32 [*B, N]. A policy with memory goes on from the last such call.

        Returns:
            The TensorDict, with `action` float32 [*B, A] set (and what a policy with memory hands on, under "next");
            of a mapping the action alone.

        Raises:
            UserError: an observation is missing.
        """
        if isinstance(observed, TensorDictBase):
            return self._act(observed)
        missing = [key for key in self.observations if key not in observed]
        if missing:
            raise UserError(f"the policy needs {', '.join(missing)}: an observation has {', '.join(self.observations)}")
        tensors = {key: torch.as_tensor(observed[key]) for key in self.observations}
        key = self.observations[0] if self.observations else None
        shape = tensors[key].shape[: tensors[key].ndim - self._dimensions[key]] if key else torch.Size()
        acted = self._act(self._remember(TensorDict(tensors, batch_size=shape)))
        if self.policy.carried is not None:
            self._memory = acted["next"].clone()
        action: Tensor = acted["action"]
        return action

    def _remember(self, observed: TensorDict) -> TensorDict:
        """Add what a policy with memory carries: from its last call, or zeros at the start of an episode."""
        if self.policy.carried is None:
            return observed
        shape, first = observed.batch_size, self._memory is None
        blank = self.policy.carried.zero() if self._memory is None else self._memory
        memory = blank.expand(shape) if first else blank
        observed.update(memory.select(*self.policy.carried.keys(True, True)))
        return observed.set("is_init", torch.full((*shape, 1), first))

    def _act(self, observed: TensorDictBase) -> TensorDictBase:
        kind = ExplorationType.RANDOM if self.explore else ExplorationType.DETERMINISTIC
        device = observed.device or torch.device("cpu")
        with set_exploration_type(kind):
            acted = self.policy.acting(observed.select(*self.in_keys, strict=False).to(self.policy.device))
        return observed.update(acted.select(*self.out_keys, strict=False).to(device))
