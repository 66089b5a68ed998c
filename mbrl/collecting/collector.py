"""The collector: TorchRL's, in this process or with one environment in each of several."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Composite
from torchrl.envs import EnvBase

from mbrl.envs.gym import with_recurrent_state
from mbrl.errors import UserError
from mbrl.processes.workers import Watch, end_with_parent, starting_workers
from mbrl.replay.replay import TRAJECTORY
from policies.base import Policy
from policies.ranges import PositiveCount, Workers

BACKENDS = ("process", "ray")
SHUTDOWN_SECONDS = 2.0


def check_workers(workers: int, frames_per_batch: int, backend: str, device: torch.device | None = None) -> None:
    """UserError where workers do not divide a batch, or for a backend that is unknown, not installed or not for GPUs.

    Args:
        workers, frames_per_batch, backend: as in `make_collector`.
        device: that of the policy; None where it is not known.
    """
    if backend not in BACKENDS:
        raise UserError(f"no collect.backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "ray" and workers > 1 and device is not None and device.type != "cpu":
        # Ray pickles the policy to workers that see no GPU.
        raise UserError(
            f"collect.backend=ray collects on CPUs, and device is {device}: set device=cpu or collect.backend=process"
        )
    if backend == "ray" and find_spec("ray") is None:
        raise UserError("collect.backend=ray needs a package that is not here: in the clone, pip install -e '.[ray]'")
    if workers < 1 or frames_per_batch % workers:
        nearest = max(1, round(frames_per_batch / max(1, workers))) * max(1, workers)
        raise UserError(
            f"collect: frames_per_batch ({frames_per_batch}) must be a multiple of workers ({workers}): "
            f"set collect.frames_per_batch={nearest}"
        )


def make_collector(
    make_env: Callable[..., EnvBase],
    policy: Policy,
    *,
    seed: int,
    workers: Workers = 1,
    frames_per_batch: PositiveCount,
    random_steps: int,
    first_episode: int = 0,
    backend: Literal["process", "ray"] = "process",
) -> Collector:
    """A collector that yields [frames_per_batch] steps at a time, for ever.

    Args:
        make_env: called with `seed`, `worker` and `first_episode`; in the worker where there are several.
        frames_per_batch: agent steps of a batch, over all workers together.
        random_steps: agent steps that are taken at random before the policy acts.
        first_episode: the episode to begin with, as a resumed run does.
        backend: what runs the workers, where there is more than one: process (on this machine) or ray (on a cluster's
            machines, or on this one where there is no cluster).

    Raises:
        UserError: see check_workers.
    """
    check_workers(workers, frames_per_batch, backend, policy.device)
    options: dict[str, Any] = {"frames_per_batch": frames_per_batch, "total_frames": -1}
    acting = policy.acting
    if policy.device.type != "cpu" and policy.acts_on_cpu and workers == 1:
        acting, options["pre_collect_hook"] = copied_to_cpu(acting)
    elif policy.device.type != "cpu":
        options |= {"policy_device": policy.device, "env_device": "cpu", "storing_device": "cpu"}
    if random_steps > 0:
        options["init_random_frames"] = random_steps
    registered = {"auto_register_policy_transforms": False}  # `with_recurrent_state` does it
    make_env = partial(_make_env, make_env, policy.carried)
    if workers == 1:
        env = make_env(seed=seed, worker=0)
        collector = Collector(env, acting, **options, **registered)
        env.seek(first_episode)  # building a collector resets the environment some times
        collector.reset()
        return collector
    in_worker = partial(_in_worker, make_env, backend)
    envs = [partial(in_worker, seed=seed, worker=w, first_episode=first_episode) for w in range(workers)]
    if backend == "ray":
        # other machines share no memory: they are sent the weights before each batch
        sent = {"update_after_each_batch": True, "remote_configs": {"num_cpus": 1, "num_gpus": 0}}
        own = [{**registered, "postproc": partial(_numbered, worker, workers)} for worker in range(workers)]
        options |= {**sent, "collector_kwargs": own, "total_frames": sys.maxsize}  # -1 ends it at once
    else:
        options |= registered
    with starting_workers():
        return Collector(envs, acting, num_collectors=workers, backend=backend, sync=True, **options)


def copied_to_cpu(acting: TensorDictModuleBase) -> tuple[TensorDictModuleBase, Callable[[], None]]:
    """A copy on the CPU of what acts on a GPU, and what brings the newest weights and buffers to it."""
    copied = copy.deepcopy(acting).cpu()

    @torch.no_grad()
    def refresh() -> None:
        for mine, newest in zip(_tensors(copied), _tensors(acting), strict=True):
            mine.copy_(newest)

    return copied, refresh


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _make_env(make_env: Callable[..., EnvBase], carried: Composite | None, **options: Any) -> EnvBase:
    return with_recurrent_state(make_env(**options), carried)


def _in_worker(
    make_env: Callable[..., EnvBase], backend: str, *, seed: int, worker: int, first_episode: int
) -> EnvBase:
    """The environment of a worker, whose global generators, from which a policy explores, are seeded before."""
    if backend == "process":
        end_with_parent()
    of_torch, of_numpy = np.random.SeedSequence([seed, worker, first_episode]).generate_state(2)
    torch.manual_seed(int(of_torch))
    np.random.seed(int(of_numpy))  # noqa: NPY002 - libraries use the global generator
    return make_env(seed=seed, worker=worker, first_episode=first_episode)


def _numbered(worker: int, workers: int, batch: TensorDictBase) -> TensorDictBase:
    """Trajectories with numbers that no other worker uses: Ray's each begin at 0."""
    batch[TRAJECTORY] = batch[TRAJECTORY] * workers + worker
    return batch


def steps_of(collector: Collector) -> Iterator[TensorDictBase]:
    """The batches of a collector.

    Raises:
        ProcessDied: a worker has died, which the message names. The other workers have been ended.
    """
    batches, watch = iter(collector), Watch(getattr(collector, "procs", ()), "collecting")
    while True:
        try:
            batch = next(batches)
        except (RuntimeError, ValueError, OSError, EOFError) as error:  # TorchRL raises them when a worker is gone
            if watch.died is None:
                raise
            raise watch.died from error
        yield batch


def shut_down(collector: Collector) -> None:
    """End a collector and its processes.

    TorchRL 0.14.1 leaves the scheme that shares weights to the interpreter's end, where closing it waits for ever; and
    a thread of that scheme keeps each worker from ending by itself, so that waiting longer for it gains nothing.
    """
    with suppress(RuntimeError):  # TorchRL 0.14.0 says once more that a worker is gone, which `steps_of` has named
        collector.shutdown(timeout=SHUTDOWN_SECONDS)
    for scheme in (getattr(collector, "_weight_sync_schemes", None) or {}).values():
        scheme.shutdown()
