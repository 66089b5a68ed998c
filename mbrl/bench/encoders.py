"""A DrQ-v2 update with the published settings, compared with one with the settings for a CPU."""

from __future__ import annotations

import time
from statistics import median

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.data import Bounded, Composite

from mbrl.compose import CONFIGS
from policies.base import Policy

FRAMES, ACTIONS = (9, 64, 64), 4
ROUNDS = 5
PUBLISHED, CPU = ("drqv2", 256), ("drqv2_cpu", 128)  # configuration in configs/policy, batch size


def run() -> list[dict[str, object]]:
    """Updates per second of both, interleaved, on random frames. The batch size is part of the settings."""
    learners = {name: (build(name), random_batch(rows)) for name, rows in (PUBLISHED, CPU)}
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(ROUNDS + 1):
        for name, (policy, batch) in learners.items():
            began = time.perf_counter()
            float(policy.update(batch)["critic_loss"])  # Reading the loss waits for the device.
            seconds[name].append(time.perf_counter() - began)
    # The first round warms up.
    rates = {name: 1.0 / median(times[1:]) for name, times in seconds.items()}
    rows: list[dict[str, object]] = [
        {
            "name": f"policy update: {name}, batch {batch}",
            "value": rates[name],
            "unit": "updates/s",
            "target": "",
        }
        for name, batch in (PUBLISHED, CPU)
    ]
    ratio = rates[CPU[0]] / rates[PUBLISHED[0]]
    last = {"name": "policy update: CPU over published", "value": ratio, "unit": "×", "target": "≥ 4"}
    return [*rows, last]


def build(name: str) -> Policy:
    frames = Bounded(0, 255, FRAMES, dtype=torch.uint8)
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(f"policy/{name}").policy
    make = instantiate(config, _partial_=True)  # OmegaConf would convert specs, which are dataclasses.
    policy: Policy = make(observation_spec=Composite(frames=frames), action_spec=Bounded(-1.0, 1.0, (ACTIONS,)))
    return policy


def random_batch(rows: int) -> TensorDict:
    frames = torch.randint(0, 256, (2, rows, *FRAMES), dtype=torch.uint8)
    after = {
        "frames": frames[1],
        "reward": torch.rand(rows, 1),
        "terminated": torch.zeros(rows, 1, dtype=torch.bool),
    }
    before = {
        "frames": frames[0],
        "action": torch.rand(rows, ACTIONS) * 2 - 1,
        "gamma": torch.full((rows, 1), 0.97),
    }
    return TensorDict(before | {"next": TensorDict(after, batch_size=[rows])}, batch_size=[rows])
