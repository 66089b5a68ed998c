"""Demonstrations: from Meta-World's scripted policies, with noise, the successful ones only; and read to learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from mbrl.data.episodes import episode_metadata, to_records, write_episode
from mbrl.device import fork_rng
from mbrl.envs.metaworld import make_env
from mbrl.errors import UserError
from mbrl.run_folder.files import remove_leftovers
from policies.base import Policy
from policies.scripted import ScriptedPolicy

ATTEMPTS_PER_EPISODE = 20  # episodes tried for each one wanted before giving up

_log = logging.getLogger(__name__)


def play(env: EnvBase, policy: Policy) -> TensorDict:
    """The record episode (see `mbrl.data.episodes`) of the policy, exploring, on the next goal of `env`."""
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return to_records(env.rollout(10_000, policy.actor))


def collect_demos(
    env: EnvBase,
    episodes: int,
    *,
    task: str,
    noise: float = 0.1,
    seed: int = 0,
    on_episode: Callable[[int, TensorDictBase], Any] = lambda index, records: None,
) -> list[TensorDictBase]:
    """Play the task's script until `episodes` of them were successful.

    Args:
        env: a Meta-World environment of `task`. It is neither reset beforehand nor closed.
        noise: standard deviation of the gaussian noise on actions.
        seed: of the noise. torch's own generator is left as it was.
        on_episode: called with the index and the records of each successful episode as soon as it is there.

    Returns:
        Record episodes [L + 1], see `mbrl.data.episodes`.

    Raises:
        UserError: the script fails under this much noise.
    """
    policy = ScriptedPolicy(env.observation_spec, env.action_spec, task=task, noise=noise)
    found: list[TensorDictBase] = []
    progress = tqdm(total=episodes, desc=f"{task} demonstrations", unit="episode")
    with progress, fork_rng():
        torch.manual_seed(seed)
        for attempt in range(1, ATTEMPTS_PER_EPISODE * episodes + 1):
            records = play(env, policy)
            if records["success"].any():
                found.append(records)
                on_episode(len(found) - 1, found[-1])
                progress.update()
            progress.set_postfix(success=f"{len(found)}/{attempt}")
            if len(found) == episodes:
                return found
    raise UserError(
        f"only {len(found)} of {ATTEMPTS_PER_EPISODE * episodes} scripted episodes of {task} were successful: "
        f"lower the noise ({noise}) or lengthen the episodes"
    )


def record(
    task: str, episodes: int, *, noise: float = 0.1, seed: int = 0, output: Path, **env_options: Any
) -> list[Path]:
    """Record demonstrations into a folder, each file as soon as its episode was successful; the paths.

    `env_options` are those of `mbrl.envs.metaworld.make_env`: give those of the training environment.
    FileExistsError where the folder holds episodes already.
    """
    output = Path(output)
    if episodes < 1:
        raise UserError(f"episodes is {episodes}: it must be 1 or more")
    if any(output.glob("episode-*")):
        raise FileExistsError(f"{output} holds episodes already: choose another folder or delete it")
    remove_leftovers(output)
    paths: list[Path] = []
    env = make_env(task, seed, **env_options)
    about = episode_metadata(task, env.action_repeat, env.view)

    def write(index: int, records: TensorDictBase) -> None:
        paths.append(output / f"episode-{index:05d}.safetensors")
        write_episode(paths[-1], records, about)

    try:
        collect_demos(env, episodes, task=task, noise=noise, seed=seed, on_episode=write)
    finally:
        env.close()
    _log.info("%d demonstrations in %s", len(paths), output)
    return paths
