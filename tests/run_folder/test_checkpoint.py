"""Checkpoints: what is saved comes back to the bit; what is damaged or does not fit is refused by name."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mbrl.errors import UserError
from mbrl.run_folder.checkpoint import Checkpoints, DamagedFile
from mbrl.run_folder.parts import ModulePart, OptimizersPart, RandomStates, ValuesPart
from mbrl.run_folder.paths import checkpoint_folders


class Learner:
    """A small network, its optimiser and a counter, with the parts that a run has."""

    def __init__(self, width: int = 3, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(2, width, 1), nn.BatchNorm2d(width)).to(memory_format=torch.channels_last)
        self.optimizer = optimizer(self.net.parameters(), lr=0.1)
        self.progress: dict[str, Any] = {"env_steps": 0, "wall_time": 0.0}
        self.generators = RandomStates()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.net(torch.rand(4, 2, 3, 3)).square().mean().backward()
        self.optimizer.step()
        self.progress["env_steps"] += 100

    def checkpoints(self, folder: Path) -> Checkpoints:
        parts = {
            "policy": ModulePart(self.net),
            "optimizers": OptimizersPart({"policy": self.optimizer}),
            "progress": ValuesPart(self.progress),
            "random": self.generators,
        }
        return Checkpoints(folder / "checkpoints", parts)


def saved(folder: Path, steps: int = 3, **options: Any) -> Learner:
    """A learner that saved after each of its steps."""
    learner = Learner(**options)
    checkpoints = learner.checkpoints(folder)
    for _ in range(steps):
        learner.step()
        checkpoints.save(learner.progress["env_steps"])
    return learner


def latest(folder: Path) -> Path:
    return list(checkpoint_folders(folder / "checkpoints").values())[-1]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_learning_goes_on_to_the_bit(tmp_path, optimizer):
    learner = saved(tmp_path, optimizer=optimizer)
    again = Learner(optimizer=optimizer)
    assert again.checkpoints(tmp_path).load_latest()
    assert again.progress == {"env_steps": 300, "wall_time": 0.0}
    for _ in range(3):  # with the random numbers that would have come
        learner.step()
    expected = {key: value.clone() for key, value in learner.net.state_dict().items()}
    drawn = (np.random.rand(), torch.rand(3))  # noqa: NPY002
    again.generators.restore()
    for _ in range(3):
        again.step()
    assert all(torch.equal(again.net.state_dict()[key], value) for key, value in expected.items())
    assert drawn[0] == np.random.rand() and torch.equal(drawn[1], torch.rand(3))  # noqa: NPY002


def test_a_checkpoint_is_a_handful_of_files_and_the_last_two_are_kept(tmp_path):
    saved(tmp_path)
    folders = checkpoint_folders(tmp_path / "checkpoints")
    assert list(folders) == [200, 300]
    assert sorted(file.name for file in folders[300].iterdir()) == [
        "manifest.json", "optimizers.safetensors", "policy.safetensors", "random.safetensors", "values.json",
    ]  # fmt: skip
    assert set(load_file(folders[300] / "policy.safetensors")) == set(Learner().net.state_dict())


def test_nothing_there_is_nothing_loaded(tmp_path):
    assert not Learner().checkpoints(tmp_path).load_latest()


def test_a_checkpoint_can_be_chosen_by_its_step(tmp_path):
    learner = saved(tmp_path)
    checkpoints = learner.checkpoints(tmp_path)
    checkpoints.load(200)
    assert checkpoints.loaded == 200
    with pytest.raises(UserError, match=r"holds no checkpoint of 100 env steps; there are: 200, 300"):
        checkpoints.load(100)
    flip(checkpoint_folders(tmp_path / "checkpoints")[200] / "policy.safetensors")
    with pytest.raises(DamagedFile, match=r"checkpoint-000000000200: policy\.safetensors does not match its checksum"):
        checkpoints.load(200)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: file.write_bytes(b""),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "removed": lambda file: file.unlink(),
    "of the checkpoint before": lambda file: file.write_bytes(
        (file.parent.with_name("checkpoint-000000000200") / file.name).read_bytes()
    ),
}
FILES = ["manifest.json", "values.json", "policy.safetensors", "optimizers.safetensors", "random.safetensors"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path, caplog, name, damage):
    saved(tmp_path)
    DAMAGES[damage](latest(tmp_path) / name)
    again = Learner()
    assert again.checkpoints(tmp_path).load_latest()
    assert again.progress["env_steps"] == 200
    (message,) = [record.message for record in caplog.records]
    assert name in message and "going on from checkpoint-000000000200: 100 env steps are lost" in message


def test_where_all_are_damaged_one_line_names_them_and_nothing_is_loaded(tmp_path):
    saved(tmp_path)
    for folder in checkpoint_folders(tmp_path / "checkpoints").values():
        flip(folder / "policy.safetensors")
    again = Learner()
    before = {key: value.clone() for key, value in again.net.state_dict().items()}
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used \(.*000300.*000200.*start anew"):
        again.checkpoints(tmp_path).load_latest()
    assert all(torch.equal(again.net.state_dict()[key], value) for key, value in before.items())


def test_a_damaged_checkpoint_is_not_kept_in_the_place_of_a_good_one(tmp_path):
    saved(tmp_path)
    flip(latest(tmp_path) / "values.json")
    again = Learner()
    checkpoints = again.checkpoints(tmp_path)
    checkpoints.load_latest()
    checkpoints.save(250)
    assert list(checkpoint_folders(tmp_path / "checkpoints")) == [200, 250]


def test_folders_that_were_swapped_are_found(tmp_path):
    saved(tmp_path)
    older, newer = checkpoint_folders(tmp_path / "checkpoints").values()
    other = older.with_name("other")
    older.rename(other)
    newer.rename(older)
    other.rename(newer)
    with pytest.raises(ValueError, match=r"manifest\.json is of step 200.*manifest\.json is of step 300"):
        Learner().checkpoints(tmp_path).load_latest()


def rewrite(folder: Path, change: Any) -> None:
    """Change the state of the newest checkpoint as somebody would who knows the format."""
    learner = Learner()
    checkpoints = learner.checkpoints(folder)
    checkpoints.load_latest()
    for name, part in checkpoints._parts.items():
        state = part.state_dict()
        part.state_dict = lambda state=state, name=name: change(name, state)  # type: ignore[method-assign]
    checkpoints.save(300)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("policy", lambda state: {**state, "more": torch.zeros(1)}, "policy has an unknown entry 'more'"),
        ("policy", lambda state: {k: v for k, v in state.items() if k != "0.bias"}, "policy lacks '0.bias'"),
        ("policy", lambda state: {**state, "0.bias": torch.zeros(4)}, r"policy/0.bias is float32 \[4\], not .* \[3\]"),
        ("policy", lambda state: {**state, "0.bias": state["0.bias"].double()}, r"policy/0.bias is float64 \[3\]"),
        ("progress", lambda state: {"env_steps": "many", "wall_time": 0.0}, "progress/env_steps is str 'many'"),
        ("progress", lambda state: {"env_steps": True, "wall_time": 0.0}, "progress/env_steps is bool 'True', not int"),
        ("progress", lambda state: {}, "progress lacks 'env_steps' and 1 more"),
        ("optimizers", lambda state: {"policy": {**state["policy"], "moments": {"0": {"code": torch.zeros(1)}}}},
         "optimizers/policy/moments/0 lacks 'step' and 2 more"),
        ("optimizers", lambda state: {"policy": {**state["policy"], "moments": {"9": {"step": torch.zeros(())}}}},
         "optimizers/policy/moments has an unknown entry '9'"),
        ("optimizers", lambda state: {"policy": {**state["policy"], "groups": {"0": {"lr": 0.1, "betas": [0.9, 0.9],
         "params": [3, 2, 1, 0]}}}}, "optimizers/policy/groups/0 has an unknown entry 'params'"),
        ("optimizers", lambda state: {"policy": {**state["policy"], "groups": {"0": {"lr": float("nan"),
         "betas": [0.9, 0.9]}}}}, "optimizers/policy/groups/0/lr is float 'nan', not float"),
        ("progress", lambda state: {"env_steps": 10**30, "wall_time": 0.0}, "progress/env_steps is int '1000"),
        ("progress", lambda state: {"env_steps": -1, "wall_time": 0.0}, "progress/env_steps is int '-1'"),
        ("random", lambda state: {**state, "torch": torch.zeros(5056, dtype=torch.uint8)}, "refuses its state"),
        ("random", lambda state: {**state, "numpy": {**state["numpy"], "position": 10**9}}, "cannot stand at 10"),
    ],
)  # fmt: skip
def test_entries_that_are_not_expected_are_refused_by_name(tmp_path, caplog, part, change, message):
    saved(tmp_path)
    rewrite(tmp_path, lambda name, state: change(state) if name == part else state)
    with pytest.raises(ValueError, match=f"does not fit this configuration: .*{message}"):
        Learner().checkpoints(tmp_path).load(300)
    again = Learner()
    assert again.checkpoints(tmp_path).load_latest() and again.progress["env_steps"] == 200
    (warning,) = [record.message for record in caplog.records if "000300" in record.message]
    assert "does not fit" in warning and warning.endswith("checkpoint-000000000200: 100 env steps are lost")


@pytest.mark.parametrize("change", [lambda folder: folder.touch(), lambda folder: folder.mkdir()])
def test_what_is_no_checkpoint_is_told_with_what_is_lost(tmp_path, caplog, change):
    saved(tmp_path)
    folder = latest(tmp_path)
    shutil.rmtree(folder)
    change(folder)
    learner = Learner()
    checkpoints = learner.checkpoints(tmp_path)
    assert checkpoints.load_latest() and learner.progress["env_steps"] == 200
    assert "going on from checkpoint-000000000200: 100 env steps are lost" in caplog.text
    checkpoints.save(300)
    assert checkpoints.load_latest() and checkpoints.loaded == 300
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_other_networks_are_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"policy/0\.bias is float32 \[3\], not float32 \[5\]"):
        Learner(width=5).checkpoints(tmp_path).load_latest()


def test_an_optimiser_that_could_not_be_restored_is_refused_before_anything_is_saved(tmp_path):
    with pytest.raises(ValueError, match="LBFGS cannot be saved in checkpoints"):
        Learner(optimizer=torch.optim.LBFGS).checkpoints(tmp_path).load_latest()


def test_the_format_before_is_told_with_what_reads_it(tmp_path):
    folder = tmp_path / "checkpoints" / "checkpoint-000000000100"
    (folder / "components" / "policy").mkdir(parents=True)
    manifest = {"format": "torchrl.checkpoint", "format_version": 1, "components": {"policy": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was written by mbrl 0\.1, .* \(git checkout 406b675\), or start anew"):
        Learner().checkpoints(tmp_path).load_latest()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_failed_write_costs_nothing_and_leaves_nothing(tmp_path, monkeypatch, code):
    learner = saved(tmp_path)
    checkpoints, written = learner.checkpoints(tmp_path), os.write

    def failing(descriptor: int, data: Any) -> int:
        if len(data) > 1000:
            raise OSError(code, os.strerror(code))
        return written(descriptor, data)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(code)) as caught:
        patch.setattr(os, "write", failing)
        checkpoints.save(400)
    assert "checkpoint-000000000400" in caught.value.filename
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-000000000200", "checkpoint-000000000300",
    ]  # fmt: skip
    again = Learner()
    assert again.checkpoints(tmp_path).load_latest() and again.progress["env_steps"] == 300


def test_what_killed_saves_left_is_removed(tmp_path):
    learner = saved(tmp_path)
    for name in (".checkpoint-000000000400.partial", ".checkpoint-000000000100.old"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "policy.safetensors").write_bytes(b"torn")
    learner.checkpoints(tmp_path).clean()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_random_states_of_missing_gpus_are_dropped_with_one_warning(caplog):
    generators = RandomStates()
    state = generators.state_dict()
    expected = torch.rand(3)
    state["cuda"] = torch.zeros(2, 16, dtype=torch.uint8)
    generators.load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)
    (message,) = [record.message for record in caplog.records]
    assert "the random states of 2 GPUs and this machine has 0: the others are dropped" in message
