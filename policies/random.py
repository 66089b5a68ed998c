"""Uniformly random actions: the lower baseline of every comparison."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from policies.base import Policy


class _RandomActor(TensorDictModuleBase):
    def __init__(self, action_spec: TensorSpec) -> None:
        super().__init__()
        self.in_keys: list[str] = []
        self.out_keys = ["action"]
        self._spec = action_spec

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self._spec.rand(tensordict.batch_size)
        return tensordict.set("action", action.to(tensordict.device) if tensordict.device else action)


class RandomPolicy(Policy):
    """Samples from the action spec with torch's global generator, also without exploration; learns nothing."""

    def __init__(self, observation_spec: Composite, action_spec: TensorSpec) -> None:
        super().__init__()
        self.actor = _RandomActor(action_spec)

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Does nothing: this policy does not learn."""
        return {}
