"""Deterministic episodes on a fixed list of goals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.device import fork_rng
from mbrl.envs.gym import carrying
from mbrl.errors import UserError
from policies.base import Policy

FILMED = 4  # episodes


class Evaluation(NamedTuple):
    """Per episode: success at any step and at the last, the undiscounted return, agent steps to the first success."""

    success: list[bool]
    success_last: list[bool]
    returns: list[float]
    steps_to_success: list[int]
    tasks: list[str] = []  # of each episode, where there are several  # noqa: RUF012

    def summary(self) -> dict[str, float]:
        """Means over the episodes; steps to success over the successful ones (nan where there is none).

        Of several tasks also the success of each, as `success/TASK`.
        """
        solved = [steps for steps, success in zip(self.steps_to_success, self.success, strict=True) if success]
        count = len(self.success)
        return {
            "success": sum(self.success) / count,
            "success_last": sum(self.success_last) / count,
            "return": sum(self.returns) / count,
            "steps_to_success": sum(solved) / len(solved) if solved else float("nan"),
            **{f"success/{task}": success for task, success in self.success_of_tasks().items()},
        }

    def success_of_tasks(self) -> dict[str, float]:
        """Of several tasks each one's success; else nothing."""
        of_each: dict[str, list[bool]] = {}
        for task, success in zip(self.tasks, self.success, strict=False):
            of_each.setdefault(task, []).append(success)
        return {task: sum(values) / len(values) for task, values in of_each.items()}


class Evaluator:
    """Plays the same `episodes` goals at every call, each of at most `max_steps` agent steps, in an env of its own.

    Where that env has several tasks, it plays so many goals of each.
    Training's environment and random numbers are left as they were. No success bonus enters here: the environment
    is built without one.
    """

    def __init__(self, make_env: Callable[..., EnvBase], *, episodes: int, max_steps: int, seed: int) -> None:
        if episodes < 1:
            raise UserError(f"eval.episodes must be 1 or more, not {episodes}")
        self.env = make_env(seed=seed)
        self._carrying: EnvBase | None = None
        self.episodes, self.max_steps, self.seed = episodes, max_steps, seed

    def __call__(self, policy: Policy, on_episode: Callable[[], Any] = lambda: None) -> Evaluation:
        rows = []
        tasks = getattr(self.env, "tasks", [])  # an env of several plays them in turn
        for index in range(self.episodes * max(1, len(tasks))):
            rows.append(score(self.play(policy, index)))
            on_episode()
        success, success_last, returns, steps = (list(column) for column in zip(*rows, strict=True))
        return Evaluation(success, success_last, returns, steps, list(tasks) * self.episodes)

    def play(self, policy: Policy, index: int) -> TensorDictBase:
        """The rollout [L] of the policy without exploration on goal number `index`."""
        if self._carrying is None:
            self._carrying = carrying(self.env, policy.carried)
        self.env.seek(index)
        training = policy.training
        policy.eval()
        with fork_rng(), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.manual_seed(self.seed + index)  # a planner draws candidates: the same at every call
            away = policy.device != self.env.device
            rollout = self._carrying.rollout(self.max_steps, policy.actor, auto_cast_to_device=away)
        policy.train(training)
        return rollout

    def close(self) -> None:
        self.env.close()


def score(rollout: TensorDictBase) -> tuple[bool, bool, float, int]:
    """Success at any step, at the last step, return, and agent steps to the first success (0 without one)."""
    success = rollout["next", "success"].flatten()
    first = int(success.float().argmax()) + 1 if success.any() else 0
    return bool(success.any()), bool(success[-1]), float(rollout["next", "reward"].sum()), first


def film(video: Path, make_env: Callable[..., EnvBase], evaluator: Evaluator, policy: Policy) -> None:
    """Write the first episodes of an evaluation, at most FILMED, as a video of real frames.

    Args:
        video: an .mp4 or .gif.
        make_env: makes the environment; frames are drawn for the video also where the run itself draws none.
        evaluator: whose goals are played.
        policy: what acts.
    """
    from mbrl.run_folder.videos import write_video

    episodes = min(evaluator.episodes, FILMED)
    drawing = partial(make_env, pixels=True)
    with closing(Evaluator(drawing, episodes=episodes, max_steps=evaluator.max_steps, seed=evaluator.seed)) as drawn:
        write_video(video, torch.cat([drawn.play(policy, index)["pixels"] for index in range(episodes)]))
