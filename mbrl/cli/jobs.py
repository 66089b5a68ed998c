"""The jobs of a sweep: those that a study brings, how many go at a time on this machine, and on which GPU each goes."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TypeVar

import torch
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mbrl.agents.schedule import learns_model
from mbrl.build import REFERS_TO_ENV, env_factory
from mbrl.cli.apart import process_apart
from mbrl.compose import ROOT_CONFIG, configurations
from mbrl.device import find_device
from mbrl.processes.usage import usable_cores
from mbrl.settings.memory import free_memory
from mbrl.targets import make
from policies.base import Policy
from worldmodel.base import WorldModel

GIB = 2**30
# What is reckoned for a job, on the machine and likewise on a GPU. Runs of state in runs/reference took 0.8 GB.
PROCESS, PICTURES = 1.0 * GIB, 1.0 * GIB  # bytes: of any job, and of one with pixels besides
# Bytes of a trained weight: 16 for itself, its gradient and Adam's two means; the rest is for activations, as in
# `mbrl bench memory`, where iVideoGPT's base size takes 14.5 GB.
WEIGHT = 64
JOBS_PER_GPU = 4  # Small networks leave a GPU idle between their kernels, and four jobs fill the gaps.
# Settings that hardly change what a run takes.
ALIKE = ("seed", "run_dir", "env.task", "replay.demos", "replay.demo_share")
VISIBLE = "CUDA_VISIBLE_DEVICES"
SLOTS = "MBRL_GPU_SLOTS"  # a file with the GPU of each slot; who holds the lock on byte i of it has slot i

Result = TypeVar("Result")
_slot: list[IO[str]] = []  # the open file with this process's lock, which closing it would release


def with_study_sweep(arguments: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """The arguments of a sweep with `hydra.sweeper.params` of the files that they choose, as Hydra's sweeper has them.

    Args:
        arguments: overrides, checked. Each takes the place of the parameter of its name.
        config_dir: a user's own folder of configurations.
    """
    params = hydra_settings(arguments, config_dir).sweeper.get("params") or {}
    given = {line.split("=", 1)[0].lstrip("+") for line in arguments}
    return [*(f"{key}={value}" for key, value in params.items() if key not in given), *arguments]


def hydra_settings(arguments: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The settings `hydra` of a sweep, which hold its sweeper and its launcher; arguments as in `with_study_sweep`."""
    parser = OverridesParser.create()
    chosen = [line for line in arguments if not parser.parse_override(line).is_sweep_override()]
    with configurations(config_dir):
        settings: DictConfig = compose(ROOT_CONFIG, overrides=chosen, return_hydra_config=True).hydra
    return settings


def runs_here(launcher: DictConfig) -> bool:
    """Whether the jobs run on this machine, and not where Slurm or Ray puts them."""
    return "BasicLauncher" in launcher._target_ or "joblib" in launcher._target_


def chooses_jobs(launcher: DictConfig) -> bool:
    """Whether the number of jobs at a time is left to this program: with launch=local, unless n_jobs says it."""
    return "joblib" in launcher._target_ and launcher.n_jobs == -1


@dataclass(frozen=True)
class Machine:
    """Resources that jobs share.

    Attributes:
        cores: CPU cores that this process may use.
        memory: bytes that are free.
        gpus: bytes that are free on each visible GPU.
    """

    cores: int
    memory: float
    gpus: tuple[float, ...] = ()

    @classmethod
    def here(cls) -> Machine:
        """This machine at present."""
        free: tuple[float, ...] = ()
        if torch.cuda.is_available():
            with process_apart() as apart:
                free = tuple(apart(free_on_gpu, index) for index in range(torch.cuda.device_count()))
        return cls(usable_cores(), float(free_memory(torch.device("cpu"))), free)


def free_on_gpu(index: int) -> float:
    """Bytes that are free on a GPU; 0 where it takes no other process, as in exclusive mode."""
    try:
        return float(free_memory(torch.device("cuda", index)))
    except RuntimeError:
        return 0.0


