"""Deterministic episodes on a fixed list of goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.collecting.values import ValueComparison, compare, mean_values
from mbrl.data.episodes import OBSERVATIONS, SNAPSHOT
from mbrl.device import fork_rng
from mbrl.envs.gym import has_snapshots, with_recurrent_state
from mbrl.envs.lockstep import LockStep
from mbrl.envs.threads import EnvThreads
from mbrl.errors import UserError
from policies.base import Policy

FILMED = 4  # episodes
KEPT = (*OBSERVATIONS, SNAPSHOT, "action")  # keys that `Played.opening` keeps, as the context of a world model
MOST_THREADS = 8  # a step with pixels holds the GIL for an eighth of its time, so more threads gain nothing
SIDE_BY_SIDE = 20  # episodes per batch at most; bounds the memory of a planner, which batches their candidates

Success = Literal["any", "last"]  # success of an episode: at any of its steps, or at its last step


class Evaluation(NamedTuple):
    """Per episode: success at any step and at the last, the undiscounted return, agent steps to the first success."""

    success: list[bool]
    success_last: list[bool]
    returns: list[float]
    steps_to_success: list[int]
    tasks: list[str] = []  # of each episode, where there are several  # noqa: RUF012
    counts: Success = "any"  # which of the two is the success of an episode
    values: dict[str, float] = {}  # critic values and true returns: see `mean_values`  # noqa: RUF012

    def summary(self) -> dict[str, float]:
        """Means over the episodes; steps to success over the successful ones (nan where there is none).

        `success` is what `counts` says. If that is `last`, success at any step is there as `success_any`. Of several
        tasks also the success of each, as `success/TASK`.
        """
        solved = [steps for steps, success in zip(self.steps_to_success, self.success, strict=True) if success]
        count = len(self.success)
        return {
            "success": sum(self._counted) / count,
            **({} if self.counts == "any" else {"success_any": sum(self.success) / count}),
            "success_last": sum(self.success_last) / count,
            "return": sum(self.returns) / count,
            "steps_to_success": sum(solved) / len(solved) if solved else float("nan"),
            **{f"success/{task}": success for task, success in self.success_of_tasks().items()},
            **self.values,
        }

    def success_of_tasks(self) -> dict[str, float]:
        """Of several tasks each one's success; else nothing."""
        of_each: dict[str, list[bool]] = {}
        for task, success in zip(self.tasks, self._counted, strict=False):
            of_each.setdefault(task, []).append(success)
        return {task: sum(values) / len(values) for task, values in of_each.items()}

    @property
    def _counted(self) -> list[bool]:
        return self.success if self.counts == "any" else self.success_last


class Evaluator:
    """Plays the same goals at every call, in an environment of its own, without exploration.

    Training's environment and random numbers are left as they were. There is no success bonus: the environment is
    built without one.

    Args:
        make_env: makes the environment when called with `seed`.
        episodes: goals; of each task where the environment has several.
        max_steps: agent steps of an episode.
        seed: of the goals.
        success: whether an episode counts as solved by success at any of its steps or at its last step.
        gamma: discount of the returns that critics are compared with; None does not compare.
        threads: environments that step at the same time, where they draw one task and have snapshots; the outcome is
            the same.
    """

    def __init__(
        self,
        make_env: Callable[..., EnvBase],
        *,
        episodes: int,
        max_steps: int,
        seed: int,
        success: Success = "any",
        gamma: float | None = None,
        threads: int = 1,
    ) -> None:
        if episodes < 1:
            raise UserError(f"eval.episodes must be 1 or more, not {episodes}")
        self._make_env = partial(make_env, seed=seed)
        self.env = self._make_env()
        self._beside: list[EnvBase] = []  # further environments, where one cannot play several episodes
        self._threads: EnvThreads | None = None  # of environments that can, once they are needed
        # Several tasks have a simulator each, which is made when it is first needed: once is enough.
        pays = "pixels" in self.env.observation_spec and not getattr(self.env, "tasks", ())
        self._count = min(threads, episodes, MOST_THREADS) if pays else 1
        self._recurrent_env: EnvBase | None = None
        self.episodes, self.max_steps, self.seed, self.success = episodes, max_steps, seed, success
        self.gamma = gamma

    def __call__(self, policy: Policy, on_step: Callable[[], Any] = lambda: None) -> Evaluation:
        """Evaluate the policy on every goal; episodes run in lockstep, with one call of the policy per step.

        Episodes equal those of `play` up to the rounding of batched matrix products. A policy that draws random
        numbers to act, such as a planner, draws others than there, and the same at every call.

        Args:
            policy: what acts.
            on_step: called after each step of all episodes.
        """
        tasks = list(getattr(self.env, "tasks", []))  # of several, which are played in turn
        episodes = range(self.episodes * max(1, len(tasks)))
        chunks = (episodes[first : first + SIDE_BY_SIDE] for first in range(0, len(episodes), SIDE_BY_SIDE))
        parts = [self.play_together(policy, chunk, on_step) for chunk in chunks]
        outcomes = [outcome for part in parts for outcome in part.scores()]
        success, success_last, returns, steps = (list(column) for column in zip(*outcomes, strict=True))
        gamma = 1.0 if self.gamma is None else self.gamma
        values = mean_values([part.compared(gamma) for part in parts if part.values is not None])
        return Evaluation(success, success_last, returns, steps, tasks * self.episodes, self.success, values)

    def play_together(
        self, policy: Policy, episodes: range, on_step: Callable[[], Any] = lambda: None, opening: int = 0
    ) -> Played:
        """Play episodes side by side, as an evaluation plays them.

        Args:
            policy: what acts.
            episodes: their numbers, SIDE_BY_SIDE of an evaluation's at most.
            on_step: called after each step of all episodes.
            opening: C, steps to keep the observations of.
        """
        rewards: list[Tensor] = []
        successes: list[Tensor] = []
        rows: list[TensorDict] = []
        values: list[Tensor] = []
        lengths = torch.zeros(len(episodes), dtype=torch.int64)
        with evaluation_mode(policy, self.seed + episodes.start):
            world = self._world(episodes)
            at_branch = memory = RecurrentState(policy.carried, len(episodes), policy.device)
            while len(rewards) < self.max_steps and not world.done.all():
                lengths += ~world.done
                observed = world.observation
                if len(rows) == opening - 1:
                    at_branch = memory.copy()
                acted = policy.acting(memory.add_to(observed.to(policy.device)))
                value = policy.values(acted, acted["action"]) if self.gamma is not None else None
                if value is not None:
                    values.append(value[:, 0].cpu())
                if len(rows) < opening:
                    rows.append(observed.copy().set("action", acted["action"].cpu()))
                memory.keep(acted)
                reward, success = world.step(acted["action"])
                rewards.append(reward)
                successes.append(success)
                on_step()
        kept = torch.stack([row.select(*KEPT, strict=False) for row in rows], 1) if rows else None
        expected = torch.stack(values, 1) if values else None
        return Played(
            torch.stack(rewards, 1), torch.stack(successes, 1), lengths, kept, at_branch, world.terminated, expected
        )

    def _world(self, episodes: range) -> LockStep:
        """The environments at the start of these episodes."""
        if has_snapshots(self.env.unwrapped):
            if self._threads is None:
                self._threads = EnvThreads(self.env, self._make_env, self._count)
            return LockStep(self._threads.envs, episodes, self._threads.each)
        self._beside += [self._make_env() for _ in range(len(episodes) - 1 - len(self._beside))]
        return LockStep([self.env, *self._beside[: len(episodes) - 1]], episodes)

    def play(self, policy: Policy, index: int) -> TensorDictBase:
        """The rollout [L] of the policy on goal number `index`, with every observation."""
        if self._recurrent_env is None:
            self._recurrent_env = with_recurrent_state(self.env, policy.carried)
        self.env.seek(index)
        with evaluation_mode(policy, self.seed + index):
            away = policy.device != self.env.device
            return self._recurrent_env.rollout(self.max_steps, policy.acting, auto_cast_to_device=away)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()
        for env in (self.env, *self._beside):
            env.close()


