"""A world model that imagines beyond its horizon: its newest predictions become the context of the next steps.

B rollouts, C context steps, A action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.data.episodes import INITIAL
from mbrl.errors import UserError
from worldmodel.base import WorldModel
from worldmodel.wrapper import WorldModelWrapper


class ContinuedState(NamedTuple):
    """The state of the model, the newest C steps [B, C] of the rollouts, and the steps since they were the context."""

    inner: Any
    newest: TensorDictBase
    steps: int


class Continued(WorldModelWrapper):
    """Starts a world model anew from its own predictions whenever it has imagined as many steps as it was trained to.

    A model that keeps what it needs in its state, such as an ensemble, is rarely started anew. Errors accumulate in
    any model.

    Args:
        model: the model, whose weights are shared.
        horizon: steps that it must be able to imagine, 1 or more.

    Raises:
        UserError: the model needs more than its predictions to start from, and its own horizon is shorter.
    """

    def __init__(self, model: WorldModel, horizon: int) -> None:
        super().__init__(model)
        self.max_horizon = horizon
        self._limit = min(model.trained_horizon or model.max_horizon, model.max_horizon)
        needed = [key for key in model.context_keys if key != INITIAL]  # That frame stays what it is.
        if needed and horizon > model.max_horizon:
            raise UserError(
                f"a horizon of {horizon} steps: this world model starts from the {needed[0]} of a real step, which it "
                f"does not predict, and can imagine {model.max_horizon} steps at most"
            )
        if needed:
            self._limit = model.max_horizon

    def start(self, context: TensorDictBase) -> ContinuedState:
        """As WorldModel.start."""
        # A model of pixels may read and predict the state too.
        newest = context.select("action", INITIAL, "state", *self.observations, strict=False).clone()
        return ContinuedState(self.model.start(context), newest, 0)

    def step(self, state: ContinuedState, action: Tensor) -> tuple[ContinuedState, TensorDictBase]:
        """As WorldModel.step."""
        inner, newest, steps = self._restarted(state)
        inner, predicted = self.model.step(inner, action)
        return ContinuedState(inner, self._followed(newest, action, predicted), steps + 1), predicted

    def observe(
        self, state: ContinuedState, action: Tensor, observed: TensorDictBase
    ) -> tuple[ContinuedState, TensorDictBase]:
        """As WorldModel.observe."""
        inner, newest, steps = self._restarted(state)
        inner, predicted = self.model.observe(inner, action, observed)
        return ContinuedState(inner, self._followed(newest, action, observed), steps + 1), predicted

    def _restarted(self, state: ContinuedState) -> ContinuedState:
        """The state, started from its newest steps if the model has imagined as far as it can."""
        return state if state.steps < self._limit else ContinuedState(self.model.start(state.newest), state.newest, 0)

    def _followed(self, newest: TensorDictBase, action: Tensor, predicted: TensorDictBase) -> TensorDictBase:
        """The newest C steps after another one. The action that follows the last of them is not known yet: zeros."""
        led = newest["action"].clone()
        led[:, -1] = action
        following = {"action": torch.cat([led[:, 1:], torch.zeros_like(led[:, :1])], 1)}
        for key in (key for key in newest.keys() if key in predicted.keys()):
            # A model predicts the leading entries of the state, and reads no others.
            before = newest[key] if key == "pixels" else newest[key][..., : predicted[key].shape[-1]]
            following[key] = torch.cat([before[:, 1:], predicted[key][:, None]], 1)
        if INITIAL in newest.keys():
            following[INITIAL] = newest[INITIAL]
        return TensorDict(following, batch_size=newest.batch_size, device=newest.device)

    def fork(self, state: ContinuedState, n: int) -> ContinuedState:
        """As WorldModel.fork."""
        newest = state.newest.repeat_interleave(n, 0)
        return ContinuedState(self.model.fork(state.inner, n), newest, state.steps)
