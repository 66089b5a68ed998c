"""The collector: TorchRL's, in this process or with one environment in each of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchrl.collectors import Collector
from torchrl.data import Composite
from torchrl.envs import EnvBase

from mbrl.envs.gym import carrying
from policies.base import Policy


def make_collector(
    make_env: Callable[..., EnvBase],
    policy: Policy,
    *,
    seed: int,
    workers: int = 1,
    frames_per_batch: int,
    random_steps: int,
    first_episode: int = 0,
    backend: str = "process",
) -> Collector:
    """A collector that yields [frames_per_batch] steps at a time, for ever.

    Args:
        make_env: called with `seed`, `worker` and `first_episode`; in the worker where there are several.
        frames_per_batch: agent steps of a batch, over all workers together.
        random_steps: agent steps that are taken at random before the policy acts.
        first_episode: the episode to begin with, as a resumed run does.
        backend: TorchRL's name of what runs the workers, where there is more than one.
    """
    if workers < 1 or frames_per_batch % workers:
        raise ValueError(f"collect: frames_per_batch ({frames_per_batch}) must be a multiple of workers ({workers})")
    options: dict[str, Any] = {
        "frames_per_batch": frames_per_batch,
        "total_frames": -1,
        "auto_register_policy_transforms": False,  # `carrying` does it
    }
    if policy.device.type != "cpu":
        options |= {"policy_device": policy.device, "env_device": "cpu", "storing_device": "cpu"}
    if random_steps > 0:
        options["init_random_frames"] = random_steps
    make_env = partial(_make_env, make_env, policy.carried)
    if workers == 1:
        env = make_env(seed=seed, worker=0)
        collector = Collector(env, policy.actor, **options)
        env.seek(first_episode)  # building a collector resets the environment some times
        collector.reset()
        return collector
    envs = [partial(make_env, seed=seed, worker=w, first_episode=first_episode) for w in range(workers)]
    return Collector(envs, policy.actor, num_collectors=workers, backend=backend, sync=True, **options)


def _make_env(make_env: Callable[..., EnvBase], carried: Composite | None, **options: Any) -> EnvBase:
    return carrying(make_env(**options), carried)


def shut_down(collector: Collector) -> None:
    """End a collector and its processes.

    TorchRL 0.14.1 leaves the scheme that shares weights to the interpreter's end, where closing it waits for ever.
    """
    collector.shutdown()
    for scheme in (getattr(collector, "_weight_sync_schemes", None) or {}).values():
        scheme.shutdown()
