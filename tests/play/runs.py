"""Run folders and weights for the tests of `mbrl play`, of random weights and small."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from torchrl.data import Bounded

from mbrl.build import build_agent, build_checkpoints, build_policy, build_replay, env_factory
from mbrl.collecting.demonstrations import play
from mbrl.envs.gym import with_recurrent_state
from mbrl.run_folder.config import claim_run_folder
from mbrl.run_folder.parts import RandomStates
from tests.worldmodel.ivideogpt.test_model import make, specs
from worldmodel.ivideogpt.segments import Conditioning

TINY = ["experiment=smoke", "env=toy", "env.episode_length=20"]


def make_run(folder: Path, *overrides: str, episodes: int = 2) -> Path:
    """A run as training leaves it, with episodes of its policy in the replay."""
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("train", [f"run_dir={folder}", *TINY, *overrides])
    env = env_factory(config)(seed=config.seed)
    policy = build_policy(config, env)
    replay = build_replay(config, folder / "replay", env, policy)
    agent = build_agent(config, env, policy, replay)
    torch.manual_seed(0)
    for _ in range(episodes):
        replay.online.extend(play(with_recurrent_state(env, policy.carried), policy)[None])
    replay.flush()
    claim_run_folder(folder, config)
    build_checkpoints(folder, agent, replay, {"env_steps": 0}, RandomStates()).save(1)
    env.close()
    return folder


def make_weights(folder: Path, *, actions: bool = True) -> Path:
    """Weights in the published layout, for pictures of 16 pixels and Meta-World's actions."""
    action_spec = Bounded(-1, 1, (4,))
    model = make(conditioning=Conditioning(actions=actions), specs={**specs(), "action_spec": action_spec})
    model.save_pretrained(folder)
    return folder
