"""A world model of several tasks that is told which of them each action is taken in.

B batch, T time, H horizon, R rows, A action, N tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.errors import UserError
from worldmodel.base import Outcome, WorldModel


class ToldState(NamedTuple):
    """The inner model's state of R rows, and the task of each, [R, N]."""

    inner: Any
    task: Tensor


class TaskTold(WorldModel):
    """Any world model whose actions are given as [A + N]: the action, and ``task`` [N] as a one-hot.

    To those who use it, actions are [A], and ``task`` is one more thing that is observed and stays as it is.

    Args:
        make: the model, when called with the width A + N of its actions. actions, tasks: A and N.

    Raises:
        ValueError: the model reads no actions.
    """

    def __init__(self, make: Callable[[int], WorldModel], actions: int, tasks: int) -> None:
        super().__init__()
        self.model = model = make(actions + tasks)
        if model.action_dim == 0:
            raise UserError("a world model that only watches cannot be told the task: set action_conditioned=true")
        for name in WorldModel.__annotations__:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.observations, self.action_dim, self.tasks = (*model.observations, "task"), actions, tasks

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.model.optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return self.model.update(_told(batch))

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        return self.model.fit(_told(transitions), max_updates)

    def start(self, context: TensorDictBase) -> ToldState:
        return ToldState(self.model.start(_told(context)), context["task"][:, -1])

    def step(self, state: ToldState, action: Tensor) -> tuple[ToldState, TensorDictBase]:
        inner, prediction = self.model.step(state.inner, torch.cat((action, state.task), -1))
        return ToldState(inner, state.task), prediction.set("task", state.task)

    def fork(self, state: ToldState, n: int) -> ToldState:
        return ToldState(self.model.fork(state.inner, n), state.task.repeat_interleave(n, 0))

    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        task = context["task"][:, -1]
        rollout = self.model.predict(_told(context), _beside(actions, task), samples)
        return rollout.set("task", task.repeat_interleave(samples, 0)[:, None].expand(*rollout.batch_size, -1))

    def outcome(self, state: ToldState, actions: Tensor, last_frame: bool = False) -> Outcome:
        return self.model.outcome(state.inner, _beside(actions, state.task), last_frame)

    def reconstruct(self, context: TensorDictBase) -> Tensor:
        return self.model.reconstruct(_told(context))

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return self.model.codes(_told(batch))


def _told(steps: TensorDictBase) -> TensorDictBase:
    """Steps whose actions hold their task; the caller's stay as they are."""
    return steps.copy().set("action", torch.cat((steps["action"], steps["task"]), -1))


def _beside(actions: Tensor, task: Tensor) -> Tensor:
    """Actions [R, H, A] and their row's task [R, N] -> [R, H, A + N]."""
    return torch.cat((actions, task[:, None].expand(-1, actions.shape[1], -1)), -1)