def at_a_time(jobs: Sequence[DictConfig], machine: Machine) -> tuple[int, str, list[int]]:
    """How many jobs go side by side, the reason in words, and how many of them each GPU has room for.

    Args:
        jobs: configurations of all jobs of a sweep. The largest decides.
        machine: where they go.
    """
    threads = max(job.threads or machine.cores for job in jobs)
    memory = max(memory_of(job) for job in {kind_of(job): job for job in jobs}.values())
    limits = {
        f"{machine.cores} cores, {threads} for each": machine.cores // threads,
        f"{machine.memory / GIB:.1f} GiB of free memory, {memory / GIB:.1f} for each": int(machine.memory // memory),
        f"{len(jobs)} jobs": len(jobs),
    }
    room = [min(JOBS_PER_GPU, int(free // memory)) for free in machine.gpus]
    named = {_named_gpu(job.device) for job in jobs if find_device(job.device).type == "cuda"}
    if machine.gpus and named:
        used = [index for index in range(len(room)) if None in named or index in named]
        free = sum(machine.gpus[index] for index in used) / GIB
        fitting = sum(room[index] for index in used)
        limits[f"{len(used)} GPUs with {free:.1f} GiB free, {memory / GIB:.1f} for each"] = fitting
    reason, number = min(limits.items(), key=lambda limit: limit[1])
    return max(1, number), reason, room


def deal(room: Sequence[int], number: int) -> list[int]:
    """The GPU of each of a number of processes: the one with fewest of them that has room for more, if one has.

    Args:
        room: how many processes each GPU has room for.
        number: of the processes.
    """
    dealt: list[int] = []
    for _ in range(number if room else 0):
        taken = Counter(dealt)
        dealt.append(min(range(len(room)), key=lambda gpu: (taken[gpu] >= room[gpu], taken[gpu])))
    return dealt


def kind_of(config: DictConfig) -> str:
    """The settings of a run without those that hardly change what it takes."""
    settings = config.copy()
    for key in ALIKE:
        OmegaConf.update(settings, key, None, force_add=True)
    return OmegaConf.to_yaml(settings, resolve=True)


def memory_of(config: DictConfig) -> float:
    """Bytes that are reckoned for a run, on the machine and on a GPU, by its weights and whether it has pixels."""
    with closing(env_factory(config)(seed=0)) as env, torch.device("meta"):
        specs = {"observation_spec": env.observation_spec, "action_spec": env.action_spec}
        parts: list[nn.Module] = [make(config.agent.policy, Policy, place="agent.policy", **specs)]
        model = config.agent.get("world_model")
        if model is not None and learns_model(config) and not REFERS_TO_ENV & set(model):
            settings = OmegaConf.merge(model, {"pretrained": None} if "pretrained" in model else {})
            parts.append(make(settings, WorldModel, place="agent.world_model", **specs))
    weights = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return PROCESS + PICTURES * bool(config.env.pixels) + WEIGHT * weights


def _named_gpu(device: str) -> int | None:
    """The index of the GPU that the setting `device` names, as cuda:1 does; None for `auto` or `cuda`."""
    return None if device == "auto" else torch.device(device).index


def gpus_in_turn(launcher: DictConfig) -> list[int]:
    """The GPU of each process of launch=local whose number is given; [] for another launcher, with other processes."""
    if "joblib" not in launcher._target_:
        return []
    return deal([0] * torch.cuda.device_count(), launcher.n_jobs if launcher.n_jobs > 0 else usable_cores())


@contextmanager
def dealing(slots: Sequence[int]) -> Iterator[None]:
    """Offer GPUs to `take_gpu` in the processes that are started in this block, where there are several GPUs.

    Args:
        slots: index of the visible GPU of each process.
    """
    if not slots or torch.cuda.device_count() < 2:
        yield
        return
    with NamedTemporaryFile("w", prefix="mbrl-gpus-", encoding="utf-8") as file:
        file.write(" ".join(map(str, slots)))
        file.flush()
        os.environ[SLOTS] = file.name
        try:
            yield
        finally:
            del os.environ[SLOTS]


def run_on_its_gpu(run: Callable[[DictConfig], Result], config: DictConfig) -> Result:
    """Run a job on the GPU of its process."""
    take_gpu(config.device)
    return run(config)


def take_gpu(device: str) -> None:
    """Take a GPU that `dealing` offers and no other process has taken, until this one ends: its jobs see it alone.

    Args:
        device: that of the job. One that is named with its index keeps all GPUs visible.
    """
    if SLOTS not in os.environ or _slot or torch.cuda.is_initialized() or _named_gpu(device) is not None:
        return
    file = Path(os.environ[SLOTS]).open("r+", encoding="utf-8")  # noqa: SIM115 - the lock lasts as long as it is open
    for slot, gpu in enumerate(map(int, file.read().split())):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:  # Another process has it.
            continue
        _slot.append(file)
        given = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = given.split(",")[gpu].strip() if given else str(gpu)
        return
    file.close()
