"""Deterministic episodes on a fixed list of goals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module, get_primers_from_module

from policies.base import Policy


class Evaluation(NamedTuple):
    """Per episode: success at any step and at the last, the undiscounted return, agent steps to the first success."""

    success: list[bool]
    success_last: list[bool]
    returns: list[float]
    steps_to_success: list[int]

    def summary(self) -> dict[str, float]:
        """Means over the episodes; steps to success over the successful ones (nan where there is none)."""
        solved = [steps for steps, success in zip(self.steps_to_success, self.success, strict=True) if success]
        count = len(self.success)
        return {
            "success": sum(self.success) / count,
            "success_last": sum(self.success_last) / count,
            "return": sum(self.returns) / count,
            "steps_to_success": sum(solved) / len(solved) if solved else float("nan"),
        }


class Evaluator:
    """Plays the same `episodes` goals at every call, each of at most `longest` agent steps, in an env of its own.

    Training's environment and random numbers are left as they were. No success bonus enters here: the environment
    is built without one.
    """

    def __init__(self, make_env: Callable[..., EnvBase], *, episodes: int, longest: int, seed: int) -> None:
        if episodes < 1:
            raise ValueError(f"eval.episodes must be 1 or more, not {episodes}")
        self.env = make_env(seed=seed)
        self.episodes, self.longest = episodes, longest

    def __call__(self, policy: Policy, on_episode: Callable[[], Any] = lambda: None) -> Evaluation:
        rows = []
        for index in range(self.episodes):
            rows.append(score(self.play(policy, index)))
            on_episode()
        return Evaluation(*(list(column) for column in zip(*rows, strict=True)))

    def play(self, policy: Policy, index: int) -> TensorDictBase:
        """The rollout [L] of the policy without exploration on goal number `index`."""
        self.env = remembering(self.env, policy)
        self.env.seek(index)
        training = policy.training
        policy.eval()
        with torch.random.fork_rng(), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            away = policy.device != self.env.device
            rollout = self.env.rollout(self.longest, policy.actor, auto_cast_to_device=away)
        policy.train(training)
        return rollout

    def close(self) -> None:
        self.env.close()


def remembering(env: EnvBase, policy: Policy) -> EnvBase:
    """The environment with what the policy's actor remembers from step to step, zeros at a reset.

    An actor that remembers says so in TorchRL's way, by `make_tensordict_primer`; it reads its keys, and writes them
    under "next".
    """
    if get_primers_from_module(policy.actor, warn=False) is None or "is_init" in env.observation_spec.keys():
        return env
    return env.append_transform(get_env_transforms_from_module(policy.actor))


def score(rollout: TensorDictBase) -> tuple[bool, bool, float, int]:
    """Success at any step, at the last step, return, and agent steps to the first success (0 without one)."""
    success = rollout["next", "success"].flatten()
    first = int(success.float().argmax()) + 1 if success.any() else 0
    return bool(success.any()), bool(success[-1]), float(rollout["next", "reward"].sum()), first


def evaluate_run(run: Path, episodes: int, seed: int, video: Path | None = None) -> dict[str, float]:
    """Evaluate the last checkpoint of a run folder; see Evaluator. `video` receives the first episodes, real frames."""
    from mbrl.build import agent_steps_per_episode, build_acting, env_factory
    from mbrl.checkpoint import load_config, load_policy, load_world_model

    config = load_config(run)
    make_env = env_factory(config, evaluation=True)
    evaluator = Evaluator(make_env, episodes=episodes, longest=agent_steps_per_episode(config), seed=seed)
    acting, policy, world_model = build_acting(config, evaluator.env)
    load_policy(run, policy)
    if world_model is not None:
        load_world_model(run, world_model)
    try:
        if video is not None:
            from mbrl.video import write_video

            write_video(video, torch.cat([evaluator.play(acting, i)["pixels"] for i in range(min(episodes, 4))]))
        return evaluator(acting).summary()
    finally:
        evaluator.close()
