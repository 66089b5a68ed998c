"""Multi-task wrapper of world models: appends the task one-hot to each action.

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
from worldmodel.wrapper import WorldModelWrapper


class TaskState(NamedTuple):
    """The inner model's state of R rows, and the task of each, [R, N]."""

    inner: Any
    task: Tensor


class TaskConditioned(WorldModelWrapper):
    """Conditions any world model on the task. The inner model's actions are [A + N]: the action and the one-hot `task`.

    Outside, actions are [A], and `task` [N] is an observation that does not change within an episode.

    Args:
        make: makes the inner model when called with the width A + N of its actions.
        actions: A.
        tasks: N.

    Raises:
        UserError: the inner model reads no actions.
    """

    def __init__(self, make: Callable[[int], WorldModel], actions: int, tasks: int) -> None:
        model = make(actions + tasks)
        if model.action_dim == 0:
            raise UserError(
                "a world model without actions cannot be conditioned on the task: "
                "set agent.world_model.conditioning.actions=true"
            )
        super().__init__(model)
        self.observations, self.action_dim, self.tasks = (*model.observations, "task"), actions, tasks

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return self.model.update(_with_task(batch))

    def update_rewards(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return self.model.update_rewards(_with_task(batch))

    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        return self.model.fit(_with_task(transitions), max_updates)

    def start(self, context: TensorDictBase) -> TaskState:
        return TaskState(self.model.start(_with_task(context)), context["task"][:, -1])

    def step(self, state: TaskState, action: Tensor) -> tuple[TaskState, TensorDictBase]:
        inner, prediction = self.model.step(state.inner, torch.cat((action, state.task), -1))
        return TaskState(inner, state.task), prediction.set("task", state.task)

    def observe(self, state: TaskState, action: Tensor, observed: TensorDictBase) -> tuple[TaskState, TensorDictBase]:
        inner, prediction = self.model.observe(state.inner, torch.cat((action, state.task), -1), observed)
        return TaskState(inner, state.task), prediction

    def fork(self, state: TaskState, n: int) -> TaskState:
        return TaskState(self.model.fork(state.inner, n), state.task.repeat_interleave(n, 0))

    def predict(self, context: TensorDictBase, actions: Tensor, samples: int = 1) -> TensorDict:
        task = context["task"][:, -1]
        rollout = self.model.predict(_with_task(context), _append(actions, task), samples)
        return rollout.set("task", task.repeat_interleave(samples, 0)[:, None].expand(*rollout.batch_size, -1))

    def outcome(self, state: TaskState, actions: Tensor, frames: int = 0) -> Outcome:
        return self.model.outcome(state.inner, _append(actions, state.task), frames)

    def reconstruct(self, steps: TensorDictBase) -> Tensor:
        return self.model.reconstruct(_with_task(steps))

    def codes(self, batch: TensorDictBase) -> dict[str, tuple[Tensor, int]]:
        return self.model.codes(_with_task(batch))


def _with_task(steps: TensorDictBase) -> TensorDictBase:
    """A copy of the steps whose actions [A + N] include the task."""
    return steps.copy().set("action", torch.cat((steps["action"], steps["task"]), -1))


def _append(actions: Tensor, task: Tensor) -> Tensor:
    """Append each row's task [R, N] to its actions [R, H, A] -> [R, H, A + N]."""
    return torch.cat((actions, task[:, None].expand(-1, actions.shape[1], -1)), -1)
