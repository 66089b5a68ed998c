"""What two run folders are compared by, and the parts of a run that a test builds itself."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchrl.envs import EnvBase

from mbrl import build
from mbrl.replay.replay import Replay
from mbrl.run_folder.paths import checkpoint_folders


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "wall_time" and not k.startswith("time/")} for line in lines
    ]


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest checkpoint's folder."""
    found = checkpoint_folders(run_dir / "checkpoints")
    assert found, f"{run_dir} has no checkpoint"
    return found[max(found)]


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every file of tensors in the newest checkpoint, and its values but for the wall clock."""
    latest = latest_checkpoint(run_dir)
    values = json.loads((latest / "values.json").read_text())
    values["progress"].pop("wall_time")
    files = {file.name: file.read_bytes() for file in sorted(latest.glob("*.safetensors"))}
    return {**files, "values": json.dumps(values).encode()}


def build_replay(config: DictConfig, directory: Path, env: EnvBase | None = None) -> Replay:
    """The replay of a run whose environment and policy do not matter."""
    env = env or build.env_factory(config)(seed=0)
    return build.build_replay(config, directory, env, build.build_policy(config, env))
