"""SAC's update, compared with a plain loop on the same networks and batch, with TorchRL's losses, and with
Stable-Baselines3 where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.bench import Row, _baseline_sac, _stable_baselines3
from mbrl.bench._machine import median_seconds, row
from mbrl.bench.replay import fields_of
from mbrl.compose import CONFIGS
from mbrl.replay.mirror import CPU
from mbrl.replay.replay import Replay
from policies.sac import SAC

STATE, ACTIONS, BATCH = 39, 4, 256  # sizes of Meta-World
EPISODES, STEPS = 500, 100
GAMMA, REPEATS = 0.99, 60


def run() -> Iterator[Row]:
    """Updates per second of all three, interleaved, of ours with each kind of network, and the cost of sampling."""
    action_spec = Bounded(-1.0, 1.0, (ACTIONS,))
    policy, replay = build("sac", action_spec), filled_replay()
    batch = replay.transitions(BATCH)
    calls = [
        lambda: policy.update(batch),
        _baseline_sac.baseline_update(copy.deepcopy(policy), batch),
        _baseline_sac.torchrl_update(copy.deepcopy(policy), batch, action_spec),
        lambda: replay.transitions(BATCH),
    ]
    ours, baseline, torchrl_seconds, sampling = median_seconds(calls, REPEATS)
    name = f"SAC update, batch {BATCH}"
    yield row(name, 1 / ours, "updates/s")
    yield row(f"{name}: a plain loop of the same networks", 1 / baseline, "updates/s")
    yield row(f"{name}: ours over the plain loop", baseline / ours, "×", "≥ 0.8")
    yield row(f"{name}: ours over TorchRL's losses", torchrl_seconds / ours, "×", "≥ 1")
    yield row(f"sampling {BATCH} transitions of states", 1e3 * sampling, "ms", "≤ 1")
    yield row(f"{name}, with sampling", 1 / (ours + sampling), "updates/s")
    yield from _compare_with_stable_baselines3(replay, action_spec)
    for networks in ("sac_bro", "sac_simba"):
        other = build(networks, action_spec)
        (duration,) = median_seconds([lambda other=other: other.update(batch)], REPEATS // 3)  # type: ignore[misc]
        yield row(f"{name}: networks of {networks}", 1 / duration, "updates/s")


def _compare_with_stable_baselines3(replay: Replay, action_spec: Bounded) -> Iterator[Row]:
    """Updates with sampling on equal networks, where that library is installed."""
    theirs = _stable_baselines3.sac_update(STATE, ACTIONS, BATCH)
    if theirs is None:
        return
    plain = build("sac", action_spec, "policy.critic_network.layer_norm=false")
    ours, peer = median_seconds([lambda: plain.update(replay.transitions(BATCH)), theirs], REPEATS)
    name = f"SAC update, batch {BATCH}, with sampling, without LayerNorm"
    yield row(name, 1 / ours, "updates/s")
    yield row(f"{name}: over Stable-Baselines3", peer / ours, "×", "≥ 1.5")


def build(name: str, action_spec: Bounded, *settings: str) -> SAC:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(f"policy/{name}", list(settings)).policy
    make = instantiate(config, _partial_=True)  # OmegaConf would convert specs, which are dataclasses.
    policy: SAC = make(observation_spec=Composite(state=Unbounded((STATE,))), action_spec=action_spec)
    return policy


def filled_replay(run_device: torch.device = CPU) -> Replay:
    """A replay in memory, as large as that of a run of 100k env steps, with a copy on the run's GPU."""
    flag = torch.zeros(EPISODES, STEPS + 1, 1, dtype=torch.bool)
    records = TensorDict(
        state=torch.randn(EPISODES, STEPS + 1, STATE),
        action=torch.rand(EPISODES, STEPS + 1, ACTIONS) * 1.8 - 0.9,
        reward=torch.rand(EPISODES, STEPS + 1, 1),
        success=flag,
        terminated=flag.clone(),
        truncated=flag.clone(),
        batch_size=[EPISODES, STEPS + 1],
    )
    capacity, fields = EPISODES * (STEPS + 1), fields_of(records)
    replay = Replay(capacity, n_step=1, gamma=GAMMA, fields=fields, run_device=run_device)
    replay.online.extend(records)
    return replay
