"""Demonstrations: from Meta-World's scripted policies, with noise, the successful ones only; and read to learn from."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
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


def record(
    task: str, episodes: int, *, noise: float = 0.1, seed: int = 0, output: Path, **env_options: Any
) -> list[Path]:
    """Play the task's script until `episodes` of them were successful, and write each of these as soon as it is there.

    Args:
        task: a Meta-World task.
        episodes: how many, 1 or more.
        noise: standard deviation of the gaussian noise on actions.
        seed: of goals and noise. torch's own generator is left as it was.
        output: folder of the files, episode-00000.safetensors and so on.
        env_options: those of `mbrl.envs.metaworld.make_env`: give those of the training environment.

    Returns:
        The paths.

    Raises:
        UserError: the script fails under this much noise.
        FileExistsError: the folder holds episodes already.
    """
    output = Path(output)
    if episodes < 1:
        raise UserError(f"episodes is {episodes}: it must be 1 or more")
    if any(output.glob("episode-*")):
        raise FileExistsError(f"{output} holds episodes already: choose another folder or delete it")
    remove_leftovers(output)
    paths: list[Path] = []
    progress = tqdm(total=episodes, desc=f"{task} demonstrations", unit="episode")
    with closing(make_env(task, seed, **env_options)) as env, progress, fork_rng():
        about = episode_metadata(task, env.action_repeat, env.view)
        policy = ScriptedPolicy(env.observation_spec, env.action_spec, task=task, noise=noise)
        torch.manual_seed(seed)
        for attempt in range(1, ATTEMPTS_PER_EPISODE * episodes + 1):
            records = play(env, policy)
            if records["success"].any():
                paths.append(output / f"episode-{len(paths):05d}.safetensors")
                write_episode(paths[-1], records, about)
                progress.update()
            progress.set_postfix(success=f"{len(paths)}/{attempt}")
            if len(paths) == episodes:
                _log.info("%d demonstrations in %s", len(paths), output)
                return paths
    raise UserError(
        f"only {len(paths)} of {ATTEMPTS_PER_EPISODE * episodes} scripted episodes of {task} were successful: "
        f"lower the noise ({noise}) or lengthen the episodes"
    )
