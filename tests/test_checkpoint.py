"""What a run folder keeps, and whom it belongs to."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from mbrl.checkpoint import RunCheckpoint, claim_run_folder, load_config, load_policy
from mbrl.replay import Replay
from tests.test_agent import make


def checkpoint(tmp_path, progress):
    agent, _ = make()
    return RunCheckpoint(tmp_path, agent=agent, replay=Replay(100), progress=progress), agent


def test_round_trip_and_rotation(tmp_path):
    saved, agent = checkpoint(tmp_path, {"env_steps": 7})
    with torch.no_grad():
        agent.world_model.weight.fill_(5.0)
    agent.counts["policy"] = 3
    for step in (1, 2, 3):
        saved.save(step)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    progress = {"env_steps": 0}
    again, other = checkpoint(tmp_path, progress)
    assert again.load_latest()
    assert progress == {"env_steps": 7} and other.counts["policy"] == 3 and other.world_model.weight == 5.0


def test_full_disk_is_an_error_and_costs_nothing(tmp_path, monkeypatch):
    saved, _ = checkpoint(tmp_path, {"env_steps": 1})
    saved.save(1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError) as caught:
        saved.save(2)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert saved.load_latest()


def test_leftovers_of_a_killed_save_are_swept(tmp_path):
    leftover = tmp_path / "checkpoints" / ".checkpoint-1.stage-abc"
    leftover.mkdir(parents=True)
    checkpoint(tmp_path, {})
    assert not leftover.exists()


def test_missing_checkpoint_says_what_to_do(tmp_path):
    agent, _ = make()
    with pytest.raises(FileNotFoundError, match="train it first"):
        load_policy(tmp_path, agent.policy)
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        load_config(tmp_path)


def test_folder_belongs_to_one_config_but_for_how_it_is_watched(tmp_path):
    config = OmegaConf.create({"seed": 1, "eval": {"every": 10, "episodes": 20}, "agent": {"lr": 0.1}})
    claim_run_folder(tmp_path, config)
    (tmp_path / "metrics.jsonl").touch()
    claim_run_folder(tmp_path, OmegaConf.merge(config, {"eval": {"every": 99}}))
    assert load_config(tmp_path).eval.every == 99
    with pytest.raises(ValueError, match=r"agent.lr: 0.1 there, 0.2 here"):
        claim_run_folder(tmp_path, OmegaConf.merge(config, {"agent": {"lr": 0.2}}))
    with pytest.raises(ValueError, match=r"eval.episodes: 20 there, 50 here"):  # one curve, one protocol
        claim_run_folder(tmp_path, OmegaConf.merge(config, {"eval": {"episodes": 50}}))
