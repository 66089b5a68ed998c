"""`mbrl collect`: a data set of many Meta-World tasks, played by scripted, noisy scripted and random policies.

FOLDER/<task>/<policy>-00000.safetensors are record episodes (see `mbrl.data.episodes`), failed ones
included; FOLDER/dataset.json says how they were made. Each episode is a pure function of (seed, task, policy, number),
so a collection that was cut short goes on with what is missing, and ends in the same bytes, whatever the number of
workers was.
"""

from __future__ import annotations

import json
import multiprocessing
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from mbrl.build import build_policy, env_factory
from mbrl.collecting.demonstrations import play
from mbrl.compose import ROOT_CONFIG, configurations
from mbrl.data.episodes import SUFFIX, episode_metadata, write_episode
from mbrl.device import fork_rng
from mbrl.envs.simulator import resolve_task, task_names
from mbrl.errors import ProcessDied, UserError
from mbrl.processes.workers import Watch, end, end_with_parent, starting_workers
from mbrl.run_folder.config import flatten
from mbrl.run_folder.files import remove_leftovers, write_atomically
from mbrl.run_folder.plain_json import parse_json

POLICIES = ("scripted", "noisy", "random")  # the order counts: it is part of what an episode depends on
PACKAGES = ("metaworld", "mujoco", "torch")  # what an episode's bytes depend on beside the settings
JOB_EPISODES = 5  # episodes for which a worker builds an environment, which takes about as long as playing one
_NOT_STORED = ("_target_", "task", "frame_stack")  # of the environment's settings: no episode depends on them


@dataclass(frozen=True)
class DatasetProtocol:
    """The settings that determine every episode of a data set.

    Args:
        seed: of goals, noise and random actions.
        noise: standard deviation of the gaussian noise on the `noisy` policy's actions.
        env: settings of the environment that differ from configs/env/metaworld.yaml.
    """

    seed: int = 0
    noise: float = 0.3
    env: dict[str, Any] = field(default_factory=dict)

    def config(self, task: str, policy: str) -> DictConfig:
        """The configuration of one task under one policy, as `mbrl train` would compose it."""
        random = policy == "random"
        # these agents need no images, but the data set does; stacks are not stored: the smallest is the fastest
        settings = {"task": task, "pixels": True, "frame_stack": 1} | self.env
        overrides = [f"agent={'random' if random else 'scripted'}", "env=metaworld", "device=cpu", f"seed={self.seed}"]
        overrides += [f"env.{name}={value}" for name, value in settings.items()]
        overrides += [f"+agent.policy.noise={self.noise}"] if policy == "noisy" else []
        with configurations():
            return compose(ROOT_CONFIG, overrides=overrides)

    def describe(self) -> dict[str, Any]:
        """The contents of dataset.json."""
        env = OmegaConf.to_container(self.config("reach", "random").env, resolve=True)
        assert isinstance(env, dict)
        kept = {str(key): value for key, value in env.items() if key not in _NOT_STORED}
        versions = {name: version(name).partition("+")[0] for name in PACKAGES}  # the build does not matter
        return {"format": 1, "seed": self.seed, "noise": self.noise, "env": kept, "versions": versions}


class Job(NamedTuple):
    """Episodes of one task that are played in a row by one worker."""

    task: str
    episodes: list[tuple[str, int]]  # policy and number


class TaskSummary(NamedTuple):
    """One task under one policy: how many episodes there are, and in how many the task was solved at any step."""

    task: str
    policy: str
    episodes: int
    successes: int


def collect(
    tasks: Sequence[str],
    episodes: int,
    *,
    policies: Sequence[str] = POLICIES[:1],
    protocol: DatasetProtocol | None = None,
    workers: int = 1,
    output: Path,
) -> list[TaskSummary]:
    """Play what is missing of `episodes` episodes a task, shared evenly among `policies`, into the folder `output`.

    Args:
        tasks: any of the 50; `all` stands for all of them.
        workers: processes; with 1 everything is played in this one.

    Returns:
        A row for each task and policy, episodes that were there before included.

    Raises:
        UserError: an unknown task or policy, or a folder that was made with other settings.
    """
    protocol = protocol or DatasetProtocol()
    names = _check(tasks, episodes, policies, protocol, workers)
    plan = {(task, policy): count for task in names for policy, count in _shares(episodes, policies).items()}
    _claim(output, protocol, names[0])
    for folder in (output, *(output / name for name in names)):
        remove_leftovers(folder)
    missing = [
        (task, policy, number)
        for (task, policy), count in plan.items()
        for number in range(count)
        if _solved(_path(output, task, policy, number)) is None
    ]
    successes = 0
    with tqdm(total=sum(plan.values()), initial=sum(plan.values()) - len(missing), unit="episode") as bar:
        played = 0
        for solved in _play_all(_jobs(missing), protocol, output, workers):
            played, successes = played + len(solved), successes + sum(solved)
            bar.update(len(solved))
            bar.set_postfix(success=f"{successes}/{played}")
    return [_summary(output, task, policy, count) for (task, policy), count in plan.items()]


