"""Base class of world models that wrap another one and change a part of it."""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from worldmodel.base import WorldModel


class WorldModelWrapper(WorldModel):
    """Has the attributes of another world model and forwards its methods; a subclass overrides the changed ones.

    `predict`, `outcome` and `embedded` are not forwarded, because they would bypass an overridden `step`.

    Args:
        model: The wrapped model, whose weights are shared.
    """

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model
        for name in WorldModel.__annotations__:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.model.optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return self.model.update(batch)

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return self.model.update_rewards(batch)

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        return self.model.fit(transitions, max_updates)

    def kinds_of_updates(self, updates: int) -> dict[int, int]:
        return self.model.kinds_of_updates(updates)

    def skip_to(self, update: int) -> None:
        self.model.skip_to(update)

    def start(self, context: TensorDictBase) -> Any:
        return self.model.start(context)

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDictBase]:
        return self.model.step(state, action)

    def observe(self, state: Any, action: Tensor, observed: TensorDictBase) -> tuple[Any, TensorDictBase]:
        return self.model.observe(state, action, observed)

    def fork(self, state: Any, n: int) -> Any:
        return self.model.fork(state, n)

    def set_temperature(self, value: float) -> None:
        self.model.set_temperature(value)
        self.temperature = value

    def enable_all_uncertainties(self) -> None:
        self.model.enable_all_uncertainties()
        self.uncertainty_keys = self.model.uncertainty_keys

    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        return self.model.reconstruct(steps)

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return self.model.codes(batch)