class RecurrentState:
    """Recurrent state of a policy in N parallel episodes; empty for a policy without one."""

    def __init__(self, carried: Composite | None, episodes: int, device: torch.device) -> None:
        self.keys = () if carried is None else (*carried.keys(), "is_init", "next")  # of a step, which hold it
        self._is_init = torch.ones(episodes, 1, dtype=torch.bool, device=device)
        self._kept = None if carried is None else carried.expand(episodes, *carried.shape).zero().to(device)

    def add_to(self, observation: TensorDictBase) -> TensorDictBase:
        """The observation [N] with the memory beside it."""
        return observation if self._kept is None else observation.update(self._kept).set("is_init", self._is_init)

    def keep(self, acted: TensorDictBase) -> None:
        """Take over what the actor wrote under "next"."""
        if self._kept is not None:
            self._kept = acted["next"].select(*self._kept.keys(True, True))
            self._is_init = torch.zeros_like(self._is_init)

    def copy(self) -> RecurrentState:
        """The same memory, which goes on by itself."""
        copied = copy(self)
        copied._kept = None if self._kept is None else self._kept.clone()
        return copied


class Played(NamedTuple):
    """Steps of N episodes that were played side by side, the longest of T steps.

    Attributes:
        reward, success: float32 and bool [N, T]; 0 and False after the end of an episode.
        lengths: steps of each episode, int64 [N].
        opening: their first C steps [N, C]: `action` and KEPT; None where none were kept.
        memory: what a recurrent policy remembers as it comes to the last step of the opening.
        terminated: whether each episode ended by itself, bool [N].
        values: what the critics expect of each action, float32 [N, T]; None where they were not asked.
    """

    reward: Tensor
    success: Tensor
    lengths: Tensor
    opening: TensorDict | None
    memory: RecurrentState
    terminated: Tensor
    values: Tensor | None

    def compared(self, gamma: float) -> ValueComparison:
        """Critic values and discounted returns, see `compare`."""
        assert self.values is not None
        return compare(self.values, self.reward, self.lengths, self.terminated, gamma)

    def scores(self) -> list[tuple[bool, bool, float, int]]:
        """The score of each episode, see `score`."""
        columns = zip(self.success, self.reward, self.lengths.tolist(), strict=True)
        return [score(success[:length], reward[:length]) for success, reward, length in columns]


@contextmanager
def evaluation_mode(policy: Policy, seed: int) -> Iterator[None]:
    """Evaluate a policy: eval mode, no gradients, no exploration, and a forked random state with this seed."""
    training = policy.training
    policy.eval()
    try:
        with fork_rng(), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.manual_seed(seed)
            yield
    finally:
        policy.train(training)


def score(success: Tensor, reward: Tensor) -> tuple[bool, bool, float, int]:
    """Score the steps [L] of an episode.

    Returns:
        Success at any step, success at the last step, return, and agent steps to the first success (0 without one).
    """
    first = int(success.float().argmax()) + 1 if success.any() else 0
    return bool(success.any()), bool(success[-1]), float(reward.sum()), first


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