def _check(
    tasks: Sequence[str], episodes: int, policies: Sequence[str], protocol: DatasetProtocol, workers: int
) -> list[str]:
    """The tasks by name, without repetition."""
    for name, number in (("episodes", episodes), ("workers", workers)):
        if number < 1:
            raise UserError(f"{name} is {number}: it must be 1 or more")
    if protocol.noise < 0 or protocol.seed < 0:
        raise UserError(f"noise ({protocol.noise}) and seed ({protocol.seed}) must be 0 or more")
    for policy in policies:
        if policy not in POLICIES:
            raise UserError(f"unknown policy {policy!r}: choose among {', '.join(POLICIES)}")
    if not policies:
        raise UserError(f"no policy: choose among {', '.join(POLICIES)}")
    named = [name for task in tasks for name in (task_names() if task == "all" else [task])]
    return list(dict.fromkeys(resolve_task(name).removesuffix("-v3") for name in named))


def _shares(episodes: int, policies: Sequence[str]) -> dict[str, int]:
    """How many of a task's episodes each policy plays; the first ones take what does not divide evenly."""
    unique = list(dict.fromkeys(policies))
    return {name: episodes // len(unique) + (i < episodes % len(unique)) for i, name in enumerate(unique)}


def _claim(output: Path, protocol: DatasetProtocol, task: str) -> None:
    """Write dataset.json, or compare with the one that is there. Settings that `task` refuses are not written."""
    path, wanted = output / "dataset.json", protocol.describe()
    if path.exists():
        try:
            found = parse_json(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path} is no JSON file ({error}): choose another folder") from error
        old, new = flatten(found), flatten(wanted)
        differing = [
            key for key in sorted(old.keys() | new.keys()) if repr(old.get(key, ...)) != repr(new.get(key, ...))
        ]
        if differing:
            names = ", ".join(differing)
            raise UserError(f"{output} was made with other settings ({names}): choose another folder or delete it")
        return
    if any(output.glob(f"*/*{SUFFIX}")):
        raise UserError(f"{output} holds episodes, but no dataset.json that says how they were made")
    env_factory(protocol.config(task, POLICIES[0]))(seed=protocol.seed).close()
    write_atomically(path, json.dumps(wanted, indent=2) + "\n")


def _path(output: Path, task: str, policy: str, number: int) -> Path:
    return output / task / f"{policy}-{number:05d}{SUFFIX}"


def _jobs(missing: Sequence[tuple[str, str, int]]) -> list[Job]:
    by_task: dict[str, list[tuple[str, int]]] = {}
    for task, policy, number in missing:
        by_task.setdefault(task, []).append((policy, number))
    return [
        Job(task, rows[start : start + JOB_EPISODES])
        for task, rows in by_task.items()
        for start in range(0, len(rows), JOB_EPISODES)
    ]


def _play_all(jobs: list[Job], protocol: DatasetProtocol, output: Path, workers: int) -> Iterator[list[bool]]:
    """The successes of each job as it ends."""
    if workers == 1:
        yield from (_play_job(job, protocol, output) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a forked process hangs where this one has opened OpenGL
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), mp_context=context, initializer=_start_worker)
    with starting_workers():
        futures = [pool.submit(_play_job, job, protocol, output) for job in jobs]
    processes = list(pool._processes.values())
    watch = Watch(processes, "collecting")
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise watch.died or ProcessDied("a collecting worker has died") from error
    except BaseException:
        end(processes)  # what they have not finished is missing, and the same command makes it
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _play_job(job: Job, protocol: DatasetProtocol, output: Path) -> list[bool]:
    """Play and write the episodes of one job; whether each was successful."""
    configs = {policy: protocol.config(job.task, policy) for policy in dict.fromkeys(p for p, _ in job.episodes)}
    env = env_factory(next(iter(configs.values())))(seed=protocol.seed)
    solved = []
    try:
        for policy, number in job.episodes:
            kind = POLICIES.index(policy)
            env.seek(number * len(POLICIES) + kind)  # no two policies play the same goals
            with fork_rng():
                actor = build_policy(configs[policy], env)  # anew, as scripts may remember what they did before
                torch.manual_seed(_noise_seed(protocol.seed, job.task, kind, number))
                records = play(env, actor)
            about = episode_metadata(job.task, env.action_repeat, env.view)
            write_episode(_path(output, job.task, policy, number), records, about)
            solved.append(bool(records["success"].any()))
    finally:
        env.close()
    return solved


def _noise_seed(seed: int, task: str, kind: int, number: int) -> int:
    entropy = [seed, zlib.crc32(task.encode()), kind, number]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _summary(output: Path, task: str, policy: str, count: int) -> TaskSummary:
    successes = sum(bool(_solved(_path(output, task, policy, number))) for number in range(count))
    return TaskSummary(task, policy, count, successes)


def _solved(path: Path) -> bool | None:
    """Whether the episode in a file was successful; None where there is no whole one, which is then played anew."""
    try:
        with safe_open(path, "pt") as file:
            return bool(file.get_tensor("success").any())
    except (SafetensorError, FileNotFoundError):
        return None
