"""Demonstrations of the toy: an expert that goes straight to the goal; and a folder of any episodes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule

from mbrl.data.episodes import SUFFIX, episode_metadata, to_records, write_episode
from mbrl.envs.toy import STRIDE, make_env


def towards_goal(state: torch.Tensor) -> torch.Tensor:
    """state [*B, 4] -> action [*B, 2]: as far towards the goal as one step goes."""
    return ((state[..., 2:] - state[..., :2]) / STRIDE).clamp(-1, 1)


def play_expert(count: int, *, seed: int = 100, **settings) -> list[TensorDictBase]:
    """Record episodes of an expert whose noise shows how it corrects itself."""
    env = make_env(seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed)

    def noisy(state: torch.Tensor) -> torch.Tensor:
        return (towards_goal(state) + 0.3 * torch.randn(2, generator=generator)).clamp(-1, 1)

    expert = TensorDictModule(noisy, in_keys=["state"], out_keys=["action"])
    return [to_records(env.rollout(1000, expert)) for _ in range(count)]


def write_toy(folder: Path, count: int, **settings) -> str:
    """The folder, with `count` demonstrations of the toy under these settings of its environment."""
    write_episodes(folder, play_expert(count, **settings), episode_metadata("toy", settings.get("action_repeat", 1)))
    return str(folder)


def write_episodes(
    folder: Path, episodes: Iterable[TensorDictBase], about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write record episodes as episode-00000.safetensors and so on; the paths."""
    paths = []
    for index, records in enumerate(episodes):
        paths.append(folder / f"episode-{index:05d}{SUFFIX}")
        write_episode(paths[-1], records, about)
    return paths
